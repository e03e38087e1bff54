"""Small files that ask for much: each by another way. All are made here, in a folder of a test."""

import json
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

Maker = Callable[[Path], list[str]]  # writes a file, and says how acfuse is asked about it
HEAD = b"\x80\x02"
HUGE = 2**40


def records(folder: Path) -> dict[str, bytes]:
    """The records of a small checkpoint."""
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2)}, folder / "good.pth")
    with zipfile.ZipFile(folder / "good.pth") as archive:
        return {i.filename: archive.read(i) for i in archive.infolist()}


def zipped(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip file of these records."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def pickled(path: Path, operations: bytes) -> Path:
    """A checkpoint whose pickle does what these opcodes say."""
    return zipped(path, {**records(path.parent), "good/data.pkl": HEAD + operations + b"."})


def asked(path: Path) -> list[str]:
    return ["inspect", path.name]


# --- torch.save ----------------------------------------------------------------------------------


def deflated(folder: Path) -> list[str]:
    content = {**records(folder), "good/data/0": bytes(2**30)}
    return asked(zipped(folder / "it.pth", content, zipfile.ZIP_DEFLATED))


def deflated_pickle(folder: Path) -> list[str]:
    content = {**records(folder), "good/data.pkl": HEAD + b"N" * 2**28 + b"."}
    return asked(zipped(folder / "it.pth", content, zipfile.ZIP_DEFLATED))


def expanded(folder: Path) -> list[str]:
    torch.save({"a.weight": torch.zeros(1).expand(2**20, 2**20)}, folder / "it.pth")
    return asked(folder / "it.pth")


def one_storage_many_times(folder: Path) -> list[str]:
    """Each tensor fits into its storage; were they copied, there would be 40 GB of them."""
    whole = torch.zeros(2**20)
    torch.save({f"{n}.weight": whole.view(2**10, 2**10) for n in range(10_000)}, folder / "it.pth")
    return asked(folder / "it.pth")


def many_parts_of_one_storage(folder: Path) -> list[str]:
    """The same, each of other numbers."""
    whole = torch.zeros(2**20)
    parts = {f"{n}.weight": whole[n:] for n in range(10_000)}
    torch.save(parts, folder / "it.pth")
    return asked(folder / "it.pth")


def sparse(folder: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), [1.0], (2**30, 2**30))
        torch.save({"a.weight": one}, folder / "it.pth")
    return asked(folder / "it.pth")


def without_numbers(folder: Path) -> list[str]:
    torch.save({"a.weight": torch.empty(2**20, 2**20, device="meta")}, folder / "it.pth")
    return asked(folder / "it.pth")


def laughs_of_dicts(folder: Path) -> list[str]:
    whole: Any = {"a": torch.zeros(2)}
    for _ in range(3):
        whole = {f"entry{n}": whole for n in range(3000)}
    torch.save(whole, folder / "it.pth")
    return asked(folder / "it.pth")


def laughs_of_lists(folder: Path) -> list[str]:
    value: Any = torch.zeros(1)
    for _ in range(60):
        value = [value, value]
    torch.save({"a": 1, "laughs": value}, folder / "it.pth")
    return asked(folder / "it.pth")


def laughs_of_tuples(folder: Path) -> list[str]:
    return asked(pickled(folder / "it.pth", b"}" + b")" + b"q\x00h\x00\x86" * 60 + b"K\x01s"))


def levels(folder: Path) -> list[str]:
    return asked(pickled(folder / "it.pth", b"]" * 200_000 + b"a" * 199_999))


def operations(folder: Path) -> list[str]:
    return asked(pickled(folder / "it.pth", b"N" * 20_000_000))


def values(folder: Path) -> list[str]:
    return asked(pickled(folder / "it.pth", b"](" + b"K\x01" * 1_100_000 + b"e"))


def bytearrays(folder: Path) -> list[str]:
    call = b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R"
    return asked(pickled(folder / "it.pth", call))


def encoded(folder: Path) -> list[str]:
    text = b"X\x00\x00\x01\x00" + b"x" * 2**16 + b"q\x00"
    call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00utf-32\x86R"
    return asked(pickled(folder / "it.pth", text + call * 5000))


