"""ONNX files in: the same blocks as in the live model, by algebra alone, proved and equal."""

import io
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import acfuse
from acfuse.cli import cli
from acfuse.errors import InputError, Reason
from acfuse.files.onnx_reading import read_onnx
from acfuse.pipeline.convert import prove
from acfuse.proof import Inputs, Tolerance
from acfuse.sources.onnx import (
    OnnxFused,
    fuse_onnx,
    with_tensors,
)
from acfuse.targets.onnx_export import count_nodes
from sample_models import samples
from tests.bounds import assert_within, rounding

SAMPLES = samples()
# A module that is called twice is two places in a file; circular padding is exported as slices.
BLOCKS = {"acnet/shared": 2, "acnet/circular": 0}


def exported(model: nn.Module, shape: tuple[int, ...], opset: int = 17, **options: object) -> bytes:
    """The file that torch's older exporter writes, with BatchNorms left as nodes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            torch.randn(*shape),
            buffer,
            dynamo=False,
            opset_version=opset,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            **options,
        )
    return buffer.getvalue()


def proved(original: onnx.ModelProto, fused: OnnxFused, *shapes: tuple[int, ...]) -> None:
    inputs = Inputs(tuple((None, shape) for shape in shapes)) if shapes else None
    assert fused.source.model is original
    proofs = prove(fused, inputs, Tolerance())
    assert proofs.passed, proofs.fault


def answer(model: onnx.ModelProto, *images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [v.name for v in (*session.get_inputs(), *session.get_overridable_initializers())]
    return session.run(None, dict(zip(names, images, strict=False)))


@pytest.mark.parametrize("name", [n for n, s in SAMPLES.items() if s.blocks])
def test_a_sample_is_fused_without_its_code(name: str) -> None:
    sample = SAMPLES[name]
    original = onnx.load_from_string(exported(sample.build(), sample.input_shapes[0]))
    before = original.SerializeToString()
    fused = fuse_onnx(original)
    assert original.SerializeToString() == before
    assert len(fused.findings.blocks) == BLOCKS.get(name, sample.blocks)
    proved(original, fused, sample.input_shapes[0])
    saved = sum(f.convolutions[0] - f.convolutions[1] for f in fused.found)
    assert count_nodes(fused.model, "Conv") == count_nodes(original, "Conv") - saved
    assert [v.name for v in fused.model.graph.output] == [v.name for v in original.graph.output]


@pytest.mark.parametrize("name", [n for n, s in SAMPLES.items() if not s.blocks])
def test_a_look_alike_is_left_as_it_is(name: str) -> None:
    sample = SAMPLES[name]
    original = onnx.load_from_string(exported(sample.build(), sample.input_shapes[0]))
    fused = fuse_onnx(original)
    assert not fused.findings.blocks
    assert count_nodes(fused.model, "Conv") == count_nodes(original, "Conv")


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
@pytest.mark.parametrize("name", ["acnet/k5_p1", "acnet/reflect", "repvgg/se"])
def test_old_and_new_opsets(name: str, opset: int) -> None:
    sample = SAMPLES[name]
    original = onnx.load_from_string(exported(sample.build(), sample.input_shapes[0], opset))
    fused = fuse_onnx(original)
    assert len(fused.findings.blocks) == sample.blocks
    proved(original, fused, sample.input_shapes[0])


def test_no_batch_norm_is_left_with_fold_bn() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    original = onnx.load_from_string(exported(model, (1, 3, 9, 8)))
    assert not fuse_onnx(original).found
    fused = fuse_onnx(original, fold_bn=True)
    assert count_nodes(fused.model, "BatchNormalization") == 0
    assert not fused.findings.blocks
    proved(original, fused, (1, 3, 9, 8))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "end",
    [
        lambda y: torch.sigmoid(1e4 * y),
        lambda y: torch.softmax(1e3 * y, 1),
        lambda y: torch.relu(y - 1e9),
    ],
    ids=["sigmoid", "softmax", "zeros"],
)
def test_no_false_alarm_where_a_file_ends_in_what_squashes(end: object, seed: int) -> None:
    class Ending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.h = SAMPLES["acnet/k3"].build(), nn.Conv2d(5, 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return end(self.h(torch.relu(self.i(x))))

    torch.manual_seed(seed)
    original = onnx.load_from_string(exported(Ending().eval(), (1, 3, 13, 16)))
    fused = fuse_onnx(original)
    assert fused.found
    proved(original, fused, (1, 3, 13, 16))


FREE = [None] * 4


def tensor(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def graph_of(
    nodes: list[onnx.NodeProto],
    *outputs: str,
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    ir: int = 10,
    tensors: tuple[onnx.TensorProto, ...] = (),
    shape: tuple[object, ...] | None = ("n", 4, "h", "w"),
    inputs: tuple[onnx.ValueInfoProto, ...] = (),
) -> onnx.ModelProto:
    """A file with an input x of 4 channels, and the weights w3 (3x3), w1 (1x1) and b."""
    generator = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    stored = [
        numpy_helper.from_array(generator.normal(size=size).astype(dtype), name)
        for name, size in (("w3", (4, 4, 3, 3)), ("w1", (4, 4, 1, 1)), ("b", (4,)))
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, shape), *inputs],
        [helper.make_tensor_value_info(n, kind, FREE) for n in outputs],
        [*stored, *tensors],
    )
    if ir < 4:
        known = {value.name for value in graph.input}
        graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in graph.initializer
            if t.name not in known
        )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    if shape is not None:  # onnxruntime does without
        onnx.checker.check_model(model)
    return model


def node(kind: str, reads: str, makes: str, **settings: object) -> onnx.NodeProto:
    """A node in one line; "_" stands for an optional input that is left out."""
    names = ["" if n == "_" else n for n in reads.split()]
    return helper.make_node(kind, names, makes.split(), **settings)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def equal(
    original: onnx.ModelProto, fused: onnx.ModelProto, *shape: int, others: tuple[float, ...] = ()
) -> None:
    """Both files give the same, for one image (and channels of `others`), up to rounding."""
    image = torch.tensor(np.random.default_rng(1).normal(size=shape).astype(np.float32))
    given = [image, *([torch.tensor(others).reshape(1, -1, 1, 1)] if others else [])]
    inputs = {value.name for value in original.graph.input}
    weights = [t for t in original.graph.initializer
               if t.data_type == TensorProto.FLOAT and t.name not in inputs]  # fmt: skip
    stored = [torch.tensor(numpy_helper.to_array(t)) for t in weights]

    def run(model: onnx.ModelProto, *numbers: torch.Tensor) -> list[torch.Tensor]:
        """What a file gives for the inputs, with other numbers in its weights if there are more."""
        arrays = [x.numpy().astype(np.float32) for x in numbers]
        images, moved = arrays[: len(given)], arrays[len(given) :]
        other = onnx.ModelProto.FromString(model.SerializeToString())
        stored = {t.name: t for t in other.graph.initializer}
        for t, array in zip(weights, moved, strict=False):
            stored[t.name].CopyFrom(numpy_helper.from_array(array, t.name))
        return [torch.tensor(array) for array in answer(other, *images)]

    longest = max(x[0].numel() for x in stored if x.ndim) + 1
    bound = rounding(partial(run, original), *given, *stored, dtype=torch.float32, longest=longest)
    assert_within(run(fused, *given), run(original, *given), bound)


def two_arms(result: str = "y") -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", ["x", "w3", "b"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "w1", "b"], ["c"]),
        helper.make_node("Add", ["a", "c"], [result]),
    ]


SHAPE = (2, 4, 7, 6)


def test_an_output_inside_a_region_stays() -> None:
    original = graph_of([*two_arms("s"), helper.make_node("Relu", ["s"], ["y"])], "y", "a")
    fused = fuse_onnx(original)
    assert [v.name for v in fused.model.graph.output] == ["y", "a"]
    equal(original, fused.model, *SHAPE)


def test_weights_that_several_nodes_share() -> None:
    nodes = [
        *two_arms("s"),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "w3", "b"], ["y"], pads=[1, 1, 1, 1]),
    ]
    original = graph_of(nodes, "y")
    fused = fuse_onnx(original)
    assert count_nodes(fused.model, "Conv") == 2
    assert {"w3", "b"} <= {t.name for t in fused.model.graph.initializer}
    proved(original, fused, SHAPE)


def test_arms_in_subtraction_with_constants_and_the_input_itself() -> None:
    scale = numpy_helper.from_array(
        np.array([0.5, -1.0, 2.0, 0.0], np.float32).reshape(4, 1, 1), "k"
    )
    nodes = [
        helper.make_node("Conv", ["x", "w3", "b"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Constant", [], ["scale"], value=scale),
        helper.make_node("Mul", ["a", "scale"], ["m"]),
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Conv", ["x", "w1"], ["c"]),
        helper.make_node("Sub", ["m", "c"], ["d"]),
        helper.make_node("Sum", ["d", "n", "x", "x"], ["y"]),
    ]
    original = graph_of(nodes, "y")
    fused = fuse_onnx(original)
    assert [n.op_type for n in fused.model.graph.node] == ["Conv"]
    proved(original, fused, SHAPE)


def test_a_bare_vector_broadcasts_over_the_width_and_is_refused() -> None:
    nodes = [*two_arms("s"), helper.make_node("Mul", ["s", "b"], ["y"])]
    original = graph_of(nodes, "y")
    fused = fuse_onnx(original)
    assert [n.op_type for n in fused.model.graph.node] == ["Conv", "Mul"]
    equal(original, fused.model, 1, 4, 7, 4)


def test_half_precision() -> None:
    original = graph_of(two_arms(), "y", kind=TensorProto.FLOAT16)
    fused = fuse_onnx(original)
    assert {t.data_type for t in fused.model.graph.initializer} == {TensorProto.FLOAT16}
    certificates = prove(fused, Inputs(((None, SHAPE),)), Tolerance()).certificates
    assert all(c.passed for c in certificates)


def test_branches_of_an_if_are_fused_for_themselves() -> None:
    inner = helper.make_graph(
        two_arms("t"),
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n", 4, "h", "w"])],
    )
    other = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["n", 4, "h", "w"])],
    )
    condition = numpy_helper.from_array(np.array(True), "yes")
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=condition),
        helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=other),
    ]
    original = graph_of(nodes, "y")
    fused = fuse_onnx(original)
    assert count_nodes(fused.model, "Conv") == 1
    proved(original, fused, SHAPE)


def test_random_numbers_in_a_file_are_refused() -> None:
    nodes = [*two_arms("s"), helper.make_node("RandomNormalLike", ["s"], ["n"])]
    nodes.append(helper.make_node("Add", ["s", "n"], ["y"]))
    fused = fuse_onnx(graph_of(nodes, "y"))
    assert not fused.found
    assert {r.code for r in fused.refused} == {Reason.RANDOM}


def test_external_data_is_read_and_written_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(graph_of(two_arms(), "y"), path, save_as_external_data=True, size_threshold=0)
    assert len(list(tmp_path.iterdir())) == 2
    original, _ = read_onnx(path)
    proved(original, fuse_onnx(original), SHAPE)


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"\x08\x0a" + b"\xff" * 40])
def test_a_file_that_is_no_onnx_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"net\.onnx") as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [1.00001, 0.0])
def test_an_altered_weight_in_a_fused_file_is_found(factor: float) -> None:
    original = graph_of(two_arms(), "y")
    fused = fuse_onnx(original)
    altered = onnx.ModelProto()
    altered.CopyFrom(fused.model)
    tensor = next(t for t in altered.graph.initializer if t.name.endswith("weight"))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[5] *= factor
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    stored = with_tensors(fused, altered, "net.onnx")
    proofs = prove(stored, Inputs(((None, SHAPE),)), Tolerance())
    assert not proofs.passed
    assert "1 of 148 weights are wrong" in proofs.fault


def test_the_python_call() -> None:
    fused = acfuse.fuse_onnx(graph_of(two_arms(), "y"))
    assert count_nodes(fused.model, "Conv") == 1
    assert fused.found
    assert not fused.refused


PADDED = {"pads": [1, 1, 1, 1]}
PAD_BOTH = tensor("p", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)
ROW = np.array([0.5, -1.0, 2.0, 0.3])

# Nodes from x to y, with further constants, that become a single Conv.
ONE_CONVOLUTION = {
    "a BatchNormalization written as Mul and Add": (
        [*two_arms("s"), node("Mul", "s k", "m"), node("Add", "m t", "y")],
        [tensor("k", ROW.reshape(1, 4, 1, 1)), tensor("t", -ROW.reshape(1, 4, 1, 1))],
    ),
    "a bias as an Add of [1, C, 1, 1]": (
        [
            node("Conv", "x w3", "a", **PADDED),
            node("Add", "a t", "a2"),
            node("Conv", "x w1", "c"),
            node("Add", "t c", "c2"),
            node("Add", "a2 c2", "y"),
        ],
        [tensor("t", ROW.reshape(1, 4, 1, 1))],
    ),
    "a Div, and a Sub from a constant": (
        [*two_arms("s"), node("Div", "s k", "d"), node("Sub", "t d", "y")],
        [tensor("k", ROW.reshape(4, 1, 1)), tensor("t", 2.0)],
    ),
    "auto_pad SAME_UPPER and SAME_LOWER": (
        [
            node("Conv", "x w2", "a", auto_pad="SAME_UPPER"),
            node("Conv", "x w2", "c", auto_pad="SAME_LOWER"),
            node("Conv", "x w3", "e", auto_pad="SAME_UPPER"),
            node("Sum", "a c e", "y"),
        ],
        [tensor("w2", np.random.default_rng(2).normal(size=(4, 4, 2, 4)))],
    ),
    "pads as nodes of their own": (
        [
            node("Pad", "x p", "z"),
            node("Conv", "z w3 b", "a"),
            node("Conv", "x w1", "c"),
            node("Add", "a c", "y"),
        ],
        [PAD_BOTH],
    ),
    "a crop of what was padded too much": (
        [
            node("Pad", "x p", "z"),
            node("Conv", "z w1", "a"),
            node("Slice", "a one minus where", "c"),
            node("Conv", "x w3 b", "e", **PADDED),
            node("Sub", "c e", "y"),
        ],
        [
            PAD_BOTH,
            tensor("one", [1, 1], np.int64),
            tensor("minus", [-1, -1], np.int64),
            tensor("where", [2, -1], np.int64),
        ],
    ),
    "weights through Transpose, Reshape and Cast of constants": (
        [
            node("Transpose", "hwio", "oihw", perm=[3, 2, 0, 1]),
            node("Conv", "x oihw b", "a", **PADDED),
            node("Reshape", "flat shape", "r"),
            node("Cast", "r", "w", to=TensorProto.FLOAT),
            node("Conv", "x w", "c"),
            node("Add", "a c", "y"),
        ],
        [
            tensor("hwio", np.random.default_rng(2).normal(size=(3, 3, 4, 4))),
            tensor("flat", np.random.default_rng(3).normal(size=(4, 4)), np.float64),
            tensor("shape", [4, 4, 1, 1], np.int64),
        ],
    ),
    "a pooled arm, Identity and Dropout": (
        [
            node("AveragePool", "x", "a", kernel_shape=[3, 3], count_include_pad=1, **PADDED),
            node("Identity", "a", "i"),
            node("Conv", "i w1", "d"),
            node("Dropout", "d", "e mask"),
            node("Conv", "x w3 b", "c", **PADDED),
            node("Add", "c e", "y"),
        ],
        [],
    ),
    "a transposed convolution of stride 1": (
        [
            node("ConvTranspose", "x w3 b", "a", **PADDED),
            node("ConvTranspose", "x wg", "g", pads=[0, 1, 2, 1], group=2, dilations=[1, 1]),
            node("Conv", "x w1", "c"),
            node("Sum", "a c g", "y"),
        ],
        [tensor("wg", np.random.default_rng(2).normal(size=(4, 2, 3, 3)))],
    ),
    "empty optional inputs": (
        [
            node("Conv", "x w3 _", "a", **PADDED),
            node("Dropout", "a _ _", "d"),
            node("Conv", "x w1 _", "c"),
            node("Add", "c d", "y"),
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", ONE_CONVOLUTION)
def test_becomes_one_convolution(name: str) -> None:
    nodes, tensors = ONE_CONVOLUTION[name]
    original = graph_of(nodes, "y", tensors=tuple(tensors))
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Conv"]
    assert [v.name for v in fused.model.graph.output] == ["y"]
    proved(original, fused, SHAPE)


def enlarged(*arms: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Two arms `a` and `c`, and a BatchNormalization behind the first."""
    return [*arms, node("BatchNormalization", "a g b g p", "n"), node("Sub", "n c", "y")]


