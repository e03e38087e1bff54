"""Numbers at the edge: named before anything is fused, and fused exactly or not at all."""

import json

import pytest
import torch

from acfuse.algebra import layers
from acfuse.errors import InputError
from acfuse.files.tensor_check import check_numbers, norms_of
from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, MODEL, snapshot, state

BN = "first.ver_bn"


NOTES = {
    "gamma is zero": (f"{BN}.weight", 0.0),
    "variances are below": (f"{BN}.running_var", 1e-20),
    "variances are negative": (f"{BN}.running_var", -1e-7),
    "denormal numbers": ("first.square_conv.weight", 1e-40),
}


@pytest.mark.parametrize("flags", [CHECKPOINT, ("--no-onnx",)], ids=["with code", "without"])
@pytest.mark.parametrize("words", NOTES)
def test_odd_numbers_are_named_and_fused_exactly(project, words, flags):
    key, value = NOTES[words]
    tensors = state()
    tensors[key].view(-1)[:2] = value
    torch.save(tensors, "model.pth")
    result = worked(run("convert", "model.pth", "--force", *flags))
    (note,) = [line for line in result.stdout.splitlines() if words in line]
    assert note.startswith("note")
    assert f"2 {'numbers' if 'denormal' in words else 'channels'}" in note
    assert key in note
    assert "fused   2 blocks" in result.stdout
    manifest = json.loads((project / "model.fused.acfuse.json").read_text())
    assert all(block["certificate"]["ulp"] <= 0.51 for block in manifest["found"])
    inspected = worked(run("inspect", "model.pth", *flags[1:]))
    assert note.split(None, 1)[1] in inspected.stdout
    worked(run("verify"))


def test_usual_numbers_give_no_note(project):
    assert "note" not in worked(run("convert", "model.pth", "--force", *CHECKPOINT)).stdout


def test_the_condition_number_is_that_of_the_batch_norm():
    tensors = {"a.running_var": torch.tensor([1.0, 1e-12]), "a.running_mean": torch.full((2,), 3.0)}
    (note,) = check_numbers(tensors, norms_of(tensors), "it")
    assert "condition number 9.5e+02" in note  # 3 / sqrt(1e-12 + 1e-5)
    by = layers.batch_norm(None, None, tensors["a.running_mean"], tensors["a.running_var"], 1e-5)
    x = torch.tensor([3.0, 3.0], dtype=torch.float64)
    moved = by.scale * (x * (1 + 1e-6)) + by.shift - (by.scale * x + by.shift)
    assert float(moved[1] / 1e-6) == pytest.approx(948.7, rel=1e-3)
    (note,) = check_numbers(tensors, norms_of(tensors, eps=1e-3), "it")
    assert "condition number 9.5e+01" in note


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_a_variance_is_negative_beyond_what_eps_makes_up_for(eps):
    def notes(value: float) -> tuple[str, ...]:
        tensors = {"a.running_var": torch.tensor([1.0, value])}
        return check_numbers(tensors, norms_of(tensors, eps=eps), "it")

    assert any("negative" in note for note in notes(-eps / 2))
    with pytest.raises(InputError, match=r"a\.running_var is negative"):
        notes(-2 * eps)


NOT_FINITE = ("nan", "inf", "-inf")


@pytest.mark.parametrize("flags", [CHECKPOINT, ("--no-onnx",)], ids=["with code", "without"])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_blocks_without_such_numbers_are_fused_where_they_are_allowed(project, value, flags):
    tensors = state()
    tensors["first.hor_conv.weight"].view(-1)[3] = float(value)
    torch.save(tensors, "model.pth")
    before = snapshot(project)
    kind = "NaN" if value == "nan" else "Inf"
    told = f"first.hor_conv.weight holds {kind}"
    refused(run("convert", "model.pth", "--force", *flags), 3, told, "--allow-nonfinite")
    assert snapshot(project) == before
    result = worked(run("convert", "model.pth", "--force", "--allow-nonfinite", *flags))
    assert told in result.stdout
    assert "fused   1 block" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("refused first")]
    assert "NaN or Inf" in line
    fused = torch.load("model.fused.pth", weights_only=True)
    kept = [key for key in tensors if key.startswith("first.")]
    assert kept
    assert all(torch.equal(fused[k].nan_to_num(7), tensors[k].nan_to_num(7)) for k in kept)
    assert "second.fused_conv.weight" in fused
    if flags == CHECKPOINT:
        assert "outputs hold NaN or Inf" in result.stdout
    worked(run("verify"))  # the manifest knows that they were allowed


@pytest.mark.parametrize("value", NOT_FINITE)
def test_an_onnx_file_with_such_numbers(project, value):
    worked(run("export-onnx", "model.pth", "-o", "net.onnx", *MODEL))
    import onnx
    from onnx import numpy_helper

    model = onnx.load("net.onnx")
    weight = max(model.graph.initializer, key=lambda t: t.ByteSize())
    array = numpy_helper.to_array(weight).copy()
    array.flat[1] = float(value)
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, "net.onnx")
    kind = "NaN" if value == "nan" else "Inf"
    refused(run("convert", "net.onnx"), 3, f"{weight.name} holds {kind}")
    result = worked(run("convert", "net.onnx", "--allow-nonfinite"))
    assert f"{weight.name} holds {kind}" in result.stdout
    assert "fused   1 block" in result.stdout
    worked(run("verify"))