def long_numbers(folder: Path) -> list[str]:
    return asked(pickled(folder / "it.pth", b"\x8b" + struct.pack("<L", 2**24) + b"\x7f" * 2**24))


def called_tensor(folder: Path) -> list[str]:
    call = b"}X\x01\x00\x00\x00actorch\nTensor\nJ\x00\x00\x10\x00M\x00\x10\x86Rs"
    return asked(pickled(folder / "it.pth", call))


def legacy(folder: Path) -> list[str]:
    path = folder / "it.pth"
    torch.save(OrderedDict(a=torch.ones(200)), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\xc8", b"J\xff\xff\xff\x7f", 1))
    return asked(path)


def directory(folder: Path) -> list[str]:
    """A million records of nothing, by the end of a large file, which says nothing of it itself."""
    count = 1_000_000
    one = struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", 45, 45, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0
    )
    whole = b"PK\x03\x04" + bytes(26)
    start, length = len(whole), count * (len(one) + 1)
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
    end += struct.pack("<4sLQL", b"PK\x06\x07", 0, start + length, 1)
    end += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    (folder / "it.pth").write_bytes(whole + (one + b"a") * count + end)
    return asked(folder / "it.pth")


def many_records(folder: Path) -> list[str]:
    """As many records as a file may have."""
    content = {f"good/{n}": b"" for n in range(49_000)}
    return asked(zipped(folder / "it.pth", {**records(folder), **content}))


# --- safetensors ---------------------------------------------------------------------------------


def with_header(folder: Path, header: bytes, length: int | None = None, data: int = 0) -> list[str]:
    path = folder / "it.safetensors"
    size = len(header) if length is None else length
    with path.open("wb") as file:
        file.write(size.to_bytes(8, "little") + header)
        file.truncate(8 + size + data)
    return asked(path)


def long_header(folder: Path) -> list[str]:
    return with_header(folder, b'{"a":1}', 2**26)


def deep_header(folder: Path) -> list[str]:
    return with_header(folder, b'{"a":' * 2**22 + b"1" + b"}" * 2**22)


def many_tensors(folder: Path) -> list[str]:
    one = '"{}":{{"dtype":"U8","shape":[],"data_offsets":[{},{}]}}'
    text = ",".join(one.format(n, n, n + 1) for n in range(500_000))
    return with_header(folder, f"{{{text}}}".encode(), data=500_000)


def many_pairs(folder: Path) -> list[str]:
    return with_header(folder, b"{" + b",".join(b'"%d":0' % n for n in range(2_000_000)) + b"}")


def empty_but_large(folder: Path) -> list[str]:
    entry = {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}
    return with_header(folder, json.dumps({"a.weight": entry}).encode())


# --- ONNX ----------------------------------------------------------------------------------------


def onnx_file(folder: Path, data: bytes, *more: str) -> list[str]:
    (folder / "it.onnx").write_bytes(data)
    return ["inspect", "it.onnx", *more]


def model(nodes: list[Any], tensors: list[Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def deep_protobuf(folder: Path) -> list[str]:
    """Graphs in attributes of nodes in graphs."""
    inner = b""
    for _ in range(3000):
        inner = field(1, field(5, field(6, inner)))
    return onnx_file(folder, b"\x08\x09" + field(7, inner))


def deep_types(folder: Path) -> list[str]:
    """A sequence of sequences, as the type of an input."""
    inner = b""
    for _ in range(20_000):
        inner = field(4, field(1, inner))
    return onnx_file(folder, b"\x08\x09" + field(7, field(11, field(2, inner))))


def many_nodes(folder: Path) -> list[str]:
    """Two bytes each, and a hundred in memory."""
    return onnx_file(folder, b"\x08\x09" + field(7, b"\x0a\x00" * 20_000_000))


def many_inputs(folder: Path) -> list[str]:
    return onnx_file(folder, b"\x08\x09" + field(7, field(1, b"\x0a\x00" * 20_000_000)))


def many_dims(folder: Path) -> list[str]:
    """A byte each, and eight in memory."""
    tensor = field(1, b"\x01" * 100_000_000)
    return onnx_file(folder, b"\x08\x09" + field(7, field(5, tensor)))


def laughs_of_functions(folder: Path) -> list[str]:
    """Functions that call the next one twice."""
    whole = model([helper.make_node("f0", ["x"], ["y"], domain="own")], [])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    for n in range(40):
        kind, domain = ("Relu", "") if n == 39 else (f"f{n + 1}", "own")
        twice = [
            helper.make_node(kind, ["a"], ["b"], domain=domain),
            helper.make_node(kind, ["b"], ["c"], domain=domain),
        ]
        made = helper.make_function("own", f"f{n}", ["a"], ["c"], twice, opsets)
        whole.functions.append(made)
    whole.opset_import.append(opsets[1])
    return onnx_file(folder, whole.SerializeToString())


def huge_initializer(folder: Path) -> list[str]:
    tensor = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    tensor.dims[:] = [HUGE, 1, 1, 1]
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    return onnx_file(folder, model([conv], [tensor]).SerializeToString())


def convolutions(**settings: Any) -> bytes:
    """Two branches with settings that a proof would have to look at."""
    tensors = [numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), n) for n in "vw"]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], **settings),
        helper.make_node("Conv", ["x", "w"], ["b"], **settings),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    return model(nodes, tensors).SerializeToString()


