"""What the pages show of benchmarks/results.json: `python -m benchmarks.pages` writes it again.

The figures stand in docs/performance.md, other tools in docs/peers.md and docs/img/peers.svg. A
part of a page that is written here stands between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, shown
from benchmarks.peers import NETS, name_of, summary
from benchmarks.picture import picture
from benchmarks.processes import ROOT

RESULTS = Path(__file__).parent / "results.json"
Results = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def figures_table(results: Results) -> str:
    """Every figure beside its target, and where it was measured."""
    rows, machines, loads = [], [], []
    for told in results["figures"]:
        figure, about = Figure.of_json(told), told["about"]
        machines.append(machine(about))
        loads.append(about["load"][0])
        if figure.values:
            low, high = map(shown, figure.interval)
            between = f"{low} to {high}" if len(figure.values) > 1 else "once"
            value = f"{shown(figure.median)}{figure.unit and ' ' + figure.unit}"
        else:
            value, between = "", figure.note
        target = str(figure.target).replace("<=", "at most").replace(">=", "at least")
        command = f"`{told['benchmark']}`"
        rows.append([command, figure.name, target, value, between, figure.verdict])
    head = ["benchmark", "figure", "target", "median", "interval", ""]
    busy = f"Before they began, {min(loads):.1f} to {max(loads):.1f} processes had wanted to run."
    return "\n".join([table(head, rows), "", *dict.fromkeys(machines), busy])


def machine(about: Mapping[str, Any]) -> str:
    """A sentence on the machine and the versions."""
    versions = about["versions"]
    known = ", ".join(f"{n} {versions[n]}" for n in ("python", "torch", "onnxruntime"))
    return (
        f"On {about['processors']} processors ({about['processor']}), "
        f"{about['memory'] / 2**30:.0f} GB, {known}, {about['date'][:10]}."
    )


def peers_table(results: Results) -> str:
    """How many convolutions each tool leaves."""
    rows = []
    for tool, row in results["peers"]["tools"].items():
        name = name_of(tool, results["peers"]["versions"])
        if "cells" not in row:
            rows.append([name, *["not run"] * len(NETS), "", ""])
            continue
        texts, error, seconds = summary(row)
        cells = [name, *texts, error, seconds]
        rows.append([f"**{c}**" if c and tool == "acfuse" else c for c in cells])
    return table(["convolutions left", *NETS, "largest error", "CPU s"], rows)


def with_part(page: str, name: str, text: str) -> str:
    """A page with one part of it written again. Raises ValueError where it has no such part."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    made, count = re.subn(
        pattern, lambda m: f"{m.group(1)}{text}\n{m.group(2)}", page, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"the page has {count} parts called {name}; expected one")
    return made


def pages(results: Results) -> dict[str, str]:
    """Each page that shows results, as it has to be, by its path."""
    performance = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    peers = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    return {
        "docs/performance.md": with_part(performance, "figures", figures_table(results)),
        "docs/peers.md": with_part(peers, "peers", peers_table(results)),
        "docs/img/peers.svg": picture(results["peers"]),
    }


def write_pages() -> None:
    """Writes them all."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for path, text in pages(results).items():
        (ROOT / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_pages()
