"""The laws are tested only as far as both outcomes are drawn: accepted and refused.

Shares are printed; see them with `pytest -s`, or those of the laws themselves with
`pytest --hypothesis-show-statistics`.
"""

from collections import Counter
from functools import reduce
from operator import add

import pytest
from hypothesis import Phase, given, seed, settings

from acfuse.errors import Reason
from tests.algebra.outcome import attempt, exists
from tests.algebra.strategies import chains, loose_branches, refused_by_choice


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
    """The name of one outcome; of two layers in a chain, also whether the refusal is a choice."""
    if exists(made):
        return "accepted"
    may_be_choice = made.code == Reason.PADDED_MIDDLE and len(layers) == 2
    by_choice = " by choice" if may_be_choice and refused_by_choice(*layers) else ""
    return made.code.name + by_choice


def sum_of(branches):
    """The plan of a sum."""
    return reduce(add, (branch.geometry for branch in branches))


def chain_of(layers):
    """The plan of a chain."""
    return reduce(lambda f, g: f.then(g), (layer.geometry for layer in layers))


@pytest.mark.parametrize(
    ("drawn", "make"),
    [
        pytest.param(loose_branches(3), sum_of, id="sums"),
        pytest.param(chains(3), chain_of, id="chains"),
    ],
)
def test_both_outcomes_of_three_layers_occur_often(drawn, make):
    counted = outcomes(drawn, make, draws=200)
    assert 0.15 <= counted["accepted"] / counted.total() <= 0.85


def test_both_outcomes_of_sums_occur_often():
    counted = outcomes(loose_branches(2), sum_of, 600)
    assert 0.2 <= counted["accepted"] / counted.total() <= 0.8
    assert {"STRIDES", "SIZES", "CHANNELS", "BORDERS"} <= set(counted)


def test_both_outcomes_of_chains_occur_often():
    """And among the refused, those which had to be are most."""
    counted = outcomes(chains(2), chain_of, 600)
    assert 0.2 <= counted["accepted"] / counted.total() <= 0.8
    refused = counted.total() - counted["accepted"]
    assert counted["PADDED_MIDDLE by choice"] < refused / 2
