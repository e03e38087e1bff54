"""The way back: fused keys load, strictly, into the form that the authors' code builds.

And the way in: a checkpoint of each family converts by one command, whatever lies around it.
"""

import copy
from functools import cache

import pytest
import torch

import acfuse
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.patterns.registry import assumed
from acfuse.rewrite import fused_copy
from sample_models import samples
from tests.bounds import differ, rounding
from tests.families.deploy import FORMS, deployed
from tests.graph.fusing import assert_same, images

SAMPLES = samples()
BARE = [pattern for pattern in PATTERNS if not pattern.ambiguity or pattern.assumption]
NESTS = {
    "state_dict": lambda t: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in t.items()}},
    "model": lambda t: {"model": {f"backbone.0.{k}": v for k, v in t.items()}, "optimizer": {}},
    "flat": lambda t: {f"encoder.stage.{k}": v for k, v in t.items()},
}


@cache
def blocks_of(name):
    """Where the blocks of a sample are."""
    sample = SAMPLES[name]
    tensors = sample.build().state_dict()
    patterns = assumed(PATTERNS, sample.assume)
    return acfuse.fuse_tensors(tensors, bn_eps=sample.bn_eps, patterns=patterns)


WAYS = [(name, "bare") for name in FORMS]
WAYS += [(name, "live") for name, form in FORMS.items() if form.live]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_fused_keys_load_into_the_authors_deploy_form(name, way):
    form, sample = FORMS[name], SAMPLES[name]
    original = sample.build()
    bare = blocks_of(name)
    (block,) = bare.found
    tensors = bare.tensors
    if way == "live":
        tensors = fused_copy(original, find_in_module(original, PATTERNS).found).state_dict()
    network = deployed(original, block.where, form)
    network.load_state_dict(tensors, strict=True)
    assert_same(original, network, sample.input_shapes, torch.float32)


def test_a_stale_deploy_form_is_told_from_the_right_one():
    name = "repvgg/identity"
    original = SAMPLES[name].build()
    network = deployed(original, "body", FORMS[name])
    tensors = dict(blocks_of(name).tensors)
    tensors["body.rbr_reparam.weight"] = tensors["body.rbr_reparam.weight"] * 1.001
    network.load_state_dict(tensors, strict=True)
    (image,) = images(SAMPLES[name].input_shapes[:1], torch.float32)
    with torch.no_grad():
        expected, given = original(image), network(image)
    assert differ(given, expected, rounding(original, image, dtype=torch.float32))
    with pytest.raises(RuntimeError, match="rbr_reparam"):
        network.load_state_dict(original.state_dict(), strict=True)


def test_every_family_with_a_deploy_form_has_one_here():
    without = {
        "repvit": "the block is replaced by its convolution",
        "repnext": "the block is replaced by its square",
        "slak": "the authors' conversion needs a branch that the block has not",
        "rrrb": "the authors' script renames every key that holds the letters rep",
        "repoptimizer": "the target network is trained as it is",
    }
    families = {str(SAMPLES[name].pattern) for name in FORMS}
    assert {p.family for p in PATTERNS} == families | set(without)


def sample_of(pattern):
    """A sample in which a pattern is found, and what is made of it."""
    for name, sample in SAMPLES.items():
        if sample.pattern == pattern.family and sample.blocks:
            fused = blocks_of(name)
            if pattern.name in {block.pattern for block in fused.found}:
                return sample, fused
    raise AssertionError(pattern.name)


@pytest.mark.parametrize("pattern", BARE, ids=lambda pattern: pattern.name)
def test_a_checkpoint_converts_with_one_command_in_any_nest(pattern, tmp_path):
    """The same weights come out under the same names, and what lies beside is as it was."""
    sample, alone = sample_of(pattern)
    nest = list(NESTS.values())[BARE.index(pattern) % len(NESTS)]
    tensors = sample.build().state_dict()
    torch.save(nest(tensors), tmp_path / "model.pth")
    acfuse.convert(
        tmp_path / "model.pth",
        bn_eps=sample.bn_eps,
        patterns=assumed(PATTERNS, sample.assume),
    )
    written = torch.load(tmp_path / "model.fused.pth", weights_only=True)
    expected = nest(copy.copy(alone.tensors))
    entry = next((k for k in ("state_dict", "model") if k in expected), None)
    if entry is not None:
        assert written.keys() == expected.keys()
        written, expected = written[entry], expected[entry]
    assert list(written) == list(expected)
    assert all(torch.equal(written[key], tensor) for key, tensor in expected.items())
