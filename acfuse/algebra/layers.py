"""Layers as plain data: what a convolution, a BatchNorm, a pad or a pool stores.

Each knows its geometry (for planning) and, when asked, the value that it is (for multiplying).
Nothing is copied or cast before that: a layer holds the tensors of the model or the file.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from acfuse.algebra.adjoint import Planned, Value, adjoint_of, flipped
from acfuse.algebra.adjoint_geometry import AdjointGeometry
from acfuse.algebra.geometry import Axis, Border, Geometry
from acfuse.algebra.linear_conv import LinearConv, identity, on_axes
from acfuse.errors import NotFusable, Reason

Pads = tuple[tuple[int, int], ...]
Linear = TypeVar("Linear", Geometry, LinearConv, Planned, Value, Planned | Value)


@dataclass(frozen=True)
class Conv:
    """A convolution layer. Shapes: weight [out, in / groups, *kernel], bias [out].

    Without axes (`stride`, `pads` and `dilation` are empty) it is a linear layer.
    A transposed one has a weight [in, out / groups, *kernel], and `pads` cuts off of its output.
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, ...] = (1, 1)
    pads: Pads = ((0, 0), (0, 0))
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    border: Border = "zeros"
    transposed: bool = False

    @cached_property
    def geometry(self) -> Planned:
        """Where it looks. Raises NotFusable for a kernel and settings that fit no layer."""
        settings = {len(self.stride), len(self.pads), len(self.dilation)}
        if self.weight.ndim < 2 or settings != {self.weight.ndim - 2}:
            sizes = tuple(self.weight.shape)
            raise NotFusable(Reason.SIZES, f"a kernel of {sizes} does not fit its settings")
        out, per_group, *size = self.weight.shape
        windows = zip(size, self.stride, self.pads, self.dilation, strict=True)
        axes = tuple(Axis.window(*window) for window in windows)
        shifts = self.bias is not None and bool(self.bias.any())
        if self.transposed:
            of = Geometry(out, per_group * self.groups, axes, self.groups)
            return AdjointGeometry(of, shifts)
        return Geometry(out, per_group * self.groups, axes, self.groups, self.border, shifts)

    def linear(self, device: torch.device | None = None) -> Value:
        """The same as a value: dilation spread into the kernel, float64.

        It is on a device; without one, where its weight is.
        """
        geometry = self.geometry
        kernel = self.weight.detach().to(device=device).double()
        if max(self.dilation, default=1) > 1:
            taps = (axis.taps for axis in geometry.axes)
            spread = kernel.new_zeros(*kernel.shape[:2], *taps)
            spread[on_axes(slice(None, None, d) for d in self.dilation)] = kernel
            kernel = spread
        bias = kernel.new_zeros(geometry.out_channels)
        if self.bias is not None:
            bias = self.bias.detach().to(device=device).double()
        if isinstance(geometry, Geometry):
            return LinearConv(kernel, bias, geometry)
        return adjoint_of(LinearConv(kernel, kernel.new_zeros(len(kernel)), geometry.of), bias)

    def pointwise(self, axes: int) -> "Conv":
        """The same matrix at each pixel of an image of so many axes, of a layer that is one."""
        out, per_group = self.weight.shape[:2]
        weight = self.weight.reshape(out, per_group, *[1] * axes)
        ones, none = (1,) * axes, ((0, 0),) * axes
        return Conv(weight, self.bias, ones, none, ones, self.groups)

    @property
    def weights(self) -> int:
        """Numbers of its kernel."""
        return self.weight.numel()

    @property
    def multiply_adds(self) -> int | Fraction:
        """Per output pixel."""
        return self.weights * self.geometry.pixels if self.transposed else self.weights


@dataclass(frozen=True)
class Pad:
    """Zeros (or another border) around the image; negative crops. `channels` of `axes` axes."""

    channels: int
    pads: Pads
    border: Border = "zeros"

    @cached_property
    def geometry(self) -> Geometry:
        """One tap that looks `before` places back."""
        axes = tuple(Axis.window(1, pads=p) for p in self.pads)
        return Geometry(self.channels, self.channels, axes, self.channels, self.border)

    def linear(self, device: torch.device | None = None) -> LinearConv:
        """The same as a depthwise kernel of one tap, on a device."""
        one = identity(self.channels, len(self.pads), device)
        return LinearConv(one.kernel, one.bias, self.geometry)

    @property
    def multiply_adds(self) -> int:
        """None: a copy."""
        return 0


@dataclass(frozen=True)
class AvgPool:
    """Average pooling: a depthwise convolution with every tap 1/area.

    Raises NotFusable if the divisor is not the area everywhere (`count_include_pad=False` with
    padding, `ceil_mode`, `divisor_override`). Source: DBB transform V, arXiv:2103.13425, 3.2.
    """

    channels: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    pads: Pads
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None

    def check(self) -> None:
        """Raises NotFusable if this pool is no convolution."""
        if self.ceil_mode:
            raise NotFusable(Reason.POOLING, "average pooling with ceil_mode")
        if self.divisor_override is not None:
            raise NotFusable(Reason.POOLING, "average pooling with divisor_override")
        if not self.count_include_pad and any(map(any, self.pads)):
            raise NotFusable(Reason.POOLING, "average pooling that does not count its padding")

    @cached_property
    def geometry(self) -> Geometry:
        """Where it looks; NotFusable if it is no convolution."""
        self.check()
        axes = tuple(
            Axis.window(n, s, p) for n, s, p in zip(self.size, self.stride, self.pads, strict=True)
        )
        return Geometry(self.channels, self.channels, axes, self.channels)

    def linear(self, device: torch.device | None = None) -> LinearConv:
        """The same as a value, on a device. Shapes: kernel [channels, 1, *size]."""
        one = identity(self.channels, len(self.size), device)
        kernel = one.kernel.repeat(1, 1, *self.size) / prod(self.size)
        return LinearConv(kernel, one.bias, self.geometry)

    @property
    def multiply_adds(self) -> int:
        """Per output pixel."""
        return self.channels * prod(self.size)


