"""The kernel of an affine map that commutes with shifts, read out of it by impulses.

They read it to the last digit, one image for each input channel.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from acfuse.algebra import (
    Adjoint,
    AdjointGeometry,
    Axis,
    Geometry,
    LinearConv,
    Planned,
    Value,
    adjoint_of,
)
from acfuse.algebra.adjoint import by_output
from acfuse.algebra.linear_conv import on_axes
from acfuse.findings import Run
from acfuse.system.devices import CPU

AMPLITUDE = 2.0**400  # of impulses: beside their answers no bias is large, and none is infinite
NOISE = 64 * 2.0**-53  # of float64 sums, relative to the largest weight of an output channel
SOME = 2**16  # numbers that are looked at together: they stay in the cache
ROOM = 64  # the most that images are enlarged by for layers that need it
CHUNK = 2**24  # numbers in one batch of impulses
# A kernel with its output channels first, and those of its channels that impulses have to read.
Hidden = Callable[[int, Sequence[int]], tuple[Tensor, Sequence[int]] | None]
EXPONENT = 0x7FF0000000000000  # the bits of float64 that are its exponent


def unit_in_last_place(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of a dtype's numbers around each value; that of the subnormals near zero."""
    info = torch.finfo(dtype)
    power_of_two = (exact.view(torch.int64) & EXPONENT).view(torch.float64)  # 2^floor(log2 |x|)
    return power_of_two.mul_(info.eps).clamp_min_(info.tiny * info.eps)


def room_for(run: Run, geometries: Sequence[Planned | None]) -> int:
    """How much larger than the fused kernel asks for an output has to be for the layers to run.

    A reflection inside of a block, which the fused convolution does without, needs pixels to show.
    """
    room = 0
    while room < ROOM:
        try:
            run(*blank(geometries, _impulse_output(geometries, room), 1))
        except RuntimeError:
            room = 2 * room + 1
        else:
            break
    return room


