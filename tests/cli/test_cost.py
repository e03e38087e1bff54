"""`--cost FILE`: blocks chosen by a table, in every command that finds them, and again later."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from acfuse.errors import Exit
from tests.cli import crosses
from tests.cli.command import refused, run, worked
from tests.graph.costs import SLOW, planted, written

MODEL = ("--model", "crosses.py:Net", "--input-shape", "1,4,9,7")
COST = ("--cost", "cost.json")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A network, its checkpoint, and a table that finds its first block slower when it is fused."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(crosses.__file__, "crosses.py")
    torch.manual_seed(0)
    torch.save(crosses.Net().state_dict(), "model.pth")
    written(Path("cost.json"), planted(SLOW))
    return tmp_path


def test_inspect_tells_what_is_slower_and_both_times(folder):
    without = worked(run("inspect", "model.pth", *MODEL, "--format", "json")).json
    assert [b["where"] for b in without["found"]] == ["", "first"]
    told = worked(run("inspect", "model.pth", *MODEL, *COST, "--format", "json")).json
    assert [b["where"] for b in told["found"]] == [""]
    (row,) = told["refused"]
    assert (row["where"], row["code"]) == ("first", "ACF227")
    shown = worked(run("inspect", "model.pth", *MODEL, *COST)).stdout
    assert "refused first: as one convolution it takes 1e+03 ms, its layers 0.012 ms" in shown


def test_a_conversion_by_a_table_is_proved_again_by_the_same_one(folder):
    done = worked(run("convert", "model.pth", "--no-onnx", *MODEL, *COST, "--format", "json")).json
    assert len(done["found"]) == 1
    manifest = json.loads(Path("model.fused.acfuse.json").read_text())
    assert manifest["cost"]["file"] == "cost.json"
    assert "1 block:" in worked(run("verify")).stdout
    worked(run("verify", "model.pth", "model.fused.pth", *MODEL, *COST))
    assert run("verify", "model.pth", "model.fused.pth", *MODEL).exit_code != Exit.DONE


def test_another_table_in_its_place_is_noticed(folder):
    worked(run("convert", "model.pth", "--no-onnx", *MODEL, *COST))
    written(Path("cost.json"), planted({**SLOW, (5, 5): 2.0}))
    result = run("verify")
    assert result.exit_code == Exit.NOT_EQUAL
    assert "cost.json is not the file" in result.stderr
    Path("cost.json").unlink()
    refused(run("verify"), Exit.BAD_INPUT, "cost.json")


def test_without_a_table_the_manifest_names_none(folder):
    worked(run("convert", "model.pth", "--no-onnx", *MODEL))
    assert json.loads(Path("model.fused.acfuse.json").read_text())["cost"] is None
    worked(run("verify"))


@pytest.mark.parametrize("command", ["convert", "inspect", "export-onnx", "selftest"])
@pytest.mark.parametrize("text", ["{", '{"schema_version": 1, "costs": [{}]}'])
def test_a_table_that_is_none_is_refused(folder, command, text):
    Path("cost.json").write_text(text)
    refused(run(command, "model.pth", *MODEL, *COST), Exit.BAD_INPUT, "cost.json", "--profile")


@pytest.mark.parametrize("cost", ["nothing", 3, {"file": "cost.json"}, {"file": 3, "sha256": ""}])
def test_a_manifest_whose_table_is_none_is_refused(folder, cost):
    worked(run("convert", "model.pth", "--no-onnx", *MODEL, *COST))
    path = Path("model.fused.acfuse.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "cost": cost}))
    refused(run("verify"), Exit.BAD_INPUT, "convert again")
