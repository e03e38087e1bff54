"""Ctrl-C and SIGTERM: the right exit code, and nothing left behind."""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from acfuse.cli import Terminated

from .command import run
from .project import snapshot

# A run that stops in the middle of writing, where it says so.
STUCK = """
import os, sys, time
from acfuse import cli

def stuck(number):
    open("../writing", "w").close()
    time.sleep(60)

os.fsync = stuck
sys.argv = ["acfuse", "convert", "model.pth", "--no-onnx", "--force"]
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_writing_leaves_nothing_behind(fused, number, code):
    before = snapshot(fused)
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=fused,
    )
    try:
        while not (fused.parent / "writing").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        assert [p.name for p in fused.iterdir() if p.name.endswith(".partial")]
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert errors.split() == ["interrupted" if number == signal.SIGINT else "terminated"]
    assert snapshot(fused) == before


STEPS = ["load", "find", "rewrite", "verify", "writer"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("signal_", "code", "word"),
    [(KeyboardInterrupt, 130, "interrupted"), (Terminated, 143, "terminated")],
)
def test_an_interruption_at_any_step_writes_nothing(
    project, monkeypatch, step, signal_, code, word
):
    def stop(*_, **__):
        raise signal_

    monkeypatch.setattr(importlib.import_module("acfuse.convert"), step, stop)
    before = snapshot(project)
    result = run("convert", "model.pth", "--no-onnx")
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (code, "", word)
    assert snapshot(project) == before


@pytest.mark.parametrize(("signal_", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
@pytest.mark.parametrize("call", [1, 2])
def test_an_interruption_of_any_write_leaves_the_old_files(fused, monkeypatch, signal_, code, call):
    calls = []
    sync = os.fsync

    def stop(number):
        calls.append(number)
        if len(calls) == call:
            raise signal_
        sync(number)

    before = snapshot(fused)
    monkeypatch.setattr(os, "fsync", stop)
    assert run("convert", "model.pth", "--no-onnx", "--force").exit_code == code
    assert snapshot(fused) == before
