"""What times say: the median of ratios with its interval, and no more than that. Plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

LEVEL = 0.95
FEWEST = 6  # rounds: with fewer, no two of them enclose the median with that probability
PLACEMENT = 0.01  # two processes of one file differ by less, wherever their memory lies
FORMULA = (
    "the k-th smallest and k-th largest of n ratios enclose their median with probability "
    "1 - 2 P(B < k), B binomial(n, 1/2); k is the largest for which that is at least 0.95; "
    "less than 1 % apart is noise"
)


@dataclass(frozen=True)
class Turn:
    """One turn of a model: seconds of each call, by the clock and of the processors."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Ratio:
    """How many times as long one thing takes as another: the median of all rounds, its interval."""

    median: float
    low: float
    high: float
    level: float  # the probability with which the interval encloses the median, at least

    @property
    def is_noise(self) -> bool:
        """Whether no difference shows: of less than PLACEMENT, none ever does."""
        return self.low <= 1 + PLACEMENT and self.high >= 1 / (1 + PLACEMENT)


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """The median of independent ratios, whatever their distribution; its interval by FORMULA.

    Raises ValueError for too few.
    """
    count = len(ratios)
    if count < FEWEST:
        raise ValueError(f"{count} ratios have no interval of {LEVEL:.0%}; expected {FEWEST}")
    k, outside = 0, 0  # of 2^(count - 1) equally likely ways to lie on the median's sides
    while 1 - (outside + comb(count, k)) / 2 ** (count - 1) >= LEVEL:
        outside += comb(count, k)
        k += 1
    ordered = sorted(ratios)
    return Ratio(median(ordered), ordered[k - 1], ordered[-k], 1 - outside / 2 ** (count - 1))


@dataclass(frozen=True)
class Measured:
    """The turns of two models on one backend, round by round."""

    backend: str
    original: tuple[Turn, ...]
    fused: tuple[Turn, ...]

    @property
    def ratio(self) -> Ratio:
        """How many times as long the original takes, by the clock."""
        pairs = zip(self.original, self.fused, strict=True)
        return ratio_of([a.wall / b.wall for a, b in pairs])

    @property
    def cpu_ratio(self) -> Ratio:
        """The same in seconds of the processors; none is finer than their clock."""
        pairs = zip(self.original, self.fused, strict=True)
        return ratio_of([max(a.cpu, TICK) / max(b.cpu, TICK) for a, b in pairs])

    @property
    def speedup(self) -> float | None:
        """The median, where it is more than noise."""
        return None if self.ratio.is_noise else self.ratio.median


TICK = 1e-9  # seconds
