"""acfuse equalize: an ONNX file with even channels, or the reason why there is none."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.cli.command import refused, run, worked
from tests.cli.project import MODEL


@pytest.fixture
def uneven(project):
    """The fused ONNX file, with one channel between two layers 64 times as large."""
    worked(run("convert", "model.pth", *MODEL))
    model = onnx.load("model.fused.onnx")
    first, second = [n for n in model.graph.node if n.op_type == "Conv"][:2]
    stored = {t.name: t for t in model.graph.initializer}
    # The second layer has two groups: its first three rows read the first channel.
    changes = {first.input[1]: (np.s_[0], 64), first.input[2]: (np.s_[0], 64),
               second.input[1]: (np.s_[:3, 0], 1 / 64)}  # fmt: skip
    for name, (place, factor) in changes.items():
        array = np.array(numpy_helper.to_array(stored[name]))
        array[place] *= factor
        stored[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, "uneven.onnx")
    return project


def test_an_uneven_file_is_evened(uneven):
    result = worked(run("equalize", "uneven.onnx", "--input", "2,3,9,7"))
    assert Path("uneven.equalized.onnx").is_file()
    assert "numbers, each bit by bit" in result.stdout
    assert "inputs were made up" in result.stdout
    told = worked(run("equalize", "uneven.onnx", "--input", "2,3,9,7", "--format", "json", "-f"))
    assert told.json["taken"]
    assert told.json["gain_db"] > 0
    assert told.json["compared"] > 0
    first = told.json["layers"][0]
    assert first["before_bits"] > first["after_bits"] + 1
    worked(run("verify", "model.pth", "uneven.equalized.onnx", *MODEL))


def test_real_inputs_are_taken(uneven):
    images = np.random.default_rng(0).normal(size=(2, 3, 9, 7)).astype(np.float32)
    np.savez("images.npz", input=images)
    result = worked(run("equalize", "uneven.onnx", "--inputs", "images.npz"))
    assert "made up" not in result.stdout


def test_a_healthy_file_is_left(uneven):
    told = worked(run("equalize", "model.fused.onnx", "--input", "2,3,9,7", "--format", "json"))
    assert told.json["taken"] == Path("model.fused.equalized.onnx").exists()
    assert told.json["taken"] == bool(told.json["written"])
    assert told.json["gain_db"] > 0 or not told.json["taken"]
    worked(run("equalize", "model.fused.onnx", "--input", "2,3,9,7", "--all", "-f", "-q"))


def test_what_is_no_onnx_file_is_refused(uneven):
    refused(run("equalize", "model.pth"), 2, "between the layers: give --model")
    refused(run("equalize", "none.onnx"), 2, "none.onnx does not exist")
    Path("uneven.equalized.onnx").write_text("mine")
    refused(run("equalize", "uneven.onnx", "--input", "2,3,9,7"), 6, "uneven.equalized.onnx")
    assert Path("uneven.equalized.onnx").read_text() == "mine"
