"""Tries what has no result yet: `python -m benchmarks.zoo [--again] [WORD ...]`.

Words choose the models whose title holds one of them. Each model is a process of its own, with one
thread and a time limit. Results are kept in benchmarks/zoo/results.json, of which both pages are
written at the end.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo.models import MODELS, Model
from benchmarks.zoo.pages import RESULTS, ROOT, faults_of, write_pages

LIMIT = 1800  # seconds; the trial limits its own processor time to far less
WORKERS = 2  # processes at a time


def tried(model: Model) -> dict[str, Any]:
    """What came of a model, or why nothing did."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.zoo.trial", model.title, str(path)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {LIMIT} seconds"}
        if done.returncode == 0:
            return json.loads(path.read_text(encoding="utf-8"))
        lines = done.stderr.strip().splitlines()
        return {"failed": (lines[-1] if lines else f"exit {done.returncode}")[:300]}


def known() -> dict[str, dict[str, Any]]:
    """The results so far, by title."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def keep(results: dict[str, dict[str, Any]]) -> None:
    """Writes the results in the order of the list, all or nothing."""
    ordered = {m.title: results[m.title] for m in MODELS if m.title in results}
    beside = RESULTS.with_suffix(".new")
    beside.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    beside.replace(RESULTS)


def wanted(words: Sequence[str], again: bool) -> list[Model]:
    """The models that have to be tried."""
    done = {} if again else known()
    chosen = [m for m in MODELS if not words or any(word in m.title for word in words)]
    return [m for m in chosen if m.title not in done or "failed" in done[m.title]]


def main() -> int:
    """Returns 1 if a verdict was wrong."""
    parser = argparse.ArgumentParser(description="Tries acfuse on networks of packages.")
    parser.add_argument("words", nargs="*", help="only models whose title holds one of these")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    options = parser.parse_args()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        began = time.monotonic()
        waiting = {pool.submit(tried, m): m for m in wanted(options.words, options.again)}
        for future in concurrent.futures.as_completed(waiting):
            title, row = waiting[future].title, future.result()
            keep({**known(), title: row})
            said = "; ".join(faults_of(row)) or "as it should be"
            print(f"{time.monotonic() - began:5.0f} s  {title}: {said}", flush=True)
    write_pages(known())
    return int(any(faults_of(row) for row in known().values()))


if __name__ == "__main__":
    sys.exit(main())