HALVES = {"strides": [2, 2]}
ONE_TRANSPOSED = {
    "two arms": enlarged(
        node("ConvTranspose", "x t4 b", "a", pads=[1, 1, 1, 1], **HALVES),
        node("ConvTranspose", "x t2", "c", **HALVES),
    ),
    "other pads at either end": enlarged(
        node("ConvTranspose", "x w3 b", "a", pads=[1, 0, 0, 1], **HALVES),
        node("ConvTranspose", "x t2", "c", kernel_shape=[2, 2], **HALVES),
    ),
    "output_padding": enlarged(
        node("ConvTranspose", "x w3", "a", pads=[1, 1, 1, 1], output_padding=[1, 1], **HALVES),
        node("ConvTranspose", "x w3 b", "c", pads=[0, 1, 1, 1], output_padding=[0, 1], **HALVES),
    ),
    "pads that are told by a word": enlarged(
        node("ConvTranspose", "x t4 b", "a", auto_pad="SAME_UPPER", **HALVES),
        node("ConvTranspose", "x t2", "c", auto_pad="VALID", **HALVES),
    ),
    "groups": enlarged(
        node("ConvTranspose", "x tg", "a", group=2, pads=[1, 1, 1, 1], **HALVES),
        node("ConvTranspose", "x tg", "c", group=2, pads=[1, 1, 1, 1], **HALVES),
    ),
    "strides and dilations of each axis": enlarged(
        node("ConvTranspose", "x t2 b", "a", strides=[1, 3], dilations=[2, 1], pads=[1, 0, 1, 0]),
        node("ConvTranspose", "x t2", "c", strides=[1, 3], dilations=[2, 1], pads=[1, 0, 1, 0]),
    ),
    "matrices before and behind": [
        node("Conv", "x w1", "a"),
        node("ConvTranspose", "a t4 b", "c", pads=[1, 1, 1, 1], **HALVES),
        node("Conv", "c w1 b", "y"),
    ],
    "cut off behind": [
        node("ConvTranspose", "x t4 b", "a", **HALVES),
        node("Slice", "a one minus where", "z"),
        node("ConvTranspose", "x t2", "c", **HALVES),
        node("Add", "z c", "y"),
    ],
}
TRANSPOSED = {"t4": (4, 4, 4, 4), "t2": (4, 4, 2, 2), "tg": (4, 2, 4, 4)}


