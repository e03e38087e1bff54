"""LinearConv: what exactly one convolution layer can do, as a value that adds and chains.

    y[n] = bias + sum_t kernel[t] . x[stride*n - before + t]

with x extended past its edge by `border`. Everything is float64, and is rounded once, by `lower`.
Without spatial axes it is `y = kernel x + bias`, what a linear layer does to each row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from acfuse.algebra.geometry import Border, Geometry

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # of so many axes; of none: a matrix


@dataclass(frozen=True, slots=True, eq=False)
class LinearConv:
    """A linear map of images, as one convolution.

    Shapes: kernel [out, in / groups, *taps] with dilation spread into it, bias [out]; float64.
    `a + b` (branches of one input) and `a.then(b)` (a chain) are exact or raise NotFusable.
    """

    kernel: Tensor
    bias: Tensor
    geometry: Geometry

    def __post_init__(self) -> None:
        g = self.geometry
        expected = (g.out_channels, g.in_channels // g.groups, *g.taps)
        if tuple(self.kernel.shape) != expected or tuple(self.bias.shape) != expected[:1]:
            raise ValueError(
                f"kernel {tuple(self.kernel.shape)} and bias {tuple(self.bias.shape)} do not "
                f"fit the geometry, which expects {expected}"
            )

    @property
    def taps(self) -> tuple[int, ...]:
        """Window per axis."""
        return self.geometry.taps

    @property
    def stride(self) -> tuple[int, ...]:
        """Steps per axis."""
        return self.geometry.stride

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """(before, after) per axis; negative crops."""
        return tuple((axis.before, axis.after) for axis in self.geometry.axes)

    @property
    def groups(self) -> int:
        """Channel groups that do not see each other."""
        return self.geometry.groups

    @property
    def border(self) -> Border:
        """How the image continues past its edge."""
        return self.geometry.border

    def grow(self, pads: Sequence[tuple[int, int]]) -> "LinearConv":
        """Adds (before, after) empty taps per axis and equally more padding: the same map."""
        flat = [n for before_after in reversed(pads) for n in before_after]
        if not any(flat):
            return self
        axes = tuple(a.grow(*p) for a, p in zip(self.geometry.axes, pads, strict=True))
        return replace(
            self, kernel=F.pad(self.kernel, flat), geometry=replace(self.geometry, axes=axes)
        )

    def regroup(self, groups: int) -> "LinearConv":
        """Writes the kernel out for fewer groups, block-diagonally: the same map.

        Shapes: kernel [out, in / groups, *taps]. `groups` must divide the present number.
        """
        have = self.groups
        if have == groups:
            return self
        if have % groups:
            raise ValueError(f"{groups} groups do not divide {have}")
        out, per_group, *taps = self.kernel.shape
        merged = have // groups
        blocks = self.kernel.reshape(groups, merged, out // have, per_group, *taps)
        wide = blocks.new_zeros(groups, merged, out // have, merged, per_group, *taps)
        for i in range(merged):
            wide[:, i, :, i] = blocks[:, i]
        return replace(
            self,
            kernel=wide.reshape(out, merged * per_group, *taps),
            geometry=replace(self.geometry, groups=groups),
        )

    def __add__(self, other: "LinearConv") -> "LinearConv":
        """The branches `self(x) + other(x)` of one input x.

        Raises NotFusable if the two do not always have the same size, step alike and see the same
        border. Growing is free, so neither kernel size nor alignment matters.
        """
        geometry = self.geometry + other.geometry
        a, b = (branch.regroup(geometry.groups) for branch in (self, other))
        if b.taps == geometry.taps:  # nothing has to grow around the other one
            a, b = b, a
        grown = a.grow(
            [
                (both.before - own.before, both.after - own.after)
                for both, own in zip(geometry.axes, a.geometry.axes, strict=True)
            ]
        )
        kernel = grown.kernel.clone() if grown is a else grown.kernel
        starts = (
            both.before - own.before
            for both, own in zip(geometry.axes, b.geometry.axes, strict=True)
        )
        window = on_axes(slice(s, s + n) for s, n in zip(starts, b.taps, strict=True))
        kernel[window] += b.kernel
        return LinearConv(kernel, a.bias + b.bias, geometry)

    def affine(self, scale: Tensor | float, shift: Tensor | float = 0.0) -> "LinearConv":
        """`scale * self(x) + shift` per output channel: BatchNorm, LayerScale, a sign.

        Shapes: scale and shift [out], or plain numbers.
        """
        out, scale, shift = len(self.bias), each(scale, self.bias), each(shift, self.bias)
        return LinearConv(
            self.kernel * scale.reshape(out, *[1] * (self.kernel.ndim - 1)),
            self.bias * scale + shift,
            self.geometry.affine(shifts=bool(shift.any())),
        )

    def then(self, g: "LinearConv") -> "LinearConv":
        """The chain `g(self(x))`.

        The kernel is K[T] = sum over stride*u + t = T of g[u] . f[t], a product of matrices for
        each tap u of g. Raises NotFusable where no single convolution is exact up to the border.
        """
        geometry = self.geometry.then(g.geometry)
        f, g = self.regroup(geometry.groups), g.regroup(geometry.groups)
        groups, middle = geometry.groups, f.kernel.shape[0] // geometry.groups
        first = f.kernel.reshape(groups, middle, -1)
        second = g.kernel.reshape(groups, -1, middle, *g.taps)
        per_input = geometry.in_channels // groups
        taps = tuple(axis.taps for axis in geometry.axes)
        kernel = f.kernel.new_zeros(groups, geometry.out_channels // groups, per_input, *taps)
        for u in product(*(range(n) for n in g.taps)):
            window = tuple(
                slice(s * i, s * i + n) for i, s, n in zip(u, f.stride, f.taps, strict=True)
            )
            part = torch.bmm(second[on_axes(u)], first)
            kernel[on_axes(window)] += part.reshape(groups, -1, per_input, *f.taps)
        response = second.reshape(groups, -1, middle, prod(g.taps)).sum(-1)
        carried = torch.bmm(response, f.bias.reshape(groups, middle, 1)).reshape(-1)
        return LinearConv(
            kernel.reshape(geometry.out_channels, per_input, *taps), g.bias + carried, geometry
        )

    def repeated(self, times: int) -> "LinearConv":
        """The same where each channel is so many channels, of which none sees another.

        The kernel is K x I, the Kronecker product with the identity.
        """
        if times == 1:
            return self
        out, per_group, *taps = self.kernel.shape
        same = torch.eye(times, dtype=self.kernel.dtype, device=self.kernel.device)
        same = same.view(1, times, 1, times, *[1] * len(taps))
        kernel = self.kernel.view(out, 1, per_group, 1, *taps) * same
        return LinearConv(
            kernel.reshape(out * times, per_group * times, *taps),
            self.bias.repeat_interleave(times),
            self.geometry.repeated(times),
        )

    def without_shift(self) -> "LinearConv":
        """The same without its bias."""
        return LinearConv(self.kernel, torch.zeros_like(self.bias), self.geometry.without_shift())

    def on_cpu(self) -> "LinearConv":
        """The same, its numbers on the CPU: where all is compared."""
        return LinearConv(self.kernel.cpu(), self.bias.cpu(), self.geometry)

    def __call__(self, image: Tensor) -> Tensor:
        """Runs it, in the dtype of the image. Shapes: [batch, channels, *sizes]."""
        if not self.taps:
            whole = self.regroup(1)
            return F.linear(image, whole.kernel.to(image.dtype), whole.bias.to(image.dtype))
        padded = extend(image, self.pads, self.border)
        convolve = CONVOLUTIONS[len(self.taps)]
        kernel, bias = self.kernel.to(image.dtype), self.bias.to(image.dtype)
        return convolve(padded, kernel, bias, self.stride, groups=self.groups)


def each(number: Tensor | float, bias: Tensor) -> Tensor:
    """A number, or one for each channel of a bias, as the latter; float64."""
    return beside(number, bias).expand(len(bias))


def beside(number: Tensor | float, tensor: Tensor) -> Tensor:
    """A number, or several, in the dtype and on the device of a tensor."""
    return number.to(tensor) if isinstance(number, Tensor) else tensor.new_full((), number)


def on_axes(index: Iterable[Any]) -> tuple[Any, ...]:
    """An index of the spatial axes, which are the last ones."""
    return (..., *index)


def extend(image: Tensor, pads: Sequence[tuple[int, int]], border: Border) -> Tensor:
    """The image continued past its edges by `pads` per axis (negative crops)."""
    outward = [max(n, 0) for before_after in reversed(pads) for n in before_after]
    inward = [min(n, 0) for before_after in reversed(pads) for n in before_after]
    if any(outward):
        image = F.pad(image, outward, mode="constant" if border == "zeros" else border)
    return F.pad(image, inward) if any(inward) else image


def identity(channels: int, axes: int = 2, device: torch.device | None = None) -> LinearConv:
    """The map that changes nothing, as a depthwise kernel of one tap [channels, 1, 1...].

    It is on a device; without one, on the CPU.
    """
    kernel = torch.ones(channels, 1, *[1] * axes, dtype=torch.float64, device=device or "cpu")
    return LinearConv(kernel, kernel.new_zeros(channels), Geometry.identity(channels, axes))
