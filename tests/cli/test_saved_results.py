"""What an original gives is kept in a file, and a program is compared with it elsewhere."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from tests.cli.command import refused, run, worked
from tests.cli.project import MODEL


@pytest.fixture
def with_onnx(project):
    worked(run("convert", "model.pth", *MODEL))
    return project


@pytest.fixture
def kept(with_onnx, tmp_path, monkeypatch):
    """A folder with the ONNX file and the results alone: no checkpoint, no code, no manifest."""
    worked(run("verify", "--save-results", "kept.json"))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("model.fused.onnx", "kept.json", "model.pth"):
        shutil.copy(with_onnx / name, folder)
    monkeypatch.chdir(folder)
    return folder


def test_the_file_is_compared_without_the_original(kept):
    (kept / "model.pth").unlink()
    result = worked(run("verify", "model.fused.onnx", "--from", "kept.json", "--format", "json"))
    assert result.json["passed"]
    assert result.json["results"]["runs"] == 3
    assert result.json["check"]["compared"] > 0
    text = worked(run("verify", "model.fused.onnx", "--from", "kept.json")).stdout
    assert "no certificate is in such a file" in text
    assert "on 3 runs of model.pth" in text


def change(path, by):
    model = onnx.load(path)
    for stored in model.graph.initializer:
        array = numpy_helper.to_array(stored).copy()
        if array.ndim == 4:
            array[0, 0, 0, 0] += by
            stored.CopyFrom(numpy_helper.from_array(array, stored.name))
            break
    onnx.save(model, path)


def test_another_program_is_not_equal(kept):
    change("model.fused.onnx", 0.5)
    result = run("verify", "model.fused.onnx", "--from", "kept.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: not equal: results: ")
    assert "FAILED" in result.stdout
    worked(run("verify", "model.fused.onnx", "--from", "kept.json", "--atol", "1e3"))


def test_a_program_of_torch_is_compared_as_well(fused):
    worked(run("convert", "model.pth", *MODEL, "--pt2", "--force"))
    worked(run("verify", "--save-results", "kept.json"))
    worked(run("verify", "model.fused.pt2", "--from", "kept.json"))
    refused(run("verify", "model.fused.pth", "--from", "kept.json"), 2, "is no program")


def test_an_original_that_is_an_onnx_file_is_kept_as_well(with_onnx):
    given = ("model.fused.onnx", "model.fused.onnx", "--input-shape", "1,3,9,7")
    worked(run("verify", *given, "--save-results", "kept.json"))
    worked(run("verify", "model.fused.onnx", "--from", "kept.json"))


def test_without_its_code_nothing_is_kept(project):
    worked(run("convert", "model.pth"))
    refused(run("verify", "--save-results", "kept.json"), 2, "--save-results", "--model")
    assert not Path("kept.json").exists()


def test_a_file_that_exists_stays(kept, with_onnx, monkeypatch):
    monkeypatch.chdir(with_onnx)
    refused(run("verify", "--save-results", "kept.json"), 6, "kept.json", "--save-results")
    worked(run("verify", "--save-results", "kept.json", "--force"))


def without(data, *path):
    at = data
    for step in path[:-1]:
        at = at[step]
    del at[path[-1]]


def put(data, value, *path):
    at = data
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value


FIRST = ("runs", 0, "outputs", 0)
DAMAGED = {
    "no format": lambda d: without(d, "format"),
    "another format": lambda d: put(d, "results 9", "format"),
    "no runs": lambda d: put(d, [], "runs"),
    "runs of a number": lambda d: put(d, [3], "runs"),
    "an unknown dtype": lambda d: put(d, "object", *FIRST, "dtype"),
    "too large a shape": lambda d: put(d, [10**9, 10**9], *FIRST, "shape"),
    "a negative shape": lambda d: put(d, [-1, -4], *FIRST, "shape"),
    "a shape of text": lambda d: put(d, "ab", *FIRST, "shape"),
    "no base64": lambda d: put(d, "!!!", *FIRST, "data"),
    "no name": lambda d: without(d, *FIRST, "name"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(damage, kept):
    data = json.loads(Path("kept.json").read_text())
    DAMAGED[damage](data)
    Path("kept.json").write_text(json.dumps(data))
    refused(run("verify", "model.fused.onnx", "--from", "kept.json"), 3, "kept.json", "results")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 5000])
def test_what_is_no_results_file_is_refused_in_one_line(text, kept):
    Path("kept.json").write_bytes(text)
    refused(run("verify", "model.fused.onnx", "--from", "kept.json"), 3, "kept.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--from", "kept.json"),
        ("model.pth", "model.fused.onnx", "--from", "kept.json"),
        ("model.fused.onnx", "--from", "kept.json", "--report", "r.md"),
        ("model.fused.onnx", "--from", "kept.json", "--save-results", "s.json"),
        ("model.fused.onnx", "--from", "none.json"),
        ("none.onnx", "--from", "kept.json"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, kept):
    assert run("verify", *arguments).exit_code == 2
