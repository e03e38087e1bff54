"""The kernel of an affine map that commutes with shifts, read out of it.

Impulses read it to the last digit, one image for each input channel. Where a kernel is known that
the map should have, a few images of random numbers show nearly all of it: two affine maps that
agree on numbers which nobody chose are one map. What that leaves open is a bound on the error of
any weight, and the input channels in which some weight is not large beside it are read by impulses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from acfuse.algebra import AdjointGeometry, Axis, Geometry, LinearConv, Planned, Value, adjoint_of
from acfuse.algebra.adjoint import by_output
from acfuse.algebra.linear_conv import on_axes
from acfuse.findings import Run, Term

AMPLITUDE = 2.0**400  # of impulses: beside their answers no bias is large, and none is infinite
NOISE = 64 * 2.0**-53  # of float64 sums, relative to the largest weight of an output channel
ROOM = 64  # the most that images are enlarged by for layers that need it
CHUNK = 2**24  # numbers in one batch of impulses
FEW = 64  # channels that are given random numbers at a time; fewer are read as fast by impulses
PLACES = 64  # of an output, at the least, at which random numbers are compared
SURE = 4  # no weight is further off than so many times the worst difference at all these places


@dataclass(frozen=True)
class Claims:
    """The kernels that a map should have, and the dtype in which they are stored.

    Those of transposed convolutions are not asked for: an impulse shows every tap of one at once.
    """

    terms: Sequence[Term]
    geometries: Sequence[Planned | None]
    dtype: torch.dtype

    def kernel(self, index: int) -> Tensor | None:
        """A claimed kernel, if it has the shape that is stored, and enough channels to matter."""
        geometry = self.geometries[index]
        if not isinstance(geometry, Geometry) or geometry.in_channels // geometry.groups <= FEW:
            return None
        value = self.terms[index].value
        fits = value is not None and value.geometry.without_shift() == geometry.without_shift()
        return value.kernel if fits and value is not None else None


def unit_in_last_place(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of a dtype's numbers around each value; that of the subnormals near zero."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(exact)
    spacing = torch.ldexp(torch.full_like(exact, info.eps / 2), exponent)
    spacing[exact == 0] = 0.0  # whose exponent is that of 1/2 to frexp
    return spacing.clamp_min(info.tiny * info.eps)


def room_for(run: Run, geometries: Sequence[Planned | None]) -> int:
    """How much larger than the fused kernel asks for an output has to be for the layers to run.

    A reflection inside of a block, which the fused convolution does without, needs pixels to show.
    """
    room = 0
    while room < ROOM:
        try:
            run(*_blank(geometries, _impulse_output(geometries, room), 1))
        except RuntimeError:
            room = 2 * room + 1
        else:
            break
    return room


def read_out(
    run: Run,
    geometries: Sequence[Planned | None],
    room: int = 0,
    claims: Claims | None = None,
) -> list[Value | None]:
    """The convolutions that an affine, shift-invariant map is.

    One image for each input channel of a group, with one pixel set in every group at once, for
    every phase of the stride. The bias is the answer to zeros, and goes to the first of them.
    The images give `room` more places than it takes to see an impulse. These are so large that a
    bias, or terms of it that cancel, take no digit from the weights.

    With `claims`, channels are read only where random numbers do not show enough of them.
    """
    solid = [i for i, g in enumerate(geometries) if g is not None]
    output = _impulse_output(geometries, room)
    bias: Tensor | None = None
    values: list[Value | None] = [None] * len(geometries)
    for i in solid:
        geometry = geometries[i]
        assert geometry is not None
        zero = run(*_blank(geometries, output, 1))
        middle = tuple(n // 2 for n in zero.shape[2:])
        own_bias = zero[0][on_axes(middle)] if bias is None else torch.zeros_like(bias)
        bias = own_bias if bias is None else bias
        if isinstance(geometry, AdjointGeometry):
            kernel = _read_spread(run, geometries, i, output, zero)
            none = kernel.new_zeros(len(kernel))
            values[i] = adjoint_of(LinearConv(kernel, none, geometry.of), own_bias)
            continue
        claimed = claims.kernel(i) if claims is not None else None
        if claims is None or claimed is None:
            kernel = _read_kernel(run, geometries, i, output, zero)
        else:
            kernel = _confirmed(run, geometries, i, output, zero, claimed, claims.dtype)
        shifted = geometry if bool(own_bias.any()) else geometry.without_shift()
        values[i] = LinearConv(kernel, own_bias, shifted)
    return values


def _confirmed(
    run: Run,
    geometries: Sequence[Planned | None],
    index: int,
    output: Sequence[int],
    zero: Tensor,
    claimed: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """A claimed kernel, with what random numbers do not show of it read by impulses.

    If a weight of an output channel were off by e, so would that channel be at each place, by e
    times another normal number: at 64 places all below r with a chance of less than (r / e)^64. So
    e is at most 4 r, where r is the worst difference that was seen, which is rounding. A channel of
    the input is read where that is more than half a unit in the last place of some weight, and more
    than what float64 sums may be off. Few channels at a time are given numbers, because the
    rounding grows with the number of terms.
    """
    per_group = claimed.shape[1]
    noise = (NOISE * claimed.abs().flatten(1).amax(1)).view(-1, *[1] * (claimed.ndim - 1))
    hidden: list[int] = []
    side = math.ceil(PLACES ** (1 / max(len(output), 1)))  # one image is faster than several
    larger = [max(n, side) for n in output]
    zeros = run(*_blank(geometries, larger, 1))
    for low in range(0, per_group, FEW):
        slots = slice(low, min(low + FEW, per_group))
        part = claimed[:, slots]
        off = SURE * _apart(run, geometries, index, larger, zeros, part, slots)
        off = off.view(-1, *[1] * (claimed.ndim - 1))
        weak = (unit_in_last_place(part, dtype) < 2 * off) & (off > noise)
        hidden += (low + weak.transpose(0, 1).flatten(1).any(1).nonzero().flatten()).tolist()
        if len(hidden) > per_group // 2:
            return _read_kernel(run, geometries, index, output, zero)
    if not hidden:
        return claimed
    kernel = claimed.clone()
    kernel[:, hidden] = _read_kernel(run, geometries, index, output, zero, hidden)[:, hidden]
    return kernel


def _apart(
    run: Run,
    geometries: Sequence[Planned | None],
    index: int,
    output: Sequence[int],
    zeros: Tensor,
    claimed: Tensor,
    slots: slice,
) -> Tensor:
    """How far a map is from a kernel of some channels, on normal numbers, at worst in each output.

    `slots` says which channels of every group these are.
    """
    geometry = geometries[index]
    assert isinstance(geometry, Geometry)
    batch = 1 if output else PLACES  # a row is a single place
    images = _blank(geometries, output, batch)
    size, groups, count = images[index].shape[2:], geometry.groups, claimed.shape[1]
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn((batch, groups, count, *size), generator=generator, dtype=torch.float64)
    images[index].view(batch, groups, -1, *size)[:, :, slots] = AMPLITUDE * numbers
    answer = (run(*images) - zeros) / AMPLITUDE
    alone = replace(geometry, in_channels=groups * count).without_shift()
    expected = LinearConv(claimed, claimed.new_zeros(len(claimed)), alone)(numbers.flatten(1, 2))
    if answer.shape != expected.shape:
        return torch.full((len(claimed),), math.inf, dtype=torch.float64)
    apart = (answer - expected).abs().nan_to_num(nan=math.inf)
    return apart.transpose(0, 1).flatten(1).amax(1)


def _impulse_output(geometries: Sequence[Planned | None], room: int) -> list[int]:
    """The size of an output in which an impulse can be seen through every tap, in every phase."""
    known = [g for g in geometries if g is not None]
    outputs = []
    for axes in zip(*(g.axes for g in known), strict=True):
        needed = 1
        for g, a in zip(known, axes, strict=True):
            if isinstance(g, AdjointGeometry):
                pixels = _spread_start(a) + 1 + max(-(-a.after // a.stride), 0)
                needed = max(needed, a.stride * (pixels - 1) + a.taps - a.before - a.after)
                continue
            last = _impulse_start(a, g.border) + a.stride - 1  # of the pixels that are set
            size = last + 1 + max(a.taps - 1 - a.after, _margin(a, g.border))
            steps = -(-(size + a.before + a.after - a.taps) // a.stride)
            needed = max(needed, steps + 1, (last + a.before) // a.stride + 1)
        outputs.append(needed + room)
    return fitting(geometries, outputs)


def fitting(geometries: Sequence[Planned | None], output: Sequence[int]) -> list[int]:
    """The smallest output of at least this size that every transposed convolution can give.

    Raises RuntimeError where there is none: two of them never give outputs of one size.
    """
    spread = [g for g in geometries if isinstance(g, AdjointGeometry)]
    sizes = []
    for i, least in enumerate(output):
        axes = [g.axes[i] for g in spread]
        for n in range(least, least + math.lcm(*(a.stride for a in axes))):
            if all((n - a.taps + a.before + a.after) % a.stride == 0 for a in axes):
                sizes.append(n)
                break
        else:
            raise RuntimeError("its branches never give outputs of one size")
    return sizes


def _spread_start(axis: Axis) -> int:
    """The first pixel of which a transposed convolution cuts nothing off before the image."""
    return max(-(-axis.before // axis.stride), 0)


def _impulse_start(axis: Axis, border: str) -> int:
    """The first pixel at which an impulse is seen by every tap and mirrored by none."""
    return max(axis.taps - 1 - axis.before, _margin(axis, border))


def _margin(axis: Axis, border: str) -> int:
    """How far from the edge a pixel is when no border mode but zeros repeats it."""
    return 0 if border == "zeros" else max(axis.before, axis.after, 0) + 1


def image_size(geometry: Planned, output: Sequence[int]) -> tuple[int, ...]:
    """The smallest image that gives an output of this size."""
    spread = isinstance(geometry, AdjointGeometry)
    ends = ((a.stride, a.taps - a.before - a.after) for a in geometry.axes)
    return tuple(
        (n - end) // stride + 1 if spread else (n - 1) * stride + end
        for n, (stride, end) in zip(output, ends, strict=True)
    )


def _blank(geometries: Sequence[Planned | None], output: Sequence[int], batch: int) -> list[Tensor]:
    out = next(g.out_channels for g in geometries if g is not None)
    images = []
    for g in geometries:
        channels, size = (
            (out, tuple(output)) if g is None else (g.in_channels, image_size(g, output))
        )
        images.append(torch.zeros(batch, channels, *size, dtype=torch.float64))
    return images


def _read_kernel(
    run: Run,
    geometries: Sequence[Planned | None],
    index: int,
    output: Sequence[int],
    zero: Tensor,
    channels: Sequence[int] | None = None,
) -> Tensor:
    """A kernel by impulses; with `channels`, those of a group alone, and zeros elsewhere."""
    geometry = geometries[index]
    assert isinstance(geometry, Geometry)
    per_group, groups = geometry.in_channels // geometry.groups, geometry.groups
    taps = tuple(a.taps for a in geometry.axes)
    kernel = torch.zeros(geometry.out_channels, per_group, *taps, dtype=torch.float64)
    size = image_size(geometry, output)
    starts = [_impulse_start(a, geometry.border) for a in geometry.axes]
    step = max(1, CHUNK // (geometry.in_channels * math.prod(size)))
    for phase in product(*(range(a.stride) for a in geometry.axes)):
        pixel = tuple(s + p for s, p in zip(starts, phase, strict=True))
        wanted = range(per_group) if channels is None else channels
        for low in range(0, len(wanted), step):
            slots = wanted[low : low + step]
            images = _blank(geometries, output, len(slots))
            image = images[index].view(len(slots), groups, per_group, *size)
            for i, slot in enumerate(slots):
                image[i, :, slot][on_axes(pixel)] = AMPLITUDE
            answer = (run(*images) - zero).transpose(0, 1) / AMPLITUDE  # [out, slots, *output]
            # y[n] sees the impulse at p through the tap t = p - stride*n + before.
            for place in product(*(range(n) for n in answer.shape[2:])):
                t = tuple(
                    p - a.stride * n + a.before
                    for p, n, a in zip(pixel, place, geometry.axes, strict=True)
                )
                if all(0 <= i < n for i, n in zip(t, taps, strict=True)):
                    tap: Any = (slice(None), list(slots), *t)
                    kernel[tap] = answer[on_axes(place)]
    return kernel


def _read_spread(
    run: Run,
    geometries: Sequence[Planned | None],
    index: int,
    output: Sequence[int],
    zero: Tensor,
) -> Tensor:
    """The kernel of a transposed convolution: all that one impulse is spread to."""
    geometry = geometries[index]
    assert isinstance(geometry, AdjointGeometry)
    groups, per_group = geometry.of.groups, geometry.in_channels // geometry.of.groups
    size, taps = image_size(geometry, output), geometry.of.taps
    rows = torch.zeros(geometry.out_channels, per_group, *taps, dtype=torch.float64)
    pixel = tuple(map(_spread_start, geometry.axes))
    begins = [a.stride * p - a.before for p, a in zip(pixel, geometry.axes, strict=True)]
    window = tuple(slice(b, b + n) for b, n in zip(begins, taps, strict=True))
    numbers = max(geometry.in_channels * math.prod(size), zero[0].numel())
    step = max(1, CHUNK // numbers)
    for low in range(0, per_group, step):
        slots = range(low, min(low + step, per_group))
        images = _blank(geometries, output, len(slots))
        image = images[index].view(len(slots), groups, per_group, *size)
        for i, slot in enumerate(slots):
            image[i, :, slot][on_axes(pixel)] = AMPLITUDE
        answer = (run(*images) - zero).transpose(0, 1) / AMPLITUDE  # [out, slots, *output]
        seen = answer[on_axes(window)]
        there = tuple(slice(n) for n in seen.shape[2:])  # of another size, as much as there is
        rows[:, slots.start : slots.stop][on_axes(there)] = seen
    return by_output(rows, groups)
