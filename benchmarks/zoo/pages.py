"""docs/models.md and docs/verdicts.md, written from benchmarks/zoo/results.json.

`python -m benchmarks.zoo.pages` writes them again, without trying anything.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo.models import MODELS, Model
from benchmarks.zoo.trial import FACTOR

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results.json"
Row = Mapping[str, Any]
Results = Mapping[str, Row]

MODELS_HEAD = """# acfuse on published models

Networks as their packages build them, with random weights and random BatchNorm statistics.
"Blocks" are the package's own re-parameterizable blocks with more than one branch: how many
acfuse finds, of how many there are. Convolutions are counted before, after, and after the
package's own converter (`-` where it has none). The verdict is that of `acfuse.verify`;
[verdicts.md](verdicts.md) sets it beside a comparison that is not acfuse's own. Seconds are
processor time of one thread, of `acfuse.fuse` and of `acfuse.verify`.

Options that make a network smaller stand behind its name ("small": those of
`benchmarks/zoo/models.py`); `fold_bn` says that lone BatchNorms were folded as well. What is
refused is counted by reason code. YOLOv10's own converter also takes out the head that it only
trains with, 24 convolutions that its forward runs.

Written by `make zoo`.
"""

VERDICTS_HEAD = """# Whether the verdicts are right

{counts}

A **false alarm** is a fused network that `acfuse.verify` calls not equal, although it is. A
**false accept** is one that it passes, although it is not equal, or although a fault was planted
in it.

Whether a network is equal is decided with a comparison that is not acfuse's own: a float64 copy
of the network is fused, and run beside the original in float64, where hardly anything rounds
("apart": the largest difference of an output tensor, of its largest element; "noise": the same
when every number of the original is moved by one rounding of float64), and what the float32
network stores has to be the float64 copy's numbers, rounded once ("stored": the largest
difference, of each tensor's largest element; 6.0e-08 is half a unit in the last place). Equal is:
apart at most 1e-8 or {factor} times the noise, and stored at most 2^-23.

Two faults are planted in each network, one at a time, and `acfuse.verify` has to fail for each,
without a shape and so without comparing any output: the largest weight of a fused layer times
1.0001, and 0.0001 added to one number of what is not fused. Where nothing is fused, only the
second can be planted.

Written by `make zoo`, with the network of each row as in [models.md](models.md).
"""


def faults_of(row: Row) -> list[str]:
    """What is wrong with a verdict."""
    if "failed" in row:
        return [f"failed: {row['failed']}"]
    right, equal = row["independent"]["equal"], row["equal"]
    wrong = [f"false accept: planted in what is {k}" for k, v in row["planted"].items() if not v]
    if equal and not right:
        wrong.append("false accept: the networks differ")
    if right and not equal:
        wrong.append(f"false alarm: {row['fault']}")
    if not right and not equal:
        wrong.append(f"wrong fusion, which the verdict says: {row['fault']}")
    return wrong


def write_pages(results: Results) -> None:
    """Both pages."""
    for name, text in pages(results).items():
        (ROOT / "docs" / name).write_text(text, encoding="utf-8")


def pages(results: Results) -> dict[str, str]:
    """The text of each page, by its name."""
    return {"models.md": models_page(results), "verdicts.md": verdicts_page(results)}


def models_page(results: Results) -> str:
    """What is found, and what is left, package by package."""
    heads = ("model", "blocks", "before", "after", "own converter", "refused", "verdict", "seconds")
    return MODELS_HEAD + _by_package(results, heads, _model_cells)


def verdicts_page(results: Results) -> str:
    """The counts, then every verdict beside the other comparison."""
    heads = ("model", "verdict", "equal", "apart", "noise", "stored", "planted", "caught")
    wrong = [fault for row in results.values() for fault in faults_of(row)]
    planted = [caught for row in results.values() for caught in row.get("planted", {}).values()]
    packages = {title.partition("/")[0] for title in results}
    counts = [
        f"{len(results)} of the {len(MODELS)} models on the list were tried, of {len(packages)}",
        "packages:",
        f"**{_starting(wrong, 'false alarm')} false alarms,",
        f"{_starting(wrong, 'false accept')} false accepts**;",
        f"{sum(planted)} of {len(planted)} planted faults caught;",
        f"{_starting(wrong, 'wrong fusion')} networks were fused wrongly, with a verdict that says "
        f"so; {_starting(wrong, 'failed')} could not be tried.",
    ]
    head = VERDICTS_HEAD.format(counts="\n".join(counts), factor=FACTOR)
    listed = [f"- {title}: {text}\n" for title, row in results.items() for text in faults_of(row)]
    found = "\n## What is wrong\n\n" + "".join(listed) if listed else ""
    return head + found + _by_package(results, heads, _verdict_cells)


def _starting(texts: Iterable[str], word: str) -> int:
    return sum(text.startswith(word) for text in texts)


def _by_package(
    results: Results, heads: Sequence[str], cells: Callable[[Model, Row], Sequence[str]]
) -> str:
    text = ""
    for package in dict.fromkeys(m.package for m in MODELS if m.title in results):
        text += f"\n## {package}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n"
        for model in sorted(MODELS, key=lambda m: m.title):
            row = results.get(model.title)
            if model.package == package and row is not None:
                failed = [
                    _label(model),
                    row.get("failed", "").replace("|", "/"),
                    *[""] * (len(heads) - 2),
                ]
                shown = failed if "failed" in row else cells(model, row)
                text += f"| {' | '.join(shown)} |\n"
    return text


def _label(model: Model) -> str:
    """A network's name, and its options where they fit on a line."""
    plain = all(isinstance(value, (int, float)) for value in model.options.values())
    said = [f"{k}={v}" for k, v in model.options.items()] if plain else ["small"]
    said += ["fold_bn"] if model.fold_bn else []
    return f"{model.name} ({', '.join(said)})" if said else model.name


def _model_cells(model: Model, row: Row) -> Sequence[str]:
    own = {None: "-", -1: "fails"}.get(row["own"], str(row["own"]))
    return (
        _label(model),
        f"{row['found']} of {row['present']}" if row["present"] else "none",
        str(row["before"]),
        str(row["after"]),
        own,
        ", ".join(f"{count} {code}" for code, count in row["refused"].items()),
        "equal" if row["equal"] else "NOT EQUAL",
        f"{row['fuse_seconds']:.1f} + {row['verify_seconds']:.1f}",
    )


def _verdict_cells(model: Model, row: Row) -> Sequence[str]:
    own = row["independent"]
    return (
        _label(model),
        "equal" if row["equal"] else "NOT EQUAL",
        "yes" if own["equal"] else "NO",
        *(f"{own[key]:.1e}" for key in ("error", "noise", "stored")),
        str(len(row["planted"])),
        str(sum(row["planted"].values())),
    )


if __name__ == "__main__":
    write_pages(json.loads(RESULTS.read_text(encoding="utf-8")))
