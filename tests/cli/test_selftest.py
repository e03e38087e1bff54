"""`acfuse selftest`: faults in the user's own files, each seen, and said to be seen."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from acfuse.errors import Exit
from acfuse.pipeline import replay
from acfuse.proof import Proofs
from tests.cli.command import run, worked
from tests.cli.project import CHECKPOINT, MODEL


def trials_of(*arguments):
    """What is told of a self-test in which every fault is seen and named."""
    told = worked(run("selftest", *arguments, "--format", "json")).json
    assert told["planted"] == len(told["faults"]) == 20
    assert told["seen"] == told["named"] == 20
    kinds = [(fault["file"], fault["what"], fault["place"]) for fault in told["faults"]]
    assert len(set(kinds)) == 20
    return told


def test_every_fault_in_a_checkpoint_without_code_is_seen(project):
    told = trials_of("model.pth")
    assert {fault["file"] for fault in told["faults"]} == {"model.fused.pth"}
    assert sorted(path.name for path in Path().glob("*fused*")) == []


def test_every_fault_in_both_files_of_a_conversion_is_seen(project):
    told = trials_of("model.pth", *MODEL)
    files = [fault["file"] for fault in told["faults"]]
    assert (files.count("model.fused.pth"), files.count("model.fused.onnx")) == (10, 10)
    assert sorted(path.name for path in Path().glob("*fused*")) == []


def test_the_last_conversion_is_tested_where_no_file_is_named(project):
    worked(run("convert", "model.pth", *CHECKPOINT))
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    trials_of()
    after = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert before == after


def test_every_fault_in_an_onnx_file_is_seen(project):
    worked(run("export-onnx", "model.pth", *MODEL, "--dynamic", "all"))
    shutil.copy("model.onnx", "net.onnx")
    worked(run("convert", "net.onnx", "--input-shape", "1,3,12,9"))
    told = trials_of("net.onnx", "net.fused.onnx", "--input-shape", "1,3,12,9")
    assert {fault["file"] for fault in told["faults"]} == {"net.fused.onnx"}


def test_nothing_is_planted_in_files_that_are_wrong_already(project):
    worked(run("convert", "model.pth", "--no-onnx"))
    worked(run("export-onnx", "model.pth", *MODEL))
    Path("other").mkdir()
    trials = run("selftest", "model.pth", "model.pth")
    assert trials.exit_code in (Exit.NOT_EQUAL, Exit.BAD_INPUT)
    assert "planted" not in trials.stdout


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_fault_that_is_not_seen_is_told(project, monkeypatch, format):
    """A verdict that looks at no tensor is found out."""

    def blind(*given, **settings):
        proofs = prove(*given, **settings)
        return replace(proofs, certificates=()) if proofs.certificates else Proofs()

    prove = replay.prove
    monkeypatch.setattr(replay, "prove", blind)
    result = run("selftest", "model.pth", "--format", format)
    assert result.exit_code == Exit.BUG
    assert "faults were not seen" in result.stderr
    assert "a weight times 1 + 1e-5 in " in result.stderr
    if format == "json":
        assert 0 < result.json["seen"] < 20
    else:
        assert "NOT SEEN" in result.stdout
