"""A table of this machine: which convolutions are measured, and how."""

from itertools import count

import pytest
import torch

from acfuse.files.cost_table import CostTable, Work
from acfuse.pipeline import cost_profile
from acfuse.pipeline.cost_profile import MAKERS, MOST, REPEATS, least, profile, works

FEW = [Work((3, 3), (4, 8)), Work((1, 5), (1, 1), 4), Work((1, 1), (8, 4))]


def test_each_convolution_is_measured_on_each_backend_at_each_size():
    ticks = count()
    rows = profile(list(MAKERS), [5, 9], wanted=FEW, clock=lambda: float(next(ticks)))
    assert [(r.backend, r.size, r.work) for r in rows] == [
        (backend, size, work) for backend in MAKERS for size in (5, 9) for work in FEW
    ]
    assert all(row.seconds > 0 for row in rows)
    assert len(CostTable(tuple(rows)).settings) == 4


def test_what_would_take_too_long_is_left_out(monkeypatch):
    large = Work((51, 51), (256, 256))
    assert large.multiply_adds * 14**2 > MOST
    assert profile(["eager"], [14], wanted=[large]) == []


def test_no_convolution_is_measured_twice_and_both_kinds_are():
    wanted = [*works()]
    assert len(set(wanted)) == len(wanted)
    kinds = {work.is_depthwise for work in wanted}
    assert kinds == {True, False}
    assert {work.kernel for work in wanted} == set(cost_profile.KERNELS)


@pytest.mark.parametrize("backend", MAKERS)
@pytest.mark.parametrize("work", FEW, ids=lambda work: f"{work.kernel}")
def test_what_is_run_is_that_convolution(backend, work):
    result = MAKERS[backend](work, 9)()
    image = result if backend == "eager" else torch.from_numpy(result[0])
    assert tuple(image.shape) == (1, work.channels[1] * work.groups, 9, 9)


def test_the_least_of_several_means_is_taken():
    """A clock that runs faster and faster, as it seems while others work as well."""
    times = iter(
        [0.0, 3.0, 3.0, *[t for i in range(1, REPEATS) for t in (10 * i, 10 * i + 9, 10 * i + 9)]]
    )
    assert least(lambda: None, clock=lambda: next(times)) == 3.0
