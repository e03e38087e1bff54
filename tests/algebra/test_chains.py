"""Chains told one by one: those that blocks are made of, and every small window on one axis."""

from functools import partial, reduce
from itertools import product
from math import gcd

import pytest
import torch

from acfuse.algebra import AvgPool, Conv, LinearConv, Pad, batch_norm, identity
from acfuse.errors import NotFusable, Reason
from tests.algebra.compare import assert_same_map
from tests.algebra.outcome import attempt, exists
from tests.algebra.reference import (
    borders_that_fit,
    chained,
    image,
    images,
    normal,
    run,
    run_chain,
    run_sum,
)

PADS = list(product(range(-3, 3), repeat=2))


@pytest.mark.parametrize("looks", [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", [1, 2, 3])
def test_every_small_window_before_a_zero_padded_one(taps, stride, looks):
    """On one axis, every pads from -3 to 2: accepted means exact, and exact means accepted."""
    g = Conv(normal(0, 1, 1, 3), None, (1,), (looks,), (1,))
    accepted, exact = set(), set()
    for pads in PADS:
        f = Conv(normal(1, 1, 1, taps), None, (stride,), (pads,), (1,))
        if exists(attempt(lambda f=f: f.geometry.then(g.geometry))):
            accepted.add(pads)
        if "zeros" in borders_that_fit(partial(run_chain, (f, g)), chained((f, g)), [(f, g)]):
            exact.add(pads)
    assert accepted == exact
    assert 0 < len(accepted) < len(PADS)


@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (2, 1), (2, 2), (2, 3), (3, 2)])
def test_every_small_window_before_one_that_jumps_over_places(size, dilation, step):
    """The same before a zero-padded layer with a stride, and gaps: not each place is read."""
    wider = 0
    for look in range(1, 5):
        g = Conv(normal(0, 1, 1, size), None, (step,), ((look, 0),), (dilation,))
        for taps, before in product((1, 2, 3), range(-3, 3)):
            f = Conv(normal(1, 1, 1, taps), None, (1,), ((before, 0),), (1,))
            accepted = exists(attempt(lambda f=f, g=g: f.geometry.then(g.geometry)))
            exact = borders_that_fit(partial(run_chain, (f, g)), chained((f, g)), [(f, g)])
            assert accepted == ("zeros" in exact)
            wider += accepted and taps - 1 - before >= 1  # refused, if y[-1] were read
    assert wider or size > 1


def conv(size, pads=(0, 0), bias=False, border="zeros"):
    """A convolution of two channels and a square window, for the cases told below."""
    return Conv(
        normal(size, 2, 2, size, size),
        normal(1, 2) if bias else None,
        pads=(pads, pads),
        border=border,
    )


DIVISORS = [1, 2, 3, 4, 6, 12]


