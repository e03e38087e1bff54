"""`--fold-bn` from file to file."""

import acfuse
from tests.cli.command import run, worked
from tests.cli.nets import WithNorms
from tests.cli.project import fused_tensors, make_project, own_module, state, trained

MODEL = ("--model", "nets.py:WithNorms", "--input-shape", "1,3,9,8")


def test_folds_are_written_proved_and_loaded(tmp_path, monkeypatch):
    project = make_project(tmp_path, state(WithNorms()))
    monkeypatch.chdir(project)
    worked(run("convert", "model.pth", *MODEL, "--fold-bn"))
    tensors = fused_tensors(project)
    assert set(tensors) == {
        "stem.weight", "stem.bias", "block.fused_conv.weight", "block.fused_conv.bias",
        "head.weight", "head.bias"}  # fmt: skip
    worked(run("verify", "--atol", "1e-4"))
    model = acfuse.load_fused(trained(own_module(project).WithNorms()), "model.fused.pth")
    assert set(model.state_dict()) == set(tensors)


def test_without_it_lone_norms_stay(tmp_path, monkeypatch):
    project = make_project(tmp_path, state(WithNorms()))
    monkeypatch.chdir(project)
    worked(run("convert", "model.pth", *MODEL, "--no-onnx"))
    assert "stem_bn.running_mean" in fused_tensors(project)
