"""What the fuzzers draw: pickles, headers, patterns and graphs that are nearly right.

Pure noise is refused by its first bytes. These are written by the rules of their formats, and wrong
in what they say.
"""

import copy
import io
import json
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

# --- pickles -------------------------------------------------------------------------------------

NAMES = (
    "collections OrderedDict", "collections defaultdict", "torch FloatStorage", "torch Size",
    "torch HalfStorage", "torch LongStorage", "torch BoolStorage", "torch QInt8Storage",
    "torch.storage UntypedStorage", "torch.storage TypedStorage", "torch float32", "torch int64",
    "torch complex64", "torch.serialization _get_layout", "torch device", "torch Tensor",
    "torch sparse_coo", "torch per_tensor_affine", "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state",
    "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor",
    "torch._utils _rebuild_nested_tensor", "torch._utils _rebuild_meta_tensor_no_storage",
    "torch._utils _rebuild_device_tensor_from_numpy", "torch._utils _rebuild_wrapper_subclass",
    "torch._tensor _rebuild_from_type_v2", "torch.nn.parameter Parameter", "_codecs encode",
    "builtins bytearray", "builtins set", "builtins complex", "torch.nn.modules.conv Conv2d",
    "os system", "nets Net",
)  # fmt: skip
SIZES = st.sampled_from([0, 1, 2, 3, 4, 6, 7, 12, 255, 2**16, 2**31 - 1, -1, -2, -(2**31)])


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<L", len(data)) + data


def called(name: str, *arguments: bytes) -> bytes:
    return f"c{name.replace(' ', chr(10))}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def many(values: list[bytes]) -> bytes:
    return b"(" + b"".join(values) + b"t"


KEYS = st.sampled_from(["0", "1", "2", "a/b", "", "00"])
LEAVES = st.one_of(
    st.sampled_from([b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"h\x00", b"h\x63"]),
    SIZES.map(integer),
    st.sampled_from(["a", "cpu", "meta", "storage", "a.weight", "\x00", "é"]).map(text),
    st.floats(width=64).map(lambda value: b"G" + struct.pack(">d", value)),
    st.binary(max_size=9).map(lambda value: b"\x8a" + bytes([len(value)]) + value),
    st.sampled_from(NAMES).map(lambda name: f"c{name.replace(' ', chr(10))}\n".encode()),
)


def mostly(right: Any, wrong: Any) -> Any:
    """The right thing three times of four."""
    return st.integers(0, 3).flatmap(lambda n: right if n else wrong)


@st.composite
def storages(draw: Any) -> bytes:
    """The claim of a storage: that of six floats, or another."""
    older = [b"N"] if draw(st.booleans()) else []  # a view of it, in the older format
    kind = draw(mostly(st.just("torch FloatStorage"), st.sampled_from(NAMES[2:10])))
    key, size = draw(mostly(st.just(("0", 6)), st.tuples(KEYS, SIZES)))
    parts = [
        text("storage"),
        f"c{kind.replace(' ', chr(10))}\n".encode(),
        text(key),
        text("cpu"),
        integer(size),
        *older,
    ]
    return many(parts) + b"Q"


SHAPES = st.sampled_from(
    [((6,), (1,)), ((2, 3), (3, 1)), ((3, 2), (1, 3)), ((1, 6, 1, 1), (6, 1, 1, 1))]
)
LISTS = st.lists(SIZES, max_size=4).map(tuple)


@st.composite
def tensors(draw: Any) -> bytes:
    """A tensor, rebuilt from its storage in some way."""
    shape, stride = draw(mostly(SHAPES, st.tuples(LISTS, LISTS)))
    offset = draw(mostly(st.just(0), SIZES))
    arguments = [
        draw(storages()),
        integer(offset),
        many([integer(n) for n in shape]),
        many([integer(n) for n in stride]),
        b"\x89",
        called(NAMES[0]),
    ]
    way = mostly(st.just("torch._utils _rebuild_tensor_v2"), st.sampled_from(NAMES[18:]))
    return called(draw(way), *arguments)


def _terms(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    some = st.lists(inner, max_size=4)
    return st.one_of(
        some.map(many),
        some.map(lambda found: b"](" + b"".join(found) + b"e"),
        st.tuples(st.sampled_from(NAMES), some).map(lambda pair: called(pair[0], *pair[1])),
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1] + b"b"),
        st.tuples(inner, inner).map(lambda pair: b"}" + pair[0] + pair[1] + b"s"),
        inner.map(lambda found: found + b"q\x00"),
        inner.map(lambda found: found + b"Q"),
    )


TERMS = st.recursive(st.one_of(LEAVES, tensors(), storages()), _terms, max_leaves=8)


