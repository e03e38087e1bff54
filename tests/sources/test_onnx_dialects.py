"""The ways in which exporters and people say the same in an ONNX file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from acfuse.errors import InputError
from acfuse.graph.onnx_plain import plain
from acfuse.graph.onnx_values import facts_of
from acfuse.pipeline.convert import prove
from acfuse.proof import Tolerance
from acfuse.sources.onnx import OnnxFused, fuse_onnx, numbers_of, size_of

RANDOM = np.random.default_rng(3)


def weights(*shape: int, dtype: Any = np.float32) -> Any:
    return RANDOM.normal(size=shape).astype(dtype)


node = helper.make_node
PAIR = {"w3": weights(4, 3, 3, 3), "w1": weights(4, 3, 1, 1)}
ARMS = [node("Conv", ["x", "w3"], ["p"], pads=[1] * 4), node("Conv", ["x", "w1"], ["q"])]
SUM = node("Add", ["p", "q"], ["y"])
HALF = {name: value.astype(np.float16) for name, value in PAIR.items()}
W3 = {"w3": PAIR["w3"]}


def file_of(
    nodes: Sequence[onnx.NodeProto],
    stored: dict[str, Any],
    sparse: Sequence[onnx.SparseTensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    sizes: Sequence[int] = (1, 3, 8, 9),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in stored.items()],
        sparse_initializer=sparse,
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(f.domain, 1) for f in functions)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def sparse_of(name: str, value: Any) -> onnx.SparseTensorProto:
    flat = value.reshape(-1)
    places = np.flatnonzero(flat > 0)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(flat[places], name),
        numpy_helper.from_array(places, f"{name}_places"),
        value.shape,
    )


def rep(nodes: Sequence[onnx.NodeProto]) -> onnx.FunctionProto:
    reads, opsets = ["x", "w3", "w1"], [helper.make_opsetid("", 17)]
    return helper.make_function("own", "Rep", reads, ["y"], nodes, opsets)


def made(*steps: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Two arms, the weight of one made by the given nodes."""
    return [*steps, ARMS[0], node("Conv", ["x", "made"], ["q"]), SUM]


