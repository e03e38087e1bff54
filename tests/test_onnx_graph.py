"""ONNX files in: the same blocks as in the live model, by algebra alone, proved and equal."""

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import acfuse
from acfuse.errors import InputError, Reason
from acfuse.onnx_graph import (
    FusedOnnx,
    count_nodes,
    fuse_onnx,
    read_onnx,
    verify_onnx,
    with_tensors,
)
from acfuse.verify import Inputs, Tolerance
from sample_models import samples

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


def proved(original: onnx.ModelProto, fused: FusedOnnx, *shapes: tuple[int, ...]) -> None:
    inputs = Inputs(tuple((None, shape) for shape in shapes)) if shapes else None
    proofs = verify_onnx(original, fused, inputs, Tolerance())
    assert proofs.passed, proofs.fault


def answer(model: onnx.ModelProto, *images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, images, strict=True)))


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


def graph_of(
    nodes: list[onnx.NodeProto], *outputs: str, kind: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """A file with an input x of 4 channels, and the weights w3 (3x3), w1 (1x1) and wb."""
    generator = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    tensors = [
        numpy_helper.from_array(generator.normal(size=shape).astype(dtype), name)
        for name, shape in (("w3", (4, 4, 3, 3)), ("w1", (4, 4, 1, 1)), ("b", (4,)))
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, ["n", 4, "h", "w"])],
        [helper.make_tensor_value_info(n, kind, ["n", 4, "h", "w"]) for n in outputs],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model


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
    image = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    for before, after in zip(answer(original, image), answer(fused.model, image), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)


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
    image = np.random.default_rng(1).normal(size=(1, 4, 7, 4)).astype(np.float32)
    np.testing.assert_allclose(answer(fused.model, image)[0], answer(original, image)[0], atol=1e-4)


def test_half_precision() -> None:
    original = graph_of(two_arms(), "y", kind=TensorProto.FLOAT16)
    fused = fuse_onnx(original)
    assert {t.data_type for t in fused.model.graph.initializer} == {TensorProto.FLOAT16}
    certificates = verify_onnx(original, fused, Inputs(((None, SHAPE),)), Tolerance()).certificates
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
    original = read_onnx(path)
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
    proofs = verify_onnx(original, stored, Inputs(((None, SHAPE),)), Tolerance())
    assert not proofs.passed
    assert "1 of 148 weights are wrong" in proofs.fault


def test_the_python_call() -> None:
    fused = acfuse.fuse_onnx(graph_of(two_arms(), "y"))
    assert count_nodes(fused.model, "Conv") == 1
    assert fused.found
    assert not fused.refused
