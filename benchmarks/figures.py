"""A figure: every repetition of what was measured, their median, and what it has to be.

Nothing here measures. `told` is the command line that every benchmark has: it prints its figures
beside their targets, or writes them as JSON for `python -m benchmarks`, which prints them all.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from acfuse.pipeline.speedup import FEWEST, ratio_of

NAME, WIDTH = 35, 80  # characters, of a name and of a line


@dataclass(frozen=True)
class Target:
    """What a figure may be: both ends count."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        """Whether it is reached."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        """As a table shows it."""
        if math.isinf(self.low):
            return f"<= {self.high:g}"
        return f">= {self.low:g}" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Figure:
    """One row: a value for each repetition, and the seconds or bytes that they were made of.

    Without values there is a reason: what is missing here, or how it failed.
    """

    name: str
    target: Target
    values: tuple[float, ...] = ()
    unit: str = ""  # none: a ratio, or an exponent
    raw: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""
    is_failed: bool = False

    @property
    def median(self) -> float:
        """The middle of all repetitions."""
        return median(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """What encloses the median with 95 %; of fewer than six repetitions, all of them."""
        if len(self.values) < FEWEST:
            return min(self.values), max(self.values)
        told = ratio_of(self.values)
        return told.low, told.high

    @property
    def verdict(self) -> str:
        """Whether the median reaches the target; with a question mark if the interval has both."""
        if not self.values:
            return "failed" if self.is_failed else "skipped"
        told = "pass" if self.median in self.target else "SHORT"
        low, high = self.interval
        inside = low in self.target and high in self.target
        outside = high < self.target.low or low > self.target.high
        return told if inside or outside else f"{told}?"

    def to_json(self) -> dict[str, Any]:
        """All that is known of it."""
        told: dict[str, Any] = {"name": self.name, "verdict": self.verdict}
        told["target"] = [None if math.isinf(x) else x for x in (self.target.low, self.target.high)]
        if self.values:
            told |= {"median": self.median, "interval": list(self.interval)}
        return told | {
            "unit": self.unit,
            "values": list(self.values),
            "raw": {name: list(values) for name, values in self.raw.items()},
            "note": self.note,
        }

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> "Figure":
        """The figure that `to_json` wrote."""
        low, high = told["target"]
        target = Target(-math.inf if low is None else low, math.inf if high is None else high)
        values, failed = tuple(told["values"]), told["verdict"] == "failed"
        return cls(told["name"], target, values, told["unit"], told["raw"], told["note"], failed)


def exponent(sizes: Sequence[float], taken: Sequence[float]) -> float:
    """With which power of the size something grows: the slope of the line through the logarithms.

    Raises StatisticsError for fewer than two sizes.
    """
    return linear_regression([math.log(n) for n in sizes], [math.log(t) for t in taken]).slope


def shown(value: float) -> str:
    """As many digits as a reader wants."""
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3}f}"


def row(figure: Figure) -> str:
    """A figure as a line of the table, and one for its note."""
    told = ["", ""]
    if figure.values:
        low, high = figure.interval
        told = [f"{shown(figure.median)}{figure.unit and ' ' + figure.unit}"]
        told.append(f"{shown(low)} to {shown(high)}" if len(figure.values) > 1 else "once")
    name, target = figure.name, str(figure.target)
    line = f"{name:{NAME}} {told[0]:>8} {told[1]:>14} {target:12} {figure.verdict}"
    return line if figure.values or not figure.note else f"{line}\n  {figure.note[: WIDTH - 2]}"


HEAD = f"{'figure':{NAME}} {'median':>8} {'interval':>14} {'target':12}"


def table(figures: Iterable[Figure]) -> str:
    """All figures beside their targets, in 80 columns."""
    return "\n".join([HEAD, *map(row, figures)])


def details(figure: Figure) -> str:
    """Every repetition, and every number that it was made of."""
    lines = [f"  {'each repetition':40} {' '.join(map(shown, figure.values))}"]
    lines += [f"  {name:40} {' '.join(map(shown, raw))}" for name, raw in figure.raw.items()]
    return "\n".join([*lines, *([f"  {figure.note}"] if figure.note else [])])


def told(figures: Callable[[bool], Iterable[Figure]], about: str | None) -> None:
    """The command line of a benchmark: `--all` for its long form, `--json FILE` for a program."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="all sizes, and not those for an hour")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if options.json is None:
        print(HEAD)
    found = []
    for figure in figures(options.all):
        found.append(figure.to_json())
        if options.json is None:
            print(f"{row(figure)}\n{details(figure)}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
