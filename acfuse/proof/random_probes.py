"""What random numbers show of a kernel that a map should have, and which channels they do not.

Two affine maps that agree on numbers which nobody chose are one map. What that leaves open is a
bound on the error of any weight; the input channels in which some weight is not large beside it are
left to impulses. One image shows what impulses show with one for each channel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from acfuse.algebra import AdjointGeometry, LinearConv, Planned, Value, adjoint_of
from acfuse.algebra.adjoint import by_output
from acfuse.findings import Run
from acfuse.proof.impulses import AMPLITUDE, NOISE, SOME, blank, fitting, largest_in_rows, rows
from acfuse.system.devices import CPU

FEW = 2  # channels that impulses read as fast
PART = 8  # channels of which a further image shows no more than impulses do
PLACES = 25  # of an output, at the least, at which each tap is compared
SURE = 2  # no weight is further off than so many times the worst difference at all these places
NUMBERS = 8  # the odd numbers below twice that, with either sign: 4 bits


@dataclass(frozen=True)
class Claims:
    """The kernels that a map should have, and the dtype in which they are stored."""

    run: Run
    values: Sequence[Value | None]
    geometries: Sequence[Planned | None]
    dtype: torch.dtype

    def hidden(self, index: int, output: Sequence[int]) -> tuple[Tensor, Sequence[int]] | None:
        """A claimed kernel, output channels first, and the input channels that are left to be read.

        None where all of them are, as nothing is claimed that has the shape of what is stored.
        `output` is the size of output that impulses need.
        """
        geometry = self.geometries[index]
        assert geometry is not None
        value = self.values[index]
        if value is None or value.geometry.without_shift() != geometry.without_shift():
            return None
        kernel = rows(value)
        channels = torch.arange(kernel.shape[1], device=kernel.device)
        probe = _Probe(self, index, output, value.without_shift(), kernel)
        hidden = probe.hidden(channels).tolist()
        return None if len(hidden) > kernel.shape[1] // 2 else (kernel, hidden)


@dataclass(frozen=True)
class _Probe:
    """One kernel of a map, beside what it should be."""

    claims: Claims
    index: int
    output: Sequence[int]
    value: Value
    kernel: Tensor  # its own, output channels first

    @cached_property
    def noise(self) -> Tensor:
        """What float64 sums of each output channel may be off."""
        return NOISE * largest_in_rows(self.kernel)

    def hidden(self, channels: Tensor) -> Tensor:
        """Those channels, of each group alike, that random numbers do not show well enough.

        If a weight of an output channel is off by e, whatever else is off, that channel is nearer
        than e to what it should be with a chance of at most 1/16 at a place: of the 16 numbers that
        the pixel may be, 2 apart, one at most makes up for the rest. At 25 places that never
        happens. So e is at most r, the worst difference that was seen, which is rounding; or 2 r,
        as errors of several taps may make up for each other where places share pixels.

        A channel is shown where that is half a unit in the last place of each of its weights, or
        less than float64 sums may be off. What is hidden is given numbers again, without the
        others: shorter sums are rounded less.
        """
        info = torch.finfo(self.claims.dtype)
        while len(channels) > FEW:
            whole = len(channels) == self.kernel.shape[1]
            part = self.kernel if whole else self.kernel[:, channels]
            off = SURE * self.apart(channels, part)
            # Weights below it have a unit in the last place of less than twice what may be off.
            least = torch.exp2(torch.ceil(torch.log2(2 * off / info.eps)))
            least[(off <= self.noise) | (2 * off <= info.tiny * info.eps)] = 0.0
            left = channels[_with_less(part.reshape(*part.shape[:2], -1), least)]
            if len(left) > len(channels) // 2:
                if len(channels) <= PART:
                    return left
                return torch.cat([self.hidden(half) for half in left.chunk(2)])
            channels = left
        return channels

    def apart(self, channels: Tensor, part: Tensor) -> Tensor:
        """How far the map is from a kernel of some channels, at worst in each output channel.

        Products of weights in float32 with numbers of 4 bits are exact in float64, and so are, but
        for the smallest, their sums, in any order. So the kernel is taken in two parts.
        """
        geometries, index = self.claims.geometries, self.index
        geometry = geometries[index]
        assert geometry is not None
        side = math.ceil(PLACES ** (1 / max(len(self.output), 1)))
        steps = [a.stride if isinstance(geometry, AdjointGeometry) else 1 for a in geometry.axes]
        wanted = [max(n, step * side) for n, step in zip(self.output, steps, strict=True)]
        batch = 1 if wanted else PLACES  # a row is a single place
        images = blank(geometries, fitting(geometries, wanted), batch)
        size, groups, count = images[index].shape[2:], self.value.groups, len(channels)
        generator = torch.Generator().manual_seed(0)
        shape = batch, groups, count, *size
        drawn = torch.randint(-NUMBERS, NUMBERS, shape, generator=generator, device=CPU)
        numbers = 2.0 * drawn.double() + 1.0
        grouped = images[index].view(batch, groups, -1, *size)
        grouped[:, :, channels] = AMPLITUDE * numbers  # beside that, no bias is anything
        answer = self.claims.run(*images) / AMPLITUDE
        rounded = part.float().double()
        expected = sum(
            _with_inputs(self.value, digits)(numbers.flatten(1, 2))
            for digits in (rounded, part - rounded)
        )
        assert isinstance(expected, Tensor)
        if answer.shape != expected.shape:
            return self.kernel.new_full(self.kernel.shape[:1], math.inf)
        apart = (answer - expected).abs().nan_to_num(nan=math.inf)
        return apart.transpose(0, 1).flatten(1).amax(1)


def _with_less(kernel: Tensor, least: Tensor) -> Tensor:
    """Which input channels have a weight that is less than the least of its output channel.

    Shapes: kernel [out, in, taps], least [out], result [in].
    """
    found = kernel.new_zeros(kernel.shape[1], dtype=torch.bool)
    step = max(1, SOME // max(kernel[0].numel(), 1))
    for low in range(0, len(kernel), step):
        part = slice(low, low + step)
        found |= (kernel[part].abs() < least[part, None, None]).any(2).any(0)
    return found


def _with_inputs(value: Value, kernel: Tensor) -> Value:
    """The same with fewer input channels, whose kernel is [out, in / groups, *taps]."""
    inputs = value.groups * kernel.shape[1]
    if isinstance(value, LinearConv):
        geometry = replace(value.geometry, in_channels=inputs)
        return LinearConv(kernel, kernel.new_zeros(len(kernel)), geometry)
    kernel = by_output(kernel, value.groups)
    geometry = replace(value.of.geometry, out_channels=inputs)
    return adjoint_of(LinearConv(kernel, kernel.new_zeros(inputs), geometry))
