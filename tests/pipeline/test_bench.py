"""The process that times: whose turn it is, and what it makes of processes that fail."""

import os
from pathlib import Path

import pytest

from acfuse.errors import AcfuseError, Exit, InputError
from acfuse.pipeline.bench import Skipped, machine, measure, this_command, worker
from acfuse.pipeline.bench_worker import turn, warmed
from acfuse.pipeline.speedup import Turn
from tests.pipeline.timing import pretending

READY = {"ready": True}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_both_have_their_turns_in_an_order_that_alternates():
    times = measure("eager", 6, pretending(READY))
    log = [line.split() for line in Path("log.txt").read_text().splitlines()]
    assert log[:2] == [["original", "warm"], ["fused", "warm"]]
    turns = [name for name, what in log[2:] if what == "turn"]
    assert turns == ["original", "fused", "fused", "original"] * 3
    assert times.original == (Turn(2.0, 0.5),) * 6
    assert times.fused == (Turn(1.0, 0.5),) * 6
    assert (times.ratio.low, times.speedup) == (2.0, 2.0)


def test_a_backend_that_is_not_here_is_skipped_with_its_reason():
    with pytest.raises(Skipped, match=r"no compiler"):
        measure("compile", 6, pretending({"skipped": "no compiler"}))
    assert not Path("log.txt").exists()


@pytest.mark.parametrize("code", [Exit.USAGE, Exit.BAD_INPUT, Exit.UNSAFE])
def test_what_is_wrong_with_a_file_is_told_as_by_any_command(code):
    with pytest.raises(AcfuseError, match=r"^the file is empty") as refused:
        measure("eager", 6, pretending({"error": "the file is empty", "exit": int(code)}))
    assert refused.value.exit_code == code


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os._exit(3)", r"original model ended \(3\): it said nothing"),
        ("import sys; sys.exit('no memory left')", r"ended \(1\): no memory left"),
        ("print('not JSON', flush=True)", r"the original model ended \(0\)"),
    ],
)
def test_a_process_that_ends_is_told_with_its_last_words(code, words):
    with pytest.raises(InputError, match=words):
        measure("eager", 6, pretending(code=code))


def test_no_process_is_left():
    with worker(pretending(READY)("eager", "fused"), "a model") as one:
        assert one.answer() == READY
        number = one.process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_worker_looks_for_no_module_in_the_working_directory():
    command = this_command("eager", "fused")
    assert command[0] == "-P"
    assert command[-2:] == ["--worker", "eager:fused"]


def test_a_turn_is_as_many_calls_as_the_seconds_that_were_asked_for():
    ticks = iter(range(100))
    calls = []
    assert warmed(lambda: calls.append(1), 5, clock=lambda: next(ticks)) == 5
    assert len(calls) == 3 + 5
    told = turn(lambda: calls.append(1), 4)
    assert len(calls) == 12
    assert set(told) == {"wall", "cpu"}


def test_the_machine_is_named_with_its_versions():
    told = machine()
    assert told["threads"] >= 1
    assert {"acfuse", "python", "torch", "onnxruntime"} <= set(told["versions"])
    assert told["processor"]
