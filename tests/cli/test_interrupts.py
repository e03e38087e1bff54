"""Ctrl-C and SIGTERM: the right exit code, and nothing left behind."""

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from acfuse.system.signals import GRACE_SECONDS, Terminated
from tests.cli.command import run
from tests.cli.project import snapshot
from tests.waiting import HANG

# A run that stops in the middle of writing, where it says so, until it is ended. Signals have the
# meaning that they have in a terminal: started in the background, a shell takes Ctrl-C away.
STUCK = """
import hashlib, os, signal, sys, time
from acfuse import cli
from acfuse.system import signals

def stuck(number):
    open("../writing", "w").close()
{body}

os.fsync = stuck
signals.GRACE_SECONDS = {grace}
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["acfuse", "convert", "model.pth", "--no-onnx", "--force"]
cli.main()
"""


@contextmanager
def stuck(folder, body=f"time.sleep({HANG})", grace=HANG):
    """A process that does `body` in the middle of writing; ended, if it is not, afterwards.

    It is left alone for `grace` seconds after a signal, before it is ended for not reacting.
    """
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    code = STUCK.format(body=lines, grace=grace)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        # A shell that runs the tests in the background has them, and so their children, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(folder.parent / "writing", process)
        yield process
    finally:
        process.kill()
        process.communicate()  # closes its pipes, too


def wait_for(path, process):
    """Waits until a process has made a file. It must still be running then."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_writing_leaves_nothing_behind(fused, number, code):
    before = snapshot(fused)
    with stuck(fused) as process:
        assert [p.name for p in fused.iterdir() if p.name.endswith(".partial")]
        process.send_signal(number)
        _, errors = process.communicate(timeout=HANG)
    assert process.returncode == code
    assert errors.split() == ["interrupted" if number == signal.SIGINT else "terminated"]
    assert snapshot(fused) == before


STEPS = ["open_source", "find", "prove", "export", "save"]


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

    monkeypatch.setattr(importlib.import_module("acfuse.pipeline.convert"), step, stop)
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


# Runs that do not hear a signal: one is long in C, the other catches whatever is raised.
DEAF = {
    "long": "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",
    "swallows": """
while True:
    try:
        time.sleep(1)
    except BaseException:
        open("../heard", "w").close()
""",
}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kind", DEAF)
def test_a_run_that_does_not_hear_is_ended_and_cleaned_up(fused, kind, number, code):
    before = snapshot(fused)
    with stuck(fused, DEAF[kind], grace=GRACE_SECONDS) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=HANG)
    assert process.returncode == code
    assert errors.split() == ["interrupted" if number == signal.SIGINT else "terminated"]
    assert snapshot(fused) == before


def test_a_second_signal_ends_a_run_at_once(fused):
    """Nothing else could end it: it does not react, and is left alone for longer than we wait."""
    with stuck(fused, DEAF["swallows"], grace=2 * HANG) as process:
        process.send_signal(signal.SIGINT)
        wait_for(fused.parent / "heard", process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=HANG)
    assert process.returncode == 130  # it was the first one that ended it
