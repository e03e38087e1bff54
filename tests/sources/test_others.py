"""Fused files that others made, of any kind: proved by their numbers, and run as they are."""

import copy

import pytest
import torch
from torch import nn

from acfuse.pipeline.job import Job
from acfuse.pipeline.replay import verify_files
from acfuse.proof import Inputs
from acfuse.sources.bare import BareSource
from acfuse.sources.base import FindOptions
from acfuse.sources.live import LiveSource
from acfuse.targets.onnx_export import to_onnx
from acfuse.targets.pt2_export import to_pt2
from tests.proof.folding import SHAPE, fold, network

INPUTS = Inputs(((None, SHAPE),))


class Deploy(nn.Module):
    """The authors' own fused form, under names of its own."""

    def __init__(self, net, *, relu=True):
        super().__init__()
        weights = [fold(net[i]) for i in (0, 1)]
        self.first = nn.Conv2d(6, 10, 3, 2, 1)
        self.second = nn.Conv2d(10, 10, 3, 1, 1)
        self.last = copy.deepcopy(net[2])
        self.relu = nn.ReLU() if relu else nn.Identity()
        for layer, (weight, bias) in zip((self.first, self.second), weights, strict=True):
            layer.weight.data, layer.bias.data = weight, bias

    def forward(self, x):
        return self.last(self.relu(self.second(self.first(x).relu())))


def _altered(deploy):
    flat = deploy.second.weight.data.view(-1)
    flat[int(flat.abs().argmax())] *= 1 + 1e-4


def _turned(deploy):
    deploy.first.weight.data = deploy.first.weight.data.mT.contiguous()


def _swapped(deploy):
    deploy.last.weight.data = deploy.last.weight.data.flip(0).contiguous()


def _other_matrix(deploy):
    deploy.last.weight.data[0, 0] *= 1 + 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The original and the authors' form of it, right and wrong, in each kind of file."""
    folder = tmp_path_factory.mktemp("others")
    net = network()
    forms = {"original": net, "right": Deploy(net).eval(), "no_relu": Deploy(net, relu=False)}
    for change in (_altered, _turned, _swapped, _other_matrix):
        forms[change.__name__.strip("_")] = Deploy(net)
        change(forms[change.__name__.strip("_")])
    for name, model in forms.items():
        torch.save(model.state_dict(), folder / f"{name}.pth")
        model.eval().requires_grad_(False)
        (folder / f"{name}.pt2").write_bytes(to_pt2(model, INPUTS, "none").bytes)
        (folder / f"{name}.onnx").write_bytes(to_onnx(model, INPUTS, dynamic="none").bytes)
    return folder


def _verified(folder, original, fused):
    settings = {"inputs": INPUTS}
    if original == "pth":
        settings["model"] = "tests.proof.folding:network"
    return verify_files(Job(folder / f"original.{original}", **settings), folder / fused).proofs


@pytest.mark.parametrize("original", ["pth", "pt2", "onnx"])
@pytest.mark.parametrize("kind", ["pth", "pt2", "onnx"])
def test_the_authors_form_is_right_whatever_files_the_two_are(folder, original, kind):
    proofs = _verified(folder, original, f"right.{kind}")
    assert proofs.passed, proofs.fault
    assert len(proofs.certificates) == 2
    assert "others" in proofs.notes[0] or "names of its own" in proofs.notes[0]


@pytest.mark.parametrize("original", ["pth", "pt2", "onnx"])
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize("fault", ["no_relu", "altered", "turned", "swapped"])
def test_a_fault_of_the_authors_form_is_found(folder, original, kind, fault):
    proofs = _verified(folder, original, f"{fault}.{kind}")
    assert not proofs.passed
    if fault in ("altered", "turned"):  # the block is named, not the outputs alone
        assert "weights are wrong" in proofs.fault


@pytest.mark.parametrize("original", ["pth", "pt2", "onnx"])
def test_a_checkpoint_with_other_names_holds_every_tensor_or_is_none(folder, original):
    proofs = _verified(folder, original, "altered.pth")
    assert not proofs.passed
    assert "1 of 910 weights are wrong" in proofs.fault
    for name in ("turned", "swapped", "other_matrix"):
        with pytest.raises(Exception, match="is not "):
            _verified(folder, original, f"{name}.pth")


# What stands beside the weights.


def _checkpoint(path, **entries):
    torch.save(entries, path)
    return path


def _converted(folder, whole):
    """A checkpoint and what acfuse makes of it, read without its code."""
    source = BareSource(whole["state_dict"])
    fused = source.fuse(source.find(FindOptions(bn_eps=1e-5)))
    original = _checkpoint(folder / "original.pth", **whole)
    return original, {**whole, "state_dict": fused.tensors}


WHOLE = {
    "epoch": 3,
    "names": ["cat", "dog"],
    "anchors": torch.arange(6.0),
    "optimizer": {"state": {0: {"momentum": torch.ones(4)}}, "groups": [{"lr": 0.1}]},
}
CHANGES = {
    "changed": {"epoch": 4},
    "in a list": {"names": ["cat", "cow"]},
    "one number": {"anchors": torch.arange(6.0) + 1},
    "missing": {"names": None},
    "added": {"more": 1},
    "deep": {"optimizer": {"state": {0: {"momentum": torch.ones(4)}}, "groups": [{"lr": 0.2}]}},
}


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_what_acfuse_keeps_beside_the_weights_has_to_be_there(tmp_path, change):
    original, held = _converted(tmp_path, {"state_dict": network().state_dict(), **WHOLE})
    changed = held | CHANGES.get(change, {})
    fused = _checkpoint(tmp_path / "f.pth", **{k: v for k, v in changed.items() if v is not None})
    job = Job(original, bn_eps=1e-5, key="state_dict")
    proofs = verify_files(job, fused).proofs
    assert proofs.passed == (change is None)
    if change is not None:
        name = next(iter(CHANGES[change]))
        assert f"['{name}']" in proofs.fault


def test_what_others_leave_out_beside_the_weights_is_a_note(tmp_path):
    net = network()
    original, held = _converted(tmp_path, {"state_dict": net.state_dict(), **WHOLE})
    tensors = dict(held["state_dict"])
    for i in (0, 1):
        weight, bias = fold(net[i])
        tensors[f"{i}.rbr_reparam.weight"], tensors[f"{i}.rbr_reparam.bias"] = weight, bias
    job = Job(original, bn_eps=1e-5, key="state_dict")
    for name, whole in (("bare", tensors), ("nest", {"state_dict": tensors, "epoch": 9})):
        torch.save(whole, tmp_path / f"{name}.pth")
        proofs = verify_files(job, tmp_path / f"{name}.pth").proofs
        assert proofs.passed, proofs.fault
        assert any("beside the weights" in note for note in proofs.notes)


def test_the_entries_of_a_live_model_s_checkpoint_are_compared_too(tmp_path):
    whole = {"state_dict": network().state_dict(), **WHOLE}
    original = _checkpoint(tmp_path / "original.pth", **whole)
    job = Job(original, model="tests.proof.folding:network", inputs=INPUTS, key="state_dict")
    source = LiveSource.of(network())
    fused = source.fuse(source.find(FindOptions())).checkpoint
    right = _checkpoint(tmp_path / "right.pth", **{**whole, "state_dict": fused})
    assert verify_files(job, right).proofs.passed
    wrong = _checkpoint(tmp_path / "wrong.pth", **{**whole, "state_dict": fused, "epoch": 1})
    assert "['epoch']" in verify_files(job, wrong).proofs.fault
