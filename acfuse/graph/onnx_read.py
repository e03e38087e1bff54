"""From an ONNX graph to steps: the same algebra on files whose code nobody has.

Everything that decides is in the file: strides, pads, dilations, groups and eps are attributes.
Values are read as convolutions read them, channels second. A file may hold them in another order
of axes and transpose them back and forth (images with their channels last): a Transpose is no step,
it is another name for the same value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from acfuse.algebra import (
    Affine,
    AvgPool,
    Conv,
    Pad,
    batch_norm,
    combined,
    per_channel,
    transposed_conv,
)
from acfuse.algebra.geometry import Border
from acfuse.errors import NotFusable, Reason
from acfuse.graph.onnx_values import CONVOLUTIONS, Constants, Known, reads_within
from acfuse.graph.steps import (
    ChannelSlice,
    Concat,
    ConvStep,
    Graph,
    Opaque,
    PerChannel,
    Rule,
    Step,
    Sum,
    planned_rule,
)

Axes = tuple[int, ...]  # axis i of a name is axis axes[i] of the value; () where they are the same

PAD_MODES: dict[str, Border] = {
    "constant": "zeros",
    "reflect": "reflect",
    "edge": "replicate",
    "wrap": "circular",
}
FLOATS: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
}
CHANNELS_SECOND = (*CONVOLUTIONS, "AveragePool", "BatchNormalization")
END = 2**31 - 1  # what exporters write for "to the end"
STATED_TRAINING = 14  # the opset since which a BatchNormalization says that it is in training


@dataclass(frozen=True)
class Surroundings:
    """What can be known of the values that a graph's nodes read.

    `constants` are the tensors that stay as they are; `given` maps names that look like it, and are
    not to be read, to the reason. `functions` are operators that the file itself defines.
    """

    constants: Constants
    known: Mapping[str, Known]
    opset: int
    given: Mapping[str, str]
    functions: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class OnnxSteps:
    """The steps of an ONNX graph, and under which names (in which order of axes) it has a value."""

    graph: Graph
    views: Mapping[str, Mapping[str, Axes]]


@dataclass(frozen=True)
class _Place:
    """One node, and how it finds what it reads."""

    node: onnx.NodeProto
    around: Surroundings
    reads: tuple[str, ...]  # names of what it reads that is no constant
    axes: Axes  # the order of axes that these are in
    spatial: int | None  # axes of the images of this graph, if its convolutions agree on that

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the node as plain values."""
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.node.attribute}

    def has(self, index: int) -> bool:
        """Whether an optional input is there."""
        return len(self.node.input) > index and bool(self.node.input[index])

    def tensor(self, index: int) -> Tensor:
        """A constant input in its own dtype; NotFusable if the graph computes it."""
        name = self.node.input[index]
        proto = self.around.constants.get(name)
        if proto is None:
            why = self.around.given.get(name, f"{name} is no constant of the file")
            raise NotFusable(Reason.UNKNOWN_LAYER, why)
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"{name} is stored in another file")
        if proto.data_type == onnx.TensorProto.BFLOAT16:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"{name} is stored as bfloat16")
        return torch.from_numpy(np.array(numpy_helper.to_array(proto)))

    def numbers(self, index: int) -> Tensor:
        """A constant input of a floating dtype."""
        tensor = self.tensor(index)
        if tensor.dtype not in FLOATS.values():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise NotFusable(Reason.UNKNOWN_LAYER, f"{self.node.input[index]} is {kind}")
        return tensor

    def sizes(self, name: str) -> tuple[int | None, ...]:
        """The sizes of an image that is read, channels second; NotFusable if it is none."""
        known = self.around.known.get(name)
        if known is None or known.sizes is None:
            raise NotFusable(Reason.ACTIVATION, f"nothing tells the shape of {name}")
        axes = len(known.sizes) - 2
        if known.kind not in FLOATS or axes < 1 or self.spatial not in (axes, None):
            raise NotFusable(Reason.ACTIVATION, f"{name} is no image of float numbers")
        return in_order(known.sizes, inverse(self.axes))


def steps_of(graph: onnx.GraphProto, around: Surroundings) -> OnnxSteps:
    """The steps of an ONNX graph."""
    return _Builder(graph, around).build()