def read_out(
    run: Run,
    geometries: Sequence[Planned | None],
    room: int = 0,
    hidden: Hidden | None = None,
) -> list[Value | None]:
    """The convolutions that an affine, shift-invariant map is.

    One image for each input channel of a group, with one pixel set in every group at once, for
    every phase of the stride. The bias is the answer to zeros, and goes to the first of them.
    The images give `room` more places than it takes to see an impulse. These are so large that a
    bias, or terms of it that cancel, take no digit from the weights.

    `hidden` tells of each kernel, by its place, what it is and which of its channels are left to be
    read; None: all of them.
    """
    solid = [i for i, g in enumerate(geometries) if g is not None]
    output = _impulse_output(geometries, room)
    bias: Tensor | None = None
    values: list[Value | None] = [None] * len(geometries)
    for i in solid:
        geometry = geometries[i]
        assert geometry is not None
        zero = run(*blank(geometries, output, 1))
        middle = tuple(n // 2 for n in zero.shape[2:])
        own_bias = zero[0][on_axes(middle)] if bias is None else torch.zeros_like(bias)
        bias = own_bias if bias is None else bias
        known = hidden(i, output) if hidden is not None else None
        channels = range(geometry.in_channels // geometry.groups) if known is None else known[1]
        read = _read_spread if isinstance(geometry, AdjointGeometry) else _read_kernel
        kernel = read(run, geometries, i, output, zero, channels) if channels else None
        if known is not None:
            kernel = known[0] if kernel is None else _with_channels(known[0], kernel, channels)
        assert kernel is not None
        values[i] = _value(kernel, own_bias, geometry)
    return values


def _with_channels(rows: Tensor, read: Tensor, channels: Sequence[int]) -> Tensor:
    """A kernel in which some channels are those that were read."""
    rows = rows.clone()
    rows[:, list(channels)] = read
    return rows


def _value(rows: Tensor, bias: Tensor, geometry: Planned) -> Value:
    """The convolution, transposed or not, whose kernel has its output channels first."""
    if isinstance(geometry, AdjointGeometry):
        kernel = by_output(rows, geometry.groups)
        return adjoint_of(LinearConv(kernel, kernel.new_zeros(len(kernel)), geometry.of), bias)
    return LinearConv(rows, bias, geometry if bool(bias.any()) else geometry.without_shift())


def rows(value: Value, kernel: Tensor | None = None) -> Tensor:
    """Its kernel (or one like it) with the output channels first: [out, in / groups, *taps]."""
    kernel = value.kernel if kernel is None else kernel
    return by_output(kernel, value.groups) if isinstance(value, Adjoint) else kernel


def largest_in_rows(numbers: Tensor) -> Tensor:
    """The largest number of each output channel, without a copy of all: [out]."""
    each = numbers.flatten(1)
    return torch.maximum(each.amax(1), -each.amin(1))


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


def output_size(geometry: Planned, image: Sequence[int]) -> tuple[int, ...]:
    """The size of what it gives for an image of this size."""
    spread = isinstance(geometry, AdjointGeometry)
    ends = ((a.stride, a.taps - a.before - a.after) for a in geometry.axes)
    return tuple(
        (n - 1) * stride + end if spread else (n - end) // stride + 1
        for n, (stride, end) in zip(image, ends, strict=True)
    )


def blank(geometries: Sequence[Planned | None], output: Sequence[int], batch: int) -> list[Tensor]:
    """Images of zeros that give an output of this size."""
    out = next(g.out_channels for g in geometries if g is not None)
    images = []
    for g in geometries:
        channels, size = (
            (out, tuple(output)) if g is None else (g.in_channels, image_size(g, output))
        )
        images.append(torch.zeros(batch, channels, *size, dtype=torch.float64, device=CPU))
    return images


def _read_kernel(
    run: Run,
    geometries: Sequence[Planned | None],
    index: int,
    output: Sequence[int],
    zero: Tensor,
    channels: Sequence[int],
) -> Tensor:
    """Some channels of a kernel, of each group alike, by impulses: [out, channels, *taps]."""
    geometry = geometries[index]
    assert isinstance(geometry, Geometry)
    per_group, groups = geometry.in_channels // geometry.groups, geometry.groups
    taps = tuple(a.taps for a in geometry.axes)
    shape = geometry.out_channels, len(channels), *taps
    kernel = torch.zeros(shape, dtype=torch.float64, device=CPU)
    size = image_size(geometry, output)
    starts = [_impulse_start(a, geometry.border) for a in geometry.axes]
    step = max(1, CHUNK // (geometry.in_channels * math.prod(size)))
    for phase in product(*(range(a.stride) for a in geometry.axes)):
        pixel = tuple(s + p for s, p in zip(starts, phase, strict=True))
        for low in range(0, len(channels), step):
            slots = channels[low : low + step]
            images = blank(geometries, output, len(slots))
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
                    tap: Any = (slice(None), slice(low, low + len(slots)), *t)
                    kernel[tap] = answer[on_axes(place)]
    return kernel


def _read_spread(
    run: Run,
    geometries: Sequence[Planned | None],
    index: int,
    output: Sequence[int],
    zero: Tensor,
    channels: Sequence[int],
) -> Tensor:
    """The same of a transposed convolution: all that one impulse is spread to."""
    geometry = geometries[index]
    assert isinstance(geometry, AdjointGeometry)
    groups, per_group = geometry.groups, geometry.in_channels // geometry.groups
    size, taps = image_size(geometry, output), geometry.of.taps
    shape = geometry.out_channels, len(channels), *taps
    kernel = torch.zeros(shape, dtype=torch.float64, device=CPU)
    pixel = tuple(map(_spread_start, geometry.axes))
    begins = [a.stride * p - a.before for p, a in zip(pixel, geometry.axes, strict=True)]
    window = tuple(slice(b, b + n) for b, n in zip(begins, taps, strict=True))
    numbers = max(geometry.in_channels * math.prod(size), zero[0].numel())
    step = max(1, CHUNK // numbers)
    for low in range(0, len(channels), step):
        slots = channels[low : low + step]
        images = blank(geometries, output, len(slots))
        image = images[index].view(len(slots), groups, per_group, *size)
        for i, slot in enumerate(slots):
            image[i, :, slot][on_axes(pixel)] = AMPLITUDE
        answer = (run(*images) - zero).transpose(0, 1) / AMPLITUDE  # [out, slots, *output]
        seen = answer[on_axes(window)]
        there = tuple(slice(n) for n in seen.shape[2:])  # of another size, as much as there is
        kernel[:, low : low + len(slots)][on_axes(there)] = seen
    return kernel
