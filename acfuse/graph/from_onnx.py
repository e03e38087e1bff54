"""From an ONNX graph to steps: the same algebra on files whose code nobody has.

Everything that decides is in the file: strides, pads, dilations, groups and eps are attributes.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from acfuse.algebra import Affine, AvgPool, Conv, Pad, batch_norm, combined, per_channel
from acfuse.algebra.geometry import Border
from acfuse.errors import NotFusable, Reason
from acfuse.graph.steps import Graph, Opaque, Rule, Scaled, Step, Sum, Through

Constants = Mapping[str, onnx.TensorProto]
PAD_MODES: dict[str, Border] = {
    "constant": "zeros",
    "reflect": "reflect",
    "edge": "replicate",
    "wrap": "circular",
}
LARGEST_FOLD = 2**22  # numbers in the constants that one node is evaluated on
END = 2**31 - 1  # what exporters write for "to the end"


def steps_of(graph: onnx.GraphProto, outer: Constants) -> Graph:
    """The steps of an ONNX graph. `outer` are the constants of the graphs around it."""
    constants = constants_of(graph, outer)
    axes = _spatial_axes(graph, constants)
    names: dict[str, str] = {}  # passing nodes share a value
    steps: list[Step] = []
    needed = {o.name for o in graph.output} | set(_read_in_subgraphs(graph))
    for node in graph.node:
        if all(output in constants for output in node.output):
            continue
        reads = [names.get(n, n) for n in node.input if n and n not in constants]
        rule: Rule | None
        try:
            rule = _rule(node, constants, axes)
        except NotFusable as refusal:
            rule = Opaque(refusal.why, refusal.code)
        if any(node.output[1:]) and not isinstance(rule, Opaque):
            used = {n for other in graph.node for n in other.input} | needed
            if used & set(node.output[1:]):
                rule = Opaque(f"a further output of {node.op_type} is used", Reason.SHARED)
        if rule is None and node.output[0] not in needed:
            names[node.output[0]] = reads[0]
            continue
        if rule is None:
            rule = Scaled(Affine())
        for i, output in enumerate(node.output):
            if output:
                own = rule if i == 0 else Opaque(f"{node.op_type} stands between")
                steps.append(Step(output, tuple(reads), own))
    inputs = {value for step in steps for value in step.reads} - {s.value for s in steps}
    outputs = frozenset(names.get(n, n) for n in needed)
    return Graph(tuple(steps), tuple(sorted(inputs)), outputs, None, axes)


def constants_of(graph: onnx.GraphProto, outer: Constants | None = None) -> Constants:
    """The tensors that a graph holds or sees: initializers, and what follows from them.

    Small computations on constants (shapes of pads, a cast or transposed weight) are carried out.
    """
    found = {**(outer or {}), **{tensor.name: tensor for tensor in graph.initializer}}
    overridden = {value.name for value in graph.input} & set(found)
    for node in graph.node:
        folds = node.op_type == "Constant" or (
            bool(node.input)
            and all(name in found or not name for name in node.input)
            and not node.op_type.startswith(("Random", "Bernoulli", "Multinomial"))
            and node.domain in ("", "ai.onnx")
            and not any(True for _ in subgraphs(node))
            and sum(_numbers(found[name]) for name in node.input if name) <= LARGEST_FOLD
        )
        if folds and not overridden.intersection(node.input):
            found.update(_evaluated(node, found))
    return found


def _numbers(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) if tensor.dims else 1


def _evaluated(node: onnx.NodeProto, found: Constants) -> dict[str, onnx.TensorProto]:
    """The outputs of a node whose inputs are constants; none if it cannot be carried out here."""
    values = {n: numpy_helper.to_array(found[n]) for n in node.input if n}
    kinds = {n: onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for n, v in values.items()}
    graph = onnx.helper.make_graph(
        [node],
        node.op_type,
        [onnx.helper.make_tensor_value_info(n, kind, None) for n, kind in kinds.items()],
        [onnx.helper.make_empty_tensor_value_info(n) for n in node.output if n],
    )
    results: Any = None
    for opset in (17, 11):  # as it is now, or with what were attributes then
        try:
            results = ReferenceEvaluator(graph, opsets={"": opset}).run(None, values)
            break
        except Exception:  # it stays a node of the graph
            continue
    if results is None:
        return {}
    return {
        name: numpy_helper.from_array(np.asarray(value), name)
        for name, value in zip(filter(None, node.output), results, strict=True)
        if np.asarray(value).size <= LARGEST_FOLD
    }


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node: branches of If, bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _read_in_subgraphs(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        for inner in subgraphs(node):
            for other in inner.node:
                yield from other.input
            yield from (o.name for o in inner.output)
            yield from _read_in_subgraphs(inner)


def _spatial_axes(graph: onnx.GraphProto, constants: Constants) -> int | None:
    axes = {
        len(constants[node.input[1]].dims) - 2
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in constants
    }
    return axes.pop() if len(axes) == 1 else None


def tensor_of(constants: Constants, name: str) -> Tensor:
    """A constant as a tensor in its own dtype; NotFusable if the graph computes it."""
    if name not in constants:
        raise NotFusable(Reason.ACTIVATION, f"{name} depends on the input")
    proto = constants[name]
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raise NotFusable(Reason.UNKNOWN_LAYER, f"{name} is stored in another file")
    return torch.from_numpy(np.array(numpy_helper.to_array(proto)))


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node as plain values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _rule(node: onnx.NodeProto, constants: Constants, axes: int | None) -> Rule | None:
    """The rule of a node; None where it only passes its value on. Raises NotFusable."""
    if node.domain not in ("", "ai.onnx"):
        raise NotFusable(Reason.UNKNOWN_LAYER, f"{node.domain}.{node.op_type} stands between")
    if node.op_type in RULES:
        return RULES[node.op_type](node, constants, axes)
    if node.op_type == "Concat":
        raise NotFusable(Reason.CONCATENATED, "the arms are concatenated, not added")
    if node.op_type.startswith("Random"):
        raise NotFusable(Reason.RANDOM, f"{node.op_type} draws random numbers")
    raise NotFusable(Reason.ACTIVATION, f"{node.op_type} stands between")


def _conv(node: onnx.NodeProto, constants: Constants, axes: int | None) -> Rule:
    given = attributes_of(node)
    weight = tensor_of(constants, node.input[1])
    bias = tensor_of(constants, node.input[2]) if len(node.input) > 2 and node.input[2] else None
    size = tuple(weight.shape[2:])
    ones = [1] * len(size)
    stride = tuple(given.get("strides", ones))
    dilation = tuple(given.get("dilations", ones))
    pads = _pads(given, size, stride, dilation)
    return Through(Conv(weight, bias, stride, pads, dilation, given.get("group", 1)))


def _pads(
    given: Mapping[str, Any],
    size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    """Padding (before, after) per axis: [all befores, all afters], or by auto_pad."""
    mode = given.get("auto_pad", b"NOTSET").decode()
    count = len(size)
    if mode == "VALID":
        return ((0, 0),) * count
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        if any(s != 1 for s in stride):
            raise NotFusable(Reason.UNKNOWN_LAYER, f"auto_pad {mode} depends on the image's size")
        whole = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
        less = [n // 2 for n in whole]
        pairs = [(a, n - a) for a, n in zip(less, whole, strict=True)]
        return tuple(p if mode == "SAME_UPPER" else p[::-1] for p in pairs)
    flat = list(given.get("pads", [0] * 2 * count))
    return tuple(zip(flat[:count], flat[count:], strict=True))


def _batch_norm(node: onnx.NodeProto, constants: Constants, axes: int | None) -> Rule:
    given = attributes_of(node)
    scale, shift, mean, variance = (tensor_of(constants, n) for n in node.input[1:5])
    training = bool(given.get("training_mode", 0)) or given.get("spatial", 1) == 0
    return Scaled(batch_norm(scale, shift, mean, variance, given.get("epsilon", 1e-5), training))


def _arithmetic(node: onnx.NodeProto, constants: Constants, axes: int | None) -> Rule:
    kind = node.op_type
    held = [name in constants for name in node.input]
    if kind == "Neg":
        return Scaled(Affine(-1.0))
    if not any(held):
        if kind in ("Add", "Sum"):
            return Sum((1.0,) * len(held))
        if kind == "Sub":
            return Sum((1.0, -1.0))
        raise NotFusable(Reason.ACTIVATION, "a product of two activations stands between")
    if len(held) != 2 or all(held):
        raise NotFusable(Reason.ACTIVATION, f"{kind} of constants stands between")
    first = not held[0]
    factor = per_channel(tensor_of(constants, node.input[1 if first else 0]), axes)
    return Scaled(combined(SIGNS[kind], factor, value_first=first))


SIGNS = {"Add": "+", "Sum": "+", "Sub": "-", "Mul": "*", "Div": "/"}


def _pad(node: onnx.NodeProto, constants: Constants, axes: int | None) -> Rule:
    given = attributes_of(node)
    mode = given.get("mode", b"constant").decode()
    if "pads" in given or "paddings" in given:  # opset 2 to 10, and 1
        amounts, fill = list(given.get("pads") or given["paddings"]), given.get("value", 0.0)
    else:
        if len(node.input) > 3 and node.input[3]:
            raise NotFusable(Reason.UNKNOWN_LAYER, "a Pad of chosen axes")
        amounts = tensor_of(constants, node.input[1]).tolist()
        has_fill = len(node.input) > 2 and node.input[2]
        fill = float(tensor_of(constants, node.input[2])) if has_fill else 0.0
    count = len(amounts) // 2
    if mode == "constant" and fill:
        raise NotFusable(Reason.BORDERS, f"it pads with {fill:g}, not with zeros")
    pairs = list(zip(amounts[:count], amounts[count:], strict=True))
    if any(map(any, pairs[:2])):
        raise NotFusable(Reason.CHANNELS, "it pads the batch or the channels")
    if mode not in PAD_MODES or axes is None or count != axes + 2:
        raise NotFusable(Reason.UNKNOWN_LAYER, f"a Pad of mode {mode}")
    return Through(Pad(0, tuple((int(a), int(b)) for a, b in pairs[2:]), PAD_MODES[mode]))


def _slice(node: onnx.NodeProto, constants: Constants, axes: int | None) -> Rule:
    """A crop of spatial axes by constant amounts from both ends."""
    given = attributes_of(node)
    if "starts" in given:  # opset 1 to 9
        starts, ends = list(given["starts"]), list(given["ends"])
        which, steps = list(given.get("axes", range(len(starts)))), [1] * len(starts)
    else:
        lists = [tensor_of(constants, n).tolist() if n else [] for n in node.input[1:]]
        starts, ends = lists[0], lists[1]
        which = (lists[2] if len(lists) > 2 else []) or list(range(len(starts)))
        steps = (lists[3] if len(lists) > 3 else []) or [1] * len(starts)
    if axes is None:
        raise NotFusable(Reason.ACTIVATION, "Slice stands between")
    cuts = [(0, 0)] * (axes + 2)
    for start, end, axis, step in zip(starts, ends, which, steps, strict=True):
        place = axis if axis >= 0 else axis + axes + 2
        until = 0 if end >= END else end
        if step != 1 or start < 0 or until > 0 or (end < END and end >= 0) or place < 2:
            raise NotFusable(Reason.ACTIVATION, "Slice stands between")
        cuts[place] = (-start, until)
    return Through(Pad(0, tuple(cuts[2:])))


def _average_pool(node: onnx.NodeProto, constants: Constants, axes: int | None) -> Rule:
    given = attributes_of(node)
    size = tuple(given["kernel_shape"])
    ones = (1,) * len(size)
    stride = tuple(given.get("strides", ones))
    if tuple(given.get("dilations", ones)) != ones:
        raise NotFusable(Reason.POOLING, "average pooling with dilation")
    pool = AvgPool(
        0,
        size,
        stride,
        _pads(given, size, stride, ones),
        bool(given.get("ceil_mode", 0)),
        bool(given.get("count_include_pad", 0)),
    )
    pool.check()
    return Through(pool)


def _passing(node: onnx.NodeProto, constants: Constants, axes: int | None) -> Rule | None:
    trains = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
    if trains and bool(tensor_of(constants, node.input[2]).any()):
        raise NotFusable(Reason.RANDOM, "a Dropout is in training mode")
    return None


RULES: dict[str, Callable[[onnx.NodeProto, Constants, int | None], Rule | None]] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Neg": _arithmetic,
    "Sum": _arithmetic,
    "Pad": _pad,
    "Slice": _slice,
    "AveragePool": _average_pool,
    "Identity": _passing,
    "Dropout": _passing,
}
