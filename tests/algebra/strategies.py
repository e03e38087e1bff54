"""Layers drawn so that both outcomes, accepted and refused, occur often.

Structure is drawn piece by piece, so that a failure shrinks; the numbers in the kernels are random
from a drawn seed, so that nothing is equal by chance.
"""

from dataclasses import replace
from math import gcd

from hypothesis import strategies as st

from acfuse.algebra import AvgPool, Conv, Pad
from tests.algebra.reference import (
    BORDERS,
    Layer,
    border_of,
    in_channels,
    normal,
    out_channels,
    windows,
)

Setting = tuple[int, int, tuple[int, int], int]  # size, stride, (before, after), dilation

LARGEST = {1: 5, 2: 4, 3: 3}  # side of a kernel, for each number of axes

axes_counts = st.sampled_from([1, 2, 2, 2, 3])
channel_counts = st.sampled_from([1, 2, 3, 4, 6, 6])
seeds = st.integers(0, 9999)
borders = st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"])
off_centre = st.sampled_from([0, 0, 0, -1, 1, 2, -2])


@st.composite
def convs(
    draw: st.DrawFn,
    taken: int,
    given: int,
    settings: tuple[Setting, ...],
    border: str,
    biased: st.SearchStrategy[bool] | None = None,
) -> Conv:
    """A convolution with these settings on its axes; groups, bias and numbers are drawn."""
    size, stride, pads, dilation = zip(*settings, strict=True)
    common = gcd(taken, given)
    groups = draw(st.sampled_from([d for d in range(1, common + 1) if common % d == 0]))
    seed = draw(seeds)
    has_bias = draw(st.booleans() if biased is None else biased)
    return Conv(
        normal(seed, given, taken // groups, *size),
        normal(seed + 1, given) if has_bias else None,
        stride,
        pads,
        dilation,
        groups,
        border,
    )


# --- branches ---------------------------------------------------------------------------------


@st.composite
def aligned_branches(
    draw: st.DrawFn, count: int = 2, axes: int | None = None, taken: int | None = None
) -> tuple[Conv, ...]:
    """Branches of one input whose outputs agree, whatever their kernels and pads are.

    They share a stride and a difference `taps - before - after` on each axis, and those that look
    past the edge share a border.
    """
    axes = axes or draw(axes_counts)
    taken, given = taken or draw(channel_counts), draw(channel_counts)
    strides = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(axes)]
    shrinks = [draw(st.sampled_from([1, 1, 1, 2, 3, 0, -1])) for _ in range(axes)]
    border = draw(borders)
    branches = []
    for _ in range(count):
        settings = []
        for stride, shrink in zip(strides, shrinks, strict=True):
            size = draw(st.integers(1, LARGEST[axes]))
            dilation = draw(st.sampled_from([1, 1, 2])) if size > 1 else 1
            total = dilation * (size - 1) + 1 - shrink
            before = total // 2 + draw(off_centre)
            settings.append((size, stride, (before, total - before), dilation))
        looks_outside = any(max(pads) > 0 for _, _, pads, _ in settings)
        own = border if looks_outside else draw(borders)
        branches.append(draw(convs(taken, given, tuple(settings), own)))
    return tuple(branches)


@st.composite
def loose_branches(draw: st.DrawFn, count: int = 2) -> tuple[Conv, ...]:
    """Branches of one input that often do not agree: every second one is spoilt in one way."""
    first, *others = draw(aligned_branches(count))
    return (first, *(draw(_spoilt(b)) if draw(st.booleans()) else b for b in others))


@st.composite
def _spoilt(draw: st.DrawFn, branch: Conv) -> Conv:
    axis = draw(st.integers(0, len(branch.stride) - 1))
    match draw(st.sampled_from(["stride", "pads", "pads", "border", "border", "channels"])):
        case "stride":
            stride = list(branch.stride)
            stride[axis] += 1
            return replace(branch, stride=tuple(stride))
        case "pads":
            pads = [list(both) for both in branch.pads]
            pads[axis][draw(st.integers(0, 1))] += draw(st.sampled_from([-1, 1]))
            return replace(branch, pads=tuple((before, after) for before, after in pads))
        case "border":
            return replace(branch, border=draw(st.sampled_from(BORDERS)))
        case _:
            size = branch.weight.shape[2:]
            settings = zip(size, branch.stride, branch.pads, branch.dilation, strict=True)
            taken, given = in_channels(branch), out_channels(branch)
            wider = draw(st.sampled_from([(taken + 1, given), (taken, given + 1)]))
            return draw(convs(*wider, tuple(settings), branch.border))


# --- chains -----------------------------------------------------------------------------------

FIRST = ["pointwise", "covering", "same"] * 3 + ["valid"] * 2 + ["crop", "pad", "pool"]
NEXT = ["same", "pads"] * 5 + ["valid", "covering", "crop", "pad", "pool", "pointwise"]


