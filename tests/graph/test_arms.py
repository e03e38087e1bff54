"""The branches that a reader is shown are those that are added up, in every sample and source."""

from dataclasses import replace
from functools import reduce

import pytest
import torch
from torch import nn

from acfuse.algebra import added
from acfuse.find import find_in_module
from acfuse.graph.arms import in_words
from acfuse.graph.fx_read import layer_rule
from acfuse.patterns import PATTERNS, known_patterns
from acfuse.patterns.match import find_in_tensors
from acfuse.pipeline.walk import drawn
from acfuse.sources.onnx import fuse_onnx
from sample_models import awake, samples
from tests.bounds import assert_within, differ, gamma
from tests.graph.fusing import Net, conv, norm
from tests.graph.onnx_files import exported

BLOCKS = {name: sample for name, sample in samples().items() if sample.blocks}
BARE = {name: sample for name, sample in BLOCKS.items() if sample.pattern and sample.bare}


def sum_of(arms, source):
    """The arms of one source, added, and how far rounding may move that."""
    values = [arm.value for arm in arms.arms if arm.source == source]
    total = reduce(added, values)
    magnitudes = [
        replace(value, kernel=value.kernel.abs(), bias=value.bias.abs()) for value in values
    ]
    most = reduce(added, magnitudes)
    return total, gamma(4 * len(values)) * most.kernel, gamma(4 * len(values)) * most.bias


def assert_adds_up(block):
    """Where nothing stands behind the sum, it is the block's convolution, number for number."""
    arms = block.arms()
    assert arms.arms
    if arms.behind:
        return False
    for term in block.terms:
        if term.value is not None:
            total, kernel, bias = sum_of(arms, term.source)
            expected = term.value.regroup(total.groups)
            assert_within(total.kernel, expected.kernel, kernel)
            if len(block.terms) == 1:
                assert_within(total.bias, expected.bias, bias)
    return True


@pytest.mark.parametrize("name", BLOCKS)
def test_the_branches_of_a_module_are_those_that_are_added(name):
    for block in find_in_module(BLOCKS[name].build(), PATTERNS).found:
        assert_adds_up(block)


@pytest.mark.parametrize("name", BARE)
def test_the_branches_of_bare_tensors_are_those_that_are_added(name):
    sample = BARE[name]
    tensors = sample.build().state_dict()
    for block in find_in_tensors(tensors, PATTERNS, sample.bn_eps).found:
        assert_adds_up(block)


def crossed(m, x):
    return m.n(m.a(x)) - m.b(x) + (m.c(x) + x)


CROSSED = {"a": conv((1, 3)), "n": norm(), "b": conv((3, 1)), "c": conv(3)}


@pytest.mark.parametrize("read", [lambda m: find_in_module(m, PATTERNS).found,
                                  lambda m: fuse_onnx(exported(m, 1)).found],
                         ids=["live", "onnx"])  # fmt: skip
def test_each_branch_has_its_layers_its_taps_and_its_bias(read):
    model = awake(Net(crossed, **CROSSED).double(), 0)
    (block,) = read(model)
    assert assert_adds_up(block)
    arms = block.arms().arms
    assert [*drawn(arms)] == [
        ("...", "###", "..."),
        (".#.", ".#.", ".#."),
        ("###", "###", "###"),
        ("...", ".#.", "..."),
    ]
    words = [[what for _, what, _ in arm.layers] for arm in arms]
    assert words[0][0].startswith("convolution 1x3, 4 -> 4, padding 0x1")
    assert words[1][-1] == "times -1"
    assert words[3] == []
    assert arms[1].bias == -float(model.b.bias.detach()[0])  # nothing is rounded


def test_what_stands_behind_the_sum_is_told_apart():
    net = Net(lambda m, x: m.n(m.a(x) + m.b(x)), a=conv(3), b=conv(1), n=norm())
    (block,) = find_in_module(awake(net, 0), PATTERNS).found
    arms = block.arms()
    assert [name for name, _, _ in arms.behind] == ["n"]
    assert arms.behind[0][2] == float(block.terms[0].value.bias[0])
    assert len(arms.arms) == 2


def test_a_chain_is_one_branch():
    net = nn.Sequential(conv(3), norm())
    (fold,) = find_in_module(awake(net, 0), PATTERNS, folds=True).found
    assert len(fold.arms().arms) == 1
    assert assert_adds_up(fold)


def test_linear_layers_and_large_windows_are_not_drawn():
    rows = Net(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    wide = Net(lambda m, x: m.a(x) + m.b(x), a=conv(35), b=conv(1))
    for net in (rows, wide):
        (block,) = find_in_module(awake(net, 0), PATTERNS).found
        assert [*drawn(block.arms().arms)] == [(), ()]


def test_a_wrong_branch_would_not_add_up():
    (block,) = find_in_module(awake(Net(crossed, **CROSSED).double(), 0), PATTERNS).found
    arms = block.arms()
    wrong = replace(arms.arms[1], value=arms.arms[1].value.affine(-1.0))
    total, kernel, _ = sum_of(replace(arms, arms=(arms.arms[0], wrong, *arms.arms[2:])), "x")
    assert differ(total.kernel, block.terms[0].value.regroup(total.groups).kernel, kernel)
    assert torch.count_nonzero(wrong.value.kernel)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (conv(3, channels=(4, 8), stride=(1, 2), groups=2, bias=False),
         "convolution 3x3, 4 -> 8, stride 1x2, padding 1x1, groups 2"),
        (conv(3, 2, dilation=2, padding_mode="reflect"),
         "convolution 3x3, 4 -> 4, padding 2x2, dilation 2x2 (reflect), with bias"),
        (nn.ConvTranspose2d(4, 6, 2, 2, bias=False),
         "transposed convolution 2x2, 4 -> 6, stride 2x2, padding 0x0"),
        (nn.AvgPool2d(3, 2, 1), "average pooling 3x3, stride 2x2"),
        (nn.ZeroPad2d((1, 2, 0, -1)), "padding 0/-1x1/2"),
        (norm(), "factor and shift per channel"),
        (nn.Linear(4, 6), "linear layer, 4 -> 6, with bias"),
    ],
)  # fmt: skip
def test_a_layer_is_told_with_what_decides_where_it_looks(layer, words):
    axes = 0 if isinstance(layer, nn.Linear) else 2
    assert in_words(layer_rule(layer.eval(), axes)) == words


def test_what_a_pattern_takes_away_is_told_so(tmp_path):
    house = tmp_path / "house.toml"
    house.write_text('[[pattern]]\nname = "less"\nblock = "(a - b) > n"\nfused = "one"\n')
    net = awake(Net(lambda m, x: m.n(m.a(x) - m.b(x)), a=conv(3), b=conv(1), n=norm()), 0)
    (block,) = find_in_tensors(net.state_dict(), known_patterns([house]), 1e-5).found
    told = block.arms()
    plus, minus = told.arms
    assert plus.bias == float(net.a.bias.detach()[0])
    assert minus.bias == -float(net.b.bias.detach()[0])
    assert minus.layers[-1] == ("", "times -1", None)
    assert told.behind == (("n", "factor and shift per channel", None),)
