"""Transposed convolutions: what is accepted is exact, borders included; what is refused had to be.

Held against torch's own layers, in float64.
"""

from dataclasses import replace
from functools import partial, reduce
from math import gcd

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from acfuse.algebra import Conv, Pad, adjoint_of, chain, lower, transposed_conv
from acfuse.algebra import added as added_up
from acfuse.algebra.adjoint import TRANSPOSED
from acfuse.errors import NotFusable, Reason
from tests.algebra.compare import assert_same_map
from tests.algebra.outcome import attempt, exists
from tests.algebra.reference import continued, image, normal, run
from tests.algebra.strategies import LARGEST, axes_counts, channel_counts, convs, seeds
from tests.bounds import differ, linear_bound

steps = st.sampled_from([1, 2, 2, 3, 4])


def spread(layer, x):
    """What a transposed layer gives: the whole of it, cut off at its ends, and its bias."""
    whole = TRANSPOSED[len(layer.stride)](
        x, layer.weight, None, layer.stride, groups=layer.groups, dilation=layer.dilation
    )
    cut = continued(whole, tuple((-before, -after) for before, after in layer.pads), "zeros")
    return cut if layer.bias is None else cut + layer.bias.reshape(-1, *[1] * len(layer.stride))


def run_any(layer, x):
    """What any layer gives."""
    return spread(layer, x) if getattr(layer, "transposed", False) else run(layer, x)


def run_all(layers, x):
    """One layer after the other."""
    return reduce(lambda x, layer: run_any(layer, x), layers, x)


def least(layers, axis):
    """The smallest side of an image of which every layer leaves something."""
    return next(n for n in range(1, 200) if all(m >= 1 for m in sides(layers, axis, n)))


def sides(layers, axis, n):
    """The sides of what each of some layers gives."""
    for layer in layers:
        g = layer.geometry.axes[axis]
        ends = g.taps - g.before - g.after
        transposed = getattr(layer, "transposed", False)
        n = g.stride * (n - 1) + ends if transposed else (n - ends) // g.stride + 1
        yield n


def images_of(layers):
    """The smallest image that every layer can take, and two larger ones, no two sides alike."""
    axes = range(len(layers[0].geometry.axes))
    small = [least(layers, axis) for axis in axes]
    channels = layers[0].geometry.in_channels
    for more in (0, 1, 4):
        yield image(channels, [n + more * (axis + 1) for axis, n in enumerate(small)])


