"""Sums told one by one: those that blocks are made of, and each reason to refuse one."""

from functools import partial, reduce
from operator import add

import pytest

from acfuse.algebra import AvgPool, Conv, Pad, identity
from acfuse.errors import NotFusable, Reason
from tests.algebra.compare import assert_same_map
from tests.algebra.reference import images_for, normal, run_sum


def conv(high, wide, pads=(0, 0), stride=1, bias=False, border="zeros", out=3):
    """A convolution of three channels; `pads` over and under, then left and right."""
    return Conv(
        normal(10 * high + wide, out, 3, high, wide),
        normal(1, out) if bias else None,
        stride=(stride, stride),
        pads=tuple((pad, pad) for pad in pads),
        border=border,
    )


COPY = Pad(3, ((0, 0), (0, 0)))


@pytest.mark.parametrize(
    "branches",
    [
        pytest.param((conv(3, 3, (1, 1)), conv(3, 1, (1, 0)), conv(1, 3, (0, 1))), id="acnet"),
        pytest.param((conv(3, 3, (1, 1)), conv(1, 1, bias=True), COPY), id="repvgg"),
        pytest.param((conv(3, 3, (1, 1), 2), conv(1, 1, stride=2)), id="repvgg, stride 2"),
        pytest.param((conv(5, 5, (2, 2)), conv(3, 3, (1, 1))), id="large kernel"),
        pytest.param((conv(1, 1), AvgPool(3, (3, 3), (1, 1), ((1, 1), (1, 1)))), id="pool"),
        pytest.param((conv(3, 3), Pad(3, ((-1, -1), (-1, -1)))), id="crop"),
        pytest.param((conv(2, 2), Pad(3, ((0, -1), (-1, 0)))), id="even kernel"),
        pytest.param(
            (conv(3, 3, (1, 1), border="reflect"), conv(1, 1)), id="one looks past the edge"
        ),
    ],
)
def test_sums_that_blocks_are_made_of(branches):
    fused = reduce(add, (branch.linear() for branch in branches))
    for x in images_for(branches):
        assert_same_map(fused, partial(run_sum, branches), x)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (conv(3, 3, (1, 1), 2), Reason.STRIDES),
        (conv(3, 3, (1, 0)), Reason.SIZES),
        (conv(3, 3), Reason.SIZES),
        (conv(3, 3, (1, 1), out=1), Reason.CHANNELS),  # kernels must never broadcast
        (Pad(1, ((0, 0), (0, 0))), Reason.CHANNELS),
        (Pad(3, ((0, 0),)), Reason.SIZES),
        (conv(3, 3, (1, 1), border="reflect"), Reason.BORDERS),
        (conv(1, 3, (0, 1), border="circular"), Reason.BORDERS),
    ],
)
def test_branches_that_do_not_fit_have_no_sum(other, reason):
    one = conv(3, 3, (1, 1))
    for a, b in ((one, other), (other, one)):
        with pytest.raises(NotFusable) as refused:
            a.linear() + b.linear()
        assert refused.value.code == reason
        with pytest.raises(NotFusable) as refused:
            a.geometry + b.geometry
        assert refused.value.code == reason


@pytest.mark.parametrize("biased", [(True, False), (False, True), (True, True)])
def test_a_bias_in_any_branch_keeps_a_zero_padded_layer_away(biased):
    a, b = (conv(1, 1, bias=has_bias).linear() for has_bias in biased)
    with pytest.raises(NotFusable) as refused:
        (a + b).then(conv(3, 3, (1, 1)).linear())
    assert refused.value.code == Reason.PADDED_MIDDLE


def test_a_sum_of_one_branch_and_its_opposite_is_nothing():
    value = conv(3, 3, (1, 1), bias=True).linear()
    nothing = value + value.affine(-1.0)
    assert not nothing.kernel.any()
    assert not nothing.bias.any()
    assert not (identity(3) + identity(3).affine(-1.0)).kernel.any()
