"""The four pictures of a report, as inline SVG. A plotting library would be thirty megabytes more.

Colours come from the classes of the page, so that they follow its theme. Each picture says in words
what it shows.
"""

import math
from collections.abc import Sequence

from acfuse.reports.record import Kernel, worst_kernel
from acfuse.system.escape import safe

LEVELS = 8  # shades of a heat map
BOX = 60  # pixels of a heat map's longer side
LOW, HIGH = -17, -9  # powers of ten that the bar of an error spans
WIDTH, HEIGHT = 120, 44  # pixels of a picture of ranges
STEEP = 2.0  # a picture of ranges spans from a quarter to four medians, or what it needs


def _picture(label: str, width: float, height: float, box: str, inside: str) -> str:
    return (
        f'<svg role="img" aria-label="{safe(label, "html")}" width="{width:g}" '
        f'height="{height:g}" viewBox="{box}">{inside}</svg>'
    )


def heat_map(kernel: Kernel, longest: int) -> str:
    """A kernel, a square for each tap, the darker the larger; `longest` taps are as wide as BOX."""
    levels: dict[int, list[str]] = {}
    for y, row in enumerate(kernel.grid):
        for x, share in enumerate(row):
            level = min(int(share * LEVELS), LEVELS - 1)
            levels.setdefault(level, []).append(f"M{x} {y}h1v1h-1z")
    high, wide = len(kernel.grid), len(kernel.grid[0])
    unit = BOX / max(longest, 1)
    paths = "".join(f'<path class="h{n}" d="{"".join(d)}"/>' for n, d in sorted(levels.items()))
    return _picture(in_words(kernel), wide * unit, high * unit, f"0 0 {wide} {high}", paths)


def in_words(kernel: Kernel) -> str:
    """What a heat map shows: the numbers of a small one, where a large one has its largest."""
    size = " by ".join(map(str, kernel.taps)) or "a matrix"
    if sum(map(len, kernel.grid)) <= 25:
        rows = "; ".join(" ".join(f"{share:.2f}" for share in row) for row in kernel.grid)
        return f"{kernel.name}, {size}: mean size of the weights by tap, row by row: {rows}"
    places = [(v, y, x) for y, row in enumerate(kernel.grid) for x, v in enumerate(row)]
    _, y, x = max(places)
    return f"{kernel.name}, {size}: largest in row {y + 1}, column {x + 1} of the picture"


def cross_share(kernel: Kernel) -> float | None:
    """Which part of the weights stands in the middle row and column; None where there is none."""
    high, wide = len(kernel.grid), len(kernel.grid[0])
    total = math.fsum(map(math.fsum, kernel.grid))
    if not (high % 2 and wide % 2 and high > 1 and wide > 1 and total):
        return None
    at, across = high // 2, wide // 2
    cross = math.fsum(
        v for y, row in enumerate(kernel.grid) for x, v in enumerate(row) if y == at or x == across
    )
    return cross / total


def error_bar(error: float, bound: float) -> str:
    """An error beside its bound, on a scale of powers of ten."""

    def place(number: float) -> float:
        power = LOW if number <= 0 else math.log10(number) if math.isfinite(number) else HIGH
        return round(100 * (min(max(power, LOW), HIGH) - LOW) / (HIGH - LOW), 1)

    fate, end = ("good" if error <= bound else "bad"), max(place(error), 2)
    return _picture(
        f"error {error:.1e}, bound {bound:.0e}",
        100,
        12,
        "0 0 100 12",
        f'<path class="track" d="M0 3h100v6H0z"/><path class="{fate}" d="M0 3h{end}v6H0z"/>'
        f'<path class="bound" d="M{place(bound)} 0v12"/>',
    )


def ranges(before: Sequence[Kernel], after: Sequence[Kernel]) -> str:
    """The largest weight of each output channel, sorted, before (dashed) and after."""
    drawn = [
        (name, kernel)
        for name, kernel in (("before", worst_kernel(before)), ("after", worst_kernel(after)))
        if kernel is not None and kernel.ranges
    ]
    highest = max([STEEP, *(math.log2(k.spread) for _, k in drawn if k.spread > 0)])
    lines, words = [f'<path class="axis" d="M0 {HEIGHT / 2:g}h{WIDTH}"/>'], []
    for name, kernel in drawn:
        last = max(len(kernel.ranges) - 1, 1)
        points = [
            f"{WIDTH * i / last:.0f} {_level(ratio, highest):.1f}"
            for i, ratio in enumerate(kernel.ranges)
        ]
        lines.append(f'<polyline class="{name}" points="{",".join(points)}"/>')
        words.append(f"{name}, the largest channel is {kernel.spread:.1f} times the median one")
    label = "; ".join(words) or "no weights"
    return _picture(label, WIDTH, HEIGHT, f"0 -1 {WIDTH} {HEIGHT + 2}", "".join(lines))


def _level(ratio: float, highest: float) -> float:
    """How far down a channel's range stands; the median in the middle."""
    power = math.log2(ratio) if ratio > 0 else -highest
    return HEIGHT / 2 * (1 - min(max(power, -highest), highest) / highest)


def histogram(counts: Sequence[int]) -> str:
    """How many stored numbers are how far from the exact ones; the last bar is all beyond half."""
    highest, total = max(max(counts), 1), max(sum(counts), 1)
    bars = []
    for i, count in enumerate(counts):
        is_last = i == len(counts) - 1
        tall = 100 * count / highest
        tall = max(tall, 1.5) if count else 0
        x = 20 * i + (40 if is_last else 0)
        kind = "bad" if is_last else "good"
        bars.append(f'<path class="{kind}" d="M{x + 2} {110 - tall:.1f}h16v{tall:.1f}h-16z"/>')
    end = 20 * (len(counts) - 1)
    texts = [(2, "start", "0"), (end / 2, "middle", "0.25 ULP"), (end, "end", "0.5")]
    texts.append((end + 50, "middle", "more"))
    inside = "".join(bars) + f'<path class="axis" d="M0 110H{end + 60}"/>'
    inside += "".join(
        f'<text x="{x:g}" y="124" text-anchor="{where}">{text}</text>' for x, where, text in texts
    )
    near = 100 * sum(counts[: len(counts) // 2]) / total
    label = (
        f"of {total:,} stored numbers, {near:.0f} per cent are within a quarter of a unit in the "
        f"last place, and {counts[-1]:,} are further off than half a unit"
    )
    wide = end + 68
    return _picture(label, wide, 130, f"0 0 {wide} 130", inside)
