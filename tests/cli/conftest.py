"""The sample, converted once for all tests; and a small project of one's own for each."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.cli.command import Result, run, run_line
from tests.cli.project import CHECKPOINT, make_project

SAMPLES = Path(__file__).parents[2] / "sample_models"
LINES = ("acfuse convert model.pth", "acfuse verify --atol 1e-4", "acfuse export-onnx")


class Sample:
    """The folder of the three lines, as each of them left it, and what each of them printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = json.loads((folder / "results.json").read_text())
        self.results = {line: Result(**result) for line, result in data.items()}

    def after(self, line: str) -> Path:
        """The folder after a line. Nobody may write to it."""
        return self.folder / str(LINES.index(line))


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Sample:
    """The three lines in a copy of the sample, run once, whatever the number of processes."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with (root / "sample.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "sample" / "results.json").exists():
            _run_the_lines(root / "sample")
    return Sample(root / "sample")


def _run_the_lines(folder: Path) -> None:
    """The first line as a process of its own, through a real pipe; the others in this one."""
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"
    work.mkdir(parents=True)
    for name in ("model.pth", "digits.py", "acfuse.toml"):
        shutil.copy(SAMPLES / name, work)
    results = {}
    for number, line in enumerate(LINES):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(work)
            results[line] = asdict(_run_process(line) if number == 0 else run_line(line))
        shutil.copytree(work, folder / str(number), ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "results.json").write_text(json.dumps(results))


def _run_process(line: str) -> Result:
    program = Path(sys.executable).parent / "acfuse"
    ours = ("ACFUSE_", "NO_COLOR", "FORCE_COLOR")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    done = subprocess.run(
        [str(program), *line.split()[1:]], capture_output=True, text=True, check=False, env=clean
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def converted(sample, tmp_path, monkeypatch) -> Path:
    """A copy of the sample after `acfuse convert model.pth`, as the working directory."""
    folder = tmp_path / "sample"
    shutil.copytree(sample.after(LINES[0]), folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A small network of one's own, as the working directory."""
    folder = make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """The small network, converted without an ONNX file. Nobody may write to it."""
    folder = make_project(tmp_path_factory.mktemp("small") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = run("convert", "model.pth", *CHECKPOINT)
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def fused(small, tmp_path, monkeypatch) -> Path:
    """A copy of the small network's folder, converted, as the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(small, folder)
    monkeypatch.chdir(folder)
    return folder
