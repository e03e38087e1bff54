"""Transposed convolutions with a stride: what of them is one, is; all else stays as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import acfuse
from acfuse.errors import Reason
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from sample_models import awake
from tests.graph.fusing import (
    Net,
    assert_same,
    conv,
    find,
    fused_and_checked,
    norm,
    refused,
    run_convolutions,
)
from tests.graph.nets import cases, weight
from tests.proof.proving import certified

SHAPES = ((2, 4, 5, 8), (1, 4, 6, 3), (3, 4, 1, 2))


def up(kernel=2, stride=2, channels=(4, 6), **rest):
    """A transposed convolution of 4 to 6 channels that doubles the size, unless told otherwise."""
    return nn.ConvTranspose2d(*channels, kernel, stride, **rest)


def pair(run=lambda m, x: m.a(x) + m.b(x), **parts):
    """A 4 x 4 and a 2 x 2 that double the size, and what is done with them."""
    return Net(run, **({"a": up(4, padding=1), "b": up(2)} | parts))


def _norms(m, x):
    return m.n(m.a(x)) + m.o(m.b(x))


BLOCKS = {
    "added": pair(),
    "subtracted": pair(lambda m, x: m.a(x) - 0.5 * m.b(x)),
    "three": pair(lambda m, x: m.a(x) + m.b(x) + m.c(x), c=up(3, padding=1, output_padding=1)),
    "norms": pair(_norms, n=norm(6), o=norm(6), a=up(4, padding=1, bias=False)),
    "norm_behind": pair(lambda m, x: m.n(m.a(x) + m.b(x)), n=norm(6)),
    "factors": pair(lambda m, x: m.g * m.a(x) + m.b(x), g=weight(6, 1, 1)),
    "groups": pair(a=up(4, padding=1, groups=2), b=up(2, groups=2)),
    "depthwise": pair(a=up(4, channels=(4, 4), padding=1, groups=4),
                      b=up(2, channels=(4, 4), groups=4, bias=False)),
    "mixed_groups": pair(a=up(4, padding=1), b=up(2, groups=2)),
    "two_strides": pair(a=up((3, 4), (3, 2), padding=(0, 1)), b=up((3, 2), (3, 2))),
    "one_stride_of_two": pair(a=up((3, 4), (1, 2), padding=1), b=up((1, 2), (1, 2))),
    "dilated": pair(a=up(2, dilation=2, padding=1, output_padding=1), b=up(4, padding=1)),
    "output_padding": pair(a=up(3, 3, padding=1, output_padding=2), b=up(1, 3, output_padding=2)),
    "larger_steps_than_windows": pair(a=up((2, 1), 3), b=up((2, 1), 3)),
    "cropped": pair(lambda m, x: m.a(x)[:, :, 1:-1, 1:-1] + m.b(x), a=up(4)),
    "pointwise_behind": Net(lambda m, x: m.c(m.a(x)), a=up(4, padding=1), c=conv(1, 0, (6, 5))),
    "norm_and_pointwise_behind": Net(lambda m, x: m.c(m.n(m.a(x))), a=up(3, padding=1), n=norm(6),
                                     c=conv(1, 0, (6, 5), bias=False)),
    "pointwise_before": Net(lambda m, x: m.a(m.c(x)), c=conv(1, 0, (4, 9), bias=False),
                            a=up(4, channels=(9, 6), padding=1)),
    "factor_before": pair(lambda m, x: m.a(2 * x) + m.b(m.g * x), g=weight(4, 1, 1)),
    "functional": Net(lambda m, x: F.conv_transpose2d(x, m.w, m.v, 2, 1) + m.b(x), b=up(2),
                      w=weight(4, 6, 4, 4), v=weight(6)),
    "by_name": Net(lambda m, x: F.conv_transpose2d(x, stride=2, weight=m.w, groups=2,
                                                   output_padding=1) + m.c(x),
                   w=weight(4, 3, 3, 3), c=up(4)),
    "taken_apart": pair(lambda m, x: m.a(x)[:, :3] + m.b(x)[:, 3:], a=up(2), b=up(2)),
    "with_a_convolution_of_stride_1": pair(
        lambda m, x: m.a(x) + m.b(m.c(x)), c=up(1, 1, (4, 4), bias=False)),
}  # fmt: skip


@cases(BLOCKS)
def test_what_is_one_transposed_convolution_becomes_one(net):
    fused = fused_and_checked(net, shapes=SHAPES)
    kinds = [type(m) for m in fused.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    assert len(kinds) == 1
    assert issubclass(kinds[0], nn.modules.conv._ConvTransposeNd)


def test_of_one_axis_and_of_three():
    line = Net(lambda m, x: m.a(x) + m.b(x), a=nn.ConvTranspose1d(4, 3, 4, 2, 1),
               b=nn.ConvTranspose1d(4, 3, 2, 2))  # fmt: skip
    fused_and_checked(line, shapes=((2, 4, 7), (1, 4, 1)))
    cube = Net(lambda m, x: m.a(x) + m.b(x),
               a=nn.ConvTranspose3d(4, 3, (1, 4, 3), (1, 2, 3), (0, 1, 0)),
               b=nn.ConvTranspose3d(4, 3, (1, 2, 1), (1, 2, 3), output_padding=(0, 0, 2)),
               )  # fmt: skip
    fused_and_checked(cube, shapes=((2, 4, 2, 3, 4), (1, 4, 1, 1, 1)))


def test_branches_beside_another_input_are_one_each():
    net = pair(
        lambda m, x: (lambda y, z: m.a(y) + m.n(m.b(y)) + m.c(z) + m.d(z))(m.p(x), torch.relu(x)),
        p=nn.Sequential(conv(2, 0, stride=2), nn.ReLU()),
        n=norm(6),
        c=conv(3, 1, (4, 6)),
        d=conv(1, 0, (4, 6)),
    )
    shapes = ((2, 4, 10, 16), (1, 4, 6, 8))
    fused_and_checked(net, convolutions=3, shapes=shapes)


FOLDS = {
    "norm": Net(lambda m, x: m.n(m.a(x)), a=up(4, padding=1, bias=False), n=norm(6)),
    "norm_of_groups": Net(lambda m, x: m.n(m.a(x)), a=up(3, groups=2), n=norm(6)),
    "factor": Net(lambda m, x: m.g * m.a(x), a=up(), g=weight(6, 1, 1)),
    "norm_in_a_sequence": Net(lambda m, x: m.s(x).relu(), s=nn.Sequential(up(3), norm(6))),
}


@cases(FOLDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_norm_behind_is_taken_up(net, dtype):
    net = awake(copy.deepcopy(net).to(dtype), 0)
    assert find(net).blocks == ()
    (fold,) = find_in_module(net, PATTERNS, folds=True).found
    fused = fused_copy(net, [fold])
    assert certified(fused, fold).fault == ""
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert run_convolutions(fused, torch.ones(1, 4, 3, 4, dtype=dtype)) == 1
    assert_same(net, fused, SHAPES, dtype)


def test_a_whole_decoder_is_fused_and_verified():
    net = nn.Sequential(
        conv(3, 1, (4, 8)), nn.BatchNorm2d(8), nn.ReLU(),
        pair(_norms, a=up(4, channels=(8, 6), padding=1), b=up(2, channels=(8, 6)), n=norm(6),
             o=norm(6)),
        nn.ReLU(), up(3, 2, (6, 4), padding=1, output_padding=1, bias=False), norm(4),
    )  # fmt: skip
    net = awake(net, 0)
    for folds, blocks in ((False, 1), (True, 3)):
        result = acfuse.fuse(net, fold_bn=folds)
        assert len(result.found) == blocks
        assert acfuse.verify(net, result.model, (2, 4, 5, 6), fold_bn=folds).passed
        assert find_in_module(result.model, PATTERNS).found == ()


REFUSED = {
    "biased_pointwise_before": (
        Net(lambda m, x: m.a(m.c(x)), c=conv(1, 0, (4, 9)), a=up(4, channels=(9, 6), padding=1)),
        Reason.PADDED_MIDDLE,
    ),
    "norm_before": (
        pair(lambda m, x: m.a(m.n(x)) + m.b(x), n=norm()),
        Reason.PADDED_MIDDLE,
    ),
    "wide_behind": (
        Net(lambda m, x: m.c(m.a(x)), a=up(4, padding=1), c=conv(3, 1, (6, 9))),
        Reason.PADDED_MIDDLE,
    ),
    "a_step_behind": (
        Net(lambda m, x: m.c(m.a(x)), a=up(2, bias=False), c=conv(2, 0, (6, 9), stride=2)),
        Reason.STRIDES,
    ),
    "a_step_before": (
        Net(lambda m, x: m.a(m.c(x)), c=conv(1, 0, (4, 4), stride=2, bias=False), a=up(2)),
        Reason.STRIDES,
    ),
    "reflected_before": (
        Net(lambda m, x: m.a(m.c(x)), a=up(2),
            c=conv((1, 3), channels=(4, 4), padding_mode="reflect", bias=False)),
        Reason.BORDERS,
    ),
    "an_activation": (pair(lambda m, x: m.a(x).relu() + m.b(x).relu()), Reason.ACTIVATION),
    "told_its_size": (
        pair(lambda m, x: m.a(x, [10, 16]) + m.b(x, [10, 16]), a=up(3, padding=1),
             b=up(1)),
        Reason.UNKNOWN_LAYER,
    ),
    "dearer": (pair(a=up(4, padding=1, groups=2), b=up(2)), Reason.COST),
    "side_by_side": (pair(lambda m, x: torch.cat([m.a(x), m.b(x)], 1)), Reason.CONCATENATED),
    "no_layer_of_its_window": (
        Net(lambda m, x: m.n(m.a(x)), n=norm(6),
            a=up(1, (4, 1), dilation=(1, 2), output_padding=(3, 1))),
        None,
    ),
    "more_weights": (
        Net(lambda m, x: m.c(m.a(x)), a=up(2, channels=(4, 2), bias=False), c=conv(1, 0, (2, 30))),
        Reason.COST,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("net", "code"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_no_transposed_convolution_stays(net, code):
    refused(net, *filter(None, [code]), shapes=((2, 4, 5, 8),))
    if code is None:
        assert find_in_module(net.eval(), PATTERNS, folds=True).found == ()


def test_outputs_that_only_broadcast_to_one_size_stay():
    refused(pair(b=up(1)), Reason.SIZES, shapes=((2, 4, 1, 1),))
    refused(pair(a=up(2, (1, 2)), b=up(2, (2, 2))), Reason.STRIDES, shapes=((2, 4, 1, 3),))
    refused(pair(a=up(2), b=up(2, channels=(4, 1))), Reason.CHANNELS, shapes=((2, 4, 2, 3),))


def test_weights_that_are_computed_are_rounded_once():
    normed = nn.utils.parametrizations.weight_norm(up(4, padding=1), dim=1)
    fused_and_checked(pair(a=normed), shapes=SHAPES)
