"""How many bits of a grid the weights of a kernel do without, told from the numbers alone.

A grid of 8 bits has equal steps from -h to h. Rounding to it is off by the same amount wherever a
weight lies, so a channel whose weights are small loses more of itself. Weights that are spread
evenly over the whole grid, of root mean square h / sqrt(3), lose nothing; a channel whose weights
are half as large has one bit less, 6.02 dB of signal over noise. Zeros are on the grid as they
are: they are not counted.
"""

from dataclasses import dataclass
from math import inf, isnan, log2, nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acfuse.system.devices import CPU

SOME = 2**16  # numbers of a kernel that are looked at together
WIDE = 2.5  # bits that a shared grid may cost: docs/int8.md shows what they did to accuracy
EVENLY = log2(3) / 2  # the bits between the largest weight and the size of evenly spread ones


@dataclass(frozen=True)
class Ranges:
    """The ranges of a kernel's output channels, and what a grid costs the median channel of it.

    `spread` is the largest weight over the median channel's largest. `per_tensor` are the bits
    lost where all channels share one grid, as large as the largest weight of all; `per_channel`
    where each has a grid of its own. Channels of zeros are left out; of nothing but those, all are
    0. Of weights that are not finite, all are NaN.
    """

    spread: float
    per_tensor: float
    per_channel: float

    @property
    def shared(self) -> float:
        """The bits that one grid for all channels costs, beside a grid for each."""
        return self.per_tensor - self.per_channel

    @property
    def is_wide(self) -> bool:
        """Whether a grid for each channel, or channels of even range, would save much."""
        return self.shared > WIDE

    @property
    def order(self) -> tuple[bool, float]:
        """By what the worst of several is chosen; numbers that are not finite are the worst."""
        lost = inf if isnan(self.per_tensor) else self.per_tensor
        return lost == inf or self.is_wide, lost


NOTHING = Ranges(0.0, 0.0, 0.0)
UNKNOWN = Ranges(nan, nan, nan)


@dataclass(frozen=True)
class RangesOfChannels:
    """What is measured of each output channel that is not all zero, in binary logarithms.

    `largest` is its largest weight; `own` are the bits that a grid as large as that loses.
    """

    largest: Tensor
    own: Tensor

    @property
    def lost(self) -> Tensor:
        """The bits that each channel loses where the largest of all channels is on the grid."""
        return self.largest.max() - self.largest + self.own


def ranges_of(kernel: Tensor) -> Ranges:
    """The ranges of a kernel whose output channels come first: [out, ...]."""
    channels = channels_of(kernel)
    if channels is None:
        return UNKNOWN
    if not len(channels.largest):
        return NOTHING
    spread = float(channels.largest.max()) - median_of(channels.largest)
    ratio = 2.0**spread if spread < 1024 else inf
    return Ranges(ratio, median_of(channels.lost), median_of(channels.own))


def ranges_of_array(kernel: NDArray[np.floating]) -> Ranges:
    """The same of an array of numpy, in any of the dtypes that ONNX brings along."""
    is_known = kernel.dtype in (np.float16, np.float32) and kernel.dtype.isnative
    dtype = kernel.dtype if is_known else np.float64
    return ranges_of(torch.from_numpy(np.array(kernel, dtype, order="C")))


def channels_of(kernel: Tensor) -> RangesOfChannels | None:
    """Each output channel of a kernel [out, ...]; None where a weight is not finite."""
    matrix = kernel.detach().reshape(len(kernel), -1 if kernel.numel() else 0)
    count = max(SOME // max(matrix.shape[1], 1), 1)
    empty = torch.empty(0, dtype=torch.float64, device=CPU)
    largest, own = [empty], [empty]
    for start in range(0, len(matrix) if matrix.numel() else 0, count):
        part = matrix[start : start + count]
        weights = (part.abs() if part.is_complex() else part).to(CPU, torch.float64).abs()
        tops = weights.amax(1)
        if not bool(tops.isfinite().all()):
            return None
        weights, tops = weights[tops > 0], tops[tops > 0]
        # Over the largest, so that no square leaves the range of float64.
        energy = (weights / tops[:, None]).square().sum(1) / (weights > 0).sum(1)
        largest.append(tops.log2())
        own.append(-energy.log2() / 2 - EVENLY)
    return RangesOfChannels(torch.cat(largest), torch.cat(own))


def median_of(numbers: Tensor) -> float:
    """The middle one, or the mean of the two in the middle."""
    ordered, half = numbers.sort().values, len(numbers) // 2
    return float(ordered[half]) if len(numbers) % 2 else float(ordered[half - 1 : half + 1].mean())
