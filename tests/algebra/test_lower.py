"""From a value back to a layer: the same map, the settings of a real layer, one rounding."""

from functools import partial, reduce
from operator import add

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from acfuse.algebra import Conv, LinearConv, identity, lower
from acfuse.errors import NotFusable, Reason
from tests.algebra.compare import assert_same_map
from tests.algebra.reference import image, images, normal, run, run_chain, run_sum
from tests.algebra.strategies import aligned_branches, chains, convs
from tests.bounds import assert_within, gamma


def as_record(layer):
    """A lowered layer, for the reference to run."""
    return Conv(
        layer.weight,
        layer.bias,
        layer.stride,
        layer.pads,
        layer.dilation,
        layer.groups,
        layer.border,
    )


def assert_lowered(value, expected, *chains_of_layers):
    """Every form of the lowered layer gives what the layers give."""
    symmetric = lower(value, torch.float64)
    free = lower(value, torch.float64, symmetric=False)
    for layer in (symmetric, free):
        assert min(min(pads) for pads in layer.pads) >= 0
    assert all(before == after for before, after in symmetric.pads)
    module = symmetric.module()
    assert not module.training
    assert all(p.requires_grad for p in module.parameters())
    for x in images(*chains_of_layers, [as_record(symmetric)]):
        assert_same_map(module, expected, x)
        assert_same_map(symmetric.linear(), expected, x)
        assert_same_map(partial(run, as_record(free)), expected, x)
        assert_same_map(free.linear(), expected, x)


@given(aligned_branches(count=2))
def test_a_lowered_sum_is_the_same_map(branches):
    value = reduce(add, (branch.linear() for branch in branches))
    assert_lowered(value, partial(run_sum, branches), *([b] for b in branches))


@given(chains(length=2))
def test_a_lowered_chain_is_the_same_map(layers):
    try:
        value = reduce(LinearConv.then, (layer.linear() for layer in layers))
    except NotFusable:
        assume(False)
    assert_lowered(value, partial(run_chain, layers), layers)


@st.composite
def torch_convs(draw):
    """Settings that a torch layer has: the same pads on both sides, none negative."""
    axes = draw(st.integers(1, 3))
    settings = []
    for _ in range(axes):
        size = draw(st.integers(1, 4 if axes < 3 else 3))
        dilation = draw(st.integers(1, 3)) if size > 1 else 1
        pad = draw(st.integers(0, 3))
        settings.append((size, draw(st.integers(1, 3)), (pad, pad), dilation))
    border = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    return draw(convs(draw(st.sampled_from([2, 4])), 4, tuple(settings), border))


@given(torch_convs(), st.booleans(), st.integers(0, 3), st.integers(0, 3))
def test_a_convolution_lowers_to_itself(conv, symmetric, before, after):
    """Its dilation too, and however many empty taps it was grown by."""
    grown = conv.linear().grow([(before, after)] * len(conv.stride))
    layer = lower(grown, torch.float64, symmetric=symmetric)
    assert torch.equal(layer.weight, conv.weight)
    assert torch.equal(layer.bias, torch.zeros(4) if conv.bias is None else conv.bias)
    assert layer.stride == conv.stride
    assert layer.pads == conv.pads
    assert layer.dilation == conv.dilation
    assert layer.groups == conv.groups
    assert layer.border == conv.border or not conv.geometry.looks_outside


def test_a_lowered_convolution_loads_into_the_module_that_it_describes():
    conv = Conv(normal(0, 4, 1, 3, 2), normal(1, 4), (2, 1), ((2, 2), (1, 1)), (2, 1), 2, "reflect")
    module = lower(conv.linear(), torch.float32).module()
    fresh = nn.Conv2d(2, 4, (3, 2), (2, 1), (2, 1), (2, 1), 2, padding_mode="reflect")
    assert repr(module) == repr(fresh)
    fresh.load_state_dict(module.state_dict())
    x = image(2, (9, 8)).float()
    assert torch.equal(fresh(x), module(x))


# --- pads -------------------------------------------------------------------------------------


def test_unequal_pads_grow_the_kernel_for_torch_only():
    conv = Conv(normal(0, 2, 2, 2, 3), None, (1, 1), ((0, 1), (2, 1)))
    free = lower(conv.linear(), torch.float64, symmetric=False)
    assert (free.pads, tuple(free.weight.shape[2:])) == (((0, 1), (2, 1)), (2, 3))
    with pytest.raises(ValueError, match="not symmetric"):
        free.module()
    layer = lower(conv.linear(), torch.float64)
    assert (layer.padding, tuple(layer.weight.shape[2:])) == ((1, 2), (3, 4))
    assert_lowered(conv.linear(), partial(run, conv), [conv])


