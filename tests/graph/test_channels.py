"""Channels that are put side by side, or taken apart, stay linear; they are followed if cheaper."""

import pytest
import torch
from torch import nn

from acfuse.algebra import Conv
from acfuse.errors import Reason
from acfuse.find import find_in_module
from acfuse.graph.combination import IDENTITY, LinearCombination
from acfuse.graph.steps import ChannelSlice, Combiner, ConvStep, Graph, Step, geometry_of
from acfuse.patterns import PATTERNS
from acfuse.sources.onnx import fuse_onnx
from sample_models import awake
from tests.bounds import assert_within, rounding
from tests.graph.fusing import Net, find, fused_and_checked, images, norm, refused, run_convolutions
from tests.graph.onnx_files import answers, convolutions, exported
from tests.graph.programs import SIZES


def conv(into: int, out: int, size: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, size, 1, size // 2)


def _sum_of_parts(m, x):
    first, second = torch.split(m.a(x), [2, 4], dim=1)
    return torch.relu(m.b(first) + m.c(second))


def _difference_of_chunks(m, x):
    first, second = m.a(x).chunk(2, 1)
    return torch.relu(first - second)


FUSED = {
    "arms of one size": (
        lambda m, x: torch.relu(torch.cat([m.a(x), m.b(x)], 1)),
        {"a": conv(4, 6), "b": conv(4, 2)},
    ),
    "arms with norms": (
        lambda m, x: torch.relu(torch.cat((m.n(m.a(x)), m.o(m.b(x))), dim=-3)),
        {"a": conv(4, 4, 3), "b": conv(4, 4, 3), "n": norm(), "o": norm()},
    ),
    "a mixer behind": (
        lambda m, x: torch.relu(m.c(torch.cat([m.a(x), m.b(x)], 1))),
        {"a": conv(4, 6), "b": conv(4, 2), "c": conv(8, 3)},
    ),
    "parts that are mixed": (
        _sum_of_parts,
        {"a": conv(4, 6, 3), "b": conv(2, 3), "c": conv(4, 3)},
    ),
    "slices": (
        lambda m, x: torch.relu(m.a(x)[:, :3] + m.b(x)[:, 1:]),
        {"a": conv(4, 4, 3), "b": conv(4, 4)},
    ),
    "chunks": (_difference_of_chunks, {"a": conv(4, 6, 3)}),
}


@pytest.mark.parametrize("name", FUSED)
def test_channels_are_followed(name):
    run, parts = FUSED[name]
    fused_and_checked(Net(run, **parts), convolutions=1)


LEFT = {
    "arms of two sizes": (
        lambda m, x: torch.relu(torch.cat([m.a(x), m.b(x)], 1)),
        {"a": conv(4, 6, 3), "b": conv(4, 2)},
        Reason.CONCATENATED,
    ),
    "rows side by side": (
        lambda m, x: torch.relu(torch.cat([m.a(x), m.b(x)], 2)),
        {"a": conv(4, 4), "b": conv(4, 4)},
        Reason.CONCATENATED,
    ),
    "a channel that is added to all": (
        lambda m, x: torch.relu(torch.cat([m.a(x), m.b(x) + x.mean(1, keepdim=True)], 1)),
        {"a": conv(4, 4), "b": conv(4, 4)},
        None,
    ),
    "a dense layer's input": (
        lambda m, x: torch.relu(torch.cat([x, m.a(x)], 1)),
        {"a": conv(4, 4, 3)},
        None,
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_channels_stay_where_it_would_be_dearer_or_not_exact(name):
    run, parts, code = LEFT[name]
    refused(Net(run, **parts), *([code] if code else []))


def test_a_partial_convolution_stays_partial():
    """The rest of the channels passes for nothing; in one convolution it would cost."""

    def run(m, x):
        first, rest = x.split((1, 3), 1)
        return torch.relu(torch.cat([m.a(first), rest], 1))

    net = Net(run, a=conv(1, 1, 3))
    assert find(net.eval()).found == ()


def test_parts_that_are_used_twice_are_computed_once():
    def run(m, x):
        first, second = m.a(x).chunk(2, 1)
        return torch.relu(first + m.b(second)) * torch.sigmoid(second)

    net = Net(run, a=conv(4, 6, 3), b=conv(3, 3)).double().eval()
    (image,) = images(((1, 4, 9, 8),))
    assert run_convolutions(net, image) == 2
    assert all(block.convolutions[1] <= 2 for block in find(net).found)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", FUSED)
def test_channels_are_followed_in_onnx_files(name, dynamo):
    run, parts = FUSED[name]
    model = awake(Net(run, **parts).double(), 0)
    original = exported(model, 1, dynamo=dynamo)
    fused = fuse_onnx(original)
    assert convolutions(fused.model) == 1, fused.refused
    for image in images(SIZES):
        (expected,), (given,) = (answers(m, image) for m in (original, fused.model))
        assert_within(given, expected, rounding(model, image))


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_a_part_that_is_used_elsewhere_stays(dynamo):
    def run(m, x):
        first, second = torch.split(torch.relu(m.a(x)), [2, 4], dim=1)
        return m.b(first) + m.c(first[:, :, 1:-1, 1:-1]), second

    parts = {"a": conv(4, 6, 3), "b": nn.Conv2d(2, 3, 3), "c": conv(2, 3)}
    model = awake(Net(run, **parts).double(), 0)
    original = exported(model, 2, dynamo=dynamo)
    fused = fuse_onnx(original)
    assert convolutions(fused.model) == 2
    for image in images(SIZES):
        expected, given = (answers(m, image) for m in (original, fused.model))
        assert_within(given, expected, rounding(model, image))


class _Dense(nn.Module):
    """Each layer reads all before it, side by side."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * i) for i in range(layers))
        self.convs = nn.ModuleList(conv(4 + 3 * i, 3, 3) for i in range(layers))

    def forward(self, x):
        for norm_, conv_ in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv_(torch.relu(norm_(x)))], 1)
        return x


@pytest.mark.parametrize("folds", [False, True])
def test_a_plan_allocates_nothing_however_many_channels_stand_side_by_side(monkeypatch, folds):
    model = awake(_Dense(12), 0).eval()

    def matrix(*size, **_):
        raise AssertionError(f"a matrix of {size} for a plan")

    monkeypatch.setattr("acfuse.graph.steps.torch.zeros", matrix)
    assert find_in_module(model, PATTERNS, folds=folds).found == ()


def test_channels_are_planned_as_they_are_multiplied():
    for part in (slice(1, 6, 2), slice(0, 3), (1, 3)):
        rule = ChannelSlice(part)
        layer = Conv(torch.randn(7, 4, 3, 1), torch.randn(7), pads=((1, 1), (0, 0)))
        step = Step("y", ("x",), ConvStep(layer))
        graph = Graph((step,), ("x",), frozenset("y"), spatial_rank=2)
        bound = {"x": LinearCombination({"x": IDENTITY})}
        plan, made = (
            Combiner(graph, at).apply(rule, [Combiner(graph, at).of(graph, "y", bound)])["x"]
            for at in (None, torch.device("cpu"))
        )
        assert geometry_of(plan) == geometry_of(made)
        assert torch.equal(made.kernel, layer.linear().kernel[rule.channels(7)])