class _Builder:
    def __init__(self, graph: onnx.GraphProto, around: Surroundings) -> None:
        self.known = dict(around.known)
        self.graph, self.around = graph, replace(around, known=self.known)
        self.orders = _orders(graph)
        self.spatial = _spatial_axes(graph, around.constants)
        self.values: dict[str, tuple[str, Axes]] = {}  # name -> the value that it is, in what order
        self.steps: list[Step] = []
        self.needed = {o.name for o in graph.output}
        self.needed |= {name for node in graph.node for name in reads_within(node)}
        self.read = self.needed | {name for node in graph.node for name in node.input}

    def build(self) -> OnnxSteps:
        for node in self.graph.node:
            if not all(o in self.around.constants for o in node.output if o):
                self._add(node)
        read = {v for step in self.steps for v in step.reads}
        outputs = frozenset(self._value(n)[0] for n in self.needed)
        views: dict[str, dict[str, Axes]] = {}
        for name, (value, axes) in self.values.items():
            views.setdefault(value, {})[name] = axes
        steps = Graph(
            tuple(self.steps),
            tuple(sorted(read - {s.value for s in self.steps})),
            outputs,
            spatial_rank=self.spatial,
        )
        return OnnxSteps(steps, views)

    def _value(self, name: str) -> tuple[str, Axes]:
        """What a name stands for; a new one is a value, in the order in which it is transposed."""
        return self.values.setdefault(name, (name, self.orders.get(name, ())))

    def _add(self, node: onnx.NodeProto) -> None:
        reads = tuple(n for n in node.input if n and n not in self.around.constants)
        values = [self._value(n) for n in reads]
        if self._is_transposed(node, reads):
            value, axes = values[0]
            self.values[node.output[0]] = value, then(axes, _perm(node))
            return
        rules: Sequence[Rule | None]
        order: Axes = ()
        try:
            order = _common_order([axes for _, axes in values])
            place = _Place(node, self.around, reads, order, self.spatial)
            rules = [planned_rule(rule) for rule in self._rules(place)]
        except NotFusable as refusal:
            rules, order = [Opaque(refusal.why, refusal.code)], ()
        if rules[0] is None and node.output[0] not in self.needed:
            self.values[node.output[0]] = values[0]
            return
        other = rules[0] if isinstance(rules[0], Opaque) else NO_RESULT
        for i, output in enumerate(node.output):
            rule = rules[i] if i < len(rules) else other
            if not output:
                continue
            if isinstance(rule, Opaque):
                self._value(output)
            else:
                self.values[output] = output, order
            own = rule or PerChannel(Affine(), like_image=True)
            if isinstance(own, ChannelSlice):
                self._learn_sizes(output, reads[0], own, order)
            self.steps.append(Step(output, tuple(v for v, _ in values), own))

    def _learn_sizes(self, name: str, read: str, taken: ChannelSlice, order: Axes) -> None:
        """What some of the channels are, where ONNX's inference cannot tell from which to which."""
        known = self.known.get(read)
        if known is None or known.sizes is None:
            return
        sizes, channel = list(known.sizes), order.index(1) if order else 1
        width = sizes[channel]
        sizes[channel] = None if width is None else len(taken.channels(width))
        self.known[name] = Known(known.kind, tuple(sizes))

    def _is_transposed(self, node: onnx.NodeProto, reads: tuple[str, ...]) -> bool:
        """Whether a node is a Transpose that says how, of something that is a value."""
        perm = _perm(node)
        own = (node.domain, node.op_type) not in self.around.functions
        return (
            node.op_type == "Transpose"
            and node.domain in ("", "ai.onnx")
            and own
            and bool(perm)
            and len(reads) == 1
            and len(self._value(reads[0])[1]) in (0, len(perm))
        )

    def _rules(self, place: _Place) -> Sequence[Rule | None]:
        """The rule of each output of a node; None where it only passes its value on.

        Raises NotFusable.
        """
        node = place.node
        if node.domain not in ("", "ai.onnx"):
            raise NotFusable(Reason.UNKNOWN_LAYER, f"{node.domain}.{node.op_type} stands between")
        if (node.domain, node.op_type) in self.around.functions:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"the file defines its own {node.op_type}")
        if node.op_type.startswith("Random"):
            raise NotFusable(Reason.RANDOM, f"{node.op_type} draws random numbers")
        if node.op_type not in (*RULES, "Split"):
            raise NotFusable(Reason.ACTIVATION, f"{node.op_type} stands between")
        if not place.reads:
            raise NotFusable(Reason.ACTIVATION, f"{node.op_type} works on constants")
        if node.op_type in CHANNELS_SECOND and place.axes:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"{node.op_type} takes other axes for channels")
        rules = _split(place) if node.op_type == "Split" else [RULES[node.op_type](place)]
        if self.read.intersection(filter(None, node.output[len(rules) :])):
            raise NotFusable(Reason.SHARED, f"a further output of {node.op_type} is used")
        # What else it reads must be constant, and what it works on must not be.
        several = node.op_type in SEVERAL and not isinstance(rules[0], PerChannel)
        if len(place.reads) != (len(node.input) if several else 1):
            raise NotFusable(Reason.ACTIVATION, f"{node.op_type} works on constants")
        return rules