@st.composite
def pickles(draw: Any) -> bytes:
    """A dict of whatever, as the pickle of a checkpoint."""
    entries = draw(
        st.lists(st.tuples(st.sampled_from("abc"), mostly(tensors(), TERMS)), max_size=4)
    )
    body = b"}(" + b"".join(text(f"{name}.weight") + term for name, term in entries) + b"u."
    return b"\x80\x02" + body


@st.composite
def zips(draw: Any) -> bytes:
    """A whole zip file around such a pickle."""
    records = {"a/data.pkl": draw(pickles()), "a/version": b"3\n", "a/byteorder": b"little"}
    records |= {"a/data/0": bytes(24), "a/data/1": bytes(draw(st.sampled_from([0, 4, 24, 48])))}
    if draw(st.integers(0, 9)) == 0:
        records[draw(st.sampled_from(sorted(records)))] = draw(st.binary(max_size=20))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _head() -> bytes:
    """What the older format begins with: three pickles that say what it is."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    buffer.seek(0)
    for _ in range(3):
        list(pickletools.genops(buffer))
    return buffer.getvalue()[: buffer.tell()]


HEAD = _head()


@st.composite
def streams(draw: Any) -> bytes:
    """The older format: pickles in a row, then the storages."""
    keys = draw(mostly(st.just([text("0")]), st.lists(KEYS.map(text), max_size=2)))
    data = mostly(st.just((6).to_bytes(8, "little") + bytes(24)), st.binary(max_size=60))
    return HEAD + draw(pickles()) + b"\x80\x02](" + b"".join(keys) + b"e." + draw(data)


# --- JSON ----------------------------------------------------------------------------------------

PLACES = st.one_of(st.integers(-1, 20), st.sampled_from([2**31, 2**62, 2**63, 2**64, 1.5, "1"]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), PLACES, st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "U8"]), JSON),
        "shape": st.one_of(st.lists(PLACES, max_size=4), JSON),
        "data_offsets": st.one_of(st.lists(PLACES, min_size=2, max_size=2), JSON),
    }
)


@st.composite
def safetensors(draw: Any) -> bytes:
    names = st.sampled_from(["a.weight", "b", "__metadata__", "", "a" * 300])
    right = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    header: dict[str, Any] = {"c.weight": right} if draw(st.integers(0, 3)) else {}
    header |= draw(mostly(st.just({}), st.dictionaries(names, mostly(ENTRY, JSON), max_size=2)))
    written = json.dumps(header).encode()
    length = draw(mostly(st.just(len(written)), st.sampled_from([len(written) + 1, 2, 2**63])))
    size = draw(mostly(st.just(24), st.integers(0, 30)))
    return length.to_bytes(8, "little") + written + bytes(size)


INDEXES = st.one_of(JSON, st.fixed_dictionaries({"weight_map": JSON})).map(
    lambda data: json.dumps(data).encode()
)


# --- programs of torch.export --------------------------------------------------------------------


class Arms(nn.Module):
    """A program with what acfuse knows of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.bn, self.w = nn.BatchNorm2d(4), nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        total = self.bn(self.one(x)) + self.w * self.two(x)
        return torch.relu(functional.pad(total, (1, 1, 0, 0))[:, 1:]).clamp(0.0, 6.0)


