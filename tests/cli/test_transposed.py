"""Networks that enlarge their images, from file to file."""

import pytest
import torch

import acfuse
from tests.cli.command import run, worked
from tests.cli.nets import Decoder
from tests.cli.project import fused_tensors, make_project, own_module, state, trained

MODEL = ("--model", "nets.py:Decoder", "--input-shape", "1,3,5,4")


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = make_project(tmp_path, state(Decoder()))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("folds", [(), ("--fold-bn",)], ids=["blocks", "folds"])
def test_every_file_is_written_and_proved(project, folds):
    result = worked(run("convert", "model.pth", *MODEL, *folds, "--pt2"))
    assert "3 ConvTranspose" in result.stdout
    tensors = fused_tensors(project)
    new = {f"{b}.fused_conv.{t}" for b in ("first", "second") for t in ("weight", "bias")}
    assert new <= set(tensors)
    assert tensors["first.fused_conv.weight"].shape == (3, 6, 4, 4)
    assert ("last_bn.weight" in tensors) == (not folds)
    worked(run("verify", "--atol", "1e-4"))
    model = acfuse.load_fused(trained(own_module(project).Decoder()), "model.fused.pth")
    assert model(torch.ones(1, 3, 2, 3)).shape == (1, 2, 16, 24)


def test_a_fault_in_the_file_is_named(project):
    worked(run("convert", "model.pth", *MODEL, "--no-onnx"))
    tensors = fused_tensors(project)
    tensors["second.fused_conv.weight"][5, 2, 3, 1] *= 1.01
    torch.save(tensors, "model.fused.pth")
    result = run("verify", "model.pth", "model.fused.pth", *MODEL)
    assert result.exit_code == 1
    assert "second: 1 of" in result.stderr
    assert "fused_conv.weight[5, 2, 3, 1] is" in result.stderr


def test_every_planted_fault_is_seen(project):
    worked(run("convert", "model.pth", *MODEL))
    assert "20 of 20 planted faults are seen" in worked(run("selftest")).stdout
