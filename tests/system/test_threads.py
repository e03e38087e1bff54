"""How many threads compute is said before torch is loaded, and the user's own word wins."""

import os

import pytest

from acfuse.system import threads
from tests.cli.command import run

NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def untouched(monkeypatch, tmp_path):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # noted, so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")


def said():
    return [os.environ.get(name) for name in NAMES]


def test_as_many_threads_as_there_are_processors_wait_asleep():
    count = str(threads.usable_processors())
    threads.prepare_threads()
    assert said() == [count, count, "PASSIVE", "0"]


def test_what_the_environment_says_is_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.prepare_threads()
    assert said() == ["3", None, "ACTIVE", "0"]
    assert threads.threads() == 3


def test_an_option_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.prepare_threads(1)
    assert said()[:2] == ["1", "1"]
    assert threads.threads() == 1


@pytest.mark.parametrize(
    ("text", "most"),
    [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("nonsense", None)],
)
def test_a_container_has_its_share(text, most):
    threads.QUOTA.write_text(text)
    free = threads.usable_processors()
    assert free >= 1
    if most is not None:
        assert free == most


def test_no_number_of_threads_is_a_usage_error():
    done = run("inspect", "nothing.pth", "--threads", "0")
    assert done.exit_code == 2
    assert "--threads" in done.stderr


@pytest.mark.parametrize(("count", "expected"), [("1", [2]), ("2", [2, 5]), ("9", [2, 5, 7])])
def test_a_process_that_is_timed_runs_on_the_first_processors(monkeypatch, count, expected):
    bound = []
    monkeypatch.setenv("OMP_NUM_THREADS", count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 2, 5}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: bound.append(cpus), raising=False)
    threads.bind_threads()
    assert bound == [expected]


def test_where_no_process_can_be_bound_none_is(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    threads.bind_threads()