def test_a_crop_becomes_empty_taps():
    conv = Conv(normal(0, 2, 2, 1, 2), None, (1, 1), ((-1, 0), (-2, -1)))
    layer = lower(conv.linear(), torch.float64)
    assert (layer.padding, tuple(layer.weight.shape[2:])) == ((0, 0), (2, 5))
    assert_lowered(conv.linear(), partial(run, conv), [conv])


@pytest.mark.parametrize(
    ("pads", "size", "dilation"),
    [
        ((2, 2), 3, 2),
        ((2, 0), 4, 2),  # a whole step of the dilation: it stays
        ((2, 1), 6, 1),  # half a step: the gaps are written out
        ((-2, 0), 4, 2),
        ((-1, 0), 6, 1),
    ],
)
def test_dilation_is_kept_where_the_pads_allow_it(pads, size, dilation):
    conv = Conv(normal(0, 2, 2, 3), None, (1,), (pads,), (2,))
    layer = lower(conv.linear(), torch.float64)
    assert (layer.weight.shape[2], layer.dilation) == (size, (dilation,))
    assert_lowered(conv.linear(), partial(run, conv), [conv])


def test_the_gaps_of_two_dilations_meet_at_their_common_step():
    two = Conv(normal(0, 1, 1, 3), None, (1,), ((2, 2),), (2,))
    four = Conv(normal(1, 1, 1, 3), None, (1,), ((4, 4),), (4,))
    layer = lower(two.linear() + four.linear(), torch.float64)
    assert (tuple(layer.weight.shape), layer.dilation, layer.padding) == ((1, 1, 5), (2,), (4,))
    x = image(1, (9,))
    assert_same_map(layer.module(), lambda x: run(two, x) + run(four, x), x)


# --- rounding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_numbers_are_rounded_once(dtype, symmetric):
    """What is stored is the float64 number rounded, after sums that need all its digits."""
    f = Conv(normal(0, 6, 2, 1, 1) * 100)
    g = Conv(normal(1, 3, 6, 3, 3), normal(2, 3), pads=((1, 1), (1, 1)))
    cancels = Conv(-0.999 * f.linear().then(g.linear()).kernel, pads=g.pads)
    value = f.linear().then(g.linear()) + cancels.linear()
    exact = lower(value, torch.float64, symmetric=symmetric)
    layer = lower(value, dtype, symmetric=symmetric)
    assert layer.weight.dtype == layer.bias.dtype == dtype
    assert torch.equal(layer.weight, exact.weight.to(dtype))
    assert torch.equal(layer.bias, exact.bias.to(dtype))
    a, b = g.weight, f.weight[..., 0, 0]
    by_hand, size = (torch.einsum("omhw,mi->oihw", *pair) for pair in ((a, b), (a.abs(), b.abs())))
    terms = len(b) + 2  # products, then those that cancel, then this sum itself
    assert_within(exact.weight, 0.001 * by_hand, 2 * gamma(terms) * size)


@pytest.mark.parametrize(
    ("dtype", "fits", "too_large"),
    [(torch.float16, 65504.0, 66000.0), (torch.float32, 3e38, 4e38), (torch.bfloat16, 3e38, 4e38)],
)
@pytest.mark.parametrize("where", ["weight", "bias"])
def test_a_number_too_large_for_the_dtype_is_refused(dtype, fits, too_large, where):
    def with_one(number):
        ones = identity(2)
        return ones.affine(number) if where == "weight" else ones.affine(1.0, number)

    lower(with_one(fits), dtype)
    lower(with_one(too_large), torch.float64)
    with pytest.raises(NotFusable) as refused:
        lower(with_one(too_large), dtype)
    assert refused.value.code == Reason.OVERFLOW
    name = str(dtype).removeprefix("torch.")
    text = f"the fused {where} does not fit into {name}: it reaches {too_large:.1e}, of at most"
    assert refused.value.why.startswith(text)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(number):
    with pytest.raises(NotFusable) as refused:
        lower(identity(2).affine(1.0, number), torch.float64)
    assert refused.value.code == Reason.OVERFLOW
    assert refused.value.why == "the fused bias holds NaN or Inf"
