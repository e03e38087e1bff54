"""How long a block takes before and after it is fused, by a table that was measured.

Convolutions and pools are counted, and nothing else: what norms and additions take besides only
speaks for fusing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from acfuse.algebra import AvgPool, Conv, Geometry, Planned
from acfuse.errors import NotFusable
from acfuse.files.cost_table import CostTable, Setting, Work
from acfuse.graph.combination import Identity, LinearCombination
from acfuse.graph.steps import (
    ConvStep,
    Graph,
    LinearSubmodule,
    Moved,
    Step,
    geometry_of,
)

Timed = tuple[Work, Fraction]  # a convolution, and how many pixels it gives for one of the block
NOISE = 1e-9  # relative: no clock tells so little apart


@dataclass(frozen=True)
class Slower:
    """One convolution that takes longer than the layers that it would replace: seconds."""

    setting: Setting
    before: float
    after: float
    is_measured: bool

    def __str__(self) -> str:
        backend, size = self.setting
        seconds = f"{self.after * 1e3:.3g} ms, its layers {self.before * 1e3:.3g} ms"
        beyond = "" if self.is_measured else "; by the nearest that the cost table has"
        return f"as one convolution it takes {seconds} ({backend}, {size}x{size} pixels{beyond})"


def work_of(geometry: Planned) -> Work | None:
    """A convolution as a table knows it; None for the kinds that none has.

    Those are transposed convolutions, and those of more than two axes.
    """
    if not isinstance(geometry, Geometry) or len(geometry.axes) > 2:
        return None
    taps = (1, 1, *(axis.lowered_taps for axis in geometry.axes))[-2:]
    groups = geometry.groups if geometry.axes else 1  # a linear layer knows none
    channels = geometry.in_channels // groups, geometry.out_channels // groups
    return Work((taps[0], taps[1]), channels, groups)


def timed(geometry: Planned, pixels: Fraction = Fraction(1)) -> Timed | None:
    """A convolution that gives so many pixels; None for the kinds that no table has."""
    work = work_of(geometry)
    return None if work is None else (work, pixels)


def slower_than(
    before: Sequence[Timed | None], after: Sequence[Timed | None], table: CostTable
) -> Slower | None:
    """Where a block is slower fused, worst of all backends and sizes; None if it is nowhere.

    A block with a convolution of which the table knows nothing is not judged.
    """
    old, new = [*filter(None, before)], [*filter(None, after)]
    if len(old) < len(before) or len(new) < len(after):
        return None
    worst: Slower | None = None
    for setting in table.settings:
        times = [_total(works, setting, table) for works in (old, new)]
        if times[0] is None or times[1] is None or times[1] <= times[0] * (1 + NOISE):
            continue
        measured = all(table.has_measured(setting, work) for work, _ in (*old, *new))
        found = Slower(setting, times[0], times[1], measured)
        if worst is None or found.after * worst.before > worst.after * found.before:
            worst = found
    return worst


def _total(works: Sequence[Timed], setting: Setting, table: CostTable) -> float | None:
    total = 0.0
    for work, pixels in works:
        seconds = table.seconds(setting, work)
        if seconds is None:
            return None
        total += seconds * float(pixels)
    return total


def slower_region(
    graph: Graph, output: str, steps: frozenset[str], value: LinearCombination, table: CostTable
) -> Slower | None:
    """The same of the steps of a graph that make `output`, which becomes `value`."""
    solid = [geometry_of(term) for term in value.values() if not isinstance(term, Identity)]
    after = [timed(geometry, value.pixels) for geometry in solid]
    try:
        before = [*_layers(graph, output, steps, Fraction(1))]
    except NotFusable:  # nothing tells how wide a pool is
        return None
    return slower_than(before, after, table)


def _layers(
    graph: Graph, output: str, within: frozenset[str], pixels: Fraction
) -> Iterator[Timed | None]:
    """The convolutions and pools of some steps, for so many pixels of the output."""
    wanted = {output: pixels}
    for step in reversed(graph.steps):
        if step.value not in within or step.value not in wanted:
            continue
        own = wanted[step.value]
        match step.rule:
            case ConvStep(layer):
                if isinstance(layer, Conv):
                    yield timed(layer.geometry, own)
                elif isinstance(layer, AvgPool):
                    channels, _ = graph.width(step.value)
                    kernel = (1, 1, *layer.size)[-2:]
                    known = len(layer.size) <= 2
                    yield (Work((kernel[0], kernel[1]), (1, 1), channels), own) if known else None
            case LinearSubmodule(inner) if inner.output is not None:
                values = frozenset(s.value for s in inner.steps)
                yield from _layers(inner, inner.output, values, own)
        read = own * _pixels_read(step)
        for value in step.reads:
            wanted[value] = max(wanted.get(value, read), read)


def _pixels_read(step: Step) -> Fraction:
    """How many pixels a step reads for one that it makes."""
    match step.rule:
        case ConvStep(layer):
            return layer.geometry.pixels
        case LinearSubmodule(pixels=pixels):
            return pixels
        case Moved(move):
            return move.pixels
    return Fraction(1)
