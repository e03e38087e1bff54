"""Mistakes that can be seen without PyTorch are told without it, in the words of who reads."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from acfuse.errors import AcfuseError
from acfuse.files.user_code import build_model

ROOT = Path(__file__).parents[2]
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
"""
SHAPE = "--input-shape 1,3,9,7"
LINES = [
    ("convert nothing.pth", 3, "nothing.pth does not exist; expected a checkpoint file."),
    ("inspect nothing.pth", 3, "nothing.pth does not exist"),
    ("export-onnx nothing.pth", 3, "nothing.pth does not exist"),
    ("verify nothing.pth net.pth", 3, "nothing.pth does not exist"),
    ("verify net.pth nothing.pth", 3, "nothing.pth does not exist"),
    ("selftest nothing.pth", 3, "nothing.pth does not exist"),
    ("selftest net.pth nothing.pth", 3, "nothing.pth does not exist"),
    ("patterns test house.toml nothing.pth", 3, "nothing.pth does not exist"),
    ("convert folder", 3, "folder is a directory"),
    ("inspect empty.pth", 3, "empty.pth is empty"),
    ("inspect page.pth", 3, "page.pth is a web page"),
    ("convert net.pth --limit bytes=3", 4, "bytes"),
    (f"convert net.pth {SHAPE} --model nets.py", 2, "expected package.module:name or path"),
    ("inspect net.pth --model nocolon", 2, "--model nocolon: expected package.module:name"),
    (f"convert net.pth {SHAPE} --model no.py:Net", 2, "--model: no.py does not exist."),
    (f"convert net.pth {SHAPE} --model no_such:Net", 2, "there is no module no_such"),
    (f"export-onnx net.pth {SHAPE} --model no_such.part:Net", 2, "there is no module no_such"),
    (f"convert net.pth {SHAPE} --model bad.py:Net", 3, "bad.py could not be imported: "),
    (f"convert net.pth {SHAPE} --model nets.py:Net", 3,
     "--model nets.py:Net could not be built: Net.__init__() missing 1 required positional "
     "argument: 'channels'. Give --model-args, as '{\"channels\": VALUE}'."),
    ("inspect net.pth --model nets.py:Net", 3, "missing 1 required positional"),
    ("inspect net.pth --model nets.py:Net --model-args {\"chanels\":3}", 3, "'chanels'"),
    ("inspect net.pth --model nets.py:Net --model-args {", 2, "it is not JSON"),
    ("convert net.pth --model nets.py:Net --model-args {\"channels\":3}", 2,
     "--input-shape is missing"),
    ("selftest net.pth --model nets.py:Net --model-args {\"channels\":3}", 2,
     "--input-shape is missing"),
    ("convert net.pth --inputs no.npz", 2, "--inputs: no.npz does not exist."),
    ("convert net.pth --patterns no.toml", 3, "no.toml cannot be read: No such file"),
    ("inspect net.pth --patterns nets.py", 3, "nets.py cannot be read as TOML"),
    ("patterns --patterns no.toml", 3, "no.toml cannot be read: No such file"),
    ("patterns show acnet --patterns no.toml", 3, "no.toml cannot be read: No such file"),
    ("patterns test no.toml net.pth", 3, "no.toml cannot be read: No such file"),
    ("convert net.pth --cost no.json", 3, "no.json cannot be read: No such file"),
    ("verify", 2, "there is no manifest"),
    ("selftest", 2, "there is no manifest"),
    ("export-onnx", 2, "there is no manifest"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, and PyTorch that cannot be imported."""
    (tmp_path / "work" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    Path("net.pth").write_bytes(b"\x80\x02}.")
    Path("empty.pth").touch()
    Path("page.pth").write_text("<!DOCTYPE html>")
    Path("nets.py").write_text(NETS)
    Path("house.toml").write_text("")
    Path("bad.py").write_text("class Net(\n")
    (tmp_path / "none").mkdir()
    for package in ("torch", "numpy", "onnx"):
        text = f"raise SystemExit('{package} was imported')\n"
        (tmp_path / "none" / f"{package}.py").write_text(text)
    return tmp_path


def _said(folder, line):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ACFUSE_")}
    done = subprocess.run(
        [sys.executable, "-c", "from acfuse.cli import main; main()", *line.split()],
        env={**clean, "PYTHONPATH": os.pathsep.join([str(folder / "none"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(("line", "code", "words"), LINES)
def test_it_is_told_without_pytorch(folder, line, code, words):
    exit_code, said = _said(folder, line)
    assert words in said
    assert exit_code == code


@pytest.mark.parametrize(
    "line",
    [
        f'convert net.pth {SHAPE} --model nets.py:Net --model-args {{"channels":3}}',
        "inspect net.pth",
        "verify net.pth net.pth",
    ],
)
def test_what_needs_pytorch_imports_it(folder, line):
    assert "was imported" in _said(folder, line)[1]


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ("nocolon", {}),
        ("no.py:Net", {}),
        ("bad.py:Net", {}),
        ("no_such:Net", {}),
        ("nets.py:Net", {}),
        ("nets.py:Net", {"channels": 3, "odd": 1}),
    ],
)
def test_the_words_are_those_of_the_network_that_is_built(folder, spec, arguments):
    """Only the order is another: what is told early is what would be told late."""
    from acfuse.files.user_modules import check_model

    with pytest.raises(AcfuseError) as early:
        check_model(spec, arguments)
    with pytest.raises(AcfuseError) as late, mock.patch.dict(sys.modules):
        build_model(spec, arguments)
    assert (str(early.value), type(early.value)) == (str(late.value), type(late.value))