@pytest.mark.parametrize("second", DIVISORS)
@pytest.mark.parametrize("first", DIVISORS)
def test_groups_meet_at_their_common_divisor(first, second):
    f = Conv(normal(first, 12, 12 // first, 1, 2), normal(1, 12), groups=first)
    g = Conv(normal(second + 50, 24, 12 // second, 2, 1), normal(2, 24), groups=second)
    fused = f.linear().then(g.linear())
    assert fused.groups == gcd(first, second)
    for x in images((f, g)):
        assert_same_map(fused, partial(run_chain, (f, g)), x)
    beside = Conv(normal(second, 12, 12 // second, 1, 2), groups=second)
    fused = f.linear() + beside.linear()
    assert fused.groups == gcd(first, second)
    for x in images([f]):
        assert_same_map(fused, partial(run_sum, (f, beside)), x)


WIDE = Conv(normal(3, 2, 2, 1, 3), pads=((0, 0), (1, 1)))
HIGH = Conv(normal(4, 2, 2, 3, 1), pads=((1, 1), (0, 0)))


@pytest.mark.parametrize(
    ("layers", "outcome"),
    [
        # A bias inside, and zeros around: the edge would have to be the bias.
        ((conv(1), conv(3, (1, 1))), None),
        ((conv(1, bias=True), conv(3)), None),
        ((conv(1, bias=True), conv(3, (1, 1))), Reason.PADDED_MIDDLE),
        ((conv(1, bias=True), conv(3, (1, 1), border="reflect")), None),
        ((conv(1), conv(3, (1, 1), bias=True)), None),
        # Pad first.
        ((Pad(2, ((1, 1), (1, 1))), conv(1, bias=True), conv(3)), None),
        ((Pad(2, ((1, 1), (1, 1)), "reflect"), conv(1, bias=True), conv(3)), None),
        ((Pad(2, ((1, 1), (1, 1))), conv(3, (1, 1))), None),
        ((Pad(2, ((-1, -1), (-1, -1))), conv(3, (1, 1))), Reason.PADDED_MIDDLE),
        # Two windows that both see over the edge.
        ((conv(3, (1, 1)), conv(3, (1, 1))), Reason.PADDED_MIDDLE),
        ((conv(3, (2, 2)), conv(3, (1, 1))), None),
        ((conv(3, (2, 2), border="reflect"), conv(3, (1, 1))), Reason.PADDED_MIDDLE),
        ((conv(3, (1, 1), border="reflect"), conv(3)), None),
        ((conv(3), conv(3, (1, 1))), Reason.PADDED_MIDDLE),
        ((conv(3), conv(3, (-1, 0))), None),
        # One axis each.
        ((WIDE, HIGH), None),
        ((HIGH, WIDE), None),
        # Pools.
        ((conv(1), AvgPool(2, (3, 3), (2, 2), ((1, 1), (1, 1)))), None),
        ((conv(1, bias=True), AvgPool(2, (3, 3), (2, 2), ((1, 1), (1, 1)))), Reason.PADDED_MIDDLE),
    ],
)
def test_chains_that_blocks_are_made_of(layers, outcome):
    fused = attempt(lambda: reduce(LinearConv.then, (layer.linear() for layer in layers)))
    if outcome is None:
        for x in images(layers):
            assert_same_map(fused, partial(run_chain, layers), x)
    else:
        assert fused.code == outcome
        assert borders_that_fit(partial(run_chain, layers), chained(layers), [layers]) == []


@pytest.mark.parametrize("first", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("second", ["zeros", "reflect", "replicate", "circular"])
def test_one_axis_each_needs_one_border(first, second):
    f = Conv(WIDE.weight, pads=WIDE.pads, border=first)
    g = Conv(HIGH.weight, pads=HIGH.pads, border=second)
    fused = attempt(lambda: f.linear().then(g.linear()))
    if first == second:
        for x in images((f, g)):
            assert_same_map(fused, partial(run_chain, (f, g)), x)
    else:
        assert fused.code == Reason.BORDERS
        assert borders_that_fit(partial(run_chain, (f, g)), chained((f, g)), [(f, g)]) == []


def test_empty_taps_look_nowhere():
    """A pointwise layer that was grown is pointwise, on either side of a chain."""
    pointwise, biased = conv(1).linear(), conv(1, bias=True).linear()
    grown = pointwise.grow([(1, 1), (2, 0)])
    assert not grown.geometry.looks_outside
    assert grown.geometry.is_pointwise
    x = image(2, (5, 6))
    assert_same_map(biased.then(grown), lambda x: pointwise(biased(x)), x)
    padded = conv(3, (1, 1), border="reflect").linear()
    assert_same_map(grown.then(padded), lambda x: padded(pointwise(x)), x)


def test_a_batch_norm_before_a_zero_padded_convolution_needs_a_zero_shift():
    mean, variance = normal(0, 2), normal(1, 2).square() + 0.5
    padded = conv(3, (1, 1)).linear()
    norm = batch_norm(None, None, mean, variance, 1e-5)
    with pytest.raises(NotFusable) as refused:
        identity(2).affine(norm.scale, norm.shift).then(padded)
    assert refused.value.code == Reason.PADDED_MIDDLE
    norm = batch_norm(None, None, torch.zeros(2), variance, 1e-5)
    x = image(2, (5, 6))
    fused = identity(2).affine(norm.scale, norm.shift).then(padded)
    assert_same_map(fused, lambda x: run(conv(3, (1, 1)), x * norm.scale.reshape(2, 1, 1)), x)


@pytest.mark.parametrize("second", [Pad(3, ((0, 0), (0, 0))), Pad(2, ((0, 0),))])
def test_layers_that_do_not_fit_are_no_chain(second):
    with pytest.raises(NotFusable) as refused:
        conv(1).linear().then(second.linear())
    assert refused.value.code == Reason.CHANNELS