DIALECTS = {
    "a factor cast to the type of an image, and stretched": file_of(
        [
            node("CastLike", ["two", "x"], ["cast"]),
            node("Expand", ["cast", "one"], ["factor"]),
            *ARMS,
            node("Mul", ["q", "factor"], ["scaled"]),
            node("Add", ["p", "scaled"], ["y"]),
        ],
        {**PAIR, "two": np.float64(2), "one": np.array([1])},
    ),
    "an image that is cast once for each arm": file_of(
        [
            node("Cast", ["x"], ["x1"], to=TensorProto.FLOAT16),
            node("Cast", ["x"], ["x2"], to=TensorProto.FLOAT16),
            node("Conv", ["x1", "w3"], ["p"], pads=[1] * 4),
            node("Conv", ["x2", "w1"], ["q"]),
            node("Add", ["p", "q"], ["sum"]),
            node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
        ],
        HALF,
    ),
    "a factor for each channel that the image has": file_of(
        [
            ARMS[0],
            node("Shape", ["p"], ["channels"], start=1, end=2),
            node("Expand", ["two", "channels"], ["gamma"]),
            node("BatchNormalization", ["p", "gamma", "beta", "mean", "var"], ["n"]),
            ARMS[1],
            node("Add", ["n", "q"], ["y"]),
        ],
        {
            **PAIR,
            "two": np.array([2], np.float32),
            "beta": weights(4),
            "mean": weights(4),
            "var": np.abs(weights(4)) + np.float32(0.1),
        },
    ),
    "a function of the file": file_of(
        [node("Rep", ["x", "w3", "w1"], ["y"], domain="own")], PAIR, functions=[rep([*ARMS, SUM])]
    ),
    "nodes that stand behind what reads them": file_of([SUM, *ARMS], PAIR),
    "weights that nodes hold": file_of(
        [
            *(node("Constant", [], [n], value=numpy_helper.from_array(v)) for n, v in PAIR.items()),
            *ARMS,
            SUM,
        ],
        {},
    ),
    "a sparse weight": file_of([*ARMS, SUM], W3, sparse=[sparse_of("w1", PAIR["w1"])]),
    "parts of one tensor": file_of(
        made(node("Split", ["both", "sizes"], ["made", "other"], axis=0)),
        {**W3, "both": weights(6, 3, 1, 1), "sizes": np.array([4, 2])},
    ),
    "weight_norm": file_of(
        [
            node("ReduceL2", ["w1"], ["norm"], axes=[1, 2, 3], keepdims=1),
            *made(node("Div", ["w1", "norm"], ["made"])),
        ],
        PAIR,
    ),
    "a product of kernels": file_of(
        made(node("Einsum", ["m", "w1"], ["made"], equation="om,mihw->oihw")),
        {**PAIR, "m": weights(4, 4)},
    ),
    "padding that follows from a size": file_of(
        [
            node("Conv", ["x", "w3"], ["p"], auto_pad="SAME_LOWER", strides=[2, 2]),
            node("Conv", ["x", "v3"], ["q"], pads=[1, 1, 0, 1], strides=[2, 2]),
            SUM,
        ],
        {**W3, "v3": weights(4, 3, 3, 3)},
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_is_one_convolution_and_proved(name: str) -> None:
    original = DIALECTS[name]
    before = original.SerializeToString()
    fused = fuse_onnx(original)
    assert original.SerializeToString() == before
    assert [b.is_block for b in fused.found] == [True]
    assert size_of(fused.model).convolutions == 1
    proofs = prove(fused, None, Tolerance())
    assert proofs.passed, proofs.fault


@pytest.mark.parametrize("name", DIALECTS)
def test_a_fault_in_a_dialect_is_caught(name: str) -> None:
    fused = fuse_onnx(DIALECTS[name])
    bias = next(t for t in fused.model.graph.initializer if t.name.endswith(".bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    assert not prove(fused, None, Tolerance()).passed


def test_casts_to_different_types_are_different_values() -> None:
    nodes = [
        node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        node("Cast", ["h"], ["x1"], to=TensorProto.FLOAT),
        node("Conv", ["x1", "w3"], ["p"], pads=[1] * 4),
        node("Conv", ["x", "w1"], ["q"]),
        SUM,
    ]
    assert not fuse_onnx(file_of(nodes, PAIR)).findings.blocks


def test_padding_stays_where_no_size_is_known() -> None:
    nodes = [node("Conv", ["x", "w3"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])]
    free = file_of(nodes, PAIR)
    free.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    assert plain(free) is free
    pads = {a.name: [*a.ints] for a in plain(file_of(nodes, PAIR)).graph.node[0].attribute}["pads"]
    assert pads == [0, 1, 1, 1]  # of 8 rows and 9 columns


def test_a_size_that_a_file_states_in_between_is_no_fact() -> None:
    model = DIALECTS["a factor for each channel that the image has"]
    lying = onnx.ModelProto()
    lying.CopyFrom(model)
    lying.graph.value_info.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, 3]))
    fused = fuse_onnx(lying)
    proofs = prove(fused, None, Tolerance())
    assert proofs.passed, proofs.fault


def test_a_name_of_two_values_tells_nothing() -> None:
    def branch(weight: str) -> onnx.GraphProto:
        conv = node("Conv", ["x", weight], ["inner"])
        return helper.make_graph([conv], weight, [], [helper.make_empty_tensor_value_info("inner")])

    chosen = node("If", ["yes"], ["y"], then_branch=branch("w1"), else_branch=branch("v1"))
    model = file_of([chosen], {**PAIR, "v1": weights(6, 3, 1, 1), "yes": np.array(True)})
    assert facts_of(model)["inner"].sizes is None
    assert facts_of(model)["x"].sizes == (1, 3, 8, 9)


@pytest.mark.parametrize("shape", [(4, 2), (1,), (8,)])
def test_a_bias_of_another_size_is_a_reason(shape: tuple[int, ...]) -> None:
    arm = node("Conv", ["x", "w1", "b"], ["q"])
    refused = fuse_onnx(file_of([ARMS[0], arm, SUM], {**PAIR, "b": weights(*shape)})).refused
    assert [r.why for r in refused] == [f"a bias of {shape} does not fit 4 channels"]


def test_a_plain_file_is_itself() -> None:
    model = file_of([*ARMS, SUM], PAIR)
    assert plain(model) is model


def test_nodes_in_a_circle_are_no_valid_file() -> None:
    nodes = [ARMS[0], node("Add", ["p", "y"], ["q"]), node("Add", ["p", "q"], ["y"])]
    with pytest.raises(InputError, match="not valid ONNX"):
        fuse_onnx(file_of(nodes, PAIR))


def test_what_a_node_holds_is_counted_and_checked() -> None:
    model = DIALECTS["weights that nodes hold"]
    stored = sum(value.size for value in PAIR.values())
    assert size_of(model).parameters == stored
    assert set(numbers_of(model)[0]) == set(PAIR)


@pytest.mark.parametrize(("bound", "is_weight"), [(np.inf, False), (np.nan, True)])
def test_an_infinite_bound_is_no_weight(bound: float, is_weight: bool) -> None:
    nodes = [*ARMS, node("Add", ["p", "q"], ["s"]), node("Min", ["s", "high"], ["y"])]
    model = file_of(nodes, {**PAIR, "high": np.float32(bound)})
    assert ("high" in numbers_of(model)[0]) is is_weight


def test_a_factor_that_is_a_bound_as_well_is_a_weight() -> None:
    nodes = [node("Min", ["x", "high"], ["s"]), node("Mul", ["s", "high"], ["y"])]
    assert "high" in numbers_of(file_of(nodes, {"high": np.float32(np.inf)}))[0]


def test_what_onnxruntime_saved_is_told() -> None:
    nodes = [node("FusedConv", ["x", "w3"], ["y"], domain="com.microsoft", activation="Relu")]
    model = file_of(nodes, PAIR)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (refused,) = fuse_onnx(model).refused
    assert "onnxruntime's own" in refused.why


def test_a_file_without_blocks_is_copied_and_not_run() -> None:
    original = file_of([node("Plugin", ["x"], ["y"], domain="maker")], {})
    original.opset_import.append(helper.make_opsetid("maker", 1))
    fused = fuse_onnx(original)
    assert isinstance(fused, OnnxFused)
    assert fused.model == original
    assert prove(fused, None, Tolerance()).passed


def before_a_plugin() -> onnx.ModelProto:
    nodes = [
        *ARMS,
        node("Add", ["p", "q"], ["s"]),
        node("Plugin", ["s"], ["t"], domain="maker"),
        node("Relu", ["t"], ["y"]),
    ]
    model = file_of(nodes, PAIR)
    model.opset_import.append(helper.make_opsetid("maker", 1))
    return model


def test_a_file_with_a_plugin_is_run_up_to_it() -> None:
    fused = fuse_onnx(before_a_plugin())
    assert size_of(fused.model).convolutions == 1
    proofs = prove(fused, None, Tolerance())
    assert proofs.passed, proofs.fault
    assert [check.name for check in proofs.checks] == ["rewriting", "onnx"]


def test_a_fault_behind_a_plugin_is_seen() -> None:
    fused = fuse_onnx(before_a_plugin())
    next(n for n in fused.model.graph.node if n.op_type == "Relu").op_type = "Abs"
    assert not prove(fused, None, Tolerance()).passed