def huge_dilation(folder: Path) -> list[str]:
    far = 2**20
    data = convolutions(dilations=[far, far], pads=[far] * 4)
    return ["convert", onnx_file(folder, data)[1], "-o", "out.onnx"]


def huge_pads(folder: Path) -> list[str]:
    data = convolutions(pads=[2**20] * 4)
    return ["convert", onnx_file(folder, data)[1], "-o", "out.onnx"]


def huge_stride(folder: Path) -> list[str]:
    data = convolutions(strides=[2**20] * 2, pads=[1] * 4)
    return ["convert", onnx_file(folder, data)[1], "-o", "out.onnx"]


def huge_pool(folder: Path) -> list[str]:
    nodes = [
        helper.make_node("AveragePool", ["x"], [n], kernel_shape=[2**20] * 2, pads=[2**19] * 4,
                         count_include_pad=1)
        for n in "ab"
    ]  # fmt: skip
    nodes.append(helper.make_node("Add", ["a", "b"], ["y"]))
    return onnx_file(folder, model(nodes, []).SerializeToString())


def running(folder: Path, *nodes: Any, tensors: dict[str, Any], size: int = 8) -> list[str]:
    """A block that can be fused, and what another output of the model asks for when it is run."""
    stored = {**tensors, **{n: np.ones((1, 1, 3, 3), np.float32) for n in "vw"}}
    block = [
        helper.make_node("Conv", ["x", "v"], ["a"]),
        helper.make_node("Conv", ["x", "w"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    whole = model([*block, *nodes], made)
    for axis in (2, 3):
        whole.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    if nodes:
        whole.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    return ["convert", onnx_file(folder, whole.SerializeToString())[1], "-o", "out.onnx"]


def huge_when_run(folder: Path) -> list[str]:
    """Its size is known from the image alone."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Mul", ["s", "k"], ["t"]),
        helper.make_node("ConstantOfShape", ["t"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["z"], keepdims=0),
    ]
    return running(folder, *nodes, tensors={"k": np.array([1, 1, 2**12, 2**12])})


def endless_when_run(folder: Path) -> list[str]:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["i", "one"], ["o"])],
        "body",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("i", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("o", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.array(1.0, np.float32), "one")],
    )
    loop = helper.make_node("Loop", ["k", "t", "x"], ["z"], body=body)
    tensors = {"k": np.array(2**60), "t": np.array(True)}
    return [*running(folder, loop, tensors=tensors), "--limit", "seconds=1"]


def huge_image(folder: Path) -> list[str]:
    return running(folder, tensors={}, size=2**20)


def huge_sparse_initializer(folder: Path) -> list[str]:
    proto = model([helper.make_node("Conv", ["x", "w"], ["y"])], [])
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "w"), np.zeros(1, np.int64)
    found = numpy_helper.from_array(indices, "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, found, [HUGE, 1, 1, 1]))
    return onnx_file(folder, proto.SerializeToString())


STRETCHED = {
    "ConstantOfShape": [np.array([2**17, 2**17, 1, 1])],
    "Expand": [np.ones((1, 1, 1, 1), np.float32), np.array([2**17, 2**17, 1, 1])],
    "Tile": [np.ones((1, 1, 1, 1), np.float32), np.array([2**17, 2**17, 1, 1])],
    "Range": [
        np.array(0.0, np.float32),
        np.array(2.0**34, np.float32),
        np.array(1, np.float32),
    ],
}


def huge_constant(kind: str) -> Maker:
    """A node that makes much of two small tensors, as the weight of a convolution."""
    stored = STRETCHED[kind]

    def make(folder: Path) -> list[str]:
        tensors = [numpy_helper.from_array(a, f"t{n}") for n, a in enumerate(stored)]
        nodes = [
            helper.make_node(kind, [t.name for t in tensors], ["w"]),
            helper.make_node("Conv", ["x", "w"], ["y"]),
        ]
        return onnx_file(folder, model(nodes, tensors).SerializeToString())

    return make


def external_many_times(folder: Path) -> list[str]:
    """Tensors that are all the same place of one file beside it."""
    (folder / "it.data").write_bytes(bytes(2**22))
    tensors = []
    for n in range(2000):
        tensor = TensorProto(name=f"w{n}", data_type=TensorProto.FLOAT, dims=[2**20])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "it.data"), ("offset", "0"), ("length", str(2**22))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    proto = model([helper.make_node("Identity", ["x"], ["y"])], tensors)
    return onnx_file(folder, proto.SerializeToString())


# --- other files that are read -------------------------------------------------------------------


def deep_index(folder: Path) -> list[str]:
    path = folder / "m.safetensors.index.json"
    path.write_bytes(b'{"weight_map":' * 2**20 + b"1" + b"}" * 2**20)
    return asked(path)


def many_shards(folder: Path) -> list[str]:
    path = folder / "m.safetensors.index.json"
    entries = b",".join(b'"%d":"a"' % n for n in range(3_000_000))
    path.write_bytes(b'{"weight_map":{' + entries + b"}}")
    return asked(path)


def many_lists(folder: Path) -> list[str]:
    path = folder / "m.safetensors.index.json"
    path.write_bytes(b'{"weight_map":[' + b"[]," * 20_000_000 + b"[]]}")
    return asked(path)


def deep_toml(folder: Path) -> list[str]:
    records(folder)
    (folder / "own.toml").write_bytes(b"a = " + b"[" * 30_000 + b"]" * 30_000)
    return ["inspect", "good.pth", "--patterns", "own.toml"]


def deep_expression(folder: Path) -> list[str]:
    records(folder)
    block = "(" * 30_000 + "a" + ")" * 30_000
    text = f'[[pattern]]\nname = "a"\nblock = "{block}"\nfused = "b"\nbn_eps = 1e-5\nsource = "s"\n'
    (folder / "own.toml").write_text(text)
    return ["inspect", "good.pth", "--patterns", "own.toml"]


def deep_manifest(folder: Path) -> list[str]:
    (folder / "m.fused.acfuse.json").write_bytes(b'{"a":' * 2**20 + b"1" + b"}" * 2**20)
    return ["verify"]


def deep_configuration(folder: Path) -> list[str]:
    records(folder)
    (folder / "acfuse.toml").write_bytes(b"a = " + b"[" * 2**20 + b"]" * 2**20)
    return ["inspect", "good.pth"]


BOMBS: dict[str, Maker] = {
    made.__name__: made
    for made in (
        deflated, deflated_pickle, expanded, one_storage_many_times,
        many_parts_of_one_storage, sparse, without_numbers,
        laughs_of_dicts, laughs_of_lists, laughs_of_tuples, levels, operations, values, bytearrays,
        encoded, long_numbers, called_tensor, legacy, directory, many_records,
        long_header, deep_header, many_tensors, many_pairs, empty_but_large,
        deep_protobuf, deep_types, many_nodes, many_inputs, many_dims, laughs_of_functions,
        huge_initializer,
        huge_sparse_initializer, external_many_times,
        huge_dilation, huge_pads, huge_stride, huge_pool,
        huge_when_run, endless_when_run, huge_image,
        deep_index, many_shards, many_lists, deep_toml, deep_expression,
        deep_manifest, deep_configuration,
    )
}  # fmt: skip
BOMBS |= {f"huge {kind}": huge_constant(kind) for kind in STRETCHED}
