"""The laws of LinearConv, held against the layers themselves, run one by one by the reference.

What is accepted is exact, borders included. What is refused had to be.
"""

from dataclasses import replace
from functools import partial, reduce
from operator import add

import pytest
import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st

from acfuse.algebra import Conv, LinearConv, identity, lower
from acfuse.errors import Reason
from tests.algebra.compare import assert_same_map
from tests.algebra.outcome import attempt, exists
from tests.algebra.reference import (
    borders_that_fit,
    chained,
    image,
    image_sides,
    images,
    images_for,
    in_channels,
    normal,
    out_channels,
    run,
    run_chain,
    run_sum,
    united,
    windows,
)
from tests.algebra.strategies import (
    aligned_branches,
    chains,
    forks,
    loose_branches,
    refused_by_choice,
    seeds,
)


def linear(layers):
    """The values of some layers."""
    return [layer.linear() for layer in layers]


def assert_same_geometry(a, b):
    """Both look at the same places; how the image continues matters only if they look there."""
    border = a.border if a.geometry.looks_outside else b.border
    assert replace(a.geometry, border=border) == b.geometry


# --- a + b ------------------------------------------------------------------------------------


@given(aligned_branches(count=3))
def test_a_sum_of_branches_is_their_sum(branches):
    fused = reduce(add, linear(branches))
    for x in images_for(branches):
        assert_same_map(fused, partial(run_sum, branches), x)


@given(loose_branches())
def test_a_sum_is_exact_or_no_convolution_is(branches):
    fused = attempt(lambda: reduce(add, linear(branches)))
    if exists(fused):
        for x in images_for(branches):
            assert_same_map(fused, partial(run_sum, branches), x)
    else:
        assert why_there_is_no_sum(branches) == fused.code


def why_there_is_no_sum(branches):
    """What the branches themselves say: they do not fit together, or no border does."""
    if len({(in_channels(b), out_channels(b)) for b in branches}) > 1:
        return Reason.CHANNELS
    strides = [stride for branch in branches for _, stride, *_ in windows(branch)]
    sides = image_sides(*([b] for b in branches), tries=1 + max(strides))
    for x in (image(in_channels(branches[0]), s, batch=1) for s in sides):
        if len({run(branch, x).shape for branch in branches}) > 1:
            steps = {branch.stride for branch in branches}
            return Reason.STRIDES if len(steps) > 1 else Reason.SIZES
    fitting = borders_that_fit(
        partial(run_sum, branches), united(branches), [[branch] for branch in branches]
    )
    return f"exact with {fitting}" if fitting else Reason.BORDERS


@given(loose_branches())
def test_sums_commute(branches):
    a, b = linear(branches)
    left, right = attempt(lambda: a + b), attempt(lambda: b + a)
    if not exists(left):
        assert left.code == right.code
        return
    assert_same_geometry(left, right)
    for x in images_for(branches):
        assert_same_map(left, partial(run_sum, branches), x)
        assert_same_map(right, partial(run_sum, branches), x)


@given(loose_branches(count=3))
def test_sums_associate(branches):
    a, b, c = linear(branches)
    left, right = attempt(lambda: (a + b) + c), attempt(lambda: a + (b + c))
    assert exists(left) == exists(right)
    if exists(left):
        assert_same_geometry(left, right)
        for x in images_for(branches):
            assert_same_map(left, partial(run_sum, branches), x)
            assert_same_map(right, partial(run_sum, branches), x)


# --- a.then(b) --------------------------------------------------------------------------------


@given(chains(length=2))
def test_a_chain_is_exact_or_no_convolution_is(layers):
    f, g = layers
    fused = attempt(lambda: f.linear().then(g.linear()))
    if exists(fused):
        for x in images(layers):
            assert_same_map(fused, partial(run_chain, layers), x)
    elif refused_by_choice(f, g):
        event("refused by choice")
    else:
        assert borders_that_fit(partial(run_chain, layers), chained(layers), [layers]) == []


