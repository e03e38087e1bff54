"""From an ONNX graph to steps: the same algebra on files whose code nobody has.

Everything that decides is in the file: strides, pads, dilations, groups and eps are attributes.
Values are read as convolutions read them, channels second. A file may hold them in another order
of axes and transpose them back and forth (images with their channels last): a Transpose is no step,
it is another name for the same value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from acfuse.algebra import Affine
from acfuse.algebra.geometry import Border
from acfuse.errors import NotFusable, Reason
from acfuse.graph import rules
from acfuse.graph.onnx_values import CONVOLUTIONS, Constants, Known, reads_within
from acfuse.graph.rules import Image, Parts
from acfuse.graph.steps import ChannelSlice, Graph, Opaque, PerChannel, Rule, Step

Perm = tuple[int, ...]  # dimension i of a name is dimension perm[i] of the value; (): the same ones
Made = tuple[Rule | Parts | None, list[Image]]  # a rule, and the images that it takes
T = TypeVar("T")

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
    views: Mapping[str, Mapping[str, Perm]]


@dataclass(frozen=True)
class _Place:
    """One node, and how it finds what it reads."""

    node: onnx.NodeProto
    around: Surroundings
    perm: Perm  # the order of axes that its images are in
    spatial_rank: int | None  # of the images of this graph, if its convolutions agree on that

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

    def ints(self, index: int) -> list[int]:
        """A constant input as a list of numbers; empty where it is left out."""
        return [int(n) for n in self.tensor(index).reshape(-1)] if self.has(index) else []

    def image(self, index: int = 0) -> Image:
        """An input that is no constant, channels second, as far as anything tells of it."""
        name = self.node.input[index]
        if name in self.around.constants:
            raise NotFusable(Reason.ACTIVATION, f"{self.node.op_type} works on constants")
        known = self.around.known.get(name)
        rank = len(known.sizes) - 2 if known and known.sizes else 0
        if known is None or known.kind not in FLOATS or rank < 1:
            return Image(name)
        return Image(name, rank, self.in_order(known.sizes or ())[1])

    def sized(self, index: int = 0) -> Image:
        """An input that is an image of a known shape; NotFusable if it is none."""
        image = self.image(index)
        if image.spatial_rank is None or self.spatial_rank not in (image.spatial_rank, None):
            why = f"nothing tells that {image.value} is an image"
            raise NotFusable(Reason.ACTIVATION, why)
        return image

    def in_order(self, per_axis: Sequence[T]) -> Sequence[T]:
        """What is given for each axis of the image that is read, in the order of the value."""
        if not self.perm:
            return per_axis
        if len(self.perm) != len(per_axis):
            why = f"{len(per_axis)} axes where there are {len(self.perm)}"
            raise NotFusable(Reason.SIZES, why)
        return [per_axis[i] for i in inverse(self.perm)]

    def dim(self, axis: int, image: Image) -> int | None:
        """The dimension of the value that an axis of the image is; None for one that it has not."""
        count = (image.spatial_rank or 0) + 2
        if not -count <= axis < count:
            return None
        return self.perm[axis % count] if self.perm else axis % count


def steps_of(graph: onnx.GraphProto, around: Surroundings) -> OnnxSteps:
    """The steps of an ONNX graph."""
    return _Builder(graph, around).build()


class _Builder:
    def __init__(self, graph: onnx.GraphProto, around: Surroundings) -> None:
        self.known = dict(around.known)
        self.graph, self.around = graph, replace(around, known=self.known)
        self.orders = _orders(graph)
        self.spatial_rank = _spatial_rank(graph, around.constants)
        self.values: dict[str, tuple[str, Perm]] = {}  # name -> the value that it is, in what order
        self.steps: list[Step] = []
        self.casts: dict[tuple[object, ...], str] = {}  # what is cast, and how -> the first one
        self.needed = {o.name for o in graph.output}
        self.needed |= {name for node in graph.node for name in reads_within(node)}
        self.read = self.needed | {name for node in graph.node for name in node.input}

    def build(self) -> OnnxSteps:
        for node in self.graph.node:
            if not all(o in self.around.constants for o in node.output if o):
                self._add(node)
        read = {v for step in self.steps for v in step.reads}
        outputs = frozenset(self._value(n)[0] for n in self.needed)
        views: dict[str, dict[str, Perm]] = {}
        for name, (value, perm) in self.values.items():
            views.setdefault(value, {})[name] = perm
        steps = Graph(
            tuple(self.steps),
            tuple(sorted(read - {s.value for s in self.steps})),
            outputs,
            spatial_rank=self.spatial_rank,
        )
        return OnnxSteps(steps, views)

    def _value(self, name: str) -> tuple[str, Perm]:
        """What a name stands for; a new one is a value, in the order in which it is transposed."""
        return self.values.setdefault(name, (name, self.orders.get(name, ())))

    def _add(self, node: onnx.NodeProto) -> None:
        reads = tuple(n for n in node.input if n and n not in self.around.constants)
        values = [self._value(n) for n in reads]
        twin = self._twin(node)
        if twin:
            self.values[node.output[0]] = self._value(twin)
            return
        if self._is_transposed(node, reads):
            value, perm = values[0]
            self.values[node.output[0]] = value, then(perm, _perm(node))
            return
        made: Sequence[Rule | None]
        order: Perm = ()
        try:
            order = _common_order([perm for _, perm in values])
            made, reads = self._rules(_Place(node, self.around, order, self.spatial_rank))
        except NotFusable as refusal:
            made, order = [Opaque(refusal.why, refusal.code)], ()
        # A factor of 1 is a step all the same: the node is there, and a region takes it up.
        passes = made[0] is None and node.op_type in PASSING
        if passes and node.output[0] not in self.needed:
            self.values[node.output[0]] = self._value(reads[0])
            return
        other = made[0] if isinstance(made[0], Opaque) else NO_RESULT
        for i, output in enumerate(node.output):
            rule = made[i] if i < len(made) else other
            if not output:
                continue
            if isinstance(rule, Opaque):
                self._value(output)
            else:
                self.values[output] = output, order
            own = rule or PerChannel(Affine(), like_image=True)
            if isinstance(own, ChannelSlice):
                self._learn_sizes(output, reads[0], own, order)
            self.steps.append(Step(output, tuple(self._value(n)[0] for n in reads), own))

    def _twin(self, node: onnx.NodeProto) -> str:
        """The output of an earlier Cast of the same value to the same type; "" if there is none."""
        own = (node.domain, node.op_type) in self.around.functions
        constant = any(n in self.around.constants for n in node.input)
        if node.op_type != "Cast" or node.domain not in ("", "ai.onnx") or own or constant:
            return ""
        settings = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        key = (self._value(node.input[0]), *settings)
        first = self.casts.setdefault(key, node.output[0])
        return "" if first == node.output[0] else first

    def _learn_sizes(self, name: str, read: str, taken: ChannelSlice, order: Perm) -> None:
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

    def _rules(self, place: _Place) -> tuple[Sequence[Rule | None], tuple[str, ...]]:
        """The rule of each output of a node, and the names of the images that they take.

        Raises NotFusable.
        """
        node = place.node
        if node.domain not in ("", "ai.onnx"):
            why = f"no rule describes {node.domain}.{node.op_type}"
            raise NotFusable(Reason.UNKNOWN_LAYER, why)
        if (node.domain, node.op_type) in self.around.functions:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"the file defines its own {node.op_type}")
        if node.op_type.startswith("Random"):
            raise NotFusable(Reason.RANDOM, f"{node.op_type} draws random numbers")
        if node.op_type not in OPERATORS:
            raise rules.not_linear(node.op_type)
        if node.op_type in CHANNELS_SECOND and place.perm:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"{node.op_type} takes other axes for channels")
        made, images = OPERATORS[node.op_type](place)
        parts = [*map(made, range(len(node.output)))] if callable(made) else [made]
        if self.read.intersection(filter(None, node.output[len(parts) :])):
            raise NotFusable(Reason.SHARED, f"a further output of {node.op_type} is used")
        return parts, tuple(image.value for image in images)


def _common_order(orders: Sequence[Perm]) -> Perm:
    if len(set(orders)) > 1:
        raise NotFusable(Reason.UNKNOWN_LAYER, "it reads images in different orders of axes")
    return orders[0] if orders else ()


def _orders(graph: onnx.GraphProto) -> dict[str, Perm]:
    """The order of axes of what is transposed for a convolution, and of what that is made from."""
    channels_second = {n.input[0] for n in graph.node if n.op_type in CHANNELS_SECOND}
    orders: dict[str, Perm] = {}
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


def _perm(node: onnx.NodeProto) -> Perm:
    """The order of axes that a Transpose says; () if it says none, or what is no order."""
    perm = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
    return perm if sorted(perm) == list(range(len(perm))) else ()


def inverse(perm: Perm) -> Perm:
    """The order that undoes an order."""
    return tuple(perm.index(i) for i in range(len(perm)))


def then(first: Perm, second: Perm) -> Perm:
    """The order of what is transposed twice; () for the value's own."""
    both = tuple(first[i] for i in second) if first else second
    return () if both == tuple(sorted(both)) else both


