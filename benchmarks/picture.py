"""A picture of what other tools leave: a row for each, a bar for each network, as SVG.

It has no background of its own, and colours that can be read on white and on black.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.peers import NETS, cell_text, name_of

LEFT, COLUMN, ROW, TOP = 190, 124, 24, 46  # pixels
LONGEST = 78  # of a bar
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.head { font-weight: 600 }
.bar { fill: #8c959f }
.ours { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .bar { fill: #6e7681 }
  .ours { fill: #3fb950 }
}
"""


def picture(results: Mapping[str, Any]) -> str:
    """The picture of all tools that were run."""
    rows = {tool: row["cells"] for tool, row in results["tools"].items() if "cells" in row}
    counts = [c["convolutions"] for cells in rows.values() for c in cells.values()
              if "convolutions" in c]  # fmt: skip
    parts = [text(LEFT + i * COLUMN, TOP - 14, name, "head") for i, name in enumerate(NETS)]
    parts.append(text(8, TOP - 14, "convolutions left", "head"))
    for number, (tool, cells) in enumerate(rows.items()):
        y = TOP + number * ROW
        ours = tool == "acfuse"
        name = name_of(tool, results["versions"])
        parts.append(text(8, y + 14, name, "head" if ours else ""))
        for i, net in enumerate(NETS):
            x, cell = LEFT + i * COLUMN, cells[net]
            length = round(LONGEST * cell.get("convolutions", 0) / max(counts))
            if length:
                kind = "ours" if ours else "bar"
                parts.append(
                    f'<rect class="{kind}" x="{x}" y="{y + 3}" width="{length}" height="14"/>'
                )
            parts.append(text(x + length + (5 if length else 0), y + 14, cell_text(cell), ""))
    width, height = LEFT + len(NETS) * COLUMN, TOP + len(rows) * ROW + 8
    title = "Convolutions that each tool leaves of networks of three blocks"
    return drawing(title, width, height, parts)


def drawing(title: str, width: int, height: int, parts: Sequence[str], style: str = "") -> str:
    """A picture of these parts, in a file of its own."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{title}">',
            f"<title>{title}</title>",
            f"<style>{STYLE}{style}</style>",
            *parts,
            "</svg>",
            "",
        ]
    )


def text(x: int, y: int, words: str, kind: str = "") -> str:
    """Words at a place."""
    of_class = f' class="{kind}"' if kind else ""
    return f'<text{of_class} x="{x}" y="{y}">{escape(words)}</text>'
