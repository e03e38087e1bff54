"""Where a convolution looks: its windows, without its numbers.

Whether a sum or a chain of convolutions is exactly one convolution depends on integers alone
(taps, strides, pads, groups) and on whether a bias is zero. All of that is decided here, so that a
plan can be made for a thousand layers before a single kernel is multiplied.

`make prove` shows, for all integers, that what is decided is right and, but for the choices told in
docs/proofs.md, had to be: what is marked "proved" names its statement there.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from itertools import pairwise
from math import gcd, prod
from typing import Literal

from acfuse.errors import NotFusable, Reason

Border = Literal["zeros", "reflect", "replicate", "circular"]
# Beyond these nothing is multiplied or proved: a few numbers of a file could ask for any memory.
LARGEST_WINDOW = 2**18  # places of window, padding and step together, over all axes
LARGEST_KERNEL = 2**28  # numbers of a kernel with its gaps, or of an image that shows it
LARGEST_CHAIN = 2**20  # pairs of taps of two windows on one axis


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis: y[n] reads x[stride*n - before + t] for every t in `live`.

    The window has `taps` places, of which the `live` ones may hold a weight (the others are zero:
    gaps of a dilation, or places added by `grow`). Negative pads crop.
    The output has floor((size + before + after - taps) / stride) + 1 places.
    """

    taps: int
    stride: int
    before: int
    after: int
    live: tuple[int, ...]

    @classmethod
    def window(  # proved: window-of-a-layer
        cls, size: int, stride: int = 1, pads: tuple[int, int] = (0, 0), dilation: int = 1
    ) -> "Axis":
        """The window of a layer with `size` taps, `dilation` places apart.

        Raises NotFusable for one that no layer has.
        """
        if min(size, stride, dilation) < 1:
            got = f"got {size}, {dilation}, {stride}"
            why = f"kernel size, dilation and stride must be at least 1 ({got})"
            raise NotFusable(Reason.WINDOW, why)
        taps = dilation * (size - 1) + 1
        if taps > LARGEST_WINDOW:
            raise _too_large(taps)
        return cls(taps, stride, *pads, live=tuple(range(0, taps, dilation)))

    @property
    def looks_before(self) -> bool:  # proved: looks-before
        """Whether a live tap ever falls before the first pixel."""
        return self.before > self.live[0]

    @property
    def nearest_before(self) -> int:  # proved: nearest-before
        """How far before the first pixel the nearest place is that is read (0 if none ever is).

        Strides and gaps may jump over the places next to the image.
        """
        outside = [self.before - t for t in self.live if t < self.before]
        return min(((far - 1) % self.stride + 1 for far in outside), default=0)

    @property
    def looks_after(self) -> bool:  # proved: looks-after
        """Whether a live tap can fall past the last pixel (for some size of the image)."""
        return self.after > self.taps - 1 - self.live[-1]

    @property
    def looks_outside(self) -> bool:  # proved: looks-outside
        """Whether the border mode of the image matters."""
        return self.looks_before or self.looks_after

    @property
    def is_pointwise(self) -> bool:  # proved: is-pointwise
        """Whether y[n] reads x[n] and nothing else."""
        first, last = self.live[0], self.live[-1]
        alone = first == last == self.before and self.taps - 1 - last == self.after
        return self.stride == 1 and alone

    @property
    def reach(self) -> int:
        """Places of the window, the padding and the step together."""
        return self.taps + abs(self.before) + abs(self.after) + self.stride

    @property
    def spacing(self) -> int:
        """The largest dilation that meets every live tap (1 for a single tap)."""
        return reduce(gcd, (b - a for a, b in pairwise(self.live)), 0) or 1

    @property
    def lowered_taps(self) -> int:
        """How many taps a real layer needs here, its dilation taken out."""
        return (self.live[-1] - self.live[0]) // self.spacing + 1

    def grow(self, before: int, after: int) -> "Axis":  # proved: grow-is-the-same-map
        """Adds empty taps and equally more padding: the same map."""
        return Axis(
            self.taps + before + after,
            self.stride,
            self.before + before,
            self.after + after,
            tuple(t + before for t in self.live),
        )

    def trim(self) -> "Axis":  # proved: trim-is-the-same-map
        """Takes away the empty taps at both ends: the same map."""
        return self.grow(-self.live[0], self.live[-1] + 1 - self.taps)

    def flipped(self) -> "Axis":  # proved: flipped-is-the-adjoint
        """The adjoint of a window of stride 1: it reads y wherever y reads it."""
        last = self.taps - 1
        live = tuple(last - t for t in reversed(self.live))
        return Axis(self.taps, self.stride, last - self.before, last - self.after, live)

    def __add__(self, other: "Axis") -> "Axis":  # proved: sum-of-windows
        before, after = max(self.before, other.before), max(self.after, other.after)
        a = self.grow(before - self.before, after - self.after)
        b = other.grow(before - other.before, after - other.after)
        if a.taps != b.taps:
            windows = f"windows of {self.taps} and {other.taps} taps"
            pads = f"padded by {(self.before, self.after)} and {(other.before, other.after)}"
            why = f"branches give outputs of different sizes ({windows}, {pads})"
            raise NotFusable(Reason.SIZES, why)
        return replace(a, live=tuple(sorted({*a.live, *b.live})))

    def then(self, g: "Axis") -> "Axis":  # proved: chain-of-windows, chain-of-adjoints
        """The windows of `g` over the windows of this one: x[s_f*(s_g*m - p_g + u) - p_f + t]."""
        if len(self.live) * len(g.live) > LARGEST_CHAIN:
            raise _too_large(self.taps + g.taps)
        return Axis(
            taps=self.stride * (g.taps - 1) + self.taps,
            stride=self.stride * g.stride,
            before=self.stride * g.before + self.before,
            after=self.stride * g.after + self.after,
            live=tuple(sorted({self.stride * u + t for u in g.live for t in self.live})),
        )