@pytest.mark.parametrize("opset", [11, 17, 22])
@pytest.mark.parametrize("name", ONE_TRANSPOSED)
def test_becomes_one_transposed_convolution(name: str, opset: int) -> None:
    rng = np.random.default_rng(4)
    tensors = [tensor(n, rng.normal(size=size)) for n, size in TRANSPOSED.items()]
    tensors += [tensor("g", rng.normal(size=4)), tensor("p", rng.uniform(0.5, 2, 4))]
    ends = {"one": [1, 1], "minus": [-1, -1], "where": [2, -1]}
    tensors += [tensor(n, numbers, np.int64) for n, numbers in ends.items()]
    original = graph_of(ONE_TRANSPOSED[name], "y", tensors=tuple(tensors), opset=opset)
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["ConvTranspose"], fused.refused
    proved(original, fused, SHAPE)
    assert fused.size(None).convolutions == 1


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_pads_of_other_borders(mode: str) -> None:
    nodes = [
        node("Pad", "x p", "z", mode=mode),
        node("Conv", "z w3 b", "a"),
        node("Pad", "x p _ axes", "z2", mode=mode),
        node("Conv", "z2 w3", "c"),
        node("Conv", "x w1", "e"),
        node("Sum", "a c e", "y"),
    ]
    tensors = (PAD_BOTH, tensor("axes", [0, 1, 2, 3], np.int64))
    original = graph_of(nodes, "y", tensors=tensors, opset=19)
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Pad", "Conv"]
    proved(original, fused, SHAPE)


