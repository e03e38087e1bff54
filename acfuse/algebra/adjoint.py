"""A transposed convolution: the adjoint of the convolution that goes the other way.

    y[stride*n - before + t] += kernel[t]^T . x[n]        for every pixel n and tap t; then the bias

The convolution `of` takes images as large as `y` and gives ones as large as `x`, with the same
kernel. A sum of adjoints is the adjoint of the sum, a chain that of the chain in the other order,
and a convolution of stride 1 is an adjoint too. So their geometry decides here as well.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional as F

from acfuse.algebra.geometry import Axis, Geometry
from acfuse.algebra.linear_conv import LinearConv, extend
from acfuse.errors import NotFusable, Reason

TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, slots=True)
class AdjointGeometry:
    """Everything about a transposed convolution but its numbers.

    It gives stride*(n-1) + taps - before - after pixels for n, in the axes of the convolution `of`.
    """

    of: Geometry
    shifts: bool = False

    @property
    def out_channels(self) -> int:
        """How many channels it gives."""
        return self.of.in_channels

    @property
    def in_channels(self) -> int:
        """How many channels it takes."""
        return self.of.out_channels

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of the convolution that it is the adjoint of."""
        return self.of.axes

    @property
    def stride(self) -> tuple[int, ...]:
        """Pixels between what two neighbours are spread to, per axis."""
        return self.of.stride

    @property
    def is_pointwise(self) -> bool:
        """Whether every pixel is made from the one at its own place and nothing else."""
        return self.of.is_pointwise

    @property
    def weights(self) -> int:
        """Numbers of a real layer's kernel."""
        return self.of.weights

    @property
    def pixels(self) -> Fraction:
        """How many pixels it takes for one that it gives."""
        return 1 / self.of.pixels

    @property
    def multiply_adds(self) -> Fraction:
        """What it costs for one output pixel: each input pixel meets every weight."""
        return self.weights * self.pixels

    @property
    def keeps_constants(self) -> bool:
        """Whether it makes a constant image of every constant image, up to the border."""
        one_step = all(s == 1 for s in self.stride)
        return one_step and not self.of.flipped().looks_outside

    def affine(self, shifts: bool) -> "AdjointGeometry":
        """A factor and a shift for each output channel."""
        return replace(self, shifts=self.shifts or shifts)

    def without_shift(self) -> "AdjointGeometry":
        """The same without its bias."""
        return replace(self, shifts=False)

    def __add__(self, other: "AdjointGeometry") -> "AdjointGeometry":
        """Two branches of one input, added."""
        channels = self.in_channels, self.out_channels, other.in_channels, other.out_channels
        if channels[:2] != channels[2:]:
            why = "branches take {} to {} and {} to {} channels".format(*channels)
            raise NotFusable(Reason.CHANNELS, why)
        return AdjointGeometry(self.of + other.of, self.shifts or other.shifts)

    def then(self, g: "AdjointGeometry") -> "AdjointGeometry":
        """`g` applied to what this one gives. Exact for every image size, or refused."""
        f = self
        if len(f.axes) != len(g.axes) or f.out_channels != g.in_channels:
            second = f"a layer of {g.in_channels} channels and {len(g.axes)} axes"
            why = f"{second} follows one that gives {f.out_channels} and {len(f.axes)}"
            raise NotFusable(Reason.CHANNELS, why)
        if f.shifts and not g.keeps_constants:
            why = "the second layer does not see the first one's bias alike at every pixel"
            raise NotFusable(Reason.PADDED_MIDDLE, why)
        try:
            of = g.of.then(f.of)
        except NotFusable as refusal:
            if refusal.code != Reason.PADDED_MIDDLE:
                raise
            why = "the first layer's image is cut off where the second one would still see it"
            raise NotFusable(Reason.PADDED_MIDDLE, why) from None
        return AdjointGeometry(of, f.shifts or g.shifts)


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
        out = self.geometry.out_channels
        scale = torch.as_tensor(scale, dtype=torch.float64, device=self.bias.device).expand(out)
        shift = torch.as_tensor(shift, dtype=torch.float64, device=self.bias.device).expand(out)
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
    geometry = value if isinstance(value, Geometry) else value.geometry
    if any(s != 1 for s in geometry.stride):
        why = f"a convolution that steps by {geometry.stride} meets a transposed one"
        raise NotFusable(Reason.STRIDES, why)
    if geometry.looks_outside and geometry.border != "zeros":
        why = f"a convolution that pads with {geometry.border} meets a transposed one"
        raise NotFusable(Reason.BORDERS, why)
    turned = AdjointGeometry(geometry.flipped(), geometry.shifts)
    if isinstance(value, Geometry):
        return turned
    kernel = flipped(value.kernel, value.groups)
    none = kernel.new_zeros(geometry.in_channels)
    return Adjoint(LinearConv(kernel, none, turned.of), value.bias, turned)


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
