"""What fusing does to ranges: measured of the branches and of what they became, and told once."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import acfuse
from acfuse.errors import NotFusable, Reason
from acfuse.findings import Arm, Arms
from acfuse.int8.ranges import WIDE, Ranges, ranges_of
from acfuse.pipeline.ranges import (
    BlockRanges,
    cautions_of,
    cells,
    headings,
    in_short,
    ranges_of_blocks,
    summary_of,
    worst_of,
)
from acfuse.system.escape import as_json
from sample_models import awake, samples
from tests.reports.runs import conversion

SAMPLES = samples()


class Rep(nn.Module):
    """A 3x3 branch, a 1x1 branch and the input itself, each with its BatchNorm."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b = nn.Conv2d(channels, channels, 1, bias=False)
        self.a_bn, self.b_bn, self.id_bn = (nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x):
        return self.a_bn(self.a(x)) + self.b_bn(self.b(x)) + self.id_bn(x)


def healthy(channels=8):
    """Branches of like sizes: weights of each channel lie evenly between -1 and 1."""
    model, generator = Rep(channels).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for conv in (model.a, model.b):
            conv.weight.uniform_(-1, 1, generator=generator)
    return model


def widened(factor=64.0):
    """The same with one channel of one branch whose gamma over sigma is large."""
    model = healthy()
    with torch.no_grad():
        model.a_bn.weight[5] = factor / 8
        model.a_bn.running_var[5] = 1 / 64
    return model


def blocks_of(model):
    fused = acfuse.fuse(model)
    return fused, ranges_of_blocks(fused)


def folded(conv, norm):
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (conv.weight * factor[:, None, None, None]).detach()


def test_before_is_the_branch_that_loses_most_and_after_what_is_stored():
    model = widened()
    fused, (ranges,) = blocks_of(model)
    branches = [ranges_of(folded(model.a, model.a_bn)), ranges_of(folded(model.b, model.b_bn))]
    worst = max(branches, key=lambda own: own.per_tensor)
    assert vars(ranges.before) == pytest.approx(vars(worst), rel=1e-6)
    (weight, _) = next(iter(fused.weights.values()))
    assert ranges.after == ranges_of(weight)


def test_a_block_whose_ranges_widen_is_told_of_and_a_healthy_one_is_not():
    fused, ranges = blocks_of(widened())
    assert ranges[0].is_wide
    # The channel is 64 times the others, but for what was added to it and to them.
    assert ranges[0].after.shared > math.log2(64) - 2
    (caution,) = cautions_of(fused.found, ranges)
    assert caution.code == Reason.WIDE_RANGES
    assert str(caution).endswith("or quantize per channel [ACF232]")
    assert "in 1 of 1 blocks, most in" in str(caution)
    assert f"{ranges[0].after.per_tensor:.1f} bits per tensor" in str(caution)
    fused, ranges = blocks_of(healthy())
    assert not ranges[0].is_wide
    assert cautions_of(fused.found, ranges) == ()


def test_branches_of_different_scales_widen_each_channel_and_not_the_layer():
    """The diagonal of an identity is large in every channel: a grid for each would lose as much."""
    model = healthy(16)
    with torch.no_grad():
        model.id_bn.weight.fill_(64.0)
    _, (ranges,) = blocks_of(model)
    assert ranges.after.per_tensor > WIDE
    assert ranges.after.per_channel > WIDE
    assert not ranges.is_wide


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample.blocks])
def test_every_block_of_every_family_is_known_and_no_sample_is_wide(name):
    fused, ranges = blocks_of(SAMPLES[name].build())
    assert len(ranges) == len(fused.found)
    for own in ranges:
        assert own.after is not None
        assert own.after.per_channel <= own.after.per_tensor < math.inf
    assert cautions_of(fused.found, ranges) == ()


def test_the_conversion_keeps_those_of_its_blocks():
    made = conversion()
    assert made.ranges == ranges_of_blocks(made.fused)
    assert made.cautions == ()


def test_the_worst_is_the_widest_and_then_what_loses_most():
    mild, wide = Ranges(1.0, 4.0, 3.9), Ranges(8.0, 3.5, 0.5)
    none, one, other = BlockRanges(), BlockRanges(mild, mild), BlockRanges(None, wide)
    assert worst_of([none, one, other]) is other
    assert worst_of([none, one]) is one
    assert worst_of([none]) is None
    assert worst_of([]) is None
    unknown = BlockRanges(mild, Ranges(math.nan, math.nan, math.nan))
    assert worst_of([other, unknown]) is unknown


def test_figures_stand_before_and_after_and_what_is_not_known_is_left_out():
    both = BlockRanges(Ranges(2.0, 1.0, 0.25), Ranges(4.0, 3.0, 0.5))
    assert in_short(both) == "1.0 -> 3.0"
    assert in_short(both, "spread") == "2.0 -> 4.0"
    assert in_short(BlockRanges(None, both.after)) == "3.0"
    assert in_short(BlockRanges(None, Ranges(1.0, -0.04, -0.06))) == "0.0"
    assert in_short(BlockRanges()) == in_short(None) == ""
    for verbose in (False, True):
        assert len(cells([both], verbose=verbose)) == len(headings(verbose=verbose))
    assert cells([both], verbose=True) == ("1.0 -> 3.0", "0.2 -> 0.5", "2.0 -> 4.0")
    assert summary_of((), ()) == ""


@pytest.mark.parametrize("number", [1.5, math.nan, math.inf])
def test_a_manifest_gives_back_what_was_written(number):
    own = BlockRanges(None, Ranges(number, 1.25, -0.5))
    read = BlockRanges.of_json(json.loads(as_json(own.to_json())))
    assert vars(read.after) == pytest.approx(vars(own.after), nan_ok=True)
    assert read.before is None
    assert BlockRanges.of_json(None) == BlockRanges()
    later = {"before": None, "after": {"new": "word", **own.to_json()["after"]}, "new": 1}
    assert vars(BlockRanges.of_json(later).after) == pytest.approx(vars(own.after), nan_ok=True)


def test_of_a_name_that_is_made_to_be_obeyed_the_text_is_only_data():
    fused, ranges = blocks_of(nn.Sequential(widened()))
    (caution,) = cautions_of([replace(fused.found[0], where="a\n::error::b")], ranges)
    assert "a\n::error::b" in caution.text  # who shows it makes it safe


def refuse():
    raise NotFusable(Reason.OVERFLOW, "it divides by zero")


@pytest.mark.parametrize(
    "arms", [refuse, lambda: Arms((Arm("x", (), None),)), lambda: Arms(()), None]
)
def test_branches_that_are_not_known_are_left_out(arms):
    fused, (known,) = blocks_of(healthy())
    block = replace(fused.found[0], arms=arms)
    other = replace(fused, findings=replace(fused.findings, found=(block,)))
    assert ranges_of_blocks(other) == (BlockRanges(None, known.after),)


def test_a_network_in_float16_is_measured_too():
    fused, (ranges,) = blocks_of(awake(widened(), 0).half())
    assert ranges.after == ranges_of(next(iter(fused.weights.values()))[0])
    assert math.isfinite(ranges.before.per_tensor)