def _spatial_rank(graph: onnx.GraphProto, constants: Constants) -> int | None:
    ranks = {
        len(constants[node.input[1]].dims) - 2
        for node in graph.node
        if node.op_type in CONVOLUTIONS and node.input[1] in constants
    }
    return ranks.pop() if len(ranks) == 1 else None


def _conv(place: _Place) -> Made:
    given, transposed = place.attributes, place.node.op_type == "ConvTranspose"
    weight, bias = place.numbers(1), place.numbers(2) if place.has(2) else None
    rank = max(weight.ndim - 2, 0)
    stride, dilation = (_per_axis(given, key, rank) for key in ("strides", "dilations"))
    same = _auto_pad(given).startswith("SAME")  # it tells no size before opset 11
    if transposed and ("output_shape" in given or (same and place.around.opset < 11)):
        raise NotFusable(Reason.UNKNOWN_LAYER, "a transposed convolution of a stated output size")
    padding = _padding(given, (1,) * rank if transposed else stride)
    more = _per_axis(given, "output_padding", rank, default=0)
    settings = (stride, padding, dilation, transposed, more, given.get("group", 1))
    return rules.apply("convolution", place.image(), weight, bias, *settings)


def _per_axis(given: Mapping[str, Any], key: str, count: int, default: int = 1) -> tuple[int, ...]:
    """An attribute with a number for each axis, or for each end of one."""
    numbers = tuple(given.get(key, (default,) * count))
    if len(numbers) != count:
        raise NotFusable(Reason.UNKNOWN_LAYER, f"{len(numbers)} {key} where {count} are expected")
    return numbers


