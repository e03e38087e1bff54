"""What the page on 8 bits says of ranges is counted as it says."""

import math
from itertools import pairwise

from acfuse.int8.ranges import WIDE
from benchmarks.ranges import NETWORKS, STEPS, Trial, table, trials


def test_each_trained_sample_is_measured_as_it_is():
    found = [*trials(1, powers=(0,))]
    assert [trial.network for trial in found] == [*NETWORKS]
    for trial in found:
        assert 0 <= trial.shared < WIDE
        assert 0 < trial.accuracy <= 1
        assert 0 < trial.float_accuracy <= 1


def test_trials_are_counted_by_what_sharing_a_grid_costs():
    lost = {2.2: (0.0, 0.01), 2.5: (0.5,), 2.6: (0.25, 0.125, 0.375), 9.0: (0.9,)}
    found = [Trial("net", bits, 1.0, 1.0 - part) for bits, parts in lost.items() for part in parts]
    assert table(found)[2:] == [
        "| 2 to 2.5 | 3 | 1 | 1.0 | 50.0 |",
        "| 2.5 to 3 | 3 | 3 | 25.0 | 37.5 |",
        "| over 4 | 1 | 1 | 90.0 | 90.0 |",
    ]


def test_the_figure_that_is_warned_of_is_a_step_of_the_table():
    assert WIDE in STEPS
    assert STEPS[-1] == math.inf
    assert all(low < high for low, high in pairwise(STEPS))
