"""The notebook shows what it gives: run again, its outputs are those that are saved in it."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.house.following import ROOT, figures_gone

NOTEBOOK = ROOT / "docs/notebooks/digits.ipynb"
MISSING = [name for name in ("nbclient", "ipykernel") if not find_spec(name)]
# In a process of its own: what runs notebooks changes the event loop, and warns of this and that.
RUN = """
import sys, nbclient, nbformat
source, folder, target = sys.argv[1:]
notebook = nbformat.read(source, 4)
for cell in notebook.cells:
    cell.pop("outputs", None)
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
resources = {"metadata": {"path": folder}}
nbclient.NotebookClient(notebook, timeout=None, resources=resources, record_timing=False).execute()
nbformat.write(notebook, target)
"""


def outputs_of(path: Path) -> list[Any]:
    """What each cell of a notebook shows, without figures that differ between machines."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [o for cell in cells for o in cell.get("outputs", ())]
    shown = [{"stream": o["text"]} if "text" in o else o["data"] for o in outputs]
    return [{kind: figures_gone("".join(text)) for kind, text in one.items()} for one in shown]


@pytest.mark.skipif(bool(MISSING), reason="nbclient or ipykernel is not installed: make docs")
def test_it_shows_what_it_gives(tmp_path: Path) -> None:
    again = tmp_path / "again.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(NOTEBOOK), str(NOTEBOOK.parent), str(again)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert outputs_of(again) == outputs_of(NOTEBOOK)


def test_its_cells_were_run_in_their_order() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert len(outputs_of(NOTEBOOK)) >= 7