@st.composite
def chains(draw: st.DrawFn, length: int = 2) -> tuple[Layer, ...]:
    """Layers one after the other: pointwise then padded, pad first, covering pads, and the rest."""
    axes, channels, usual = draw(axes_counts), draw(channel_counts), draw(borders)
    layers: list[Layer] = []
    for place in range(length):
        kind = draw(st.sampled_from(NEXT if place else FIRST))
        border = draw(borders) if draw(st.integers(0, 4)) == 0 else usual
        layers.append(draw(_layers(kind, axes, channels, border)))
        channels = out_channels(layers[-1])
    return tuple(layers)


@st.composite
def forks(draw: st.DrawFn) -> tuple[Layer, Conv, Conv]:
    """A layer, and two aligned branches of what it gives."""
    axes, channels = draw(axes_counts), draw(channel_counts)
    kind = draw(st.sampled_from(FIRST))
    first = draw(_layers(kind, axes, channels, draw(borders)))
    return (first, *draw(aligned_branches(2, axes, out_channels(first))))


@st.composite
def _layers(draw: st.DrawFn, kind: str, axes: int, taken: int, border: str) -> Layer:
    if kind == "pad":
        widths = st.integers(-1, 3)
        return Pad(taken, tuple((draw(widths), draw(widths)) for _ in range(axes)), border)
    if kind == "pool":
        kinds = st.sampled_from(["valid", "same"])
        drawn = [draw(_settings(draw(kinds), axes, dilated=False)) for _ in range(axes)]
        size, stride, pads, _ = zip(*drawn, strict=True)
        return AvgPool(taken, size, stride, pads)
    each = [draw(st.sampled_from([kind] * 3 + ["pointwise"])) for _ in range(axes)]
    settings = tuple(draw(_settings(k, axes)) for k in each)
    seldom = st.sampled_from([False, False, True])
    return draw(convs(taken, draw(channel_counts), settings, border, seldom))


@st.composite
def _settings(draw: st.DrawFn, kind: str, axes: int, dilated: bool = True) -> Setting:
    """One axis of a layer of this kind."""
    if kind == "pointwise":
        return 1, 1, (0, 0), 1
    size = draw(st.sampled_from([3, 2, *range(1, LARGEST[axes] + 1)]))
    may_dilate = dilated and size > 1 and axes < 3
    dilation = draw(st.sampled_from([1, 1, 1, 2])) if may_dilate else 1
    stride = draw(st.sampled_from([1, 1, 1, 2, 3] if axes < 3 else [1, 1, 2]))
    taps = dilation * (size - 1) + 1
    before = after = 0
    match kind:
        case "crop":
            before, after = draw(st.integers(-2, 0)), draw(st.integers(-2, 0))
        case "same":
            before = (taps - 1) // 2
            after = taps - 1 - before
        case "covering":  # every window past the edge reads the padding only, or just not
            before = taps - stride + draw(st.sampled_from([0, 0, 1, -1]))
            after = taps - 1 + draw(st.sampled_from([0, 0, 1, -1]))
        case "pads":
            before, after = draw(st.integers(-1, 2)), draw(st.integers(-1, 2))
    return size, stride, (before, after), dilation


def refused_by_choice(f: Layer, g: Layer) -> bool:
    """Whether `f.then(g)` may be refused although one convolution would do.

    The rule is one line per side and asks nothing else; no network is known that needs more.
    These are left out of it:
    - circular after circular where `f` keeps the size: one convolution would have to pad by the
      sum at once, and torch does not pad an image by more than its side;
    - a border that repeats pixels where `f` on that side is a bare tap, or has itself padded with
      at least its window: what is repeated is then what `f` would give out there;
    - averages of two pixels, where repeating the mean of the first two is reflecting the image;
    - zeros where `g` jumps over or crops the places at which `f` has padded with another border (a
      stride, and gaps in its window).
    """
    for (taps, stride, before, after), (span, step, first, last), size in zip(
        windows(f), windows(g), _sizes(g), strict=True
    ):
        own = [pad for pad, looks in ((before, first), (after, last)) if looks > 0]
        if not own:
            continue
        if border_of(g) == "zeros":
            jumps = step > 1 and (size < step or size < span)
            padded = border_of(f) != "zeros" and max(before, after) > 0
            if padded and (jumps or min(first, last) < 0):
                return True
            continue
        if (taps, stride, before, after) == (1, 1, 0, 0):
            continue
        keeps_size = stride == 1 and before + after == taps - 1
        if border_of(f) == border_of(g) == "circular" and keeps_size:
            return True
        flat = border_of(f) in ("zeros", "replicate")
        if all((pad == 0 and taps == 1) or (flat and pad >= max(1, taps - 1)) for pad in own):
            return True
        if isinstance(f, AvgPool) and taps == 2:
            return True
    return False


def _sizes(layer: Layer) -> tuple[int, ...]:
    if isinstance(layer, Pad):
        return (1,) * len(layer.pads)
    return layer.size if isinstance(layer, AvgPool) else tuple(layer.weight.shape[2:])
