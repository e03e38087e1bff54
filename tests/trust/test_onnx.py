"""ONNX files that reach elsewhere, or ask for far more than they hold."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from acfuse.errors import InputError, UnsafeError
from acfuse.files.onnx_reading import read_onnx
from acfuse.graph.onnx_values import LARGEST_FOLD, constants_of
from acfuse.sources.onnx import fuse_onnx
from tests.trust.sample import converted


def model_of(nodes: list, *, initializers: tuple = ()) -> onnx.ModelProto:
    shape = ["n", 1, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def outside(folder: Path, **said: str) -> Path:
    """A model whose one weight is where `said` says."""
    weight = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in said.items():
        weight.external_data.add(key=key, value=value)
    path = folder / "net.onnx"
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    path.write_bytes(model_of([conv], initializers=(weight,)).SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(100))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "net.data").write_bytes(bytes(36))
    return tmp_path / "own"


def test_a_file_beside_it_is_read(folder):
    model, _ = read_onnx(outside(folder, location="net.data", offset="0", length="36"))
    assert len(model.graph.initializer[0].raw_data) == 36


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "./net.data", "a/../net.data", "", ".", "..", "..\\secret",
     "nothing", "link", "hard", "dangling", "folder", "fifo"],
)  # fmt: skip
def test_a_file_that_is_elsewhere_or_no_file(folder, location):
    (folder / "link").symlink_to("../secret")
    (folder / "dangling").symlink_to("../nothing")
    os.link(folder.parent / "secret", folder / "hard")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    with pytest.raises(UnsafeError, match=r"net\.onnx"):
        read_onnx(outside(folder, location=location))


@pytest.mark.parametrize(
    "said",
    [{"length": "37"}, {"offset": "1", "length": "36"}, {"offset": "-1"}, {"length": "-4"},
     {"offset": "9" * 30}, {"length": "many"}],
    ids=str,
)  # fmt: skip
def test_a_place_that_is_not_in_the_file(folder, said):
    with pytest.raises(InputError, match=r"net\.onnx"):
        read_onnx(outside(folder, location="net.data", **said))


BIG = 2**17  # two of these stretch to 2**34 numbers


def number(name: str, value: object, kind: type = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, kind), name)


BOMBS = {
    "ConstantOfShape": ([number("a", [BIG, BIG])], ["a"]),
    "Expand": ([number("a", [[1.0]], np.float32), number("b", [BIG, BIG])], ["a", "b"]),
    "Tile": ([number("a", [1.0], np.float32), number("b", [BIG * BIG])], ["a", "b"]),
    "Range": ([number("a", 0), number("b", BIG * BIG), number("c", 1)], ["a", "b", "c"]),
    "Add": ([number("a", np.zeros((BIG, 1)), np.float32), number("b", np.zeros(BIG), np.float32)],
            ["a", "b"]),
    "Gather": ([number("a", np.zeros((1, BIG)), np.float32), number("b", [0] * BIG)], ["a", "b"]),
    "MatMul": ([number("a", np.zeros((BIG, 1)), np.float32),
                number("b", np.zeros((1, BIG)), np.float32)], ["a", "b"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_constants_that_would_be_huge_are_not_computed(kind):
    initializers, inputs = BOMBS[kind]
    nodes = [helper.make_node(kind, inputs, ["c0"]), helper.make_node("Identity", ["x"], ["y"])]
    model = model_of(nodes, initializers=tuple(initializers))
    assert "c0" not in constants_of(model.graph, {}, 20)
    assert not fuse_onnx(model).found


def test_constants_of_a_usual_size_are_computed():
    nodes = [helper.make_node("Expand", ["a", "b"], ["c0"])]
    initializers = (number("a", [[2.0]], np.float32), number("b", [3, 5]))
    found = constants_of(model_of(nodes, initializers=initializers).graph, {}, 20)
    assert numpy_helper.to_array(found["c0"]).tolist() == [[2.0] * 5] * 3
    assert LARGEST_FOLD > 3 * 5


def test_dims_that_overflow_are_no_small_number():
    huge = number("a", [1])
    huge.dims[:] = [2**62, 2**62]
    nodes = [helper.make_node("Identity", ["a"], ["c0"])]
    assert "c0" not in constants_of(model_of(nodes, initializers=(huge,)).graph, {}, 20)


def test_many_constants_that_are_large_together_are_not_computed(monkeypatch):
    monkeypatch.setattr("acfuse.graph.onnx_values.LARGEST_FOLDS", 1000)
    shape = number("s", [10, 10])
    nodes = [helper.make_node("ConstantOfShape", ["s"], [f"c{n}"]) for n in range(50)]
    found = constants_of(model_of(nodes, initializers=(shape,)).graph, {}, 20)
    assert 8 < len(found) < 15


@pytest.mark.parametrize("key", ["strides", "dilations", "pads"])
@pytest.mark.parametrize("numbers", [[1], [1, 1, 1], [1] * 6])
def test_attributes_that_contradict_the_kernel_are_refused(key, numbers):
    def conv(i: int, **more: object) -> onnx.NodeProto:
        return onnx.helper.make_node("Conv", ["x", f"w{i}"], [f"y{i}"], **more)

    floats = onnx.TensorProto.FLOAT
    weights = [
        onnx.helper.make_tensor(f"w{i}", floats, (2, 2, 1, 1), [1.0, 2.0, 3.0, 4.0])
        for i in range(2)
    ]
    graph = onnx.helper.make_graph(
        [conv(0, **{key: numbers}), conv(1), onnx.helper.make_node("Add", ["y0", "y1"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", floats, (1, 2, 3, 4))],
        [onnx.helper.make_tensor_value_info("y", floats, None)],
        weights,
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    try:
        fused = fuse_onnx(model)
    except InputError:
        return
    assert not fused.found
    assert fused.refused


def test_an_output_that_reaches_elsewhere_is_not_run(forks, tmp_path):
    """What verify runs is read as any ONNX file is: its tensors are in no other folder."""
    folder = tmp_path / "own"
    converted(forks, folder, seed=1, onnx=True)
    path = folder / "model.fused.onnx"
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    (tmp_path / "secret").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    ended = forks.run("verify", folder=folder)
    assert (ended.exit, ended.is_one_line) == (4, True), ended.stderr
    assert "'../secret'" in ended.stderr


def test_tensors_that_are_one_place_of_a_file(folder):
    path = outside(folder, location="net.data", offset="0", length="36")
    model = onnx.load(path, load_external_data=False)
    for n in range(3):
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"w{n}"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeError, match="more than once"):
        read_onnx(path)
