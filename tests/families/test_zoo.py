"""Every sample of every family: found, fused exactly, and nothing else touched.

Nothing here knows a family: who adds one adds a sample, and these tests run over it.
"""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

import acfuse
from acfuse.algebra import lower
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.patterns.match import find_in_tensors
from acfuse.patterns.registry import assumed
from acfuse.proof import Inputs, certify
from acfuse.proof.certificate import BLOCK_LIMIT, ULP_LIMIT
from acfuse.rewrite import fused_copy
from sample_models import samples
from tests.graph.fusing import (
    assert_same,
    assert_same_bits,
    assert_unchanged,
    images,
    run_convolutions,
    same_bits,
    state_of,
)
from tests.proof.proving import certified

SAMPLES = samples()
BLOCKS = [name for name, sample in SAMPLES.items() if sample.blocks]
BARE = [name for name in BLOCKS if SAMPLES[name].bare]
FIRST = list({SAMPLES[name].pattern: name for name in reversed(BARE)}.values())
ASSUMED = [name for name, sample in SAMPLES.items() if sample.assume]
NEED_CODE = [name for name, sample in SAMPLES.items() if not sample.bare]


@cache
def _original(name):
    return SAMPLES[name].build()


@cache
def _findings(name):
    return find_in_module(_original(name), PATTERNS)


@cache
def _fused(name):
    return fused_copy(_original(name), _findings(name).found)


@cache
def _bare(name):
    """The sample's tensors fused without its code, with the eps and the patterns that it names."""
    sample = SAMPLES[name]
    patterns = assumed(PATTERNS, sample.assume)
    tensors = _original(name).state_dict()
    return acfuse.fuse_tensors(tensors, bn_eps=sample.bn_eps, patterns=patterns)


def _layers_replaced(findings):
    """The prefixes of every key that belongs to a block."""
    return tuple(
        f"{block.where}.{layer}." if block.where else f"{layer}."
        for block in findings.found
        for layer in block.layers
    )


def _adds_its_input(block):
    """Whether a block is one convolution, with its input beside it."""
    (image,) = (node for node in block.site.subgraph.nodes if node.op == "placeholder")
    return block.convolutions == (1, 1) and len(image.users) > 1


def _parameters(state):
    return {key: tensor for key, tensor in state.items() if "num_batches_tracked" not in key}


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_is_found_and_named_by_its_family(name):
    sample, findings = SAMPLES[name], _findings(name)
    assert len(findings.blocks) == sample.blocks
    assert findings.found == findings.blocks
    if sample.pattern is not None:
        families = {str(block.pattern).partition("/")[0] for block in findings.blocks}
        assert families == {sample.pattern}


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_becomes_one_convolution(name):
    fused = _fused(name)
    for block in _findings(name).blocks:
        assert len(block.names) == 1
        assert isinstance(fused.get_submodule(block.names[0]), _ConvNd)
        before, after = block.convolutions
        assert before > after or _adds_its_input(block)
        assert after == 1
    image = images(SAMPLES[name].input_shapes[:1], torch.float32)[0]
    # Counted as they run: a shared block runs as often as before.
    inside = (*_layers_replaced(_findings(name)), *SAMPLES[name].absorbed)
    kept = sum(
        isinstance(m, _ConvNd) and not f"{path}.".startswith(inside)
        for path, m in _original(name).named_modules()
    )
    calls = max(1, run_convolutions(fused, image) - kept)
    assert calls >= SAMPLES[name].blocks
    convolutions = sum(isinstance(m, _ConvNd) for m in fused.modules())
    assert convolutions == kept + SAMPLES[name].blocks
    before, after = (run_convolutions(m, image) for m in (_original(name), fused))
    assert after < before or all(map(_adds_its_input, _findings(name).blocks))


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_has_its_certificate(name):
    for block in _findings(name).found:
        certificate = certified(_fused(name), block)
        assert certificate.passed, certificate.fault
        assert certificate.ulp <= ULP_LIMIT == 0.51
        assert certificate.error <= BLOCK_LIMIT == 1e-11
        assert certificate.wrong == 0