@st.composite
def transposed(draw, taken=None, given=None, axes=None, ends=None, stride=None, biased=None):
    """A transposed layer as torch has it: crops alike at both ends, but for output_padding.

    With `ends`, taps - before - after is that on each axis, whatever the crops are then.
    """
    axes = axes or draw(axes_counts)
    taken, given = taken or draw(channel_counts), given or draw(channel_counts)
    common = gcd(taken, given)
    groups = draw(st.sampled_from([d for d in range(1, common + 1) if common % d == 0]))
    size = tuple(draw(st.integers(1, LARGEST[axes])) for _ in range(axes))
    dilation = tuple(draw(st.sampled_from([1, 1, 2])) if n > 1 else 1 for n in size)
    stride = stride or tuple(draw(steps if axes < 3 else st.sampled_from([1, 2])) for _ in size)
    pads = []
    for n, s, d, end in zip(size, stride, dilation, ends or [None] * axes, strict=True):
        taps = d * (n - 1) + 1
        before = draw(st.integers(0, 2))
        after = before - draw(st.integers(0, max(s, d) - 1))
        pads.append((before, after if end is None else taps - before - end))
    seed, has_bias = draw(seeds), draw(st.booleans()) if biased is None else biased
    bias = normal(seed + 1, given) if has_bias else None
    weight = normal(seed, taken, given // groups, *size)
    return Conv(weight, bias, stride, tuple(pads), dilation, groups, transposed=True)


@st.composite
def branches(draw):
    """Two transposed layers of one input, whose outputs are often of one size."""
    first = draw(transposed())
    weight, geometry = first.weight, first.geometry
    ends = [a.taps - a.before - a.after for a in geometry.axes]
    if draw(st.integers(0, 3)) == 0:
        ends[draw(st.integers(0, len(ends) - 1))] += draw(st.sampled_from([-1, 1]))
    stride = first.stride
    if draw(st.integers(0, 5)) == 0:
        stride = (stride[0] + 1, *stride[1:])
    given = geometry.out_channels + draw(st.sampled_from([0, 0, 0, 0, 1]))
    return first, draw(transposed(len(weight), given, len(stride), ends, stride))


# --- one layer --------------------------------------------------------------------------------


@given(transposed())
def test_a_transposed_layer_is_what_torch_computes(layer):
    padding = tuple(before for before, _ in layer.pads)
    more = tuple(before - after for before, after in layer.pads)
    settings = layer.stride, padding, more, layer.groups, layer.dilation
    own = TRANSPOSED[len(layer.stride)]
    for x in images_of([layer]):
        assert_same_map(layer.linear(), lambda x: own(x, layer.weight, layer.bias, *settings), x)


@given(transposed())
def test_a_transposed_layer_lowers_to_itself(layer):
    lowered = lower(layer.linear(), torch.float64)
    assert torch.equal(lowered.weight, layer.weight)
    bias = torch.zeros(layer.geometry.out_channels) if layer.bias is None else layer.bias
    assert torch.equal(lowered.bias, bias.double())
    assert (lowered.stride, lowered.groups) == (layer.stride, layer.groups)
    assert lowered.pads == layer.pads
    module = lowered.module()
    assert not module.training
    for x in images_of([layer]):
        assert_same_map(module, partial(spread, layer), x)


def assert_lowered(value, expected, layers):
    """Every form of the lowered value gives what the layers give, and is a layer of its format."""
    torchs, free = lower(value, torch.float64), lower(value, torch.float64, symmetric=False)
    steps_of = [zip(one.pads, one.stride, one.dilation, strict=True) for one in (torchs, free)]
    for (before, after), stride, dilation in steps_of[0]:
        assert before >= 0
        assert 0 <= before - after < max(stride, dilation)
    for (before, after), stride, dilation in steps_of[1]:
        assert before >= 0
        assert -after < max(stride, dilation)
    for x in images_of(layers):
        for made in (value, torchs.module(), torchs.linear(), partial(spread, free)):
            assert_same_map(made, expected, x)


def test_crops_that_no_layer_has_become_empty_taps():
    weight = normal(0, 2, 3, 3, 2)
    for pads in (((-1, 0), (0, 2)), ((0, -5), (3, 1)), ((2, 0), (-2, -4))):
        layer = Conv(weight, normal(1, 3), (2, 3), pads, (1, 2), 1, transposed=True)
        assert_lowered(layer.linear(), partial(spread, layer), [layer])


def test_empty_taps_are_taken_away():
    layer = Conv(normal(0, 2, 3, 3, 2), None, (2, 1), ((1, 0), (0, 0)), (1, 3), transposed=True)
    value = layer.linear()
    grown = adjoint_of(value.of.grow([(2, 1), (0, 3)]))
    lowered = lower(grown, torch.float64)
    assert (lowered.pads, lowered.dilation) == (layer.pads, layer.dilation)
    assert torch.equal(lowered.weight, layer.weight)


def test_numbers_too_large_are_refused():
    layer = Conv(normal(0, 2, 2, 2), torch.full((2,), 1e6), (2,), ((0, 0),), (1,), transposed=True)
    with pytest.raises(NotFusable, match="the fused bias does not fit into float16"):
        lower(layer.linear(), torch.float16)


@given(transposed())
def test_of_stride_1_it_is_a_convolution(layer):
    layer = replace(layer, stride=(1,) * len(layer.stride))
    parts = layer.weight, layer.bias, layer.pads, layer.dilation, layer.groups
    conv = transposed_conv(*parts)
    for x in images_of([layer]):
        assert_same_map(conv.linear(), partial(spread, layer), x)


# --- sums -------------------------------------------------------------------------------------


@given(branches())
def test_a_sum_is_accepted_exactly_if_both_always_have_one_size(pair):
    a, b = pair
    value = attempt(lambda: added_up(a.linear(), b.linear()))
    planned = attempt(lambda: added_up(a.geometry, b.geometry))
    assert exists(value) == exists(planned)
    fits = a.stride == b.stride and a.geometry.out_channels == b.geometry.out_channels
    axes = range(len(a.stride))
    fits = fits and all([*sides([a], i, 9)] == [*sides([b], i, 9)] for i in axes)
    assert exists(value) == fits
    if not fits:
        return
    assert value.geometry == planned

    def expected(x):
        return spread(a, x) + spread(b, x)

    assert_lowered(value, expected, [a])


def test_a_convolution_of_other_steps_is_no_branch_beside_it():
    layer = Conv(normal(0, 2, 2, 2, 2), None, (2, 2), transposed=True)
    one, reflects = Conv(normal(1, 2, 2, 1, 1)), Conv(normal(1, 2, 2, 3, 3), pads=((1, 1),) * 2)
    with pytest.raises(NotFusable, match=r"branches step by \(2, 2\) and \(1, 1\)"):
        added_up(layer.linear(), one.linear())
    with pytest.raises(NotFusable, match=r"steps by \(2, 2\) meets a transposed one"):
        added_up(replace(one, stride=(2, 2)).linear(), layer.linear())
    with pytest.raises(NotFusable, match="pads with reflect meets a transposed one"):
        chain(layer.geometry, replace(reflects, border="reflect").geometry)


# --- factors and chains -----------------------------------------------------------------------


@given(transposed(), seeds)
def test_a_factor_and_shift_behind_it(layer, seed):
    out = layer.geometry.out_channels
    scale, shift = normal(seed, out), normal(seed + 1, out)
    value = layer.linear().affine(scale, shift)
    assert value.geometry == layer.geometry.affine(shifts=True)
    ones = [1] * len(layer.stride)

    def expected(x):
        return spread(layer, x) * scale.reshape(-1, *ones) + shift.reshape(-1, *ones)

    assert_lowered(value, expected, [layer])


@st.composite
def chains_of(draw, *kinds):
    """Layers one after the other: "transposed", and convolutions of stride 1 or pads."""
    axes, channels = draw(axes_counts), draw(channel_counts)
    layers = []
    for kind in kinds:
        if kind == "transposed":
            layer = draw(transposed(channels, axes=axes, biased=draw(st.booleans())))
        elif kind == "pad":
            widths = st.integers(-2, 2)
            layer = Pad(channels, tuple((draw(widths), draw(widths)) for _ in range(axes)))
        else:
            size = st.just(1) if kind == "pointwise" else st.integers(1, 3)
            pads = st.just(0) if kind == "pointwise" else st.integers(-1, 2)
            each = [(draw(size), 1, (draw(pads), draw(pads)), 1) for _ in range(axes)]
            layer = draw(convs(channels, draw(channel_counts), tuple(each), "zeros"))
        layers.append(layer)
        channels = layer.geometry.out_channels
    return tuple(layers)


ALL = [
    ("pointwise", "transposed"),
    ("transposed", "pointwise"),
    ("transposed", "transposed"),
    ("transposed", "pad"),
    ("pad", "transposed"),
    ("conv", "transposed"),
    ("transposed", "conv"),
    ("pointwise", "transposed", "pointwise"),
]


@pytest.mark.parametrize("kinds", ALL, ids=" ".join)
@given(st.data())
def test_a_chain_is_exact_or_refused(kinds, data):
    layers = data.draw(chains_of(*kinds))
    value = attempt(lambda: reduce(chain, (layer.linear() for layer in layers)))
    planned = attempt(lambda: reduce(chain, (layer.geometry for layer in layers)))
    assert exists(value) == exists(planned)
    if not exists(value):
        assert value.code == Reason.PADDED_MIDDLE
        return
    assert value.geometry == planned
    small = [least(layers, axis) for axis in range(len(value.stride))]
    assume(max(small) < 100)
    assert_lowered(value, partial(run_all, layers), layers)


@given(chains_of("transposed", "pointwise"))
def test_what_is_pointwise_behind_is_always_accepted(layers):
    chain(layers[0].linear(), layers[1].linear())


@given(chains_of("transposed", "pad"))
def test_a_crop_behind_is_always_accepted(layers):
    crop = replace(layers[1], pads=tuple((-abs(a), -abs(b)) for a, b in layers[1].pads))
    chain(layers[0].linear(), crop.linear())


@given(chains_of("pointwise", "transposed"))
def test_what_is_pointwise_before_is_accepted_exactly_if_its_bias_arrives_alike(layers):
    first, second = layers
    value = attempt(lambda: chain(first.linear(), second.linear()))
    if first.bias is None:
        assert exists(value)
        return
    # Of zeros, a transposed layer gives its bias at every pixel, and nothing else.
    x = [*images_of(layers)][-1]
    whole, zeros = partial(run_all, layers), torch.zeros_like(x)
    answer, bound = (made.flatten(2) for made in (whole(zeros), linear_bound(whole, zeros)))
    assume(answer.shape[2] > 1)
    assert exists(value) == (differ(answer, answer[..., :1].expand_as(answer), 2 * bound) == "")


@given(chains_of("transposed", "conv"))
def test_a_bias_that_a_padding_layer_behind_sees_is_refused(layers):
    first = replace(layers[0], bias=normal(5, layers[0].geometry.out_channels))
    assume(layers[1].geometry.looks_outside)
    value = attempt(lambda: chain(first.linear(), layers[1].linear()))
    assert not exists(value)


def test_functional():
    """A two-by-two of stride 2 behind and before one pixel's matrix, by hand."""
    up = Conv(normal(0, 3, 2, 2, 2), normal(1, 2), (2, 2), transposed=True)
    before, behind = Conv(normal(2, 3, 4, 1, 1)), Conv(normal(3, 5, 2, 1, 1), normal(4, 5))
    value = chain(chain(before.linear(), up.linear()), behind.linear())
    by_hand = torch.einsum("mi,mohw,po->iphw", before.weight[..., 0, 0], up.weight,
                           behind.weight[..., 0, 0])  # fmt: skip
    x = image(4, (3, 4))
    assert_same_map(
        lambda x: F.conv_transpose2d(x, by_hand, value.bias, 2),
        partial(run_all, (before, up, behind)), x)  # fmt: skip
    assert_same_map(value, partial(run_all, (before, up, behind)), x)
