"""--device: where a network runs. It is no part of a conversion, and changes none of its files."""

import pytest
import torch

from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, MODEL, snapshot

WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")


@pytest.mark.parametrize("command", ["convert", "inspect", "export-onnx"])
@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "mps"])
def test_what_is_no_device_is_told_in_one_line(project, command, name):
    before = snapshot(project)
    result = run(command, "model.pth", *MODEL, "--device", name)
    refused(result, 2, f"--device {name}: ")
    assert "give cpu" in result.stderr.lower() or "take the cpu" in result.stderr.lower()
    assert len(result.stderr.splitlines()) == 1
    assert snapshot(project) == before


@WITHOUT_CUDA
@pytest.mark.parametrize("tensors_alone", [False, True])
def test_a_device_that_is_not_here_is_told_by_name(project, tensors_alone):
    network = () if tensors_alone else CHECKPOINT
    refused(
        run("convert", "model.pth", *network, "--device", "cuda"), 2, "--device cuda", "Give cpu"
    )


@WITHOUT_CUDA
def test_a_device_may_be_a_variable_or_a_setting(project):
    (project / "acfuse.toml").write_text('device = "cuda"\n')
    refused(run("convert", "model.pth", *CHECKPOINT), 2, "--device cuda", "Give cpu")
    worked(run("convert", "model.pth", *CHECKPOINT, "-n", env={"ACFUSE_DEVICE": "cpu"}))


def test_the_manifest_says_nothing_of_a_device(project):
    worked(run("convert", "model.pth", *CHECKPOINT, "--device", "cpu"))
    (manifest,) = project.glob("*.acfuse.json")
    assert '"device"' not in manifest.read_text()
    worked(run("verify", "--device", "cpu"))
    worked(run("verify"))