@pytest.mark.parametrize("name", BLOCKS)
def test_a_float64_model_stays_float64_and_equal(name):
    model = copy.deepcopy(_original(name)).double()
    fused = fused_copy(model, find_in_module(model, PATTERNS).found)
    assert {p.dtype for p in fused.parameters()} == {torch.float64}
    assert_same(model, fused, SAMPLES[name].input_shapes)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_fused_model_has_the_authors_names_and_every_other_tensor(name):
    before, after = _original(name).state_dict(), _fused(name).state_dict()
    new = {f"{n}.{kind}" for b in _findings(name).found for n in b.names
           for kind in ("weight", "bias")}  # fmt: skip
    assert set(SAMPLES[name].deploy_keys) <= set(after)
    assert new <= set(after)
    replaced = _layers_replaced(_findings(name))
    aliases = {
        f"{path}."
        for path, module in _original(name).named_modules(remove_duplicate=False)
        if any(module is _original(name).get_submodule(layer[:-1]) for layer in replaced)
    }
    gone = (*aliases, *SAMPLES[name].absorbed)
    kept = {key for key in before if not key.startswith(gone)}
    assert set(after) - new == kept
    for key in kept:
        assert same_bits(after[key], before[key]), key


@pytest.mark.parametrize("name", SAMPLES)
def test_the_given_model_is_untouched_and_gives_the_same_again(name):
    model = SAMPLES[name].build().requires_grad_(False)
    before = state_of(model)
    shown = repr(model)
    again = fused_copy(model, find_in_module(model, PATTERNS).found).state_dict()
    assert_unchanged(model, before)
    assert repr(model) == shown
    once = _fused(name).state_dict()
    assert list(again) == list(once)
    assert all(same_bits(again[key], once[key]) for key in once)


@pytest.mark.parametrize("name", FIRST)
def test_the_modes_of_a_given_model_stay(name):
    model = SAMPLES[name].build()
    next(iter(model.children())).train()
    before = state_of(model)
    fused_copy(model, find_in_module(model, PATTERNS).found)
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_fused_model_has_nothing_left_to_fuse(name):
    assert find_in_module(_fused(name), PATTERNS).found == ()


@pytest.mark.parametrize("name", BLOCKS)
def test_without_any_pattern_the_same_blocks_have_the_same_weights(name):
    named, nameless = _findings(name).found, find_in_module(_original(name), ()).found
    assert [b.where for b in nameless] == [b.where for b in named]
    for mine, theirs in zip(nameless, named, strict=True):
        assert mine.pattern is None
        for a, b in zip(mine.terms, theirs.terms, strict=True):
            assert a.source == b.source
            assert (a.value is None) == (b.value is None)
            if a.value is None:
                continue
            assert torch.equal(a.value.kernel, b.value.kernel)
            assert torch.equal(a.value.bias, b.value.bias)
            assert a.value.geometry == b.value.geometry


@pytest.mark.parametrize("name", SAMPLES)
def test_a_model_keeps_its_outputs_in_float32(name):
    shapes = SAMPLES[name].input_shapes
    if not _findings(name).found:
        assert_same_bits(_original(name), _fused(name), shapes)
        return
    assert_same(_original(name), _fused(name), shapes, torch.float32)


@pytest.mark.parametrize("name", BARE)
def test_bare_tensors_give_bit_for_bit_the_weights_of_the_live_model(name):
    fused = _bare(name)
    assert [b.names for b in fused.found] == [b.names for b in _findings(name).found]
    live = _parameters(_fused(name).state_dict())
    bare = _parameters(fused.tensors)
    assert set(bare) == set(live)
    for key, tensor in live.items():
        assert same_bits(bare[key], tensor), key
    replaced = _layers_replaced(fused)
    norms = any(k.startswith(replaced) and "running_var" in k for k in _original(name).state_dict())
    assert norms == any("eps" in note for note in fused.notes)
    assert any("parallel" in note for note in fused.notes)
    for assumed_name in SAMPLES[name].assume:
        assert any("--assume" in note and assumed_name in note for note in fused.notes)


@pytest.mark.parametrize("name", BARE)
def test_bare_tensors_have_their_certificate_too(name):
    fused = _bare(name)
    for block in fused.found:
        certificate = certify(block, fused.stored(block))
        assert certificate.passed, certificate.fault


@pytest.mark.parametrize("name", FIRST)
def test_bare_tensors_that_are_a_little_off_have_none(name):
    fused = _bare(name)
    for block in fused.found:
        wrong = dict(fused.tensors)
        key = f"{block.names[0]}.weight"
        wrong[key] = wrong[key] * (1 + 1e-5)
        assert not certify(block, replace(fused, tensors=wrong).stored(block)).passed


