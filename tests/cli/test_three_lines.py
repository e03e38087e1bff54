"""The three lines of a CI job, as they stand, in a copy of the sample."""

import json
from pathlib import Path

import onnx
import pytest
import torch

from acfuse.pipeline.manifest import Manifest
from tests.cli.command import refused, run, worked
from tests.cli.conftest import LINES, SAMPLES
from tests.cli.project import CHECKPOINT, MODEL, snapshot

CONVERT, VERIFY, EXPORT = LINES
WRITTEN = {"model.fused.pth", "model.fused.onnx", "model.fused.acfuse.json"}


def names(folder):
    return {name for name in snapshot(folder) if not name.endswith(".pyc")}


def convolutions(path):
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    return nodes.count("Conv"), nodes.count("BatchNormalization")


@pytest.mark.parametrize("line", LINES)
def test_each_line_succeeds_without_a_word_on_stderr(sample, line):
    worked(sample.results[line])


def test_the_first_line_writes_what_it_promises_and_nothing_else(sample):
    assert names(sample.after(CONVERT)) == {"model.pth", "digits.py", "acfuse.toml"} | WRITTEN
    for name in WRITTEN:
        assert f"wrote   {name}  (" in sample.results[CONVERT].stdout


def test_the_first_line_leaves_the_input_alone(sample):
    for name in ("model.pth", "digits.py", "acfuse.toml"):
        assert (sample.after(CONVERT) / name).read_bytes() == (SAMPLES / name).read_bytes()


def test_the_fused_checkpoint_loads_the_safe_way_and_has_one_convolution_a_block(sample):
    whole = torch.load(sample.after(CONVERT) / "model.fused.pth", weights_only=True)
    assert list(whole) == list(torch.load(sample.after(CONVERT) / "model.pth", weights_only=True))
    tensors = whole["state_dict"]
    assert [k for k, v in tensors.items() if v.ndim == 4] == [
        f"features.{i}.acb.fused_conv.weight" for i in range(5)
    ]
    assert not [k for k in tensors if "bn" in k]


def test_the_onnx_file_has_one_convolution_a_block_and_stands_alone(sample):
    path = sample.after(CONVERT) / "model.fused.onnx"
    assert convolutions(path) == (5, 0)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["batch", 1, 8, 8]


def test_no_file_names_a_folder_of_this_machine(sample):
    for line in (CONVERT, EXPORT):
        for name in WRITTEN:
            data = (sample.after(line) / name).read_bytes()
            assert str(sample.folder).encode() not in data
            assert b"site-packages" not in data


def test_the_manifest_is_the_record_of_the_conversion(sample):
    data = json.loads((sample.after(CONVERT) / "model.fused.acfuse.json").read_text())
    assert data["passed"]
    assert data["model"] == "digits.py:AcNet"
    assert {o["file"] for o in data["outputs"]} == {"model.fused.pth", "model.fused.onnx"}
    assert [c["name"] for c in data["checks"]] == ["algebra", "weights", "rounding", "onnx"]
    assert len(data["found"]) == 5
    assert all(block["certificate"]["ulp"] <= 0.51 for block in data["found"])


def test_the_second_line_changes_nothing(sample):
    assert snapshot(sample.after(VERIFY)) == snapshot(sample.after(CONVERT))


def test_the_second_line_proves_the_onnx_file_as_well(sample):
    lines = sample.results[VERIFY].stdout.splitlines()
    assert any(line.startswith("equal   ONNX file") for line in lines)


def test_the_third_line_writes_the_same_onnx_file_and_a_manifest_that_holds(sample):
    before, after = sample.after(CONVERT), sample.after(EXPORT)
    for name in ("model.fused.onnx", "model.fused.pth", "model.pth"):
        assert (after / name).read_bytes() == (before / name).read_bytes()
    assert Manifest.meant(next(after.glob("*.acfuse.json"))).changed() == []


def test_a_second_conversion_is_refused_and_leaves_every_file_whole(converted):
    before = snapshot(converted)
    refused(run("convert", "model.pth"), 6, "model.fused.pth exists", "--force")
    assert snapshot(converted) == before


def test_with_force_a_second_conversion_writes_the_same_bytes_again(converted, capfd):
    before = snapshot(converted)
    result = worked(run("convert", "model.pth", "--force", "--format", "json"))
    assert result.json["passed"]
    assert snapshot(converted) == before
    assert capfd.readouterr() == ("", "")  # nor did any library write past Python's streams


