"""Of several conversions in one folder, a command is told by its manifest which is meant."""

from pathlib import Path

import pytest

from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, MODEL

MANIFEST = "model.fused.acfuse.json"


@pytest.fixture
def several(fused):
    """A folder with two conversions."""
    Path("other.fused.acfuse.json").write_bytes(Path(MANIFEST).read_bytes())
    return fused


@pytest.mark.parametrize("command", ["verify", "selftest", "export-onnx", "bench"])
def test_which_is_meant_is_asked_for_and_a_name_answers(several, command):
    few = ("--rounds", "6", "--seconds", "0.001") if command == "bench" else ()
    refused(run(command, *few), 2, MANIFEST, "other.fused.acfuse.json", "give the one")
    worked(run(command, MANIFEST, *few))


def test_it_may_lie_in_another_folder(several, monkeypatch):
    monkeypatch.chdir(several.parent)
    done = worked(run("verify", f"{several.name}/{MANIFEST}"))
    assert "equal   certificate of 2 blocks" in done.stdout


def test_what_it_names_is_proved_and_nothing_else(several):
    Path("model.fused.pth").write_bytes(b"x")
    refused(run("verify", MANIFEST), 3, "model.fused.pth")


def test_it_names_both_files(several):
    for command in ("verify", "selftest", "bench"):
        refused(run(command, MANIFEST, "model.fused.pth"), 2, "give it alone")


def test_one_that_is_not_there_is_told_before_another_is_taken(fused):
    for command in ("verify", "selftest", "export-onnx"):
        refused(run(command, "none.acfuse.json"), 2, "none.acfuse.json does not exist")


def test_it_is_no_checkpoint_to_convert(fused):
    refused(run("convert", MANIFEST, *CHECKPOINT), 3, "is no checkpoint")


def test_reports_do_not_replace_it(several):
    worked(run("convert", "model.pth", "--force", *MODEL, "--report", "told.json"))
    refused(run("verify", MANIFEST, "--report", MANIFEST, "--force"), 2, "name of a manifest")
    worked(run("verify", MANIFEST))