def test_a_pad_of_chosen_axes() -> None:
    nodes = [
        node("Pad", "x p _ axes", "z"),
        node("Conv", "z w3 b", "a", pads=[1, 0, 1, 0]),
        node("Conv", "x w1", "c"),
        node("Add", "a c", "y"),
    ]
    tensors = (tensor("p", [1, 1], np.int64), tensor("axes", [-1], np.int64))
    original = graph_of(nodes, "y", tensors=tensors, opset=18)
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Conv"]
    proved(original, fused, SHAPE)


NHWC, NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


def channels_last(*, sum_first: bool) -> list[onnx.NodeProto]:
    """Two blocks between which images have their channels last, as TensorFlow's files have."""
    nodes = [
        node("Transpose", "x", "x1", perm=NCHW),
        node("Conv", "x1 w3", "a", **PADDED),
        node("Transpose", "a", "a1", perm=NHWC),
        node("Add", "a1 row", "a2"),
        node("Pad", "x p", "xp"),
        node("Transpose", "xp", "x2", perm=NCHW),
        node("Conv", "x2 w3 b", "c"),
        node("Transpose", "c", "c1", perm=NHWC),
        node("Mul", "c1 row", "c2"),
        node("Add", "a2 c2", "s"),
    ]
    more = [
        node("Relu", "s", "r"),
        node("Transpose", "r", "r1", perm=NCHW),
        node("Conv", "r1 w1 b", "e"),
        node("Transpose", "e", "e1", perm=NHWC),
        node("Transpose", "r", "r2", perm=NCHW),
        node("Conv", "r2 w3", "f", **PADDED),
        node("Transpose", "f", "f1", perm=NHWC),
        node("Add", "f1 e1", "g"),
        node("Add", "g r", "y"),
    ]
    return [*nodes, *more] if sum_first else [*more]


