"""Other tools beside acfuse: `python -m benchmarks.peers [--output FILE]`.

Each tool has a process of its own for all networks, and a time limit. What is not installed is
skipped by its name; `make peers` installs them beside their own Python, which is used where it is
there. The results are written as JSON, and shown as a table: how many convolutions are left of
networks of three blocks behind one convolution, the largest error of any network, and the seconds.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
TOOLS = (
    "as trained",
    "onnxsim",
    "onnxslim",
    "onnxoptimizer",
    "onnxruntime",
    "OpenVINO",
    "torch.fx fuse",
    "torch.compile",
    "timm",
    "Sony MCT",
    "acfuse",
)
NETS = ("ACNet", "RepVGG", "MobileOne", "DBB", "FastViT")
PACKAGES = {
    "onnxsim": "onnxsim",
    "onnxslim": "onnxslim",
    "onnxoptimizer": "onnxoptimizer",
    "onnxruntime": "onnxruntime",
    "OpenVINO": "openvino",
    "torch.fx fuse": "torch",
    "torch.compile": "torch",
    "timm": "timm",
    "Sony MCT": "model-compression-toolkit",
    "acfuse": "acfuse",
}
"""What each tool is called where packages are installed."""
VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""
LIMIT = 300  # seconds of one tool, for all networks
Row = dict[str, Any]


def tried(tool: str, python: str, limit: float = LIMIT) -> Row:
    """A tool's cell for each network, or why there is none."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [python, "-W", "ignore", "-m", "benchmarks.peer_tools", tool],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:g} seconds"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return {"failed": lines[-1][:200]}
    cells: Row = json.loads(done.stdout.splitlines()[-1])
    skipped = {cell.get("skipped") for cell in cells.values()}
    if None not in skipped:
        return {"skipped": ", ".join(sorted(map(str, skipped)))}
    return {"cells": cells}


def versions(python: str) -> dict[str, str]:
    """Of all that is installed of the tools."""
    names = sorted(set(PACKAGES.values()))
    done = subprocess.run(
        [python, "-c", VERSIONS, *names], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def cell_text(cell: Mapping[str, Any]) -> str:
    """How many are left; a dash where the tool knows no such class, and a word where it fails."""
    if "failed" in cell or "skipped" in cell:
        return "fails" if "failed" in cell else "missing"
    return "-" if "inapplicable" in cell else str(cell["convolutions"])


def summary(row: Row) -> tuple[list[str], str, str]:
    """The cells of a row, its largest error, and its seconds for all networks."""
    cells = [row["cells"][name] for name in NETS]
    done = [cell for cell in cells if "convolutions" in cell]
    texts = [cell_text(cell) for cell in cells]
    if not done:
        return texts, "", ""
    error = max(cell["error"] for cell in done)
    seconds = sum(cell["seconds"] for cell in done)
    return texts, f"{error:.0e}", f"{seconds:.2f}" if seconds else ""


def name_of(tool: str, known: Mapping[str, str]) -> str:
    """A tool with the version that was tried."""
    version = known.get(PACKAGES.get(tool, ""), "").partition("+")[0]
    return f"{tool} {version}".strip()


def terminal(results: Mapping[str, Any]) -> str:
    """The table in 80 columns, and what was skipped."""
    head = f"{'convolutions left':24}" + "".join(f"{name:>10}" for name in NETS)
    lines, notes = [f"{head} error"], []
    for tool, row in results["tools"].items():
        if "cells" not in row:
            kind = "skipped" if "skipped" in row else "failed"
            notes.append(f"{tool}: {kind}: {row[kind]}"[:200])
            continue
        texts, error, _ = summary(row)
        shown = "".join(f"{text:>10}" for text in texts)
        lines.append(f"{name_of(tool, results['versions'])[:24]:24}{shown} {error}")
        for net, cell in row["cells"].items():
            if "failed" in cell:
                notes.append(f"{tool}, {net}: {cell['failed'][:60]}")
    return "\n".join([*lines, *notes])


def main() -> None:
    """Tries them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", nargs="*", default=TOOLS, help="only these")
    parser.add_argument("--python", help="the Python whose packages are tried")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "peers.json")
    options = parser.parse_args()
    results = all_of(options.tools, options.python or python_of_peers())
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(terminal(results))


def python_of_peers() -> str:
    """That of `make peers`, or else this one."""
    return str(PYTHON) if PYTHON.exists() else sys.executable


def all_of(tools: Sequence[str], python: str) -> dict[str, Any]:
    """What came of each, with the versions."""
    return {"versions": versions(python), "tools": {t: tried(t, python) for t in tools}}


if __name__ == "__main__":
    main()