@pytest.mark.parametrize("name", BARE)
def test_bare_tensors_are_untouched(name):
    tensors = _original(name).state_dict()
    before = {key: (id(t), t.clone()) for key, t in tensors.items()}
    patterns = assumed(PATTERNS, SAMPLES[name].assume)
    fused = acfuse.fuse_tensors(tensors, bn_eps=SAMPLES[name].bn_eps, patterns=patterns)
    assert list(tensors) == list(before)
    for key, (identity, tensor) in before.items():
        assert id(tensors[key]) == identity
        assert same_bits(tensors[key], tensor)
        if key in fused.tensors and key not in {
            f"{n}.{kind}" for b in fused.found for n in b.names for kind in ("weight", "bias")
        }:
            assert fused.tensors[key] is tensors[key]


@pytest.mark.parametrize("name", ASSUMED)
def test_what_has_to_be_assumed_is_refused_unless_it_is(name):
    sample = SAMPLES[name]
    tensors = _original(name).state_dict()
    findings = find_in_tensors(tensors, PATTERNS, sample.bn_eps)
    blocks = {block.where for block in _bare(name).found}
    assert blocks.isdisjoint(block.where for block in findings.found)
    refused = {r.where: r.why for r in findings.refused}
    assert blocks <= set(refused)
    for where in blocks:
        assert f"--assume {sample.assume[0]} if" in refused[where]


@pytest.mark.parametrize("name", NEED_CODE)
def test_what_tensors_do_not_tell_is_refused_or_rests_on_a_stated_assumption(name):
    # Without code a pattern's word is all there is. It may be wrong (arms that are concatenated
    # have the same keys as arms that are added); then what was assumed has to be said.
    tensors = _original(name).state_dict()
    findings = find_in_tensors(tensors, PATTERNS, SAMPLES[name].bn_eps)
    if findings.found:
        assert any("parallel" in note for note in findings.notes)
        assert any("eps" in note for note in findings.notes)
    ambiguous = {pattern.name for pattern in PATTERNS if pattern.ambiguity}
    assert not ambiguous & {block.pattern for block in findings.found}
    for refused in findings.refused:
        assert refused.why
        if refused.pattern in ambiguous:
            assert "--model" in refused.why


def test_an_eps_that_is_not_the_usual_one_has_to_be_given():
    model = _original("acnet/eps")
    live = _fused("acnet/eps").state_dict()["body.fused_conv.weight"]
    key = "body.fused_conv.weight"
    usual = acfuse.fuse_tensors(model.state_dict())
    assert not torch.allclose(usual.tensors[key], live, rtol=1e-5)
    assert any("1e-05" in note for note in usual.notes)
    given = acfuse.fuse_tensors(model.state_dict(), bn_eps=1e-3)
    assert same_bits(given.tensors[key], live)


# Exporting takes seconds: a few samples that differ in kind.
EXPORTED = {
    "acnet/digits": (5, 0),
    "acnet_article/alone": (1, 0),
    "acnet/replicate": (1, None),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_an_onnx_file_has_one_conv_for_each_block(name):
    from acfuse.proof import Tolerance
    from acfuse.proof.onnx_runtime import compare_onnx
    from acfuse.proof.original import Original
    from acfuse.targets.onnx_export import to_onnx

    fused, shape = _fused(name), SAMPLES[name].input_shapes[0]
    inputs = Inputs(((None, shape),), samples=1)
    file = to_onnx(fused, inputs)
    assert file.count("Conv") == sum(isinstance(m, _ConvNd) for m in fused.modules())
    assert file.count("BatchNormalization") == 0
    check = compare_onnx(file.bytes, Original(_original(name), inputs), Tolerance())
    assert check.passed, check.detail


def test_the_registry_has_unique_names():
    names = [pattern.name for pattern in PATTERNS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_each_pattern_says_where_it_comes_from_and_has_a_sample(pattern):
    assert pattern.fused
    assert pattern.source
    assert pattern.name.partition("/")[0] == pattern.family
    own = [name for name, sample in SAMPLES.items() if sample.pattern == pattern.family]
    others = [name for name, sample in SAMPLES.items() if sample.blocks and not sample.pattern]
    find = (_findings(n) for n in (*own, *others))
    assert any(pattern.name == block.pattern for findings in find for block in findings.found)


def test_every_batch_norm_of_every_sample_is_awake():
    for name in SAMPLES:
        for layer in _original(name).modules():
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
                assert layer.running_mean.any()
                assert not (layer.running_var == 1).all()


def test_lowering_is_what_the_fused_model_stores():
    block = _findings("acnet/digits").found[0]
    layer = lower(block.terms[0].value, torch.float32)
    stored = _fused("acnet/digits").get_submodule(block.names[0])
    assert isinstance(stored, nn.Conv2d)
    assert torch.equal(layer.weight, stored.weight)
    assert torch.equal(layer.bias, stored.bias)
