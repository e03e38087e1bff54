"""Forwards that write borders in place are captured. One that cannot be is taken at a word."""

import pytest
import torch

from acfuse.errors import Reason, UsageError
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS, known_patterns
from acfuse.rewrite import fused_copy
from acfuse.sources.base import FindOptions
from acfuse.sources.live import LiveSource
from sample_models import samples
from sample_models.padded_middle import BNAndPadLayer
from tests.graph.fusing import assert_same

BORDERED = ("dbb", "rrrb")
CAPTURED = {name: sample for name, sample in samples().items() if sample.pattern in BORDERED}
NAME = "padded_middle/dbb_wider"


class DecidesByItsSize(BNAndPadLayer):
    """Another border for images of more than so many rows."""

    def forward(self, x):
        made = super().forward(x)
        return made if int(x.shape[2]) <= self.rows else made * 2


def undecided(rows):
    """A network with such a layer in its block."""
    model = CAPTURED[NAME].build().double()
    layer = model.body.dbb_1x1_kxk.bn1
    layer.__class__, layer.rows = DecidesByItsSize, rows
    return model


@pytest.mark.parametrize("name", CAPTURED)
def test_such_a_block_is_one_convolution(name):
    sample = CAPTURED[name]
    model = sample.build().double()
    findings = find_in_module(model, PATTERNS)
    assert [str(b.pattern).partition("/")[0] for b in findings.found] == [sample.pattern]
    assert not any(block.assumed for block in findings.found)
    fused = fused_copy(model, findings.found)
    assert set(sample.deploy_keys) <= set(fused.state_dict())
    assert_same(model, fused, sample.input_shapes)


@pytest.mark.parametrize("name", CAPTURED)
def test_what_such_a_block_does_besides_is_kept(name):
    model = CAPTURED[name].build().double()
    block = model.get_submodule(find_in_module(model, PATTERNS).found[0].where)
    plain = type(block).forward

    class Other(type(block)):
        def forward(self, *args):
            return torch.tanh(plain(self, *args)) * 1.001

    block.__class__ = Other
    fused = fused_copy(model, find_in_module(model, PATTERNS).found)
    assert_same(model, fused, CAPTURED[name].input_shapes)


def test_a_block_with_a_part_that_cannot_be_read_is_refused():
    model = undecided(32)
    findings = find_in_module(model, PATTERNS)
    assert "dbb" not in {block.pattern for block in findings.found}
    assert Reason.UNTRACEABLE in {refusal.code for refusal in findings.refused}
    fused = fused_copy(model, findings.found)
    assert_same(model, fused, [(1, 3, 11, 14), (2, 3, 64, 40)])


def test_it_is_fused_if_the_user_says_so_and_called_assumed():
    model = undecided(2000)
    source = LiveSource.of(model)
    findings = source.find(FindOptions(known_patterns(assume=["dbb"])))
    assert [(b.pattern, b.assumed) for b in findings.found] == [("dbb", True)]
    assert any("body" in note and "--assume" in note for note in findings.notes)
    fused = source.fuse(findings).model
    assert_same(model, fused, [(1, 3, 11, 14)])
    large = torch.randn(1, 3, 2001, 9, dtype=torch.float64)
    with torch.no_grad():
        assert float((model(large) - fused(large)).abs().max()) > 0.01


def test_a_word_that_a_run_shows_to_be_wrong_is_not_taken():
    model = undecided(8)
    source = LiveSource.of(model)
    fused = source.fuse(source.find(FindOptions(known_patterns(assume=["dbb"]))))
    assert not any(block.assumed for block in fused.found)
    assert_same(model, fused.model, [(1, 3, 11, 14)])


def test_a_word_that_nothing_needs_is_refused():
    source = LiveSource.of(CAPTURED[NAME].build())
    with pytest.raises(UsageError, match="--assume dbb has no effect"):
        source.find(FindOptions(known_patterns(assume=["dbb"])))
