"""Pictures of the trained sample, for README: `make pictures` writes them again.

They show what was found and fused, and nothing that was timed: every machine draws the same.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import acfuse
from acfuse.pipeline.job import Conversion
from acfuse.reports.measure import pictures_of
from acfuse.reports.record import Kernel
from acfuse.reports.svg import BOX, heat_map
from benchmarks.picture import drawing, text
from benchmarks.processes import ROOT

SAMPLE = ROOT / "sample_models"
GAP, LEFT, TOP = 46, 128, 40  # pixels
SHADES = (".04", ".16", ".29", ".42", ".56", ".7", ".85", "1")  # of a tap, the darker the larger
STYLE = "".join(f".h{n} {{ fill: #1a7f37; fill-opacity: {s} }}\n" for n, s in enumerate(SHADES))
SHOWN = (0, -1)  # of the blocks, the first and the last
CELL = 20  # pixels of a convolution in the picture of the network


def conversion() -> Conversion:
    """The trained sample, fused; nothing is written."""
    job = {"model": f"{SAMPLE / 'digits.py'}:AcNet", "dry_run": True, "onnx": False}
    return acfuse.convert(SAMPLE / "model.pth", input_shape=(1, 1, 8, 8), **job)


def kernels(done: Conversion) -> str:
    """Branches as they enter the sum, and the one kernel that they become."""
    assert done.fused is not None
    blocks = pictures_of(done.fused, 0).blocks
    parts = [
        text(LEFT + column * (BOX + GAP), TOP - 14, name)
        for column, name in enumerate(("3x3", "3x1", "1x3", "one 3x3"))
    ]
    for row, place in enumerate(SHOWN):
        y = TOP + row * (BOX + 24)
        parts.append(text(8, y + BOX // 2 + 5, done.findings.found[place].where, "head"))
        block = blocks[place]
        parts += _sum_of(block.before, block.after, y)
    width, height = LEFT + 4 * (BOX + GAP), TOP + len(SHOWN) * (BOX + 24)
    title = "Mean size of the weights at each tap, in the trained sample: three kernels add to one"
    return drawing(title, width, height, parts, STYLE)


def _sum_of(before: Sequence[Kernel], after: Sequence[Kernel], y: int) -> Iterator[str]:
    """Kernels in a row: with a sign before each but the first."""
    longest = max(max(kernel.taps) for kernel in (*before, *after))
    signs = ["", *["+"] * (len(before) - 1), "="]
    for column, (sign, kernel) in enumerate(zip(signs, (*before, *after), strict=True)):
        x = LEFT + column * (BOX + GAP)
        if sign:
            yield text(x - GAP // 2 - 4, y + BOX // 2 + 5, sign, "head")
        high, wide = (BOX * taps / longest for taps in kernel.taps)
        at = f"{x + (BOX - wide) / 2:g} {y + (BOX - high) / 2:g}"
        yield f'<g transform="translate({at})">{heat_map(kernel, longest)}</g>'


def network(done: Conversion) -> str:
    """Each block before and after, a square for each convolution; and what that is in all."""
    parts = [text(8, TOP + 34, "trained", "head"), text(8, TOP + 106, "fused", "head")]
    for place, block in enumerate(done.findings.found):
        x = LEFT + place * 100
        parts.append(text(x, TOP - 14, block.where.removesuffix(".acb")))
        for row, count in enumerate(block.convolutions):
            kind = "ours" if row else "bar"
            for n in range(count):
                y = TOP + (92 if row else n * (CELL + 2))
                parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="64" height="{CELL}"/>')
    before, after = done.sizes
    rows = [
        f"{name}: {a:,} to {b:,}"
        for name, a, b in (
            ("convolutions", before.convolutions, after.convolutions),
            ("multiply-adds", before.multiply_adds or 0, after.multiply_adds or 0),
            ("parameters", before.parameters, after.parameters),
        )
    ]
    x = LEFT + len(done.findings.found) * 100
    parts += [text(x, TOP + 20 + 24 * row, line) for row, line in enumerate(rows)]
    title = "The convolutions of the trained sample, before and after; " + ", ".join(rows)
    return drawing(title, x + 230, TOP + 124, parts)


def pictures() -> dict[Path, str]:
    """Every picture, by its path."""
    done, folder = conversion(), ROOT / "docs/img"
    return {folder / "kernels.svg": kernels(done), folder / "network.svg": network(done)}


if __name__ == "__main__":
    for path, drawn in pictures().items():
        path.write_text(drawn, encoding="utf-8")