@given(chains(length=3))
def test_a_chain_of_three_is_the_layers_one_after_the_other(layers):
    fused = attempt(lambda: reduce(LinearConv.then, linear(layers)))
    if exists(fused):
        for x in images(layers):
            assert_same_map(fused, partial(run_chain, layers), x)


@given(chains(length=3))
def test_chains_associate(layers):
    a, b, c = linear(layers)
    left, right = attempt(lambda: a.then(b).then(c)), attempt(lambda: a.then(b.then(c)))
    if exists(left) and exists(right):
        event("both ways")
        for x in images(layers):
            assert_same_map(left, partial(run_chain, layers), x)
            assert_same_map(right, partial(run_chain, layers), x)


# --- what changes nothing ---------------------------------------------------------------------


GROWTH = 2  # and torch does not pad an image by more than its side, not even for empty taps


@st.composite
def rewritten(draw, value):
    """The same map: grown by some empty taps, and written out for fewer groups."""
    pads = [(draw(st.integers(0, GROWTH)), draw(st.integers(0, GROWTH))) for _ in value.taps]
    groups = draw(st.sampled_from([d for d in range(1, 7) if value.groups % d == 0]))
    return value.grow(pads).regroup(groups)


@given(loose_branches(), st.data())
def test_growing_and_regrouping_change_no_sum(branches, data):
    a, b = linear(branches)
    grown = [data.draw(rewritten(value)) for value in (a, b)]
    for branch, value in zip(branches, grown, strict=True):
        for x in images([branch], beyond=GROWTH):
            assert_same_map(value, partial(run, branch), x)
    before, after = attempt(lambda: a + b), attempt(lambda: reduce(add, grown))
    assert exists(before) == exists(after)
    if not exists(before):
        assert before.code == after.code
    else:
        for x in images_for(branches, beyond=GROWTH):
            assert_same_map(before, partial(run_sum, branches), x)
            assert_same_map(after, partial(run_sum, branches), x)


@given(chains(length=2), st.data())
def test_growing_and_regrouping_change_no_chain(layers, data):
    f, g = linear(layers)
    wide_f, wide_g = data.draw(rewritten(f)), data.draw(rewritten(g))
    before, after = attempt(lambda: f.then(g)), attempt(lambda: wide_f.then(wide_g))
    assert exists(before) == exists(after)
    if not exists(before):
        assert before.code == after.code
    else:
        for x in images(layers, beyond=GROWTH + 3 * GROWTH):  # 3: the largest stride drawn
            assert_same_map(before, partial(run_chain, layers), x)
            assert_same_map(after, partial(run_chain, layers), x)


def test_groups_that_do_not_divide_are_a_mistake():
    with pytest.raises(ValueError, match="4 groups do not divide 6"):
        identity(6).regroup(4)


def test_numbers_that_do_not_fit_their_geometry_are_a_mistake():
    one = identity(3)
    with pytest.raises(ValueError, match="do not fit the geometry"):
        LinearConv(one.kernel[:2], one.bias[:2], one.geometry)
    with pytest.raises(ValueError, match="do not fit the geometry"):
        LinearConv(one.kernel, one.bias[:2], one.geometry)


@given(chains(length=1))
def test_identity_is_neutral(layers):
    (layer,) = layers
    value = layer.linear()
    axes = len(value.taps)
    before = identity(in_channels(layer), axes).then(value)
    after = value.then(identity(out_channels(layer), axes))
    for chain in (before, after):
        assert chain.geometry.axes == value.geometry.axes
        assert chain.groups == value.groups
        assert torch.equal(chain.kernel, value.kernel)
        for x in images(layers):
            assert_same_map(chain, partial(run, layer), x)


def test_identity_changes_no_image():
    for axes in (1, 2, 3):
        x = image(3, (4, 5, 6)[:axes])
        assert_same_map(identity(3, axes), lambda x: x, x)


