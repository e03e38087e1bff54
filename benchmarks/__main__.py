"""All figures beside their targets: `python -m benchmarks [--all] [--output FILE] [NAME ...]`.

Each benchmark is a process of its own, one after the other; other tools come last. Every repetition
is written as JSON, with the machine and the versions: to build/benchmarks.json, which git ignores,
because it is that of one machine on one day. With --keep it replaces benchmarks/results.json, which
is what the pages show, and writes those again.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from acfuse.pipeline.bench import machine
from benchmarks import peers
from benchmarks.figures import HEAD, Figure, Target, row
from benchmarks.pages import RESULTS, write_pages
from benchmarks.processes import ROOT, python

NAMES = (
    "startup",
    "convert",
    "without_onnx",
    "certificates",
    "bare",
    "plain",
    "find",
    "memory",
    "batch",
    "peers",
)
OUTPUT = ROOT / "build" / "benchmarks.json"


def measured(name: str, everything: bool) -> list[Figure]:
    """The figures of one benchmark; a failed one where it ended before its end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        given = ["--all"] if everything else []
        try:
            python("-m", f"benchmarks.{name}", "--json", str(path), *given)
        except RuntimeError as error:
            return [Figure(name, Target(), note=str(error), is_failed=True)]
        return [Figure.of_json(told) for told in json.loads(path.read_text(encoding="utf-8"))]


def about() -> dict[str, Any]:
    """The machine, the versions, and how busy it is."""
    told = machine()
    told["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told["load"] = list(os.getloadavg())
    told["date"] = datetime.now(UTC).isoformat(timespec="minutes")
    for name in ("onnx", "onnxscript", "numpy", "timm"):
        try:
            told["versions"][name] = version(name)
        except PackageNotFoundError:
            told["versions"][name] = "not installed"
    return told


def written(path: Path, told: Mapping[str, Any]) -> None:
    """Writes a file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def merged(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The results so far, with those of the benchmarks that ran again in their place.

    All of them say on which machine they ran, so each figure has its own `about`.
    """
    again = {figure["benchmark"] for figure in new["figures"]}
    kept = [f for f in known.get("figures", []) if f["benchmark"] not in again]
    figures = [*kept, *({**figure, "about": new["about"]} for figure in new["figures"])]
    figures.sort(key=lambda figure: NAMES.index(figure["benchmark"]))
    other = new.get("peers", known.get("peers"))
    return {"figures": figures} | ({"peers": other} if other else {})


def main() -> int:
    """Returns 1 if a benchmark failed; a figure that falls short is no failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--all", action="store_true", help="all sizes, more repetitions")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the file of raw figures")
    parser.add_argument("--keep", action="store_true", help="the pages show these from now on")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    began, told = time.monotonic(), about()
    versions = told["versions"]
    print(f"{told['processor']}, {told['processors']} processors, load {told['load'][0]:.1f}")
    print(f"torch {versions['torch']}, onnxruntime {versions['onnxruntime']}\n\n{HEAD}")
    names = options.names or NAMES
    figures = []
    for name in (n for n in names if n != "peers"):
        for figure in measured(name, options.all):
            figures.append({"benchmark": name, **figure.to_json()})
            print(row(figure), flush=True)
    results: dict[str, Any] = {"about": told, "figures": figures}
    if "peers" in names:
        results["peers"] = peers.all_of(peers.TOOLS, peers.python_of_peers())
        print(f"\n{peers.terminal(results['peers'])}")
    written(options.output, results)
    if options.keep:
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        written(RESULTS, merged(known, results))
        write_pages()
    minutes = (time.monotonic() - began) / 60
    print(f"\n{minutes:.1f} minutes; every repetition is in {os.path.relpath(options.output)}")
    return int(any(figure["verdict"] == "failed" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
