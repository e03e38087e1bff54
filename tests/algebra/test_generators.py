"""The laws are tested only as far as both outcomes are drawn: accepted and refused.

Shares are printed; see them with `pytest -s`, or those of the laws themselves with
`pytest --hypothesis-show-statistics`.
"""

from collections import Counter
from functools import reduce
from operator import add

import pytest
from hypothesis import Phase, given, seed, settings

from .outcome import attempt, exists
from .strategies import chains, loose_branches, refused_by_choice


def outcomes(drawn, make, draws):
    """How often each outcome occurs among some draws, always the same ones."""
    counted: Counter[str] = Counter()

    @seed(0)
    @settings(max_examples=draws, database=None, phases=[Phase.generate])
    @given(drawn)
    def collect(layers):
        counted[outcome(layers, attempt(lambda: make(layers)))] += 1

    collect()
    total = counted.total()
    print(f"\n{total} draws:", *(f"{name} {n / total:.0%}," for name, n in counted.most_common()))
    return counted


def outcome(layers, made):
    """The name of one outcome; for two layers in a chain, also how it came about."""
    if exists(made):
        return "accepted"
    by_choice = len(layers) == 2 and made.code == "ACF205" and refused_by_choice(*layers)
    return f"{made.code.name}{' by choice' if by_choice else ''}"


def sum_of(branches):
    """The plan of a sum."""
    return reduce(add, (branch.geometry for branch in branches))


def chain_of(layers):
    """The plan of a chain."""
    return reduce(lambda f, g: f.then(g), (layer.geometry for layer in layers))


@pytest.mark.parametrize(
    ("drawn", "make", "draws"),
    [
        pytest.param(loose_branches(2), sum_of, 600, id="sums of two"),
        pytest.param(loose_branches(3), sum_of, 200, id="sums of three"),
        pytest.param(chains(2), chain_of, 600, id="chains of two"),
        pytest.param(chains(3), chain_of, 200, id="chains of three"),
    ],
)
def test_both_outcomes_occur_often(drawn, make, draws):
    counted = outcomes(drawn, make, draws)
    assert 0.2 <= counted["accepted"] / counted.total() <= 0.8


def test_most_refused_chains_have_to_be_refused():
    counted = outcomes(chains(2), chain_of, 300)
    refused = counted.total() - counted["accepted"]
    assert counted["PADDED_MIDDLE by choice"] < refused / 3


def test_every_way_to_refuse_a_sum_occurs():
    counted = outcomes(loose_branches(3), sum_of, 200)
    assert {"STRIDES", "SIZES", "CHANNELS", "BORDERS"} <= set(counted)
