"""What ratios say of their median: no more than order statistics allow."""

from itertools import product
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acfuse.pipeline.speedup import FEWEST, LEVEL, Measured, Turn, ratio_of
from tests.pipeline.timing import measured

RATIOS = st.lists(st.floats(0.01, 100), min_size=FEWEST, max_size=60)


@given(RATIOS)
def test_the_interval_has_the_median_in_it_and_its_ends_are_ratios(ratios):
    ratio = ratio_of(ratios)
    assert ratio.low <= ratio.median <= ratio.high
    assert {ratio.low, ratio.high} <= set(ratios)
    assert LEVEL <= ratio.level < 1


@given(RATIOS, st.randoms())
def test_the_order_of_rounds_does_not_matter(ratios, random):
    shuffled = list(ratios)
    random.shuffle(shuffled)
    assert ratio_of(shuffled) == ratio_of(ratios)


@given(RATIOS, st.sampled_from([0.25, 2.0, 8.0]))
def test_another_unit_gives_the_same_interval_in_that_unit(ratios, factor):
    ratio, other = ratio_of(ratios), ratio_of([factor * r for r in ratios])
    assert (other.low, other.median, other.high) == (
        factor * ratio.low,
        factor * ratio.median,
        factor * ratio.high,
    )


@given(RATIOS)
def test_one_round_however_wild_moves_neither_end_beyond_its_neighbour(ratios):
    """A round in which the machine did other things decides nothing."""
    wild = ratio_of([*sorted(ratios)[:-1], 1e6])
    if len(ratios) > FEWEST + 2:  # with fewer, the interval is all that was seen
        assert wild.high < 1e6


@pytest.mark.parametrize("count", range(FEWEST, 15))
def test_the_interval_encloses_the_median_as_often_as_it_says(count):
    """Each ratio lies above or below the true median with equal probability: all ways, counted."""
    ordered = [*range(1, count + 1)]
    ratio = ratio_of(ordered)
    low, high = int(ratio.low), int(ratio.high)
    ways = [sum(sides) for sides in product((0, 1), repeat=count)]  # so many lie below it
    enclosed = sum(low <= below <= high - 1 for below in ways) / len(ways)
    assert enclosed == ratio.level >= LEVEL
    narrower = sum(low + 1 <= below <= high - 2 for below in ways) / len(ways)
    assert narrower < LEVEL


@pytest.mark.parametrize("count", range(FEWEST))
def test_too_few_ratios_have_no_interval(count):
    with pytest.raises(ValueError, match="have no interval"):
        ratio_of([1.0] * count)


def test_what_is_within_the_noise_is_no_speed_up():
    noisy = measured([0.9, 1.2, 0.95, 1.3, 1.1, 0.98, 1.25])
    assert noisy.ratio.is_noise
    assert noisy.ratio.median > 1
    assert noisy.speedup is None


@pytest.mark.parametrize(
    ("factor", "speedup"),
    [(2.0, 2.0), (0.5, 0.5), (1.0, None), (1.009, None), (0.991, None), (1.02, 1.02)],
)
def test_what_is_beyond_it_is_told_as_the_median(factor, speedup):
    assert measured([factor] * 7).speedup == (speedup and pytest.approx(speedup))


def test_a_turn_that_the_clock_of_the_processors_does_not_see_is_no_division_by_zero():
    nothing = Measured("eager", (Turn(1.0, 0.0),) * 6, (Turn(1.0, 0.0),) * 6)
    assert nothing.cpu_ratio.median == 1
    assert nothing.cpu_ratio.high < inf