def _common_order(orders: Sequence[Axes]) -> Axes:
    if len(set(orders)) > 1:
        raise NotFusable(Reason.UNKNOWN_LAYER, "it reads images in different orders of axes")
    return orders[0] if orders else ()


def _orders(graph: onnx.GraphProto) -> dict[str, Axes]:
    """The order of axes of what is transposed for a convolution, and of what that is made from."""
    channels_second = {n.input[0] for n in graph.node if n.op_type in CHANNELS_SECOND}
    orders: dict[str, Axes] = {}
    for node in reversed(graph.node):
        if not node.output:
            continue
        perm = _perm(node)
        if node.op_type == "Transpose" and perm and node.output[0] in channels_second:
            orders.setdefault(node.input[0], inverse(perm))
        elif node.op_type in ELEMENTWISE and node.output[0] in orders:
            for name in node.input:
                orders.setdefault(name, orders[node.output[0]])
    return orders


def _perm(node: onnx.NodeProto) -> Axes:
    """The order of axes that a Transpose says; () if it says none, or what is no order."""
    perm = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
    return perm if sorted(perm) == list(range(len(perm))) else ()


def inverse(axes: Axes) -> Axes:
    """The order that undoes an order."""
    return tuple(axes.index(i) for i in range(len(axes)))


def then(axes: Axes, perm: Axes) -> Axes:
    """The order of what is transposed; () for the value's own."""
    both = tuple(axes[i] for i in perm) if axes else perm
    return () if both == tuple(sorted(both)) else both


def in_order(sizes: tuple[int | None, ...], axes: Axes) -> tuple[int | None, ...]:
    """Sizes (or pads) of a value in another order of its axes."""
    if not axes:
        return sizes
    if len(axes) != len(sizes):
        raise NotFusable(Reason.SIZES, f"{len(sizes)} axes where there are {len(axes)}")
    return tuple(sizes[i] for i in axes)


def _spatial_axes(graph: onnx.GraphProto, constants: Constants) -> int | None:
    axes = {
        len(constants[node.input[1]].dims) - 2
        for node in graph.node
        if node.op_type in CONVOLUTIONS and node.input[1] in constants
    }
    return axes.pop() if len(axes) == 1 else None


def _conv(place: _Place) -> Rule:
    given = place.attributes
    weight = place.numbers(1)
    bias = place.numbers(2) if place.has(2) else None
    size = tuple(weight.shape[2:])
    stride, dilation = (_per_axis(given, key, len(size)) for key in ("strides", "dilations"))
    pads = _pads(given, size, stride, dilation)
    return ConvStep(Conv(weight, bias, stride, pads, dilation, given.get("group", 1)))


def _transposed_conv(place: _Place) -> Rule:
    given = place.attributes
    weight = place.numbers(1)
    bias = place.numbers(2) if place.has(2) else None
    size = weight.shape[2:]
    ones = (1,) * len(size)
    if _per_axis(given, "strides", len(size)) != ones:
        raise NotFusable(Reason.UNKNOWN_LAYER, "a transposed convolution with a stride")
    if "output_shape" in given or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NotFusable(Reason.UNKNOWN_LAYER, "a transposed convolution of a stated output size")
    if any(given.get("output_padding", ())):
        raise NotFusable(Reason.UNKNOWN_LAYER, "a transposed convolution with output padding")
    dilation = _per_axis(given, "dilations", len(size))
    crops = _pads(given, tuple(size), ones, dilation)
    return ConvStep(transposed_conv(weight, bias, crops, dilation, given.get("group", 1)))


def _per_axis(given: Mapping[str, Any], key: str, count: int, default: int = 1) -> tuple[int, ...]:
    """An attribute with a number for each axis, or for each end of one."""
    numbers = tuple(given.get(key, (default,) * count))
    if len(numbers) != count:
        raise NotFusable(Reason.UNKNOWN_LAYER, f"{len(numbers)} {key} where {count} are expected")
    return numbers


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
    flat = _per_axis(given, "pads", 2 * count, default=0)
    return tuple(zip(flat[:count], flat[count:], strict=True))