def _auto_pad(given: Mapping[str, Any]) -> str:
    return str(given.get("auto_pad", b"NOTSET").decode())


def _padding(given: Mapping[str, Any], stride: tuple[int, ...]) -> Any:
    """Padding (before, after) per axis from [all befores, all afters], or a word for auto_pad."""
    mode, rank = _auto_pad(given), len(stride)
    if mode == "VALID":
        return "valid"
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        if any(s != 1 for s in stride):
            raise NotFusable(Reason.UNKNOWN_LAYER, f"auto_pad {mode} depends on the image's size")
        return "same" if mode == "SAME_UPPER" else "same_lower"
    flat = _per_axis(given, "pads", 2 * rank, default=0)
    return tuple(zip(flat[:rank], flat[rank:], strict=True))


def _batch_norm(place: _Place) -> Made:
    given = place.attributes
    stored = [place.numbers(i) for i in range(1, 5)]
    # Before training was stated, a BatchNormalization that gives statistics was training.
    stated = place.around.opset >= STATED_TRAINING
    training = bool(given.get("training_mode", 0)) if stated else any(place.node.output[1:])
    if given.get("spatial", 1) == 0:
        raise NotFusable(Reason.NOT_PER_CHANNEL, "a BatchNorm has a factor for each pixel")
    eps = given.get("epsilon", 1e-5)
    return rules.apply("batch_norm", place.image(), *stored, training=training, eps=eps)


def _arithmetic(place: _Place) -> Made:
    kind, names = place.node.op_type, place.node.input
    images = [place.sized(i) for i, n in enumerate(names) if n not in place.around.constants]
    dims = (images[0].spatial_rank or 0) + 2 if images else 0

    def factor(index: int) -> Tensor:
        """A constant that meets an image, its channels second as well."""
        constant = place.numbers(index)
        aligned = constant.reshape(*[1] * (dims - constant.ndim), *constant.shape)
        return aligned.permute(*place.in_order(range(aligned.ndim)))

    constants = place.around.constants
    operands = [factor(i) if n in constants else place.sized(i) for i, n in enumerate(names)]
    if kind == "Sum" and len(names) != 2:
        return rules.apply("add_all", operands)
    return rules.apply("add" if kind == "Sum" else kind.lower(), *operands)