def test_images_with_their_channels_last() -> None:
    pads = tensor("p", [0, 1, 1, 0, 0, 1, 1, 0], np.int64)
    original = graph_of(
        channels_last(sum_first=True),
        "y",
        tensors=(tensor("row", ROW), pads),
        shape=("n", "h", "w", 4),
    )
    fused = fuse_onnx(original)
    block = ["Transpose", "Conv", "Transpose"]
    assert kinds(fused.model) == [*block, "Relu", *block]
    assert len(fused.found) == 2
    proved(original, fused, (2, 7, 6, 4))


def test_images_in_two_orders_of_axes_are_not_added() -> None:
    nodes = [
        node("Conv", "x w3", "a", **PADDED),
        node("Transpose", "x", "t", perm=[0, 1, 3, 2]),
        node("Conv", "t w1", "c"),
        node("Add", "a c", "y"),
    ]
    original = graph_of(nodes, "y")
    fused = fuse_onnx(original, fold_bn=True)
    assert kinds(fused.model) == kinds(original)


def test_the_transposed_image_is_another_image() -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[0, 1, 3, 2]),
        node("Conv", "t w3", "a", **PADDED),
        node("Conv", "t w1", "c"),
        node("Add", "a c", "s"),
        node("Transpose", "s", "y", perm=[0, 1, 3, 2]),
    ]
    original = graph_of(nodes, "y")
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Transpose", "Conv", "Transpose"]
    proved(original, fused, SHAPE)


