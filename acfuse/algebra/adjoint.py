"""A transposed convolution: the adjoint of the convolution that goes the other way.

    y[stride*n - before + t] += kernel[t]^T . x[n]        for every pixel n and tap t; then the bias

The convolution `of` takes images as large as `y` and gives ones as large as `x`, with the same
kernel; `adjoint_geometry` decides what adds and chains. One of stride 1 is itself an adjoint.
"""

from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional as F

from acfuse.algebra.adjoint_geometry import AdjointGeometry
from acfuse.algebra.geometry import Geometry
from acfuse.algebra.linear_conv import LinearConv, each, extend

TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, slots=True, eq=False)
class Adjoint:
    """A linear map of images, as one transposed convolution.

    Shapes: the kernel of `of` is [in, out / groups, *taps], bias [out]; float64. `a + b` and
    `a.then(b)` are exact or raise NotFusable, as those of LinearConv.
    """

    of: LinearConv
    bias: Tensor
    geometry: AdjointGeometry

    @property
    def kernel(self) -> Tensor:
        """As a transposed layer stores it: [in, out / groups, *taps]."""
        return self.of.kernel

    @property
    def groups(self) -> int:
        """Channel groups that do not see each other."""
        return self.of.groups

    @property
    def stride(self) -> tuple[int, ...]:
        """Pixels between what two neighbours are spread to, per axis."""
        return self.of.stride

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """What is cut off of the output, (before, after) per axis; negative adds to it."""
        return self.of.pads

    def __add__(self, other: "Adjoint") -> "Adjoint":
        """The branches `self(x) + other(x)` of one input x."""
        geometry = self.geometry + other.geometry
        return Adjoint(self.of + other.of, self.bias + other.bias, geometry)

    def affine(self, scale: Tensor | float, shift: Tensor | float = 0.0) -> "Adjoint":
        """`scale * self(x) + shift` per output channel.

        Shapes: scale and shift [out], or plain numbers.
        """
        scale, shift = each(scale, self.bias), each(shift, self.bias)
        grouped = self.kernel.reshape(self.groups, -1, *self.kernel.shape[1:])
        factors = scale.reshape(self.groups, 1, -1, *[1] * len(self.stride))
        kernel = (grouped * factors).reshape(self.kernel.shape)
        return Adjoint(
            replace(self.of, kernel=kernel),
            self.bias * scale + shift,
            self.geometry.affine(shifts=bool(shift.any())),
        )

    def then(self, g: "Adjoint") -> "Adjoint":
        """The chain `g(self(x))`. Raises NotFusable where none of its kind is exact."""
        geometry = self.geometry.then(g.geometry)
        seen = g.kernel.sum(dim=tuple(range(2, g.kernel.ndim)))  # of a constant, at every pixel
        by_group = seen.reshape(g.groups, -1, seen.shape[1]).transpose(1, 2)
        carried = torch.bmm(by_group, self.bias.reshape(g.groups, -1, 1)).reshape(-1)
        bias = g.bias + carried if self.geometry.shifts else g.bias
        return Adjoint(g.of.then(self.of), bias, geometry)

    def without_shift(self) -> "Adjoint":
        """The same without its bias."""
        return Adjoint(self.of, torch.zeros_like(self.bias), self.geometry.without_shift())

    def on_cpu(self) -> "Adjoint":
        """The same, its numbers on the CPU: where all is compared."""
        return Adjoint(self.of.on_cpu(), self.bias.cpu(), self.geometry)

    def __call__(self, image: Tensor) -> Tensor:
        """Runs it, in the dtype of the image. Shapes: [batch, channels, *sizes]."""
        spread = TRANSPOSED[len(self.stride)]
        kernel, bias = self.kernel.to(image.dtype), self.bias.to(image.dtype)
        whole = spread(image, kernel, stride=self.stride, groups=self.groups)
        cut = extend(whole, [(-before, -after) for before, after in self.pads], "zeros")
        return cut + bias.reshape(-1, *[1] * len(self.stride))


Planned = Geometry | AdjointGeometry
Value = LinearConv | Adjoint


def adjoint_of(of: LinearConv, bias: Tensor | None = None) -> Adjoint:
    """The transposed convolution with the kernel of a convolution, and a bias [out] of its own."""
    shifts = bias is not None and bool(bias.any())
    bias = of.kernel.new_zeros(of.geometry.in_channels) if bias is None else bias
    return Adjoint(of, bias, AdjointGeometry(of.geometry, shifts))


@overload
def as_adjoint(value: Planned) -> AdjointGeometry: ...
@overload
def as_adjoint(value: Value) -> Adjoint: ...
def as_adjoint(value: Planned | Value) -> AdjointGeometry | Adjoint:
    """The same map as an adjoint. Raises NotFusable for a convolution that is none."""
    if isinstance(value, AdjointGeometry | Adjoint):
        return value
    if isinstance(value, Geometry):
        return AdjointGeometry.of_convolution(value)
    turned = AdjointGeometry.of_convolution(value.geometry)
    kernel = flipped(value.kernel, value.groups)
    return Adjoint(LinearConv(kernel, kernel.new_zeros(len(kernel)), turned.of), value.bias, turned)


def flipped(kernel: Tensor, groups: int) -> Tensor:
    """The kernel of the adjoint of a convolution of stride 1: turned round, in and out swapped.

    Shapes: [out, in / groups, *taps] to [in, out / groups, *taps].
    """
    return by_output(kernel, groups).flip(*range(2, kernel.ndim))


def by_output(kernel: Tensor, groups: int) -> Tensor:
    """A transposed kernel with its output channels first, or one such back: [b, a / groups, *taps].

    Shapes: [a, b / groups, *taps].
    """
    first, per_group, *taps = kernel.shape
    grouped = kernel.reshape(groups, first // groups, per_group, *taps).transpose(1, 2)
    return grouped.reshape(groups * per_group, first // groups, *taps)


@overload
def chain(f: Planned, g: Planned) -> Planned: ...
@overload
def chain(f: Value, g: Value) -> Value: ...
def chain(f: Planned | Value, g: Planned | Value) -> Planned | Value:
    """`g` applied to what `f` gives, whichever of them is transposed. Raises NotFusable."""
    if isinstance(f, AdjointGeometry | Adjoint) or isinstance(g, AdjointGeometry | Adjoint):
        return as_adjoint(f).then(as_adjoint(g))  # type: ignore[arg-type]
    return f.then(g)  # type: ignore[arg-type]


@overload
def added(a: Planned, b: Planned) -> Planned: ...
@overload
def added(a: Value, b: Value) -> Value: ...
def added(a: Planned | Value, b: Planned | Value) -> Planned | Value:
    """Two branches of one input, added, whichever of them is transposed. Raises NotFusable."""
    if isinstance(a, AdjointGeometry | Adjoint) or isinstance(b, AdjointGeometry | Adjoint):
        return as_adjoint(a) + as_adjoint(b)  # type: ignore[operator]
    return a + b  # type: ignore[operator]