def one_weight(model):
    weight = next(i for i in model.graph.initializer if len(i.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] *= 1.00001
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def the_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def an_operator(model):
    next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Elu"


def metadata(model):
    model.metadata_props[0].value = "0.0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (one_weight, ".weight [0, 0, 0, 0] is "),
        (the_batch, "input image is float[1,1,8,8], expected float[batch,1,8,8]"),
        (an_operator, "op_type is 'Elu', expected 'Relu'"),
        (metadata, "metadata_props acfuse.version, value is '0.0'"),
    ],
)
def test_a_change_of_the_onnx_file_is_noticed_and_named(converted, change, words):
    model = onnx.load("model.fused.onnx")
    change(model)
    onnx.save(model, "model.fused.onnx")
    result = run("verify")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: not equal: program: model.fused.onnx: ")
    assert words in line


def test_an_onnx_file_that_is_gone_or_broken_is_noticed(converted):
    Path("model.fused.onnx").write_bytes(b"no longer what it was")
    result = run("verify", "--quiet")
    assert result.exit_code in (1, 3)
    assert result.stderr.startswith("error: ")
    Path("model.fused.onnx").unlink()
    refused(run("verify"), 3, "model.fused.onnx is missing")


def test_an_onnx_file_of_somebody_else_is_not_replaced_without_force(converted):
    Path("model.fused.onnx").write_bytes(b"somebody else's")
    before = snapshot(converted)
    refused(run("export-onnx"), 6, "model.fused.onnx", "--force")
    assert snapshot(converted) == before


def test_the_original_can_be_exported_as_it_is_and_so_can_the_fused_checkpoint(fused):
    worked(run("export-onnx", "model.pth", *MODEL))
    worked(run("export-onnx", "model.fused.pth", *MODEL, "--dynamic", "all", "--opset", "18"))
    assert convolutions("model.onnx") == (7, 0)  # torch folds the BatchNorms of lone convolutions
    assert convolutions("model.fused.onnx") == (3, 0)
    shape = onnx.load("model.fused.onnx").graph.input[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["batch", 3, "height", "width"]
    assert onnx.load("model.fused.onnx").opset_import[0].version == 18
    before = snapshot(fused)
    refused(run("export-onnx", "model.pth", *MODEL), 6, "model.onnx exists")
    assert snapshot(fused) == before


def test_a_dry_run_proves_and_writes_nothing(project):
    before = snapshot(project)
    result = worked(run("convert", "model.pth", "--dry-run", *CHECKPOINT))
    assert "equal   certificate of 2 blocks" in result.stdout
    assert "wrote" not in result.stdout
    assert snapshot(project) == before


def test_without_the_code_the_checkpoint_is_fused_and_what_is_missing_is_said(project):
    result = worked(run("convert", "model.pth"))
    assert "no ONNX file" in result.stdout
    assert "--model" in result.stdout
    assert "BatchNorm eps 1e-05" in result.stdout
    assert names(project) == {"model.pth", "nets.py", "model.fused.pth", "model.fused.acfuse.json"}


def test_the_last_conversion_can_be_exported_to_another_file(fused):
    worked(run("export-onnx", "--output", "other.onnx"))
    assert convolutions("other.onnx") == (3, 0)


def test_an_output_whose_name_is_that_of_the_onnx_file_is_refused(project):
    before = snapshot(project)
    result = run("convert", "model.pth", "--output", "net.onnx", *MODEL)
    assert result.exit_code in (2, 6)
    assert snapshot(project) == before


def test_an_output_of_another_format_is_refused_or_written_in_it(project):
    result = run("convert", "model.pth", "--output", "net.safetensors", *CHECKPOINT)
    written = project / "net.safetensors"
    assert result.exit_code in (2, 6) or written.read_bytes()[8:9] == b"{"


def test_a_conversion_into_another_folder_is_proved_from_there(project, monkeypatch):
    (project / "out").mkdir()
    worked(run("convert", "model.pth", "--no-onnx", "--output", "out"))
    monkeypatch.chdir(project / "out")
    worked(run("verify"))


def test_a_conversion_started_elsewhere_is_proved_in_its_folder(project, monkeypatch):
    monkeypatch.chdir(project.parent)
    model = ("--model", "project/nets.py:Net", "--input-shape", "1,3,9,7")
    worked(run("convert", "project/model.pth", "--no-onnx", *model))
    monkeypatch.chdir(project)
    worked(run("verify"))