def _batch_norm(place: _Place) -> Rule:
    given = place.attributes
    scale, shift, mean, variance = (place.numbers(i) for i in range(1, 5))
    # Before training was stated, a BatchNormalization that gives statistics was training.
    stated = place.around.opset >= STATED_TRAINING
    training = bool(given.get("training_mode", 0)) if stated else any(place.node.output[1:])
    if given.get("spatial", 1) == 0:
        raise NotFusable(Reason.NOT_PER_CHANNEL, "a BatchNorm has a factor for each pixel")
    by = batch_norm(scale, shift, mean, variance, given.get("epsilon", 1e-5), training)
    return PerChannel(by, like_image=True)


def _arithmetic(place: _Place) -> Rule:
    node, kind = place.node, place.node.op_type
    held = [name in place.around.constants for name in node.input]
    if kind == "Neg":
        return PerChannel(Affine(-1.0), like_image=True)
    if not any(held):
        if kind not in ("Add", "Sum", "Sub"):
            raise NotFusable(Reason.ACTIVATION, "a product of two activations stands between")
        _check_summands(place)
        return Sum((1.0, -1.0) if kind == "Sub" else (1.0,) * len(held))
    if len(held) != 2 or all(held):
        raise NotFusable(Reason.ACTIVATION, f"{kind} of constants stands between")
    first = not held[0]
    factor = _factor(place, 1 if first else 0)
    if kind == "Div" and not bool(torch.as_tensor(factor).all()):
        raise NotFusable(Reason.OVERFLOW, "a division by zero stands between")
    return PerChannel(combined(SIGNS[kind], factor, value_first=first), like_image=True)


SIGNS = {"Add": "+", "Sum": "+", "Sub": "-", "Mul": "*", "Div": "/"}


def _check_summands(place: _Place) -> None:
    """Values are added channel by channel: a single one is not spread over those of another."""
    sizes = [place.sizes(name) for name in place.reads]
    channels = {s[1] for s in sizes}
    if len({len(s) for s in sizes}) > 1 or len(channels) != 1:
        raise NotFusable(Reason.CHANNELS, "it adds images of different channels")
    if None in channels:
        raise NotFusable(Reason.UNKNOWN_LAYER, "nothing tells how many channels it adds")


def _factor(place: _Place, index: int) -> Tensor | float:
    """A constant as one number or one per channel of the value that it meets."""
    constant = place.numbers(index)
    sizes = place.sizes(place.reads[0])
    if constant.ndim > len(sizes):
        raise NotFusable(Reason.NOT_PER_CHANNEL, "a factor has more axes than the image")
    if place.axes:  # as the value is read, channels second
        aligned = constant.reshape(*[1] * (len(sizes) - constant.ndim), *constant.shape)
        constant = aligned.permute(*inverse(place.axes))
    factor = per_channel(constant, len(sizes) - 2)
    if isinstance(factor, Tensor) and sizes[1] != factor.numel():
        raise NotFusable(
            Reason.CHANNELS, f"a factor for {factor.numel()} channels meets {sizes[1] or 'others'}"
        )
    return factor


def _pad(place: _Place) -> Rule:
    given = place.attributes
    mode = given.get("mode", b"constant").decode()
    count = len(place.sizes(place.reads[0]))
    if place.around.opset < 11:
        amounts, fill = list(given["pads"]), float(given.get("value", 0.0))
    else:
        amounts = [int(n) for n in place.tensor(1).reshape(-1)]
        fill = float(place.tensor(2).reshape(())) if place.has(2) else 0.0
    if place.has(3):
        amounts = _on_all_axes(amounts, place.tensor(3), count)
    if mode not in PAD_MODES or count < 3 or len(amounts) != 2 * count:
        raise NotFusable(Reason.UNKNOWN_LAYER, f"a Pad of mode {mode}")
    if mode == "constant" and fill:
        raise NotFusable(Reason.BORDERS, f"it pads with {fill:g}, not with zeros")
    if mode != "constant" and min(amounts) < 0:
        raise NotFusable(Reason.BORDERS, f"it crops and pads with {mode}")
    pairs = _ordered(list(zip(amounts[:count], amounts[count:], strict=True)), place.axes)
    if any(map(any, pairs[:2])):
        raise NotFusable(Reason.CHANNELS, "it pads the batch or the channels")
    return ConvStep(Pad(0, tuple(pairs[2:]), PAD_MODES[mode]))


