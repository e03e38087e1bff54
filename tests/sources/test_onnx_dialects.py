"""The ways in which exporters and people say the same in an ONNX file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from acfuse.errors import InputError
from acfuse.graph.onnx_plain import plain
from acfuse.graph.onnx_quantised import dequantised
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


def integers(*shape: int, kind: Any = np.int8) -> Any:
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    return RANDOM.integers(low, high, size=shape, endpoint=True).astype(kind)


SCALES = np.abs(weights(4)) / 50
QUANTISED = {"q3": integers(4, 3, 3, 3), "s3": SCALES, "q1": integers(4, 3, 1, 1, kind=np.uint8)}
NORM = {"n": weights(4), "v": np.abs(weights(4)) + np.float32(0.2)}


def with_an_axis_more(
    name: str, result: str, axis: str, weight: str, pad: int
) -> list[onnx.NodeProto]:
    """A convolution of one axis as some exporters write it: with two, and a BatchNorm between."""
    return [
        node("Unsqueeze", ["x", axis], [f"{name}_u"]),
        node("Conv", [f"{name}_u", weight], [f"{name}_c"], strides=[7, 2], pads=[0, pad, 0, pad]),
        node("BatchNormalization", [f"{name}_c", *"nnnv"], [f"{name}_n"]),
        node("Squeeze", [f"{name}_n", axis], [result]),
    ]


DIALECTS = {
    "convolutions of one axis that are written with two": file_of(
        [
            *with_an_axis_more("a", "p", "second", "wide", 0),
            *with_an_axis_more("b", "q", "last_but_one", "wide2", 1),
            node("Unsqueeze", ["x", "second"], ["u"]),
            node("Conv", ["u", "w1"], ["c"], pads=[0, 0, 0, 0], strides=[1, 2]),
            node("Squeeze", ["c", "second"], ["r"]),
            node("Sum", ["p", "q", "r"], ["y"]),
        ],
        {
            **NORM,
            "wide": weights(4, 3, 1, 1),
            "wide2": weights(4, 3, 1, 3),
            "w1": weights(4, 3, 1, 1),
            "second": np.array([2]),
            "last_but_one": np.array([-2]),
        },
        sizes=(2, 3, 10),
    ),
    "a matrix times the channels of an image that is turned": file_of(
        [
            ARMS[0],
            node("Transpose", ["x"], ["rows"], perm=[0, 2, 3, 1]),
            node("MatMul", ["rows", "matrix"], ["product"]),
            node("Add", ["product", "shift"], ["shifted"]),
            node("Transpose", ["shifted"], ["q"], perm=[0, 3, 1, 2]),
            SUM,
        ],
        {**W3, "matrix": weights(3, 4), "shift": weights(4)},
    ),
    "weights that are stored as integers": file_of(
        [
            node("DequantizeLinear", ["q3", "s3"], ["w3"], axis=0),
            node("DequantizeLinear", ["q1", "s1", "z1"], ["w1"]),
            node("DequantizeLinear", ["qb", "s3"], ["b"], axis=-1),
            node("Conv", ["x", "w3", "b"], ["p"], pads=[1] * 4),
            ARMS[1],
            SUM,
        ],
        {
            **QUANTISED,
            "s1": np.float32(0.013),
            "z1": np.uint8(131),
            "qb": RANDOM.integers(-(10**6), 10**6, size=4).astype(np.int32),
        },
    ),
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
    "halves between ends of floats": file_of(
        [
            node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
            node("Conv", ["half", "w3"], ["p"], pads=[1] * 4),
            node("Conv", ["half", "w1"], ["q"]),
            node("Add", ["p", "q"], ["sum"]),
            node("Relu", ["sum"], ["r"]),
            node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
        ],
        HALF,
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
    "arms that are padded differently for an image of one size": file_of(
        [
            node("Conv", ["x", "w3"], ["p"], pads=[0, 0, 1, 1], strides=[2, 3]),
            node("Conv", ["x", "w1"], ["q"], strides=[2, 3]),
            SUM,
        ],
        PAIR,
        sizes=(1, 3, 8, 11),
    ),
    "padding that follows from a size in every arm": file_of(
        [
            node("Conv", ["x", "w3"], ["p"], auto_pad="SAME_UPPER", strides=[2, 2]),
            node(
                "AveragePool",
                ["x"],
                ["a"],
                kernel_shape=[2, 2],
                strides=[2, 2],
                auto_pad="SAME_UPPER",
            ),
            node("Conv", ["a", "w1"], ["q"]),
            SUM,
        ],
        PAIR,
        sizes=(1, 3, 8, 10),
    ),
    "a pad before a convolution that has none": file_of(
        [
            node("Pad", ["x", "amounts"], ["padded"]),
            node("Conv", ["padded", "w3"], ["p"], auto_pad="VALID", strides=[2, 2]),
            node("Conv", ["x", "w1"], ["q"], auto_pad="VALID", strides=[2, 2]),
            SUM,
        ],
        {**PAIR, "amounts": np.array([0, 0, 0, 0, 0, 0, 1, 1])},
        sizes=(1, 3, 8, 10),
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


@pytest.mark.parametrize("name", ["x", "s"])
def test_arms_that_are_padded_differently_stay_where_a_size_is_free(name: str) -> None:
    """Also where only a value in between is said to have a size."""
    nodes = [
        node("Relu", ["x"], ["s"]),
        node("Conv", ["s", "w3"], ["p"], pads=[0, 0, 1, 1], strides=[2, 2]),
        node("Conv", ["s", "w1"], ["q"], strides=[2, 2]),
        SUM,
    ]
    model = file_of(nodes, PAIR, sizes=(1, 3, 8, 10))
    assert len(fuse_onnx(model).findings.blocks) == 1
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    if name == "s":
        stated = helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 3, 8, 10])
        model.graph.value_info.append(stated)
    (refused,) = fuse_onnx(model).refused
    assert "outputs of different sizes" in refused.why


def between(
    kernel: tuple[int, ...], pads: list[int], first: int = 2, second: int = 2
) -> onnx.ModelProto:
    """A plain convolution of one axis, and one between an Unsqueeze and a Squeeze."""
    nodes = [
        node("Conv", ["x", "w3"], ["p"], pads=[1, 1]),
        node("Unsqueeze", ["x", "first"], ["u"]),
        node("Conv", ["u", "other"], ["c"], pads=pads),
        node("Squeeze", ["c", "second"], ["q"]),
        SUM,
    ]
    axes = {"first": np.array([first]), "second": np.array([second])}
    given = {"w3": weights(4, 3, 3), "other": weights(*kernel), **axes}
    return file_of(nodes, given, sizes=(2, 3, 9))


def test_an_axis_that_is_put_in_for_a_convolution_alone_is_none() -> None:
    assert len(fuse_onnx(between((4, 3, 1, 3), [0, 1, 0, 1])).findings.blocks) == 1
    for axes in ((3, 3), (-1, 3), (3, -1)):
        original = between((4, 3, 3, 1), [1, 0, 1, 0], *axes)
        fused = fuse_onnx(original)
        assert len(fused.findings.blocks) == 1
        proofs = prove(fused, None, Tolerance())
        assert proofs.passed, proofs.fault


def test_an_axis_that_a_kernel_looks_along_stays() -> None:
    model = between((4, 3, 3, 3), [1, 1, 1, 1])
    assert plain(model) is model
    (refused,) = fuse_onnx(model).refused
    assert refused.why == "no rule describes Squeeze"


def test_axes_that_a_caller_may_give_are_no_constants() -> None:
    model = between((4, 3, 1, 3), [0, 1, 0, 1])
    assert plain(model) is not model
    model.graph.input.append(helper.make_tensor_value_info("second", TensorProto.INT64, [1]))
    assert plain(model) is model


@pytest.mark.parametrize(
    ("perm", "matrix"), [([0, 2, 1, 3], (9, 9)), ([0, 2, 3, 1], (8, 3, 3)), ([0, 2, 3, 1], (1, 3))]
)
def test_another_product_is_no_convolution(perm: list[int], matrix: tuple[int, ...]) -> None:
    nodes = [
        node("Conv", ["x", "w3"], ["p"], pads=[1] * 4),
        node("Transpose", ["x"], ["rows"], perm=perm),
        node("MatMul", ["rows", "matrix"], ["product"]),
        node("Transpose", ["product"], ["q"], perm=[perm.index(i) for i in range(4)]),
        SUM,
    ]
    given = {"w3": weights(3, 3, 3, 3), "matrix": weights(*matrix)}
    assert not fuse_onnx(file_of([*nodes[:-1], SUM], given)).findings.blocks


def test_arms_of_different_strides_stay_at_any_size() -> None:
    nodes = [
        node("Conv", ["x", "w3"], ["p"], pads=[1] * 4, strides=[2, 2]),
        node("Conv", ["x", "v5"], ["q"]),
        SUM,
    ]
    given = {"w3": PAIR["w3"], "v5": weights(4, 3, 5, 5)}
    (refused,) = fuse_onnx(file_of(nodes, given, sizes=(1, 3, 8, 8))).refused
    assert "step by" in refused.why


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


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("scale", [np.float32, np.float16])
def test_a_dequantised_weight_is_what_a_runtime_makes_of_it(kind: Any, scale: Any) -> None:
    stored = integers(4, 3, 3, 2, kind=kind)
    if kind == np.int32:
        stored //= 256  # what a float32 holds
    scales = np.abs(weights(3)).astype(scale) / scale(300)
    zero = np.zeros(3, kind) if kind == np.int32 else integers(3, kind=kind)
    given = {"q": stored, "s": scales, "z": zero}
    made = dequantised(
        node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1),
        {n: numpy_helper.from_array(v, n) for n, v in given.items()},
    )
    exact = (stored.astype(np.int64) - zero.astype(np.int64).reshape(3, 1, 1)).astype(np.float64)
    if np.abs(exact).max() > (2**11 if scale == np.float16 else 2**24):
        assert made == {}  # a runtime may round it twice
        return
    found = numpy_helper.to_array(made["w"])
    assert found.dtype == scale
    one = node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1)
    graph = helper.make_graph(
        [one],
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
         for n, v in given.items()],
        [helper.make_tensor_value_info("w", TensorProto.UNDEFINED, None)],
    )  # fmt: skip
    graph.output[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(found.dtype)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert np.array_equal(session.run(None, given)[0], found)


def test_an_integer_that_its_scale_cannot_hold_is_left_to_the_runtime() -> None:
    given = {"q": np.array([2**24 + 1], np.int32), "s": np.float32(0.1)}
    tensors = {n: numpy_helper.from_array(np.asarray(v), n) for n, v in given.items()}
    assert not dequantised(node("DequantizeLinear", ["q", "s"], ["w"]), tensors)


def quantised(name: str) -> list[onnx.NodeProto]:
    """An image that is rounded to integers, and read back."""
    return [
        node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]),
        node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"]),
    ]


@pytest.mark.parametrize("between", [True, False])
def test_layers_of_quantised_images_stay_as_they_are(between: bool) -> None:
    ends = [*quantised("p"), *quantised("q")] if between else []
    nodes = [
        *quantised("x"),
        node("DequantizeLinear", ["q3", "s3"], ["w3"], axis=0),
        node("DequantizeLinear", ["q1", "s"], ["w1"]),
        node("Conv", ["x_d", "w3"], ["p"], pads=[1] * 4),
        node("Conv", ["x_d", "w1"], ["q"]),
        *ends,
        node("Add", ["p_d", "q_d"] if between else ["p", "q"], ["y"]),
    ]
    given = {**QUANTISED, "q1": integers(4, 3, 1, 1), "s": np.float32(0.1), "z": np.int8(-7)}
    (refused,) = fuse_onnx(file_of(nodes, given)).refused
    assert refused.why.endswith("fuse the float model, and quantise the result")


ODD: dict[str, list[onnx.NodeProto]] = {
    "a kernel of no channels": [node("Conv", ["x", "none"], ["q"])],
    "no group": [node("Conv", ["x", "w1"], ["q"], group=0)],
    "a sum of constants alone": [node("Sub", ["half", "half"], ["h"]), node("Neg", ["h"], ["q"])],
    "a convolution of nothing": [node("Conv", ["x"], ["q"], auto_pad="SAME_UPPER")],
}


@pytest.mark.parametrize("name", ODD)
def test_what_no_runtime_takes_is_no_block(name: str) -> None:
    given = {**PAIR, "none": weights(0, 3, 1, 1), "half": np.float16(0.5)}
    model = file_of([ARMS[0], *ODD[name], SUM], given)
    try:
        assert not fuse_onnx(model).findings.blocks
    except InputError as error:
        assert "not valid ONNX" in str(error)  # noqa: PT017


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


FUSED = [node("FusedConv", ["x", "w3"], ["y"], domain="com.microsoft", activation="Relu")]
REORDERED = [
    node("ReorderInput", ["x"], ["r"], domain="com.microsoft.nchwc"),
    node("Conv", ["r", "w3"], ["p"], domain="com.microsoft.nchwc", pads=[1] * 4),
    node("Conv", ["r", "w1"], ["q"], domain="com.microsoft.nchwc"),
    node("Add", ["p", "q"], ["s"]),
    node("ReorderOutput", ["s"], ["y"], domain="com.microsoft.nchwc", channels=4),
]


@pytest.mark.parametrize("nodes", [FUSED, REORDERED], ids=["FusedConv", "nchwc"])
def test_what_onnxruntime_saved_is_told(nodes: list[onnx.NodeProto]) -> None:
    model = file_of(nodes, PAIR)
    model.opset_import.append(helper.make_opsetid(nodes[0].domain, 1))
    first, *_ = fuse_onnx(model).refused
    assert "onnxruntime's own" in first.why
    assert first.why.endswith("Give the file from before it")


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