@dataclass(frozen=True, slots=True)
class Geometry:
    """Everything about a convolution but its numbers.

    `shifts` says that the bias may be other than zero: what then stands outside of the output is
    not what a zero-padded next layer believes.
    """

    out_channels: int
    in_channels: int
    axes: tuple[Axis, ...]
    groups: int = 1
    border: Border = "zeros"
    shifts: bool = False

    def __post_init__(self) -> None:
        """Raises NotFusable for groups that are none, and for more than can be proved.

        A pool of any number of channels has none yet, in no groups.
        """
        channels = self.in_channels, self.out_channels
        if any(n % self.groups if self.groups > 0 else n for n in channels):
            why = f"{channels[0]} and {channels[1]} channels cannot be in {self.groups} groups"
            raise NotFusable(Reason.CHANNELS, why)
        places = prod(axis.reach for axis in self.axes)
        kernel = prod((self.out_channels, self.in_channels // max(self.groups, 1), *self.taps))
        image = max(channels) * places
        if places > LARGEST_WINDOW or max(kernel, image) > LARGEST_KERNEL:
            raise _too_large(places)

    @property
    def taps(self) -> tuple[int, ...]:
        """Window per axis."""
        return tuple(axis.taps for axis in self.axes)

    @staticmethod
    def identity(channels: int, axes: int = 2) -> "Geometry":
        """The map that changes nothing: one tap, and each channel for itself."""
        return Geometry(
            channels, channels, tuple(Axis.window(1) for _ in range(axes)), groups=channels
        )

    @staticmethod
    def pointwise(out_channels: int, in_channels: int, axes: int = 2) -> "Geometry":
        """That of a matrix at every pixel."""
        return Geometry(out_channels, in_channels, tuple(Axis.window(1) for _ in range(axes)))

    @property
    def looks_outside(self) -> bool:  # proved: looks-outside
        """Whether the border mode matters on any axis."""
        return any(axis.looks_outside for axis in self.axes)

    @property
    def is_pointwise(self) -> bool:  # proved: is-pointwise
        """Whether every output pixel reads the input pixel at its own place and nothing else."""
        return all(axis.is_pointwise for axis in self.axes)

    @property
    def stride(self) -> tuple[int, ...]:
        """Steps per axis."""
        return tuple(axis.stride for axis in self.axes)

    @property
    def multiply_adds(self) -> int:
        """What one convolution costs for one output pixel. A linear layer knows no groups."""
        per_input = self.in_channels // (self.groups if self.axes else 1)
        return self.out_channels * per_input * prod(a.lowered_taps for a in self.axes)

    @property
    def weights(self) -> int:
        """Numbers of a real layer's kernel: each is used once for an output pixel."""
        return self.multiply_adds

    @property
    def pixels(self) -> Fraction:
        """How many pixels it takes for one that it gives."""
        return Fraction(prod(self.stride))

    def flipped(self) -> "Geometry":
        """The adjoint of a convolution of stride 1 that pads with zeros, if at all."""
        axes = tuple(axis.flipped() for axis in self.axes)
        return Geometry(self.in_channels, self.out_channels, axes, self.groups)

    def affine(self, shifts: bool) -> "Geometry":
        """A factor and a shift for each output channel."""
        return replace(self, shifts=self.shifts or shifts)

    def repeated(self, times: int) -> "Geometry":  # proved: repeated-channels
        """The same where each channel is so many channels, of which none sees another."""
        return replace(
            self, out_channels=self.out_channels * times, in_channels=self.in_channels * times
        )

    def without_shift(self) -> "Geometry":
        """The same without its bias."""
        return replace(self, shifts=False)

    def __add__(self, other: "Geometry") -> "Geometry":
        """Two branches of one input, added."""
        if len(self.axes) != len(other.axes):  # proved: channels-and-bias
            why = f"branches have {len(self.axes)} and {len(other.axes)} spatial axes"
            raise NotFusable(Reason.SIZES, why)
        if self.stride != other.stride:  # proved: sum-of-strides
            raise NotFusable(Reason.STRIDES, f"branches step by {self.stride} and {other.stride}")
        channels = self.in_channels, self.out_channels, other.in_channels, other.out_channels
        if channels[:2] != channels[2:]:  # proved: channels-and-bias
            why = "branches take {} to {} and {} to {} channels".format(*channels)
            raise NotFusable(Reason.CHANNELS, why)
        # proved: sum-of-borders
        axes = tuple(a + b for a, b in zip(self.axes, other.axes, strict=True))
        # proved: sum-of-borders
        if self.looks_outside and other.looks_outside and self.border != other.border:
            why = f"branches pad with {self.border} and with {other.border}"
            raise NotFusable(Reason.BORDERS, why)
        return Geometry(
            self.out_channels,
            self.in_channels,
            axes,
            gcd(self.groups, other.groups),  # proved: groups
            self.border if self.looks_outside else other.border,  # proved: sum-of-borders
            self.shifts or other.shifts,  # proved: channels-and-bias
        )

    def then(self, g: "Geometry") -> "Geometry":
        """`g` applied to what this one gives. Exact for every image size, or refused.

        Per axis, `f` first: where `g` never looks outside of f's output, the chain is exact. Where
        it does, it sees its own border there, while one convolution would see what `f` gives past
        its edge. With zeros these are the same when every window of `f` that starts outside reads
        nothing but zeros, and f's bias is zero; with another border mode when `f` is pointwise.
        """
        f = self
        # proved: channels-and-bias
        if len(f.axes) != len(g.axes) or f.out_channels != g.in_channels:
            second = f"a layer of {g.in_channels} channels and {len(g.axes)} axes"
            why = f"{second} follows one that gives {f.out_channels} and {len(f.axes)}"
            raise NotFusable(Reason.CHANNELS, why)
        chained = tuple(a.then(b) for a, b in zip(f.axes, g.axes, strict=True))
        borders: set[Border] = set()
        for before, after, both in zip(f.axes, g.axes, chained, strict=True):
            border = _border_between(before, after, f, g)
            if both.looks_outside:  # proved: chain-of-several-axes
                borders.add(border)
        if len(borders) > 1:  # proved: chain-of-several-axes
            why = f"one layer pads with {f.border}, the next with {g.border}"
            raise NotFusable(Reason.BORDERS, why)
        return Geometry(
            g.out_channels,
            f.in_channels,
            chained,
            gcd(f.groups, g.groups),  # proved: groups
            borders.pop() if borders else "zeros",  # proved: chain-of-several-axes
            f.shifts or g.shifts,  # proved: channels-and-bias
        )


def _too_large(places: int) -> NotFusable:
    why = f"its window spans {places:,} places, padding and step included: too many to be proved"
    return NotFusable(Reason.WINDOW, why)


def _border_between(a: Axis, b: Axis, f: Geometry, g: Geometry) -> Border:
    """The border of the chain on one axis, `a` of `f` and `b` of `g`; NotFusable if there is none.

    Before the image, the nearest place that `b` reads is y[-d], d = b.nearest_before. Its window
    ends at tap -stride*d - before + last: it reads only zeros if that is negative. After it, y[N]
    starts at least at size - (taps-1-after) + first (N is the first place past the output, for the
    worst size), which is past the edge if it is >= size.
    """
    if not b.looks_outside:  # proved: chain-inside
        return f.border
    if g.border != "zeros":  # proved: chain-with-repeated-pixels
        if not a.is_pointwise:  # proved: chain-with-repeated-pixels
            why = f"the second layer pads with {g.border} what the first one gives"
            raise NotFusable(Reason.PADDED_MIDDLE, why)
        return g.border
    if f.shifts:  # proved: chain-with-bias
        why = "the second layer pads with zeros where the first one's bias would stand"
        raise NotFusable(Reason.PADDED_MIDDLE, why)
    reads_zeros = (  # proved: chain-with-zeros
        not b.looks_before or a.live[-1] - a.before < a.stride * b.nearest_before
    ) and (not b.looks_after or a.after >= a.taps - 1 - a.live[0])
    # proved: chain-with-zeros, chain-with-zeros-after-a-border
    if not reads_zeros or (a.looks_outside and f.border != "zeros"):
        why = "the second layer pads with zeros where the first one would still see the image"
        raise NotFusable(Reason.PADDED_MIDDLE, why)
    return "zeros"