# Nodes with further constants of which nothing may be fused, and what the reason says.
LEFT_ALONE = {
    "a single channel spread over four, and mixed again": (
        [
            node("Conv", "x one", "m"),
            node("Sigmoid", "m", "g"),
            node("Conv", "x w3", "a", **PADDED),
            node("Add", "a g", "s"),
            node("Conv", "s mix", "y"),
        ],
        [tensor("one", np.ones((1, 4, 1, 1))), tensor("mix", np.ones((1, 4, 1, 1)))],
        "",
    ),
    "a factor that makes four channels of one": (
        [
            node("Conv", "x one", "a"),
            node("Conv", "x one b1", "c"),
            node("Mul", "a k", "a2"),
            node("Mul", "c k", "c2"),
            node("Add", "a2 c2", "y"),
        ],
        [
            tensor("one", np.ones((1, 4, 1, 1))),
            tensor("b1", [1.0]),
            tensor("k", ROW.reshape(4, 1, 1)),
        ],
        "channels",
    ),
    "weights that were quantised in blocks": (
        [
            node("DequantizeLinear", "q scale", "w"),
            node("Conv", "x w", "a", **PADDED),
            node("Conv", "x w1", "c"),
            node("Add", "a c", "y"),
        ],
        [tensor("q", np.ones((4, 4, 3, 3)), np.int8), tensor("scale", np.ones((4, 4, 3, 3)))],
        "computed by DequantizeLinear",
    ),
    "a BatchNormalization in training": (
        [
            node("Conv", "x w3", "a", **PADDED),
            node("BatchNormalization", "a b b b one", "n mean var", training_mode=1),
            node("Conv", "x w1", "c"),
            node("Add", "n c", "y"),
        ],
        [tensor("one", [1.0, 1.0, 1.0, 1.0])],
        "training",
    ),
    "a Dropout in training": (
        [*two_arms("s"), node("Dropout", "s half yes", "y")],
        [tensor("half", 0.5), tensor("yes", True, np.bool_)],
        "training",
    ),
    "a pad of ones": (
        [
            node("Pad", "x p fill", "z"),
            node("Conv", "z w3 b", "a"),
            node("Conv", "x w1", "c"),
            node("Add", "a c", "y"),
        ],
        [PAD_BOTH, tensor("fill", 1.0)],
        "pads with 1",
    ),
    "a size that decides the padding": (
        [
            node("Conv", "x w3", "a", auto_pad="SAME_UPPER", strides=[2, 2]),
            node("Conv", "x w1", "c", auto_pad="SAME_UPPER", strides=[2, 2]),
            node("Add", "a c", "y"),
        ],
        [],
        "SAME_UPPER",
    ),
    "a division by zero": (
        [*two_arms("s")[:2], node("Div", "a zero", "d"), node("Add", "d c", "y")],
        [tensor("zero", 0.0)],
        "divides by zero",
    ),
    "a transposed convolution that is told its size": (
        [
            node("ConvTranspose", "x w3", "a", strides=[2, 2], output_shape=[13, 11]),
            node("ConvTranspose", "x w3 b", "c", strides=[2, 2], output_shape=[13, 11]),
            node("Add", "a c", "y"),
        ],
        [],
        "of a stated output size",
    ),
    "an odd pixel that is cut off at either end": (
        [
            node("ConvTranspose", "x w3", "a", strides=[2, 2], auto_pad="SAME_UPPER"),
            node("ConvTranspose", "x w3 b", "c", strides=[2, 2], auto_pad="SAME_UPPER"),
            node("Add", "a c", "y"),
        ],
        [],
        "cuts off more at one end",
    ),
    "a biased Conv before a transposed one": (
        [node("Conv", "x w1 b", "a"), node("ConvTranspose", "a w3", "y", strides=[2, 2])],
        [],
        "bias",
    ),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_as_it_is(name: str) -> None:
    nodes, tensors, why = LEFT_ALONE[name]
    original = graph_of(nodes, "y", tensors=tuple(tensors))
    before = original.SerializeToString()
    fused = fuse_onnx(original)
    assert fused.model.SerializeToString() == before
    assert not why or any(why in refused.why for refused in fused.refused), fused.refused


def test_weights_that_a_caller_gives_are_left_alone() -> None:
    given = helper.make_tensor_value_info("v", TensorProto.FLOAT, [4, 4, 3, 3])
    nodes = [
        node("Conv", "x v", "a", **PADDED),
        node("Conv", "x w1", "c"),
        node("Add", "a c", "y"),
    ]
    for tensors in ((), (tensor("v", np.ones((4, 4, 3, 3))),)):
        original = graph_of(nodes, "y", inputs=(given,), tensors=tensors)
        fused = fuse_onnx(original)
        assert fused.model == original
        assert any("v is an input" in r.why for r in fused.refused), fused.refused


def test_a_bias_that_a_caller_may_replace_is_added_behind() -> None:
    given = helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 4, 1, 1])
    original = graph_of(
        [*two_arms("s"), node("Add", "s v", "y")],
        "y",
        inputs=(given,),
        tensors=(tensor("v", ROW.reshape(1, 4, 1, 1)),),
    )
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Conv", "Add"]
    assert [v.name for v in fused.model.graph.input] == ["x", "v"]
    equal(original, fused.model, *SHAPE, others=(7.0, 7.0, 7.0, 7.0))


def test_before_ir_version_4_every_initializer_is_an_input_and_a_constant() -> None:
    original = graph_of(two_arms(), "y", ir=3, opset=8)
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Conv"]
    assert [v.name for v in fused.model.graph.input] == ["x", "y.weight", "y.bias"]
    proved(original, fused, SHAPE)


def test_an_opset_that_onnxruntime_does_not_run_is_refused() -> None:
    original = graph_of(two_arms(), "y", ir=3, opset=6)
    fused = fuse_onnx(original)
    assert fused.model == original
    assert "opset 6" in fused.refused[0].why


