"""docs/models.md and docs/verdicts.md, written from benchmarks/zoo/results.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results.json"
Row = Mapping[str, Any]


def faults_of(row: Row) -> list[str]:
    """What is wrong with a verdict."""
    if "failed" in row:
        return [f"failed: {row['failed']}"]
    right = row["independent"]["equal"]
    wrong = [f"false accept: planted in what is {k}" for k, v in row["planted"].items() if not v]
    if row["equal"] and not right:
        wrong.append("false accept: the outputs differ")
    if right and not row["equal"]:
        wrong.append(f"false alarm: {row['fault']}")
    if not right and not row["equal"]:
        wrong.append(f"wrong fusion, which the verdict says: {row['fault']}")
    return wrong


def write_pages(results: Mapping[str, Row]) -> None:
    """Both pages."""
    for name, page in pages(results).items():
        (ROOT / "docs" / name).write_text(page, encoding="utf-8")


def pages(results: Mapping[str, Row]) -> dict[str, str]:
    """Each page's text by its name."""
    return {}


if __name__ == "__main__":
    write_pages(json.loads(RESULTS.read_text(encoding="utf-8")))