def _on_all_axes(amounts: list[int], axes: Tensor, count: int) -> list[int]:
    """The amounts of a Pad of chosen axes, written out for every axis."""
    whole = [0] * 2 * count
    chosen = [int(n) % count for n in axes.reshape(-1)]
    for i, axis in enumerate(chosen):
        whole[axis], whole[count + axis] = amounts[i], amounts[len(chosen) + i]
    return whole


def _ordered(pairs: list[tuple[int, int]], axes: Axes) -> list[tuple[int, int]]:
    """Pairs per axis in the value's own order."""
    return [pairs[i] for i in inverse(axes)] if axes else pairs


def _slice(place: _Place) -> Rule:
    """A crop of spatial axes by constant amounts from both ends."""
    given = place.attributes
    if place.around.opset < 10:
        starts, ends = list(given["starts"]), list(given["ends"])
        which, steps = list(given.get("axes", [])), []
    else:
        lists = [place.tensor(i).tolist() if place.has(i) else [] for i in range(1, 5)]
        starts, ends, which, steps = lists
    which, steps = which or list(range(len(starts))), steps or [1] * len(starts)
    count = len(place.sizes(place.reads[0]))
    if len(which) == 1 and steps == [1] and _is_channels(place, which[0], count):
        return ChannelSlice(slice(starts[0], None if ends[0] >= END else ends[0]))
    cuts = [(0, 0)] * count
    for start, end, axis, step in zip(starts, ends, which, steps, strict=True):
        to_end = end >= END
        if step != 1 or start < 0 or not (to_end or end < 0) or not -count <= axis < count:
            raise NotFusable(Reason.ACTIVATION, "Slice stands between")
        cuts[axis] = (-start, 0 if to_end else end)
    cuts = _ordered(cuts, place.axes)
    if count < 3 or any(map(any, cuts[:2])):
        raise NotFusable(Reason.ACTIVATION, "Slice stands between")
    return ConvStep(Pad(0, tuple(cuts[2:])))


def _is_channels(place: _Place, axis: int, count: int) -> bool:
    """Whether an axis of what is read, of so many, is that of the channels."""
    if not -count <= axis < count:
        return False
    return (place.axes[axis % count] if place.axes else axis % count) == 1


def _concat(place: _Place) -> Rule:
    try:
        axis, ranks = place.attributes["axis"], {len(place.sizes(name)) for name in place.reads}
    except NotFusable:
        ranks = set()
    if len(ranks) != 1 or not _is_channels(place, axis, ranks.pop()):
        raise NotFusable(Reason.CONCATENATED, "the arms are concatenated, not added")
    return Concat()


def _split(place: _Place) -> list[Rule | None]:
    """The channels in parts, one for each output."""
    given, count = place.attributes, len(place.node.output)
    if not _is_channels(place, given.get("axis", 0), len(place.sizes(place.reads[0]))):
        raise NotFusable(Reason.ACTIVATION, "Split stands between")
    sizes = given.get("split")
    if place.around.opset >= 13 and place.has(1):
        sizes = place.tensor(1).tolist()
    if sizes is None:
        return [ChannelSlice((i, count)) for i in range(count)]
    if len(sizes) != count:
        raise NotFusable(Reason.ACTIVATION, "Split stands between")
    return [ChannelSlice(slice(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(count)]


def _average_pool(place: _Place) -> Rule:
    given = place.attributes
    size = tuple(given["kernel_shape"])
    ones = (1,) * len(size)
    stride = _per_axis(given, "strides", len(size))
    if _per_axis(given, "dilations", len(size)) != ones:
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
    return ConvStep(pool)


def is_training_dropout(node: onnx.NodeProto, constants: Constants) -> bool:
    """Whether a Dropout is in training mode, or may be."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    mode = constants.get(node.input[2])
    return mode is None or bool(numpy_helper.to_array(mode).any())


def _passing(place: _Place) -> Rule | None:
    if is_training_dropout(place.node, place.around.constants):
        raise NotFusable(Reason.RANDOM, "a Dropout is in training mode")
    return None


RULES: dict[str, Callable[[_Place], Rule | None]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed_conv,
    "BatchNormalization": _batch_norm,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Neg": _arithmetic,
    "Sum": _arithmetic,
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _concat,
    "AveragePool": _average_pool,
    "Identity": _passing,
    "Dropout": _passing,
}
SEVERAL = ("Add", "Sub", "Sum", "Concat")
NO_RESULT = Opaque("a further output of a node stands between")
ELEMENTWISE = frozenset(RULES) - set(CHANNELS_SECOND)  # the same in every order of axes
