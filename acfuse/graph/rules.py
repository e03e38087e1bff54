"""What an operator does to an image, as a rule: once, for modules, exported programs and ONNX.

Operators have the names and arguments that aten, torch's own library, gives them. The arguments are
plain values: numbers, words, constant tensors, and an `Image` for what depends on the input. Each
function gives the rule, or None where the image is only passed on. It raises NotFusable for what is
no convolution, and for what depends on the input where it has to be constant.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, get_args

from torch import Tensor

from acfuse import algebra
from acfuse.algebra import Affine, AvgPool, Conv, Pad
from acfuse.algebra.geometry import Border
from acfuse.algebra.layers import Pads
from acfuse.errors import NotFusable, Reason
from acfuse.graph.images import Image, Parts, are_ints, not_linear
from acfuse.graph.rules_axes import (
    cat,
    chunk,
    flatten,
    getitem,
    interpolate,
    permute,
    pixel_shuffle,
    reshape_as,
    rows_of_channels,
    sliced,
    split,
    stack,
    transpose,
)
from acfuse.graph.steps import ConvStep, PerChannel, Rule, Sum

BORDERS: dict[str, Border] = {
    "constant": "zeros",
    **{border: border for border in get_args(Border)},
}
SAME = ("same", "same_lower")  # the words for pads that keep the size of an image


def apply(name: str, /, *args: Any, **kwargs: Any) -> tuple[Rule | Parts | None, list[Image]]:
    """What an operator makes of its arguments: its rule (or Parts), and of which images.

    These come in the operator's order, once for each time that it takes them (x + x).
    """
    kwargs = {RENAMED.get(key, key): value for key, value in kwargs.items()}
    try:
        bound = _signature(name).bind(*args, **kwargs).arguments
    except TypeError:
        why = f"{name} has options that no rule knows"
        raise NotFusable(Reason.ACTIVATION, why) from None
    constant = [key for key, value in bound.items() if key not in OPERANDS and any(_images(value))]
    if constant:
        raise NotFusable(Reason.ACTIVATION, f"the {constant[0]} of {name} depends on the input")
    images = [*_images([*bound.values()])]
    if not images:
        raise NotFusable(Reason.ACTIVATION, f"{name} works on constants")
    rule = RULES[name](**bound)
    if isinstance(rule, ConvStep):
        rule.layer.geometry  # noqa: B018  # what cannot even be planned is refused here
    return rule, images


@cache
def _signature(name: str) -> inspect.Signature:
    return inspect.signature(RULES[name])


def _images(value: Any) -> Iterator[Image]:
    if isinstance(value, Image):
        yield value
    elif isinstance(value, slice):
        yield from _images((value.start, value.stop, value.step))
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from _images(inner)


def conv(
    input: Image, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, *, border: Border = "zeros",
) -> ConvStep:  # fmt: skip
    """A convolution. Shapes: weight [out, in / groups, *kernel].

    `padding` is a number, one for each axis, (before, after) for each axis, or "same" and "valid".
    """
    size = _kernel_size(weight)
    if groups < 1 or len(weight) % groups:
        raise NotFusable(Reason.SIZES, f"{len(weight)} channels are not {groups} groups")
    _check_bias(bias, len(weight))
    stride, dilation = _per_axis(stride, len(size)), _per_axis(dilation, len(size))
    pads = _pads(padding, size, dilation)
    return ConvStep(Conv(weight, bias, stride, pads, dilation, groups, border))


def linear(input: Image, weight: Tensor, bias: Tensor | None = None) -> ConvStep:
    """A matrix for each row. Shapes: weight [out, in]."""
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise NotFusable(Reason.SIZES, "its weight is no matrix")
    if input.spatial_rank != 0:
        why = "nothing tells that the last axis is that of the channels"
        raise NotFusable(Reason.NOT_PER_CHANNEL, why)
    _check_bias(bias, len(weight))
    return ConvStep(Conv(weight, bias, (), (), ()))


def matmul(input: Any, other: Any) -> ConvStep:
    """The same written as `x @ W`. Shapes: W [in, out]."""
    if not isinstance(input, Image) or not isinstance(other, Tensor) or other.ndim != 2:
        raise not_linear("a product of matrices other than x @ W")
    return linear(input, other.t())


def mm(input: Any, other: Any) -> ConvStep:
    """The same of rows of two axes, and of no others."""
    return replace(matmul(input, other), axes=2)


def addmm(bias: Any, input: Any, other: Any, *, beta: Any = 1, alpha: Any = 1) -> ConvStep:
    """The same again with a bias: `beta * b + alpha * x @ W`. Shapes: b [out] or [1, out]."""
    plain = isinstance(bias, Tensor) and isinstance(other, Tensor) and other.ndim == 2
    if not plain or bias.numel() != other.shape[1] or bias.shape[-1] != bias.numel():
        raise not_linear("a product of matrices other than b + x @ W")
    product = mm(input, alpha * other)
    return replace(product, layer=replace(product.layer, bias=beta * bias.reshape(-1)))


def conv_transpose(
    input: Image, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> ConvStep:  # fmt: skip
    """A transposed convolution; with stride 1 the convolution that it is.

    Shapes: weight [in, out / groups, *kernel].
    """
    size = _kernel_size(weight)
    stride = _per_axis(stride, len(size))
    if groups < 1 or len(weight) % groups:
        raise NotFusable(Reason.SIZES, f"{len(weight)} channels are not {groups} groups")
    _check_bias(bias, weight.shape[1] * groups)
    dilation = _per_axis(dilation, len(size))
    more = _per_axis(output_padding, len(size))
    pads = _pads(padding, size, dilation, stride)
    if padding in SAME and (any(more) or any(a != b or a < 0 for a, b in pads)):
        why = "a transposed convolution that cuts off more at one end than at the other"
        raise NotFusable(Reason.UNKNOWN_LAYER, why)  # which end that is, not all agree on
    crops = tuple((a, b - n) for (a, b), n in zip(pads, more, strict=True))
    if all(s == 1 for s in stride):
        return ConvStep(algebra.transposed_conv(weight.detach(), bias, crops, dilation, groups))
    return ConvStep(Conv(weight, bias, stride, crops, dilation, groups, transposed=True))


def convolution(
    input: Image, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> ConvStep:  # fmt: skip
    """Either of the two, of any number of axes."""
    if transposed:
        return conv_transpose(
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return conv(input, weight, bias, stride, padding, dilation, groups)


def batch_norm(
    input: Image, weight: Tensor | None = None, bias: Tensor | None = None,
    running_mean: Tensor | None = None, running_var: Tensor | None = None, training: bool = False,
    momentum: float | None = None, eps: float = 1e-5, cudnn_enabled: bool = False,
) -> PerChannel:  # fmt: skip
    """BatchNorm with its stored statistics."""
    by = algebra.batch_norm(weight, bias, running_mean, running_var, eps, bool(training))
    # Its channels are the second axis: of rows, only where there are no more.
    return PerChannel(by, like_image=True, axes=2 if input.spatial_rank == 0 else None)


def core_batch_norm(
    input: Image, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor,
    running_var: Tensor, momentum: float, eps: float,
) -> Parts:  # fmt: skip
    """The same in the core set of operators: it gives statistics of the batch as well."""
    rule = batch_norm(input, weight, bias, running_mean, running_var, eps=eps)

    def part(index: int) -> Rule:
        if index != 0:
            raise not_linear("a statistic of the batch")
        return rule

    return part


def avg_pool(
    rank: int, input: Image, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> ConvStep:  # fmt: skip
    """Average pooling with a constant divisor; it steps by its size unless told otherwise."""
    size = _per_axis(kernel_size, rank)
    step = size if stride in (None, (), []) else _per_axis(stride, rank)
    pads = _pads(padding, size, (1,) * rank)
    pool = AvgPool(0, size, step, pads, ceil_mode, count_include_pad, divisor_override)
    pool.check()
    return ConvStep(pool)


def padded(input: Image, pad: Any, mode: str = "constant", value: Any = None) -> Rule:
    """Zeros or another border around the image; negative amounts crop.

    `pad` has (before, after) of the last axis first.
    """
    if mode not in BORDERS:
        raise NotFusable(Reason.UNKNOWN_LAYER, f"a pad of mode {mode}")
    if BORDERS[mode] == "zeros" and value:
        raise NotFusable(Reason.BORDERS, f"it pads with {value:g}, not with zeros")
    if input.spatial_rank is None or not are_ints(pad) or len(pad) % 2:
        raise NotFusable(Reason.UNKNOWN_LAYER, "the padding depends on the input")
    amounts = [*pad, *[0] * (2 * input.spatial_rank - len(pad))]
    pairs = [*zip(amounts[::2], amounts[1::2], strict=True)]
    if any(map(any, pairs[input.spatial_rank :])):
        raise NotFusable(Reason.CHANNELS, "it pads the batch or the channels")
    return ConvStep(Pad(0, tuple(reversed(pairs[: input.spatial_rank])), BORDERS[mode]))


def arithmetic(operation: str, input: Any, other: Any, alpha: Any = 1) -> Rule | None:
    """`input + alpha * other`, `-`, `*` or `/`: of two images, or of one and a constant.

    A constant is one number, or one for each channel.
    """
    if not isinstance(alpha, (int, float)):
        raise NotFusable(Reason.ACTIVATION, "its alpha is no plain number")
    if isinstance(input, Image) and isinstance(other, Image):
        if operation in "*/":
            raise not_linear("a product of two activations")
        return added([input, other], (1.0, float(alpha if operation == "+" else -alpha)))
    value_first = isinstance(input, Image)
    if not value_first and alpha != 1:  # c + alpha * x: alpha is no factor of the constant
        raise NotFusable(Reason.ACTIVATION, "it adds a multiple to a constant")
    image, constant = (input, other) if value_first else (other, input)
    factor = _per_channel(constant, image) * alpha
    if operation == "/" and value_first and not _all(factor):
        raise NotFusable(Reason.OVERFLOW, "it divides by zero")
    by = algebra.combined(operation, factor, value_first=value_first)
    if by.changes_nothing:
        return None
    # With more axes than the rows have, it would give them more.
    axes = constant.ndim if image.spatial_rank == 0 and isinstance(constant, Tensor) else 0
    like_image = by.channels in (None, image.channels)
    return PerChannel(by, like_image, axes if axes > 1 else None)


def added(tensors: Sequence[Any], signs: tuple[float, ...] = ()) -> Rule:
    """A sum of images; one channel is not known to be spread over those of another."""
    if not all(isinstance(t, Image) for t in tensors):
        raise NotFusable(Reason.ACTIVATION, "it adds a constant to several images")
    if len({(t.spatial_rank, t.channels) for t in tensors}) > 1:
        raise NotFusable(Reason.CHANNELS, "it adds images of different channels")
    return Sum(signs or (1.0,) * len(tensors))


def rsub(input: Any, other: Any, alpha: Any = 1) -> Rule | None:
    """`other - alpha * input`."""
    rule = arithmetic("-", other, input, alpha)
    return Sum(rule.signs[::-1]) if isinstance(rule, Sum) else rule


def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Rule | None:
    """A division that is not rounded."""
    if rounding_mode is not None:
        raise not_linear(f"a division that is rounded ({rounding_mode})")
    return arithmetic("/", input, other)


def neg(input: Image) -> Rule:
    """The image with the other sign."""
    return PerChannel(Affine(-1.0), like_image=True)


def _all(factor: Tensor | float) -> bool:
    return bool(factor.all() if isinstance(factor, Tensor) else factor)


def _per_channel(constant: Any, image: Image) -> Tensor | float:
    """A constant as one number or one for each channel of an image; by its shape, or refused."""
    if isinstance(constant, (bool, int, float)):
        return float(constant)
    if not isinstance(constant, Tensor) or not constant.is_floating_point():
        raise NotFusable(Reason.NOT_PER_CHANNEL, "it is no factor of real numbers")
    factor = algebra.per_channel(constant, image.spatial_rank)
    if isinstance(factor, Tensor) and image.channels not in (None, factor.numel()):
        why = f"a factor for {factor.numel()} channels meets {image.channels}"
        raise NotFusable(Reason.CHANNELS, why)
    return factor


def dropout(input: Image, p: float = 0.5, training: bool = True, inplace: bool = False) -> None:
    """Nothing, outside of training."""
    if training:
        raise NotFusable(Reason.RANDOM, "a dropout is in training mode")


def passed(input: Image, memory_format: Any = None) -> None:
    """The image itself, in whatever memory."""


def _kernel_size(weight: Any) -> tuple[int, ...]:
    if not isinstance(weight, Tensor) or weight.ndim < 3 or not weight.numel():
        raise NotFusable(Reason.SIZES, "its weight is the kernel of no convolution")
    return tuple(weight.shape[2:])


def _check_bias(bias: Any, channels: int) -> None:
    """Raises NotFusable for what is no number for each of the channels that a layer makes."""
    if bias is None:
        return
    sizes = tuple(bias.shape) if isinstance(bias, Tensor) else "no tensor"
    if sizes != (channels,):
        why = f"a bias of {sizes} does not fit {channels} channels"
        raise NotFusable(Reason.SIZES, why)


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    """A setting per axis, from one number or one per axis."""
    if isinstance(value, int):
        return (value,) * rank
    if not are_ints(value):
        raise NotFusable(Reason.UNKNOWN_LAYER, "its settings are no plain numbers")
    whole = tuple(value) * rank if len(value) == 1 else tuple(value)
    if len(whole) != rank:
        raise NotFusable(Reason.SIZES, f"a layer of {rank} axes has {len(whole)} settings")
    return whole


def _pads(
    padding: Any,
    size: tuple[int, ...],
    dilation: tuple[int, ...],
    enlarged: tuple[int, ...] | None = None,
) -> Pads:
    """Padding (before, after) per axis, from torch's numbers, from pairs, or by a word.

    "same" keeps the image's size, or cuts off all but what it is `enlarged` by.
    """
    if padding == "valid":
        return ((0, 0),) * len(size)
    if padding in SAME:  # torch puts the odd one behind
        by = enlarged or (1,) * len(size)
        whole = [d * (k - 1) + 1 - s for k, d, s in zip(size, dilation, by, strict=True)]
        pairs = [(n // 2, n - n // 2) for n in whole]
        return tuple(p if padding == "same" else p[::-1] for p in pairs)
    if isinstance(padding, tuple) and padding and all(map(are_ints, padding)):
        return padding
    return tuple((n, n) for n in _per_axis(padding, len(size)))


OPERANDS = ("input", "other", "tensors")  # what may depend on the input; all else is constant
RENAMED = {
    "self": "input", "tensor": "input", "axis": "dim", "train": "training",
    "split_sizes": "split_size", "split_size_or_sections": "split_size",
}  # fmt: skip
RULES: dict[str, Callable[..., Rule | Parts | None]] = {
    "convolution": convolution,
    "linear": linear,
    "matmul": matmul,
    "mm": mm,
    "addmm": addmm,
    "permute": permute,
    "pixel_shuffle": pixel_shuffle,
    "interpolate": interpolate,
    "flatten": flatten,
    "reshape_as": reshape_as,
    "rows_of_channels": rows_of_channels,  # a name that torch does not have
    "transpose": transpose,
    "batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": core_batch_norm,
    "pad": padded,
    "constant_pad_nd": lambda input, pad, value=0: padded(input, pad, "constant", value),
    "_pad_circular": lambda input, pad: padded(input, pad, "circular"),
    "add_all": added,  # a name that torch does not have: its sum is of pixels
    "add": partial(arithmetic, "+"),
    "sub": partial(arithmetic, "-"),
    "mul": lambda input, other: arithmetic("*", input, other),
    "rsub": rsub,
    "div": div,
    "neg": neg,
    "getitem": getitem,
    "slice": sliced,
    "split": split,
    "split_with_sizes": split,
    "chunk": chunk,
    "cat": cat,
    "stack": stack,
    "hstack": stack,
    "vstack": stack,
    "dropout": dropout,
    "feature_dropout": dropout,
    "clone": passed,
    "contiguous": passed,
}
for _rank in (1, 2, 3):
    RULES[f"upsample_nearest{_rank}d"] = lambda input, output_size=None, scale_factors=None: (
        interpolate(input, output_size, scale_factors)
    )
    RULES[f"conv{_rank}d"] = conv
    RULES[f"conv_transpose{_rank}d"] = conv_transpose
    RULES[f"avg_pool{_rank}d"] = partial(avg_pool, _rank)
    RULES[f"reflection_pad{_rank}d"] = lambda input, padding: padded(input, padding, "reflect")
    RULES[f"replication_pad{_rank}d"] = lambda input, padding: padded(input, padding, "replicate")
