"""To train, fused, half fused, both: told from the tensors, and the branches are the truth."""

from pathlib import Path

import pytest
import torch

import acfuse
from acfuse.patterns import PATTERNS
from acfuse.patterns.match import find_in_tensors
from acfuse.patterns.states import deployed
from sample_models import awake, samples
from sample_models.acnet_article import ACBlock
from sample_models.padded_middle import Conv3XC
from sample_models.repvgg_dialects import DetrBlock, HalfFused
from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT

REPVGG = "repvgg/small"


def bare(name):
    return dict(samples()[name].build().state_dict())


def repvgg():
    name = next(n for n in samples() if n.startswith("repvgg/"))
    return bare(name)


def fuse(tensors, **options):
    return acfuse.fuse_tensors(tensors, **options)


def save(tensors, name="model.pth"):
    torch.save(dict(tensors), name)


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_a_fused_checkpoint_is_told_to_be_one(project, command):
    save(fuse(acfuse_digits()).tensors)
    result = run(command, "model.pth")
    words = "already in the deploy form of acnet"
    if command == "convert":
        refused(result, 5, "nothing to fuse", words, "fused_conv")
    else:
        assert result.exit_code == 5
        assert f"state   {words}" in result.stdout


def acfuse_digits():
    return bare("acnet/digits")


def test_a_fused_checkpoint_with_the_code_of_its_training_form(project):
    worked(run("convert", "model.pth", *CHECKPOINT))
    flags = [f for f in CHECKPOINT if f != "--no-onnx"]
    result = run("convert", "model.fused.pth", "--no-onnx", *flags)
    refused(result, 5, "nothing to fuse: it is already in the deploy form of acnet", "2 fused_conv")


def test_another_checkpoint_does_not_become_a_fused_one(project):
    torch.save({"other.weight": torch.ones(3, 3, 1, 1)}, "model.pth")
    refused(run("convert", "model.pth", *CHECKPOINT), 3, "does not fit the model")


def test_the_number_of_blocks_and_the_families_are_named():
    fused = fuse(repvgg(), bn_eps=1e-5).tensors
    (done,) = deployed(fused, PATTERNS)
    assert done.fused == "rbr_reparam"
    assert done.families == ("repvgg", "qarepvgg")
    assert f"{len(done.where)} rbr_reparam" in str(done)
    assert len(done.where) == sum(k.endswith("rbr_reparam.weight") for k in fused)


def test_a_batch_norm_that_stays_behind_is_told():
    tensors = {
        "rbr_reparam.weight": torch.randn(4, 4, 3, 3),
        "rbr_reparam.bias": torch.randn(4),
        "bn.weight": torch.randn(4),
        "bn.running_mean": torch.randn(4),
    }
    (done,) = deployed(tensors, PATTERNS)
    assert done.norm == "bn"
    assert "a BatchNorm behind it (bn)" in str(done)


@pytest.mark.parametrize(
    "tensors",
    [
        {"conv.weight": torch.ones(2, 2, 3, 3), "conv.bias": torch.ones(2)},  # any convolution
        {"rbr_reparam.weight": torch.ones(2, 2, 3, 3)},  # a fused one has a bias
        {"my_rbr_reparam.weight": torch.ones(2, 2, 3, 3), "my_rbr_reparam.bias": torch.ones(2)},
        {"rbr_reparam.weight": torch.ones(2, 2), "rbr_reparam.bias": torch.ones(2)},
    ],
    ids=["common", "no bias", "longer", "linear"],
)
def test_one_key_alone_is_no_evidence(tensors):
    assert deployed(tensors, PATTERNS) == ()


def test_a_network_in_its_training_form_is_not_told_to_be_fused():
    for name, sample in samples().items():
        tensors = dict(sample.build().state_dict())
        assert not deployed(tensors, PATTERNS), name


def test_batch_norms_that_were_taken_up_before_are_told():
    tensors = awake(HalfFused(6, 6), 0).state_dict()
    notes = fuse(tensors, bn_eps=1e-3).notes
    assert any(note.startswith("half fused: 1 repvgg/folded") for note in notes)
    assert not [note for note in fuse(repvgg(), bn_eps=1e-5).notes if "half fused" in note]