def test_a_training_batch_norm_of_an_old_opset() -> None:
    nodes = [
        node("Conv", "x w3", "a", **PADDED),
        node("BatchNormalization", "a b b b one", "n mean var saved_mean saved_var"),
        node("Conv", "x w1", "c"),
        node("Add", "n c", "y"),
    ]
    original = graph_of(nodes, "y", opset=9, ir=4, tensors=(tensor("one", [1.0] * 4),))
    assert fuse_onnx(original).model == original


def test_a_file_without_shapes() -> None:
    nodes = [*two_arms("s"), node("Relu", "s", "r"), node("Conv", "r w1", "d")]
    nodes += [node("Mul", "d k", "e"), node("Add", "e r", "y")]
    original = graph_of(nodes, "y", shape=None, tensors=(tensor("k", ROW.reshape(4, 1, 1)),))
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Conv", "Relu", "Conv"]
    equal(original, fused.model, *SHAPE)


def test_channels_are_known_behind_a_computed_reshape() -> None:
    nodes = [
        node("Shape", "x", "size"),
        node("Reshape", "x size", "z"),
        node("Conv", "z w3", "a", **PADDED),
        node("Conv", "z w1", "c"),
        node("Add", "a c", "y"),
    ]
    original = graph_of(nodes, "y", shape=("n", "c", "h", "w"))
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Shape", "Reshape", "Conv"]
    equal(original, fused.model, *SHAPE)


def test_a_value_whose_shape_is_read_is_still_computed() -> None:
    nodes = [*two_arms("s"), node("Shape", "a", "size"), node("Expand", "s size", "y")]
    original = graph_of(nodes, "y")
    fused = fuse_onnx(original)
    assert count_nodes(fused.model, "Shape") == 1
    equal(original, fused.model, *SHAPE)


def test_two_dtypes_in_one_file() -> None:
    half = [
        tensor("h3", np.random.default_rng(4).normal(size=(4, 4, 3, 3)), np.float16),
        tensor("h1", np.random.default_rng(5).normal(size=(4, 4, 1, 1)), np.float16),
    ]
    nodes = [
        *two_arms("s"),
        node("Cast", "s", "t", to=TensorProto.FLOAT16),
        node("Conv", "t h3", "d", **PADDED),
        node("Conv", "t h1", "e"),
        node("Add", "d e", "u"),
        node("Cast", "u", "y", to=TensorProto.FLOAT),
    ]
    original = graph_of(nodes, "y", tensors=tuple(half))
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Conv", "Cast", "Conv", "Cast"]
    stored = [t.data_type for t in fused.model.graph.initializer if t.name.endswith("weight")]
    assert stored == [TensorProto.FLOAT, TensorProto.FLOAT16]
    proved(original, fused, SHAPE)


def test_bfloat16_is_left_alone() -> None:
    original = graph_of(two_arms(), "y", kind=TensorProto.BFLOAT16)
    fused = fuse_onnx(original)
    assert fused.model == original


def test_float64() -> None:
    original = graph_of(two_arms(), "y", kind=TensorProto.DOUBLE)
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Conv"]
    assert {t.data_type for t in fused.model.graph.initializer} == {TensorProto.DOUBLE}


def test_weights_that_overflow_are_refused_and_the_others_are_fused() -> None:
    large = tensor("big", np.full((4, 4, 1, 1), 6e4), np.float16)
    nodes = [
        node("Conv", "x big", "a"),
        node("Conv", "x big", "c"),
        node("Add", "a c", "s"),
        node("Tanh", "s", "r"),
        node("Conv", "r w3", "d", **PADDED),
        node("Conv", "r w1", "e"),
        node("Add", "d e", "y"),
    ]
    original = graph_of(nodes, "y", kind=TensorProto.FLOAT16, tensors=(large,))
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Conv", "Conv", "Add", "Tanh", "Conv"]
    assert [r.code for r in fused.refused] == [Reason.OVERFLOW]


def test_quantised_convolutions_are_left_alone() -> None:
    point = tensor("zero", 0, np.uint8)
    nodes = [
        node("QuantizeLinear", "x scale zero", "q"),
        node("QLinearConv", "q scale zero qw scale zero scale zero", "qc"),
        node("DequantizeLinear", "qc scale zero", "d"),
        *two_arms("s"),
        node("Add", "s d", "y"),
    ]
    weights = tensor("qw", np.ones((4, 4, 1, 1)), np.uint8)
    original = graph_of(nodes, "y", tensors=(point, weights, tensor("scale", 0.5)))
    fused = fuse_onnx(original)
    assert kinds(fused.model)[:3] == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
    assert count_nodes(fused.model, "Conv") == 1
    equal(original, fused.model, *SHAPE)


def test_constants_mean_what_they_do_in_the_opset_of_the_file() -> None:
    """Before opset 13, Softmax was that of a matrix; a Squeeze had its axes as an attribute."""
    nodes = [
        node("Softmax", "k", "soft", axis=1),
        node("Squeeze", "k5", "k4", axes=[0]),
        node("Conv", "x w3 b", "a", **PADDED),
        node("Mul", "a soft", "m"),
        node("Mul", "m k4", "n"),
        node("Conv", "x w1", "c"),
        node("Add", "n c", "y"),
    ]
    tensors = (tensor("k", ROW.reshape(1, 4, 1, 1)), tensor("k5", ROW.reshape(1, 1, 4, 1, 1)))
    original = graph_of(nodes, "y", opset=11, ir=6, tensors=tensors)
    fused = fuse_onnx(original)
    equal(original, fused.model, *SHAPE)


