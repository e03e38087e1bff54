"""Which transposed convolutions can be added and chained: integers alone decide.

A transposed convolution is the adjoint of the convolution that goes the other way: that takes
images as large as it gives, and gives ones as large as it takes. A sum of adjoints is the adjoint
of the sum, and a chain that of the chain in the other order. So the geometry of those convolutions
decides, which `make prove` is about; what is new here has statements of its own.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

from acfuse.algebra.geometry import Axis, Geometry
from acfuse.errors import NotFusable, Reason

CUT_OFF = "the first layer's image is cut off where the second one would still see it"


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
    def groups(self) -> int:
        """Channel groups that do not see each other."""
        return self.of.groups

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
        per_group = self.out_channels // self.groups
        return self.in_channels * per_group * prod(map(_layer_taps, self.axes))

    @property
    def pixels(self) -> Fraction:
        """How many pixels it takes for one that it gives."""
        return 1 / self.of.pixels

    @property
    def multiply_adds(self) -> Fraction:
        """What it costs for one output pixel: each input pixel meets every weight."""
        return self.weights * self.pixels

    @classmethod
    def of_convolution(cls, conv: Geometry) -> "AdjointGeometry":
        """A convolution as the adjoint that it is. Raises NotFusable for one that is none."""
        if any(s != 1 for s in conv.stride):  # proved: convolution-as-adjoint
            why = f"a convolution that steps by {conv.stride} meets a transposed one"
            raise NotFusable(Reason.STRIDES, why)
        if conv.looks_outside and conv.border != "zeros":  # proved: convolution-as-adjoint
            why = f"a convolution that pads with {conv.border} meets a transposed one"
            raise NotFusable(Reason.BORDERS, why)
        return cls(conv.flipped(), conv.shifts)

    @property
    def keeps_constants(self) -> bool:  # proved: keeps-constants
        """Whether it makes a constant image of every constant image, up to the border."""
        return all(s == 1 for s in self.stride) and not self.of.flipped().looks_outside

    def affine(self, shifts: bool) -> "AdjointGeometry":
        """A factor and a shift for each output channel."""
        return replace(self, shifts=self.shifts or shifts)

    def without_shift(self) -> "AdjointGeometry":
        """The same without its bias."""
        return replace(self, shifts=False)

    def __add__(self, other: "AdjointGeometry") -> "AdjointGeometry":
        """Two branches of one input, added."""
        channels = self.in_channels, self.out_channels, other.in_channels, other.out_channels
        if channels[:2] != channels[2:]:  # proved: adjoint-channels-and-bias
            why = "branches take {} to {} and {} to {} channels".format(*channels)
            raise NotFusable(Reason.CHANNELS, why)
        # proved: adjoint-channels-and-bias
        return AdjointGeometry(self.of + other.of, self.shifts or other.shifts)

    def then(self, g: "AdjointGeometry") -> "AdjointGeometry":
        """`g` applied to what this one gives. Exact for every image size, or refused."""
        f = self
        if f.shifts and not g.keeps_constants:  # proved: adjoint-channels-and-bias
            why = "the second layer does not see the first one's bias alike at every pixel"
            raise NotFusable(Reason.PADDED_MIDDLE, why)
        try:
            of = g.of.then(f.of)
        except NotFusable as refusal:  # it is about the convolutions, which go the other way
            second = f"a layer of {g.in_channels} channels and {len(g.axes)} axes"
            follows = f"{second} follows one that gives {f.out_channels} and {len(f.axes)}"
            words = {Reason.PADDED_MIDDLE: CUT_OFF, Reason.CHANNELS: follows}
            raise NotFusable(refusal.code, words.get(refusal.code, refusal.why)) from None
        return AdjointGeometry(of, f.shifts or g.shifts)  # proved: adjoint-channels-and-bias


def crops(live: Axis, *, symmetric: bool) -> tuple[int, int]:
    """The least that a real layer can cut off of a trimmed axis, (before, after).

    It may add to its output at the end (`output_padding`), by less than a step of its own, and
    with `symmetric` to what it cuts off there as well.
    """
    before, after = max(live.before, 0), live.after
    if symmetric:
        before = max(before, after)
    added = before - after if symmetric else -after
    if added < max(live.stride, dilation_at(live, before, after)):
        return before, after
    return before, before if symmetric else 0


def dilation_at(live: Axis, before: int, after: int) -> int:
    """The dilation that a layer can have whose window is grown to these pads."""
    meets = (before - live.before) % live.spacing == (after - live.after) % live.spacing == 0
    return live.spacing if meets else 1


def _layer_taps(axis: Axis) -> int:
    """How many taps a real layer needs, its dilation taken out."""
    live = axis.trim()
    before, after = crops(live, symmetric=True)
    window = live.taps + before - live.before + after - live.after
    return (window - 1) // dilation_at(live, before, after) + 1