@cache
def program() -> dict[str, bytes]:
    """The records of a program that is right."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(Arms().eval(), (torch.ones(1, 4, 8, 6),)), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {i.filename: archive.read(i) for i in archive.infolist()}


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Where in JSON data something can be exchanged: (container, key) pairs."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in pairs:
        yield data, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


@st.composite
def programs(draw: Any) -> bytes:
    """Such a program, in which something is exchanged: mostly in its graph."""
    found = dict(program())
    texts = sorted(name for name in found if name.endswith(".json") and b"{" in found[name])
    graphs = [name for name in texts if "/models/" in name]
    name = draw(mostly(st.just(graphs[0]), st.sampled_from(texts)))
    content = json.loads(found[name])
    inner = content.get("graph_module", content)
    inner = {k: v for k, v in inner.items() if k in ("graph", "signature")} or inner
    for _ in range(draw(st.integers(1, 2))):
        places = [*_places(inner)] or [(inner, "a")]
        container, key = places[draw(st.integers(0, len(places) - 1))]
        other, there = places[draw(st.integers(0, len(places) - 1))]
        way = draw(st.sampled_from(["value", "value", "other", "lose"]))
        if way == "value":
            container[key] = draw(st.one_of(JSON, st.sampled_from(["w", "one.weight", "relu"])))
        elif way == "other":
            container[key] = copy.deepcopy(other[there]) if len(places) > 1 else 0
        elif len(places) > 1:
            del container[key]
    found[name] = json.dumps(content).encode()
    if draw(st.integers(0, 9)) == 0:
        gone = draw(st.sampled_from(sorted(found)))
        found[gone] = draw(st.binary(max_size=8))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for record, data in found.items():
            archive.writestr(record, data)
    return buffer.getvalue()


# --- TOML ----------------------------------------------------------------------------------------

WORDS = ("a", "b.c", "each", "maybe", "x", "1", "-1", "0.5", ">", "+", "*", "[", "]", "(", ")",
         "|", ",", "?", "@", "a.*", "*.b", '"', "'", "\\", ".", "..", "<", "#", "=")  # fmt: skip
NOISE = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)
GOOD = st.recursive(
    st.sampled_from(["a", "b.c", "a.0", "a.1", "x", "a(3x3)", "b.c(1x1)", "average pool as a.1",
                     "{a.*}", "{a.* > b.c}", "a(3x3, depthwise)", "a(3x3, dilation 2)"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(" + ".join), st.tuples(inner, inner).map(" - ".join),
        st.tuples(inner, inner).map(" > ".join), inner.map("[{}]".format),
        inner.map("({})".format), inner.map("g * ({})".format), inner.map("pad as a > {}".format),
    ),
    max_leaves=6,
)  # fmt: skip
BLOCKS = mostly(GOOD, NOISE)
SETTINGS = ("name", "block", "fused", "source", "ignore", "bn_eps", "usual_eps", "ambiguity",
            "assumption", "requires", "tail", "alone", "claim", "witness", "other")  # fmt: skip


@st.composite
def patterns(draw: Any) -> bytes:
    """A file of patterns whose keys are right, and whose values need not be."""
    values: dict[str, Any] = {"name": "own", "block": draw(BLOCKS), "fused": "f", "bn_eps": 1e-5}
    odd = st.one_of(BLOCKS, JSON, st.floats(), st.text(max_size=8))
    none: st.SearchStrategy[dict[str, Any]] = st.just({})
    values |= draw(mostly(none, st.dictionaries(st.sampled_from(SETTINGS), odd, max_size=2)))
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    end = draw(mostly(st.just(""), st.text(max_size=3)))
    return "\n".join(["[[pattern]]", *lines, end]).encode("utf-8", "replace")


def _toml(value: Any) -> str:
    return str(value) if isinstance(value, float) else json.dumps(value)


# --- ONNX ----------------------------------------------------------------------------------------

OPERATORS = {
    "Conv": ("strides", "pads", "dilations", "group", "kernel_shape", "auto_pad"),
    "ConvTranspose": ("strides", "pads", "dilations", "group", "output_padding", "output_shape"),
    "BatchNormalization": ("epsilon", "training_mode", "spatial"),
    "AveragePool": ("kernel_shape", "strides", "pads", "ceil_mode", "count_include_pad"),
    "Pad": ("mode", "pads", "value"), "Slice": ("starts", "ends", "axes"),
    "Split": ("axis", "split", "num_outputs"), "Concat": ("axis",), "Transpose": ("perm",),
    "Reshape": ("allowzero",), "Squeeze": ("axes",), "Unsqueeze": ("axes",), "Cast": ("to",),
    "Add": (), "Sub": (), "Mul": (), "Div": (), "Neg": (), "Sum": (), "Identity": (), "Relu": (),
    "Dropout": ("ratio",), "Gather": ("axis",), "MatMul": (), "ReduceMean": ("axes", "keepdims"),
    "GlobalAveragePool": (), "Resize": ("mode",), "ConstantOfShape": (), "Expand": (), "Shape": (),
    "own.Thing": (),
}  # fmt: skip
INTS = st.lists(st.sampled_from([0, 1, 1, 1, 2, 3, 4, -1, 2**31, -(2**62)]), max_size=5)
ATTRIBUTES = st.one_of(
    INTS,
    st.integers(-2, 4),
    st.floats(width=32),
    st.sampled_from(["SAME_UPPER", "reflect", "VALID"]),
)


WIDTHS = {1: 4, 7: 8, 10: 2, 11: 8, 6: 4, 9: 1, 16: 2}  # bytes of a number


@st.composite
def initializers(draw: Any, name: str, shape: tuple[int, ...]) -> Any:
    """A tensor whose type, shape or number of numbers may be another."""
    size = int(np.prod(shape))
    kind = draw(mostly(st.just(1), st.sampled_from([7, 10, 11, 6, 9, 16, 0, 99])))
    odd = st.sampled_from(
        [(2**40, 2**40), (0,), (), (4,), (1, 4, 1, 1), (4, 4, 1, 3), (8, 2, 3, 3)]
    )
    dims = draw(mostly(st.just(shape), odd))
    tensor = TensorProto(name=name, data_type=kind, dims=dims)
    size += draw(mostly(st.just(0), st.sampled_from([1, -1])))
    if draw(st.booleans()) or kind != 1:
        bits = draw(st.sampled_from([0, 1, 63, 63, 63, 255]))
        tensor.raw_data = np.full(size * WIDTHS.get(kind, 4), bits, np.uint8).tobytes()
    else:
        tensor.float_data.extend([draw(st.floats(width=32))] * size)
    return tensor


STORED = {
    "w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "wd": (4, 1, 3, 3), "w13": (4, 4, 1, 3), "c": (4,),
    "c4": (1, 4, 1, 1), "one": (1,),
}  # fmt: skip
SAME = {"pads": [1, 1, 1, 1]}
RIGHT: tuple[tuple[str, list[str], dict[str, Any]], ...] = (
    ("Conv", ["*", "w3"], SAME),
    ("Conv", ["*", "w3", "c"], SAME),
    ("Conv", ["*", "w1"], {}),
    ("Conv", ["*", "w13"], {"pads": [0, 1, 0, 1]}),
    ("Conv", ["*", "wd"], {**SAME, "group": 4}),
    ("BatchNormalization", ["*", "c", "c", "c", "c"], {}),
    ("AveragePool", ["*"], {**SAME, "kernel_shape": [3, 3], "count_include_pad": 1}),
    ("Mul", ["*", "c4"], {}),
    ("Add", ["*", "c4"], {}),
    ("Add", ["*", "*"], {}),
    ("Sub", ["*", "*"], {}),
    ("Sum", ["*", "*", "*"], {}),
    ("Concat", ["*", "*"], {"axis": 1}),
    ("Transpose", ["*"], {"perm": [0, 2, 3, 1]}),
    *((kind, ["*"], {}) for kind in ("Identity", "Neg", "Relu", "Dropout")),
)


@st.composite
def nodes(draw: Any, name: str, known: list[str]) -> Any:
    """A node that is as it should be, or has other inputs or attributes."""
    kind, places, settings = draw(st.sampled_from(RIGHT))
    values = [n for n in known if n not in STORED]
    reads = [draw(st.sampled_from(values)) if place == "*" else place for place in places]
    settings = dict(settings)
    if draw(st.integers(0, 5)) == 0:
        kind = draw(st.sampled_from(sorted(OPERATORS)))
    if draw(st.integers(0, 5)) == 0:
        reads = draw(st.lists(st.sampled_from(["", *known]), max_size=5))
    if draw(st.integers(0, 3)) == 0 and OPERATORS[kind]:
        settings[draw(st.sampled_from(OPERATORS[kind]))] = draw(ATTRIBUTES)
    domain, _, operator = kind.rpartition(".")
    node = helper.make_node(operator, reads, [name], domain=domain)
    for setting, value in settings.items():
        if value != []:
            node.attribute.append(helper.make_attribute(setting, value))
    return node


@st.composite
def onnx_files(draw: Any) -> bytes:
    """A graph of operators that are used rightly or wrongly; then, sometimes, other bytes."""
    odd_one = draw(mostly(st.just(""), st.sampled_from(sorted(STORED))))
    stored = [
        draw(initializers(name, shape)) if name == odd_one
        else numpy_helper.from_array(np.linspace(0.5, 1.5, int(np.prod(shape)), dtype=np.float32)
                                     .reshape(shape), name)
        for name, shape in STORED.items()
    ]  # fmt: skip
    known = ["x", *STORED]
    graph_nodes = []
    for n in range(draw(st.integers(1, 7))):
        graph_nodes.append(draw(nodes(f"v{n}", known)))
        known.append(f"v{n}")
    odd = st.sampled_from([["n", 4, "h", "w"], [1, 4, 9], [2**40, 4, 1, 1], []])
    graph = helper.make_graph(
        graph_nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, draw(mostly(st.just([1, 4, 8, 6]), odd)))],
        [helper.make_tensor_value_info(known[-1], 1, None)],
        stored,
    )
    opset = draw(mostly(st.just(20), st.sampled_from([17, 13, 11, 9, 7, 1, 99])))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    version = draw(mostly(st.just(9), st.sampled_from([8, 3])))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
    data = bytearray(model.SerializeToString())
    places = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=2)
    for place, byte in draw(mostly(st.just([]), places)):
        data[place % len(data)] = byte
    return bytes(data)