@given(chains(length=2))
def test_lowering_changes_nothing(layers):
    fused = attempt(lambda: reduce(LinearConv.then, linear(layers)))
    assume(exists(fused))
    one = lower(fused, torch.float64, symmetric=False)
    kept = Conv(one.weight, one.bias, one.stride, one.pads, one.dilation, one.groups, one.border)
    for x in images(layers):
        assert_same_map(partial(run, kept), partial(run_chain, layers), x)


# --- affine -----------------------------------------------------------------------------------


@given(chains(length=1), seeds)
def test_affine_scales_and_shifts_each_channel(layers, numbers):
    (layer,) = layers
    out = out_channels(layer)
    value = layer.linear()
    scale, shift = normal(numbers, out), normal(numbers + 1, out)
    fused = value.affine(scale, shift)
    for x in images(layers):
        shape = (out, *[1] * (x.ndim - 2))
        s, t = scale.reshape(shape), shift.reshape(shape)
        assert_same_map(fused, lambda x, s=s, t=t: s * run(layer, x) + t, x)
        assert_same_map(value.affine(-0.5, 3.0), lambda x: 3.0 - 0.5 * run(layer, x), x)
        assert_same_map(value.affine(2.0), lambda x: 2.0 * run(layer, x), x)


@given(chains(length=1))
def test_without_shift_only_the_bias_is_gone(layers):
    (layer,) = layers
    linear_part = layer.linear().without_shift()
    assert linear_part.geometry == layer.geometry.without_shift()
    assert not linear_part.geometry.shifts
    for x in images(layers):
        assert_same_map(linear_part, lambda x: run(layer, x) - run(layer, torch.zeros_like(x)), x)


@given(chains(length=2), seeds)
def test_affine_is_a_pointwise_depthwise_convolution(layers, numbers):
    f, g = linear(layers)
    channels, axes = f.geometry.out_channels, len(f.taps)
    scale = normal(numbers, channels)
    shift = normal(numbers + 1, channels) if numbers % 2 else torch.zeros(channels)
    pointwise = identity(channels, axes).affine(scale, shift)
    left, right = f.affine(scale, shift), f.then(pointwise)
    assert_same_geometry(left, right)
    chain_left, chain_right = attempt(lambda: left.then(g)), attempt(lambda: right.then(g))
    assert exists(chain_left) == exists(chain_right)
    for x in images(layers):
        assert_same_map(left, lambda x: pointwise(f(x)), x)
        assert_same_map(right, lambda x: pointwise(f(x)), x)
        if exists(chain_left):
            assert_same_map(chain_left, lambda x: g(pointwise(f(x))), x)
            assert_same_map(chain_right, lambda x: g(pointwise(f(x))), x)


# --- sums and chains together -----------------------------------------------------------------


@given(forks())
def test_a_chain_into_a_sum_is_the_sum_of_the_chains(layers):
    a, b, c = linear(layers)
    whole = attempt(lambda: a.then(b + c))
    parts = attempt(lambda: a.then(b) + a.then(c))
    if exists(whole) and exists(parts):
        event("both sides")
        first, *branches = layers
        for x in images(layers[:2], (first, layers[2])):
            assert_same_map(whole, lambda x: run_sum(branches, run(first, x)), x)
            assert_same_map(parts, lambda x: run_sum(branches, run(first, x)), x)


@given(aligned_branches(), st.integers(1, 3), st.integers(1, 2), seeds)
def test_a_sum_before_an_unbiased_convolution_is_the_sum_of_the_chains(branches, size, step, seed):
    a, b = linear(branches)
    axes = len(a.taps)
    weight = normal(seed, 2, out_channels(branches[0]), *[size] * axes)
    last = Conv(weight, None, (step,) * axes, ((0, 0),) * axes, (1,) * axes)
    c = last.linear()
    whole, parts = (a + b).then(c), a.then(c) + b.then(c)
    for x in images(*((branch, last) for branch in branches)):
        assert_same_map(whole, lambda x: run(last, run_sum(branches, x)), x)
        assert_same_map(parts, lambda x: run(last, run_sum(branches, x)), x)
