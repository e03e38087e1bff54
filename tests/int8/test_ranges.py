"""Bits that a grid loses: what the definition says, and what rounding to a grid really costs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acfuse.int8 import ranges
from acfuse.int8.ranges import (
    EVENLY,
    NOTHING,
    WIDE,
    Ranges,
    channels_of,
    ranges_of,
    ranges_of_array,
)

# Logarithms of numbers of float64 are below 2^11, each right to 2^-52 of that; some are added.
EXACT = 2.0**-38
DB_OF_A_BIT = 20 * math.log10(2)


def kernel(seed, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def by_definition(weight):
    """The three figures, written out: with half ranges and root mean squares."""
    rows = [row[row != 0].abs() for row in weight.double().flatten(1)]
    rows = [row for row in rows if len(row)]
    half = max(float(row.max()) for row in rows)

    def lost(half, row):
        return math.log2(half / (math.sqrt(3) * float(row.square().mean().sqrt())))

    per_tensor = [lost(half, row) for row in rows]
    per_channel = [lost(float(row.max()), row) for row in rows]
    spread = np.median([math.log2(half / float(row.max())) for row in rows])
    return 2**spread, np.median(per_tensor), np.median(per_channel)


SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


@given(SHAPES, st.integers(0, 2**16), st.sampled_from([torch.float64, torch.float32]))
def test_the_figures_are_those_of_the_definition(shape, seed, dtype):
    weight = kernel(seed, *shape, dtype=dtype)
    measured = ranges_of(weight)
    expected = by_definition(weight)
    assert (measured.spread, measured.per_tensor, measured.per_channel) == pytest.approx(
        expected, rel=EXACT, abs=EXACT
    )


@given(SHAPES, st.integers(0, 2**16), st.integers(-400, 400))
def test_the_scale_of_the_whole_tensor_does_not_matter(shape, seed, power):
    weight = kernel(seed, *shape)
    one, other = ranges_of(weight), ranges_of(torch.ldexp(weight, torch.tensor(power)))
    for name, value in vars(one).items():
        assert getattr(other, name) == pytest.approx(value, rel=EXACT, abs=EXACT)


@given(SHAPES, st.integers(0, 2**16))
def test_a_grid_for_each_channel_never_loses_more_than_one_for_all(shape, seed):
    measured = ranges_of(kernel(seed, *shape))
    assert measured.per_channel <= measured.per_tensor
    assert measured.shared >= 0
    assert measured.spread >= 1


@given(st.integers(2, 6), st.integers(0, 2**16), st.integers(1, 40))
def test_a_channel_times_a_power_loses_that_many_bits_more(channels, seed, power):
    weight = kernel(seed, channels, 3, 3, 3)
    weight[0, 0, 0, 0] = 100  # the largest of all
    smaller = weight.clone()
    smaller[1] *= 2.0**-power
    before, after = channels_of(weight), channels_of(smaller)
    more = after.lost - before.lost
    assert float(more[1]) == pytest.approx(power, abs=EXACT)
    assert torch.equal(before.own, after.own)
    others = [i for i in range(channels) if i != 1]
    assert torch.equal(before.lost[others], after.lost[others])


@given(SHAPES, st.integers(0, 2**16))
def test_neither_the_order_of_channels_matters_nor_what_is_zero(shape, seed):
    weight = kernel(seed, *shape)
    turned = weight.flip(0)
    assert ranges_of(turned) == ranges_of(weight)
    grown = torch.cat([torch.zeros_like(weight), weight])
    grown = torch.nn.functional.pad(grown, (1, 1, 2, 0))
    assert vars(ranges_of(grown)) == pytest.approx(vars(ranges_of(weight)), rel=EXACT, abs=EXACT)


def test_weights_of_one_size_lose_less_than_nothing_and_even_ones_nothing():
    assert ranges_of(torch.ones(3, 2, 3, 3)) == Ranges(1.0, -EVENLY, -EVENLY)
    count = 2**15
    even = torch.arange(-count, count + 1, dtype=torch.float64).reshape(1, -1)
    # sum k^2 = n (n + 1) (2n + 1) / 6, twice, over 2n numbers and n^2
    energy = (1 + 1 / count) * (2 + 1 / count) / 2
    assert ranges_of(even).per_tensor == pytest.approx(-math.log2(energy) / 2, abs=EXACT)


@pytest.mark.parametrize("power", [0, 1, 2, 3])
def test_a_bit_is_six_decibels_of_rounding(power):
    """What is measured by rounding a channel to 255 steps is what the bits say."""
    count = 2**18
    weight = kernel(0, 1, count).clamp(-4, 4)
    half = 4.0 * 2**power
    step = half / 127
    noise = ((weight / step).round() * step - weight).square().sum()
    measured = 10 * math.log10(float(weight.square().sum() / noise))
    row = torch.cat([weight[0], torch.tensor([half])])
    lost = float(channels_of(row.reshape(1, -1)).lost[0])
    # Of 2^8 - 2 half steps: 1 / sqrt(3) of the half range, over a step / sqrt(12).
    expected = DB_OF_A_BIT * (math.log2(2 * 127) - lost)
    # The mean of count squares of an even distribution is off by 0.9 / sqrt(count), six times; the
    # one large weight that was added has its part of the energy.
    off = 6 * 0.9 / math.sqrt(count) + half**2 / float(weight.square().sum())
    assert measured == pytest.approx(expected, abs=10 * math.log10(1 + off))


def test_pruned_channels_are_left_out():
    weight = kernel(0, 8, 4, 3, 3)
    pruned = weight.clone()
    pruned[2:] = 0
    assert ranges_of(pruned) == ranges_of(weight[:2])


@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (1, 1), (0, 3, 3, 3), (3, 0), (0,)])
def test_of_zeros_and_of_nothing_nothing_is_lost(shape):
    assert ranges_of(torch.zeros(*shape)) == NOTHING
    assert not NOTHING.is_wide


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_known_and_the_worst(value):
    weight = kernel(0, 8, 4, 3, 3)
    weight[5, 1, 1, 1] = value
    measured = ranges_of(weight)
    assert all(map(math.isnan, vars(measured).values()))
    assert not measured.is_wide
    wide = Ranges(2.0**20, 20.0, 0.0)
    assert max([wide, measured, NOTHING], key=lambda own: own.order) is measured
    assert max([wide, NOTHING, Ranges(1.0, 21.0, 21.0)], key=lambda own: own.order) is wide


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_measured_in_float64(dtype):
    weight = kernel(0, 8, 4, 3, 3, dtype=dtype)
    assert ranges_of(weight) == ranges_of(weight.double())
    assert ranges_of(weight.requires_grad_()) == ranges_of(weight.double())


def test_the_ends_of_a_dtype_do_not_overflow():
    largest = torch.finfo(torch.float16).max
    weight = torch.tensor([[largest, -largest], [largest, largest]], dtype=torch.float16)
    assert ranges_of(weight) == Ranges(1.0, -EVENLY, -EVENLY)
    far = torch.tensor([[1e308, 1e308], [1e-308, 1e-308], [1e-308, 1e-308]], dtype=torch.float64)
    measured = ranges_of(far)
    assert measured.spread == math.inf
    assert measured.per_tensor == pytest.approx(math.log2(1e308) - math.log2(1e-308) - EVENLY)
    assert measured.per_channel == pytest.approx(-EVENLY, abs=EXACT)


def test_large_kernels_are_looked_at_in_parts(monkeypatch):
    weight = kernel(0, 7, 4, 3, 3)
    whole = ranges_of(weight)
    monkeypatch.setattr(ranges, "SOME", 2 * 4 * 3 * 3)
    assert ranges_of(weight) == whole
    monkeypatch.setattr(ranges, "SOME", 1)
    assert ranges_of(weight) == whole


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", ">f4"])
def test_arrays_are_measured_as_tensors_are(dtype):
    array = (8 * kernel(0, 8, 4, 3, 3).numpy()).astype(dtype)
    assert ranges_of_array(array) == ranges_of(torch.from_numpy(array.astype("float64")))
    turned = array[::-1].transpose(0, 2, 1, 3)
    assert vars(ranges_of_array(turned)) == pytest.approx(vars(ranges_of_array(array)))


def test_it_is_wide_where_sharing_a_grid_costs_more_than_the_figure():
    weight = torch.ones(5, 4, 3, 3)
    weight[0] *= 2.0**WIDE
    assert not ranges_of(weight).is_wide
    weight[0] *= 1.01
    assert ranges_of(weight).is_wide
    # Every channel loses as much by itself: no other grid would help.
    weight = torch.full((5, 4, 9, 9), 2.0**-6)
    weight[:, 0, 1, 1] = 1
    assert ranges_of(weight).per_tensor > WIDE
    assert not ranges_of(weight).is_wide
