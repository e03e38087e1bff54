"""Programs run in turn, and what they cost counts with all that they started."""

import pytest

from benchmarks.processes import in_turn, python, ratios, run

BUSY = "sum(range(3 * 10**7))"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}], check=True)"


def test_what_is_compared_runs_a_b_b_a():
    order = []
    given = in_turn(lambda: order.append("a"), lambda: order.append("b"), 3)
    assert "".join(order) == "abbaab"
    assert list(map(len, given)) == [3, 3]


def test_each_round_has_its_own_two():
    numbers = iter(range(1, 100))
    first, second = in_turn(lambda: next(numbers), lambda: next(numbers), 3)
    assert (first, second) == ([1, 4, 5], [2, 3, 6])
    assert ratios([1.0, 4.0], [2.0, 2.0]) == (0.5, 2.0)


def test_processor_time_is_that_of_children_too():
    idle, busy = python("-c", "pass"), python("-c", PARENT)
    alone = python("-c", BUSY)
    assert busy.cpu > idle.cpu
    assert busy.cpu > (idle.cpu + alone.cpu) / 2


MEGABYTES = f"""
from benchmarks.processes import python
for code in ("pass", "x = bytes(range(1, 2)) * {200 * 2**20}"):
    print(python("-c", code).peak // 2**20)
"""


def test_memory_is_the_peak_above_that_of_the_process_that_asks():
    small, large = map(int, python("-c", MEGABYTES).text.split())
    assert 180 < large - small < 220


def test_a_program_that_fails_says_why_last():
    with pytest.raises(RuntimeError, match=r"ended \(1\): ValueError: why$"):
        python("-c", "raise ValueError('why')")
    with pytest.raises(RuntimeError, match=r"ended \(7\): it said nothing"):
        run("sh", "-c", "exit 7")


def test_what_it_prints_comes_back():
    assert python("-c", "print('a'); print('b')").last_line == "b"
