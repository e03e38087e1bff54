"""A figure's median, interval, exponent and verdict are what theory says, and fit into a table."""

import json
import math
import random

import pytest

from benchmarks.figures import HEAD, WIDTH, Figure, Target, exponent, row, table

ANY = Target()


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_is_that_of_the_binomial_distribution(seed):
    values = [float(n) for n in range(1, 26)]
    random.Random(seed).shuffle(values)
    figure = Figure("x", ANY, tuple(values))
    assert figure.median == 13
    assert figure.interval == (8, 18)  # of 25: P(B < 8) is the largest tail of at most 2.5 %


def test_of_few_repetitions_the_interval_is_all_of_them():
    assert Figure("x", ANY, (3.0, 1.0, 2.0)).interval == (1, 3)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.1, 3.0])
def test_the_exponent_of_a_power_is_that_power(power):
    sizes = (64, 128, 256, 1024)
    assert exponent(sizes, [7e-3 * n**power for n in sizes]) == pytest.approx(power, abs=1e-9)


def test_the_exponent_is_the_slope_of_least_squares():
    logs = [0.0, 1.0, 2.0]
    off = [0.0, 2.0, 2.0]  # the line of least squares through these has the slope 1
    assert exponent([math.exp(n) for n in logs], [math.exp(t) for t in off]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (Target(high=1.5), 1.49, "pass"),
        (Target(high=1.5), 1.51, "SHORT"),
        (Target(low=1.7), 1.71, "pass"),
        (Target(low=1.7), 1.69, "SHORT"),
        (Target(0.98, 1.02), 1.0, "pass"),
        (Target(0.98, 1.02), 0.97, "SHORT"),
        (Target(0.98, 1.02), 1.03, "SHORT"),
        (Target(high=2), 2.0, "pass"),
    ],
)
def test_a_figure_passes_where_its_median_reaches_its_target(target, value, verdict):
    narrow = Figure("x", target, (value,) * 3)
    assert narrow.verdict == verdict
    assert row(narrow).split()[-1] == verdict
    assert str(target) in row(narrow)
    wide = Figure("x", target, (value - 9, value, value + 9))
    assert wide.verdict == f"{verdict}?"


def test_what_has_no_values_is_skipped_or_failed_with_its_reason():
    skipped = Figure("x", ANY, note="timm is not installed")
    failed = Figure("x", ANY, note="it ended (7): why", is_failed=True)
    assert (skipped.verdict, failed.verdict) == ("skipped", "failed")
    assert row(skipped).splitlines()[1].strip() == "timm is not installed"
    assert row(failed).splitlines()[1].strip() == "it ended (7): why"


@pytest.mark.parametrize("value", [0.00012, 0.0123, 0.98, 12.34, 123.4, 98765.4])
def test_the_table_fits_into_80_columns(value):
    figure = Figure("a" * 35, Target(0.98, 1.02), (value, 1.1 * value), "s")
    lines = table([figure, Figure("b", ANY, note="c" * 200)]).splitlines()
    assert lines[0] == HEAD
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize(
    "figure",
    [
        Figure("a", Target(high=2), (1.0, 2.5), "s", {"b, s": [1.0, 2.0]}, "why"),
        Figure("a", Target(0.98, 1.02), (1.0,)),
        Figure("a", ANY, note="not there"),
        Figure("a", ANY, note="broken", is_failed=True),
    ],
)
def test_a_figure_comes_back_from_json(figure):
    back = Figure.of_json(json.loads(json.dumps(figure.to_json())))
    assert back.to_json() == figure.to_json()
    assert (back.values, back.target, back.verdict) == (
        figure.values, figure.target, figure.verdict
    )  # fmt: skip