def test_everything_around_the_graph_is_kept() -> None:
    double = helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    nodes = [*two_arms("s"), helper.make_node("Twice", ["s"], ["y"], domain="own")]
    nodes[-1].doc_string = "as it was"
    helper_model = graph_of(two_arms("y"), "y")
    original = helper.make_model(
        helper_model.graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
        functions=[double],
        ir_version=10,
        producer_name="maker",
        producer_version="3",
        doc_string="a net",
        domain="org.example",
        model_version=7,
    )
    del original.graph.node[:]
    original.graph.node.extend(nodes)
    original.graph.doc_string = "the graph"
    helper.set_model_props(original, {"author": "someone"})
    fused = fuse_onnx(original)
    assert kinds(fused.model) == ["Conv", "Twice"]
    assert fused.model.graph.node[1] == original.graph.node[-1]
    for model in (original, fused.model):
        del model.graph.node[:]
        del model.graph.initializer[:]
        del model.graph.value_info[:]
    assert fused.model == original


def test_new_names_are_no_names_of_any_graph() -> None:
    inner = helper.make_graph(
        [node("Conv", "x w3 b", "y.weight", **PADDED)],
        "then",
        [],
        [helper.make_tensor_value_info("y.weight", TensorProto.FLOAT, FREE)],
    )
    other = helper.make_graph(
        [node("Relu", "x", "y.bias")],
        "else",
        [],
        [helper.make_tensor_value_info("y.bias", TensorProto.FLOAT, FREE)],
    )
    yes = tensor("yes", True, np.bool_)
    nodes = [helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=other)]
    original = graph_of([*two_arms(), *nodes], "y", "z", tensors=(yes,))
    fused = fuse_onnx(original)
    names = [t.name for t in fused.model.graph.initializer]
    assert {"y.weight_2", "y.bias_2"} <= set(names)
    proved(original, fused, SHAPE)


def test_a_block_in_the_body_of_a_loop() -> None:
    body = helper.make_graph(
        [
            node("Identity", "go", "on"),
            node("Conv", "v w3 b", "a", **PADDED),
            node("Conv", "v w1", "c"),
            node("Add", "a c", "s"),
            node("Tanh", "s", "next"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, FREE),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, FREE),
        ],
    )
    nodes = [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)]
    original = graph_of(nodes, "y", tensors=(tensor("times", 3, np.int64),))
    fused = fuse_onnx(original)
    assert count_nodes(fused.model, "Conv") == 1
    assert {t.name for t in fused.model.graph.initializer} == {"times"} | (
        {t.name for t in original.graph.initializer} - {"w3", "w1", "b", "times"}
    )
    proved(original, fused, SHAPE)


def test_duplicated_names_are_told() -> None:
    original = graph_of(two_arms(), "y")
    original.graph.node.append(node("Relu", "x", "a"))
    with pytest.raises(InputError, match="not valid ONNX"):
        fuse_onnx(original)


def test_a_graph_without_nodes() -> None:
    original = graph_of([node("Identity", "x", "y")], "y")
    del original.graph.node[:]
    original.graph.output[0].name = "x"
    assert fuse_onnx(original).model == original


def test_inspecting_a_file_lists_blocks_and_reasons(tmp_path: Path) -> None:
    nodes = [*two_arms("s"), node("Conv", "s w3 b", "d", **PADDED), node("Relu", "d", "r")]
    nodes += [node("Conv", "r w1", "e"), node("Conv", "s w1", "f"), node("Add", "e f", "y")]
    onnx.save(graph_of(nodes, "y"), tmp_path / "net.onnx")
    result = CliRunner().invoke(cli, ["inspect", str(tmp_path / "net.onnx")])
    assert result.exit_code == 0, result.output
    assert "s" in result.output
    assert "y: Relu is not linear" in result.output


@pytest.mark.parametrize("free", [-1, 0, -7])
@pytest.mark.parametrize("place", ["input", "value"])
def test_a_size_that_is_not_positive_is_any_size(free, place):
    rng = np.random.default_rng(0)
    nodes = [
        # Were -1 a size, this would make 5 rows of it, and the pad would be known to fit.
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(rng.normal(size=(4, 3, k, k)).astype(np.float32), name)
        for name, k in (("w", 3), ("v", 1))
    ]
    sizes = [free, 3, free, free] if place == "input" else ["n", 3, "h", "w"]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", sizes), ("y", [free, 4, free, free]))
    ]
    known = [helper.make_tensor_value_info("a", TensorProto.FLOAT, [free, 4, free, free])]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights, value_info=known)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    fused = fuse_onnx(model)
    assert len(fused.found) == 1
    assert fused.model.graph.input == model.graph.input
    proved(model, fused, (2, 3, 8, 9))
