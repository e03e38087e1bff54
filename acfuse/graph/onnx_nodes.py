"""One ONNX node as a rule: which operator of `rules` it is, and with which arguments.

Everything that decides is in the file: strides, pads, dilations, groups and eps are attributes.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from acfuse.algebra.geometry import Border
from acfuse.errors import NotFusable, Reason
from acfuse.graph import rules
from acfuse.graph.images import Image, Parts, not_linear
from acfuse.graph.onnx_values import CONVOLUTIONS, Constants, Known
from acfuse.graph.steps import Rule

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
BROADCASTS = 7  # the opset since which arithmetic extends its operands by itself
STATED_TRAINING = 14  # the opset since which a BatchNormalization says that it is in training


@dataclass(frozen=True)
class Surroundings:
    """What can be known of the values that a graph's nodes read.

    `constants` are the tensors that stay as they are; `given` maps names that look like it, and are
    not to be read, to the reason. `functions` are operators that the file itself defines. The
    convolutions that make `fitted` values are read for the sizes that the `facts` give alone.
    """

    constants: Constants
    known: Mapping[str, Known]
    opset: int
    given: Mapping[str, str]
    facts: Mapping[str, Known]
    functions: frozenset[tuple[str, str]] = frozenset()
    fitted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Place:
    """One node, and how it finds what it reads."""

    node: onnx.NodeProto
    around: Surroundings
    perm: Perm  # the order of axes that its images are in
    spatial_rank: int | None  # of the images of this graph, if its convolutions agree on that
    rows: Set[str] = frozenset()  # values whose channels are last

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
        if name in self.rows:
            return Image(name, 0)
        rank = len(known.sizes) - 2 if known and known.sizes else 0
        if known is None or known.kind not in FLOATS or rank < 1:
            return Image(name)
        return Image(name, rank, self.in_order(known.sizes or ())[1])

    def sized(self, index: int = 0) -> Image:
        """An input that is an image of a known shape; NotFusable if it is none."""
        image = self.image(index)
        if image.spatial_rank == 0:
            return image
        if image.spatial_rank is None:
            why = f"nothing tells that {image.value} is an image"
            raise NotFusable(Reason.ACTIVATION, why)
        if self.spatial_rank not in (image.spatial_rank, None):
            axes, own = image.spatial_rank + 2, (self.spatial_rank or 0) + 2
            why = f"{image.value} has {axes} axes where what the convolutions read has {own}"
            raise NotFusable(Reason.UNKNOWN_LAYER, why)
        return image

    def in_order(self, per_axis: Sequence[T]) -> Sequence[T]:
        """What is given for each axis of the image that is read, in the order of the value."""
        if not self.perm:
            return per_axis
        if len(self.perm) != len(per_axis):
            why = f"{len(per_axis)} axes where there are {len(self.perm)}"
            raise NotFusable(Reason.SIZES, why)
        return [per_axis[i] for i in inverse(self.perm)]

    def axes(self, image: Image) -> int:
        """How many axes an image has, or rows. Raises NotFusable where nothing tells it."""
        if image.spatial_rank != 0:
            return (image.spatial_rank or 0) + 2
        known = self.around.known.get(image.value)
        if known is None or known.sizes is None:
            raise NotFusable(Reason.SIZES, f"nothing tells how many axes {image.value} has")
        return len(known.sizes)

    def dim(self, axis: int, image: Image) -> int | None:
        """The dimension of the value that an axis of the image is; None for one that it has not."""
        count = self.axes(image)
        if not -count <= axis < count:
            return None
        if image.spatial_rank == 0:
            return axis % count - count  # the last one is that of the channels
        return self.perm[axis % count] if self.perm else axis % count


def inverse(perm: Perm) -> Perm:
    """The order that undoes an order."""
    return tuple(perm.index(i) for i in range(len(perm)))


def _conv(place: Place) -> Made:
    given, transposed = place.attributes, place.node.op_type == "ConvTranspose"
    weight, bias = place.numbers(1), place.numbers(2) if place.has(2) else None
    rank = max(weight.ndim - 2, 0)
    stride, dilation = (_per_axis(given, key, rank) for key in ("strides", "dilations"))
    same = _auto_pad(given).startswith("SAME")  # it tells no size before opset 11
    if transposed and ("output_shape" in given or (same and place.around.opset < 11)):
        raise NotFusable(Reason.UNKNOWN_LAYER, "a transposed convolution of a stated output size")
    padding = _padding(given, (1,) * rank if transposed else stride)
    if place.node.output[0] in place.around.fitted and not transposed:
        padding = _fitted(place, padding, weight, stride, dilation)
    more = _per_axis(given, "output_padding", rank, default=0)
    settings = (stride, padding, dilation, transposed, more, given.get("group", 1))
    return rules.apply("convolution", place.image(), weight, bias, *settings)


def _gemm(place: Place) -> Made:
    """`alpha * A' @ B' + beta * C`, of a constant matrix B and a bias C. Shapes: C [out]."""
    given, weight = place.attributes, place.numbers(1)
    if given.get("transA", 0) or weight.ndim != 2:
        raise not_linear("a Gemm that is not x @ W")
    weight = weight if given.get("transB", 0) else weight.t()
    bias = place.numbers(2) if place.has(2) else torch.zeros(len(weight), dtype=weight.dtype)
    count = prod(bias.shape[-1:])
    if bias.ndim > 2 or count not in (1, len(weight)) or bias.numel() != count:
        raise NotFusable(Reason.NOT_PER_CHANNEL, "the C of a Gemm is not one number per channel")
    alpha, beta = (float(given.get(name, 1.0)) for name in ("alpha", "beta"))
    # Multiplied in float64, as all that is computed from weights is.
    weight = weight.double() * alpha if alpha != 1 else weight
    bias = (bias.double() * beta if beta != 1 else bias).reshape(-1).expand(len(weight))
    return rules.apply("linear", _rows(place), weight, bias)


def _matmul(place: Place) -> Made:
    """A matrix for each row; of an image with its channels last, a 1x1 convolution."""
    if place.node.input[0] in place.around.constants:
        raise not_linear("a product of matrices other than x @ W")
    matrix = place.numbers(1)
    if place.perm[-1:] == (1,) and matrix.ndim == 2:
        axes = len(place.perm) - 2
        weight = matrix.t().reshape(*matrix.shape[::-1], *[1] * axes)
        return rules.apply(f"conv{axes}d", place.image(), weight)
    return rules.apply("matmul", _rows(place), matrix)


def _depth_to_space(place: Place) -> Made:
    """A pixel shuffle; in its other mode, channels are in another order."""
    mode = place.attributes.get("mode", b"DCR").decode()
    if mode != "CRD" or place.perm:
        raise not_linear(f"a DepthToSpace of mode {mode}")
    return rules.apply("pixel_shuffle", place.image(), place.attributes["blocksize"])


def _rows(place: Place) -> Image:
    if place.perm:
        raise NotFusable(Reason.NOT_PER_CHANNEL, "its rows are the channels of an image")
    if place.around.opset < BROADCASTS:
        why = f"a matrix in opset {place.around.opset}, where an Add extends no bias"
        raise NotFusable(Reason.UNKNOWN_LAYER, why)
    return place.image()


def _fitted(
    place: Place, padding: Any, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]
) -> Any:
    """Pads of which the last window ends where they end: the same for an image of a known size.

    What lies behind that window is never read, and how far it reaches is nothing that the layer
    computes. Arms that a file of one size pads differently then agree.
    """
    known = place.around.facts.get(place.node.input[0])
    sizes = place.in_order(known.sizes)[2:] if known and known.sizes else ()
    pads = ((0, 0),) * len(stride) if padding == "valid" else padding
    if len(sizes) != len(stride) or isinstance(pads, str):
        return padding
    made = []
    for (before, after), size, width, step, apart in zip(
        pads, sizes, weight.shape[2:], stride, dilation, strict=True
    ):
        room = -1 if size is None else size + before + after - (apart * (width - 1) + 1)
        made.append((before, after - room % step if room >= 0 and step > 0 else after))
    return tuple(made)


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


def _batch_norm(place: Place) -> Made:
    given = place.attributes
    stored = [place.numbers(i) for i in range(1, 5)]
    # Before training was stated, a BatchNormalization that gives statistics was training.
    stated = place.around.opset >= STATED_TRAINING
    training = bool(given.get("training_mode", 0)) if stated else any(place.node.output[1:])
    if given.get("spatial", 1) == 0:
        raise NotFusable(Reason.NOT_PER_CHANNEL, "a BatchNorm has a factor for each pixel")
    eps, image = given.get("epsilon", 1e-5), place.image()
    if image.spatial_rank == 0 and place.axes(image) != 2:
        raise NotFusable(Reason.NOT_PER_CHANNEL, "a BatchNorm of rows of more than two axes")
    return rules.apply("batch_norm", image, *stored, training=training, eps=eps)


def _arithmetic(place: Place) -> Made:
    kind, names, constants = place.node.op_type, place.node.input, place.around.constants
    images = [place.sized(i) for i, n in enumerate(names) if n not in place.around.constants]
    if not images:
        raise NotFusable(Reason.ACTIVATION, f"{kind} works on constants")
    dims = place.axes(images[0]) if constants.keys() & {*names} else 0

    def factor(index: int) -> Tensor:
        """A constant that meets an image, its channels second as well."""
        constant = place.numbers(index)
        if constant.ndim > dims:
            raise NotFusable(Reason.NOT_PER_CHANNEL, f"a factor of {constant.ndim} axes")
        if images[0].spatial_rank == 0:
            if constant.numel() != prod(constant.shape[-1:]):
                raise NotFusable(Reason.NOT_PER_CHANNEL, "a factor for each row")
            return constant.reshape(-1) if constant.ndim else constant
        aligned = constant.reshape(*[1] * (dims - constant.ndim), *constant.shape)
        return aligned.permute(*place.in_order(range(aligned.ndim)))

    operands = [factor(i) if n in constants else place.sized(i) for i, n in enumerate(names)]
    if kind == "Sum" and len(names) != 2:
        return rules.apply("add_all", operands)
    return rules.apply("add" if kind == "Sum" else kind.lower(), *operands)


def _pad(place: Place) -> Made:
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


def _slice(place: Place) -> Made:
    """A range of each of some axes."""
    given, image = place.attributes, place.sized()
    if place.around.opset < 10:
        starts, ends = list(given["starts"]), list(given["ends"])
        axes, steps = list(given.get("axes", [])), []
    else:
        starts, ends, axes, steps = (place.ints(i) for i in range(1, 5))
    axes, steps = axes or [*range(len(starts))], steps or [1] * len(starts)
    if image.spatial_rank == 0 and [place.dim(axis, image) for axis in axes] == [-1]:
        return rules.apply("slice", image, -1, starts[0], ends[0], steps[0])
    index = [slice(None)] * ((image.spatial_rank or 0) + 2)
    if not len(axes) == len(starts) == len(ends) == len(steps) or any(
        place.dim(axis, image) is None for axis in axes
    ):
        raise NotFusable(Reason.ACTIVATION, "a Slice of axes that the image has not")
    for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(*bounds)
    return rules.apply("getitem", image, tuple(place.in_order(index)))


def _concat(place: Place) -> Made:
    images = [place.image(i) for i in range(len(place.node.input))]
    return rules.apply("cat", images, place.dim(place.attributes["axis"], images[0]))


def _split(place: Place) -> Made:
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


def _average_pool(place: Place) -> Made:
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


def _dropout(place: Place) -> Made:
    training = is_training_dropout(place.node, place.around.constants)
    return rules.apply("dropout", place.image(), training=training)


OPERATORS: dict[str, Callable[[Place], Made]] = {
    **dict.fromkeys(CONVOLUTIONS, _conv),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), _arithmetic),
    "BatchNormalization": _batch_norm,
    "DepthToSpace": _depth_to_space,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Neg": lambda place: rules.apply("neg", place.image()),
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    "AveragePool": _average_pool,
    "Identity": lambda place: rules.apply("clone", place.image()),
    "Dropout": _dropout,
}