def test_some_blocks_may_have_been_fused_before():
    one, other = bare("acnet/digits"), fuse(bare("acnet/digits")).tensors
    mixed = {f"a.{k}": v for k, v in one.items()} | {f"b.{k}": v for k, v in other.items()}
    result = fuse(mixed)
    assert result.found
    assert all(block.where.startswith("a.") for block in result.found)
    assert any("already in the deploy form of acnet" in note for note in result.notes)
    for key, tensor in other.items():
        assert result.tensors[f"b.{key}"] is tensor


def test_a_stored_fused_tensor_that_is_out_of_date_is_reported_with_its_difference():
    tensors = awake(Conv3XC(4, 6), 0).double().state_dict()
    fused = fuse(tensors)
    (note,) = (n for n in fused.notes if n.startswith("both forms"))
    assert "eval_conv: off by" in note
    weight, stale = fused.tensors["eval_conv.weight"], tensors["eval_conv.weight"]
    biases = fused.tensors["eval_conv.bias"], tensors["eval_conv.bias"]
    worst = max(float((weight - stale).abs().max()), float((biases[0] - biases[1]).abs().max()))
    largest = max(float(weight.abs().max()), float(biases[0].abs().max()))
    assert f"{worst / largest:.1e}" in note
    again = fuse({**tensors, **fused.tensors})  # now the stored ones are right: nothing to say
    assert not [n for n in again.notes if n.startswith("both forms")]
    assert torch.equal(again.tensors["eval_conv.weight"], weight)


def with_fused(change):
    """A block with the fused convolution of its authors beside its branches, changed somehow."""
    block = ACBlock(8, 12)
    block.fusion_conv = torch.nn.Conv2d(8, 12, 3, padding=1)
    tensors = awake(block, 0).state_dict()
    with torch.no_grad():
        block.fusion_conv.reset_parameters()
    change(tensors, block.fusion_conv)
    return [n for n in fuse(tensors).notes if n.startswith("both forms")]


def test_a_fused_convolution_that_was_never_trained_is_usual_and_an_altered_one_is_not():
    (note,) = with_fused(lambda tensors, conv: None)
    assert "never trained: that is usual" in note
    assert "off by" not in note

    def altered(tensors, conv):
        tensors |= fuse(tensors).tensors
        tensors["fusion_conv.weight"][3, 2, 1, 1] += 0.02

    def one_of_the_untrained(tensors, conv):
        conv.weight.data[3, 2, 1, 1] = 1.0

    def all_zero(tensors, conv):
        conv.weight.data.zero_()

    for change in (altered, one_of_the_untrained, all_zero):
        (note,) = with_fused(change)
        assert "fusion_conv: off by" in note


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_is_no_difference(dtype):
    model = awake(Conv3XC(4, 6), 0)
    tensors = {k: v.to(dtype) for k, v in model.state_dict().items()}
    tensors |= fuse(tensors).tensors
    assert not [n for n in fuse(tensors).notes if n.startswith("both forms")]
    tensors["eval_conv.weight"] = tensors["eval_conv.weight"] * 2
    assert [n for n in fuse(tensors).notes if n.startswith("both forms")]


def test_a_stored_fused_tensor_of_another_shape():
    tensors = dict(awake(Conv3XC(4, 6), 0).state_dict())
    tensors["eval_conv.weight"] = torch.ones(6, 4, 5, 5)
    (note,) = (n for n in fuse(tensors).notes if n.startswith("both forms"))
    assert "inf" in note


def test_both_forms_in_a_live_model(project):
    """RT-DETR keeps the branches beside the convolution that it made of them."""
    Path("detr.py").write_text("from sample_models.repvgg_dialects import DetrBlock\n")
    model = awake(DetrBlock(6, 6, stale=True), 0)
    save(model.state_dict())
    flags = ["--model", "detr.py:DetrBlock", "--input-shape", "1,6,9,7", "--no-onnx"]
    result = worked(
        run("convert", "model.pth", *flags, "--model-args", '{"a":6,"b":6,"stale":true}')
    )
    assert "note    both forms: 1 fused convolution beside its branches is" in result.stdout
    assert find_in_tensors(model.state_dict(), PATTERNS).refused