def _pad(place: _Place) -> Made:
    given, image = place.attributes, place.sized()
    mode = given.get("mode", b"constant").decode()
    count = (image.spatial_rank or 0) + 2
    if place.around.opset < 11:
        amounts, fill = list(given["pads"]), float(given.get("value", 0.0))
    else:
        amounts = place.ints(1)
        fill = float(place.tensor(2).reshape(())) if place.has(2) else 0.0
    befores, afters = amounts[: len(amounts) // 2], amounts[len(amounts) // 2 :]
    axes = place.ints(3) if place.has(3) else [*range(count)]
    if mode not in PAD_MODES or not len(axes) == len(befores) == len(afters):
        raise NotFusable(Reason.UNKNOWN_LAYER, f"a Pad of mode {mode}")
    if mode != "constant" and min(amounts) < 0:
        raise NotFusable(Reason.BORDERS, f"it crops and pads with {mode}")
    pairs = [(0, 0)] * count
    for axis, before, after in zip(axes, befores, afters, strict=True):
        pairs[axis % count] = before, after
    flat = [n for pair in reversed(place.in_order(pairs)) for n in pair]
    return rules.apply("pad", image, flat, PAD_MODES[mode], fill)


def _slice(place: _Place) -> Made:
    """A range of each of some axes."""
    given, image = place.attributes, place.sized()
    if place.around.opset < 10:
        starts, ends = list(given["starts"]), list(given["ends"])
        axes, steps = list(given.get("axes", [])), []
    else:
        starts, ends, axes, steps = (place.ints(i) for i in range(1, 5))
    axes, steps = axes or [*range(len(starts))], steps or [1] * len(starts)
    index = [slice(None)] * ((image.spatial_rank or 0) + 2)
    if not len(axes) == len(starts) == len(ends) == len(steps) or any(
        place.dim(axis, image) is None for axis in axes
    ):
        raise NotFusable(Reason.ACTIVATION, "a Slice of axes that the image has not")
    for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(*bounds)
    return rules.apply("getitem", image, tuple(place.in_order(index)))


def _concat(place: _Place) -> Made:
    images = [place.image(i) for i in range(len(place.node.input))]
    return rules.apply("cat", images, place.dim(place.attributes["axis"], images[0]))


def _split(place: _Place) -> Made:
    """The channels in parts, one for each output."""
    given, count, image = place.attributes, len(place.node.output), place.sized()
    dim, sizes = place.dim(given.get("axis", 0), image), given.get("split")
    if place.around.opset >= 13 and place.has(1):
        sizes = place.ints(1)
    if sizes is None:
        return rules.apply("chunk", image, count, dim)
    if len(sizes) != count:
        raise NotFusable(Reason.ACTIVATION, "a Split into more parts than it gives")
    return rules.apply("split", image, list(sizes), dim)


def _average_pool(place: _Place) -> Made:
    given = place.attributes
    size = tuple(given["kernel_shape"])
    stride = _per_axis(given, "strides", len(size))
    if any(d != 1 for d in _per_axis(given, "dilations", len(size))):
        raise NotFusable(Reason.POOLING, "average pooling with dilation")
    if f"avg_pool{len(size)}d" not in rules.RULES:
        raise NotFusable(Reason.POOLING, f"average pooling over {len(size)} axes")
    flags = bool(given.get("ceil_mode", 0)), bool(given.get("count_include_pad", 0))
    padding = _padding(given, stride)
    return rules.apply(f"avg_pool{len(size)}d", place.image(), size, stride, padding, *flags)


def is_training_dropout(node: onnx.NodeProto, constants: Constants) -> bool:
    """Whether a Dropout is in training mode, or may be."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    mode = constants.get(node.input[2])
    return mode is None or bool(numpy_helper.to_array(mode).any())


def _dropout(place: _Place) -> Made:
    training = is_training_dropout(place.node, place.around.constants)
    return rules.apply("dropout", place.image(), training=training)


OPERATORS: dict[str, Callable[[_Place], Made]] = {
    **dict.fromkeys(CONVOLUTIONS, _conv),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), _arithmetic),
    "BatchNormalization": _batch_norm,
    "Neg": lambda place: rules.apply("neg", place.image()),
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    "AveragePool": _average_pool,
    "Identity": lambda place: rules.apply("clone", place.image()),
    "Dropout": _dropout,
}
PASSING = ("Identity", "Dropout")
NO_RESULT = Opaque("a further output of a node is not linear")
# The same in every order of axes, but for Split, which gives several values.
ELEMENTWISE = frozenset(OPERATORS) - {*CHANNELS_SECOND, "Split"}