@dataclass(frozen=True)
class Affine:
    """`scale * x + shift` per channel. Shapes: [channels], or plain numbers for all of them."""

    scale: Tensor | float = 1.0
    shift: Tensor | float = 0.0

    def repeated(self, times: int) -> "Affine":
        """The same where each channel is so many channels."""
        scale, shift = (
            v.repeat_interleave(times) if isinstance(v, Tensor) and v.numel() > 1 else v
            for v in (self.scale, self.shift)
        )
        return Affine(scale, shift)

    @cached_property
    def shifts(self) -> bool:
        """Whether zero may become something else."""
        return bool(self.shift.any() if isinstance(self.shift, Tensor) else self.shift)

    @property
    def changes_nothing(self) -> bool:
        """Whether it is the number 1, and adds nothing (a tensor might still broadcast)."""
        numbers = not isinstance(self.scale, Tensor) and not isinstance(self.shift, Tensor)
        return numbers and (self.scale, self.shift) == (1, 0)

    @property
    def channels(self) -> int | None:
        """How many channels it is made for, where that can be told."""
        sizes = {v.numel() for v in (self.scale, self.shift) if isinstance(v, Tensor)}
        return max(sizes) if sizes and max(sizes) > 1 else None

    @property
    def multiply_adds(self) -> int:
        """Per pixel."""
        return self.channels or 0

    def of(self, value: Linear) -> Linear:
        """What it makes of a planned or a computed value; NotFusable if it is made for another."""
        out = (value if isinstance(value, Planned) else value.geometry).out_channels
        if self.channels not in (None, out):
            why = f"a factor for {self.channels} channels meets {out} channels"
            raise NotFusable(Reason.CHANNELS, why)
        if isinstance(value, Planned):
            return value.affine(self.shifts)
        return value.affine(self.scale, self.shift)


def transposed_conv(
    weight: Tensor, bias: Tensor | None, crops: Pads, dilation: tuple[int, ...], groups: int
) -> Conv:
    """The convolution that a transposed one of stride 1 is: its kernel flipped, in and out swapped.

    With another stride it makes several pixels of one, and is an Adjoint. Shapes: weight [in, out /
    groups, *kernel]; `crops` (before, after) per axis is what it takes away of its output.
    """
    size = weight.shape[2:]
    kernel = flipped(weight, groups)
    pads = tuple(
        (d * (k - 1) - before, d * (k - 1) - after)
        for k, d, (before, after) in zip(size, dilation, crops, strict=True)
    )
    return Conv(kernel, bias, (1,) * len(size), pads, dilation, groups)


def per_channel(value: Tensor, spatial_rank: int | None) -> Tensor | float:
    """A stored factor as one number or one per channel, told by its shape and the image's rank.

    Shapes: [channels, 1, ...] or [1, channels, 1, ...], or a single number. Raises NotFusable for
    any other: a bare [channels] broadcasts over the width. Without spatial axes, the channels are
    last: [channels] or [1, ..., channels].
    """
    shape = tuple(value.shape)
    if spatial_rank == 0 and value.numel() == prod(shape[-1:]):
        flat = value.detach().double().reshape(-1)
        return flat if len(flat) > 1 else float(flat)
    if value.numel() == 1 and (spatial_rank is None or len(shape) <= spatial_rank + 2):
        return float(value.detach())
    rank = spatial_rank or 0
    bare = len(shape) == rank + 1 or (len(shape) == rank + 2 and shape[0] == 1)
    if spatial_rank is None or shape[-rank:] != (1,) * rank or not bare:
        why = f"a factor of shape {shape} is not one per channel"
        raise NotFusable(Reason.NOT_PER_CHANNEL, why)
    return value.detach().double().reshape(-1)


def combined(operation: str, factor: Tensor | float, *, value_first: bool) -> Affine:
    """`value + factor`, `-`, `*` or `/` (or, with the value second, the other way) as an Affine."""
    match operation, value_first:
        case "+", _:
            return Affine(1.0, factor)
        case "-", True:
            return Affine(1.0, -factor)
        case "-", False:
            return Affine(-1.0, factor)
        case "*", _:
            return Affine(factor)
        case "/", True:
            return Affine(1.0 / factor)
    raise NotFusable(Reason.ACTIVATION, "a division by an activation is not linear")


def batch_norm(
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    eps: float,
    training: bool = False,
) -> Affine:
    """BatchNorm at inference: scale = weight / sqrt(variance + eps), shift = bias - mean * scale.

    Shapes: all [channels]; NotFusable for others. So it is in training mode or without running
    statistics: the factors then depend on the batch. Source: arXiv:1502.03167.
    """
    if training:
        raise NotFusable(Reason.STATISTICS, "a BatchNorm is in training mode")
    if mean is None or variance is None:
        raise NotFusable(Reason.STATISTICS, "a BatchNorm has no running statistics")
    sizes = {tuple(t.shape) for t in (weight, bias, mean, variance) if t is not None}
    if len(sizes) > 1 or variance.ndim != 1:
        why = f"the tensors of a BatchNorm are of {sorted(sizes)}, not alike"
        raise NotFusable(Reason.NOT_PER_CHANNEL, why)
    scale = (variance.detach().double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    if bias is not None:
        shift = shift + bias.detach().double()
    return Affine(scale, shift)
