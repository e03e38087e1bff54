"""`--format json`: exactly one JSON document on stdout, whatever else was asked for."""

from pathlib import Path

import pytest

from tests.cli.command import run, worked
from tests.cli.project import CHECKPOINT, MODEL, change

VERBOSITIES = ([], ["-q"], ["-v"], ["-vv"], ["-q", "-v"])
COMMANDS = {
    "convert": ["convert", "model.pth", "--force", *CHECKPOINT],
    "dry-run": ["convert", "model.pth", "--dry-run", *CHECKPOINT],
    "bare": ["convert", "model.pth", "--dry-run"],
    "verify": ["verify"],
    "inspect": ["inspect", "model.pth"],
    "patterns": ["patterns"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_stdout_is_one_document_at_every_verbosity(fused, name, capfd):
    for verbosity in VERBOSITIES:
        result = run(*COMMANDS[name], *verbosity, "--format", "json")
        assert result.exit_code == 0
        assert isinstance(result.json, dict | list)
        if "v" not in "".join(verbosity):
            assert result.stderr == ""
    assert capfd.readouterr() == ("", "")


def test_a_conversion_is_described_as_its_manifest_is(fused):
    result = worked(run(*COMMANDS["convert"], "--format", "json"))
    assert result.json["schema_version"] == 1
    assert [o["file"] for o in result.json["outputs"]] == ["model.fused.pth"]
    assert result.json["written"] == ["model.fused.pth", "model.fused.acfuse.json"]
    assert [block["where"] for block in result.json["found"]] == ["first", "second"]


def test_inspect_lists_what_was_found_and_what_was_refused(fused):
    result = worked(run("inspect", "model.pth", "--format", "json"))
    assert {"source", "found", "refused", "notes"} <= set(result.json)
    assert [block["pattern"] for block in result.json["found"]] == ["acnet", "acnet"]
    sizes = result.json["sizes"]
    assert (sizes["before"]["convolutions"], sizes["after"]["convolutions"]) == (7, 3)


def test_inspect_counts_multiply_adds_for_a_given_input(fused):
    result = worked(run("inspect", "model.pth", *MODEL, "--format", "json"))
    sizes = result.json["sizes"]
    # 9 x 7 pixels of 3 to 4 channels, half as many of 4 to 6 in two groups, and of 6 to 2
    half, pixels = 9 * 4, 9 * 7
    head = half * 6 * 2
    assert sizes["before"]["multiply_adds"] == 15 * (pixels * 12 + half * 12) + head
    assert sizes["after"]["multiply_adds"] == 9 * (pixels * 12 + half * 12) + head


def test_patterns_lists_the_registry(fused):
    from acfuse.patterns import PATTERNS

    result = worked(run("patterns", "--format", "json"))
    assert [row["name"] for row in result.json] == [p.name for p in PATTERNS]


def test_a_failed_proof_is_one_document_as_well(fused):
    change(fused / "model.fused.pth", lambda t: t["first.fused_conv.bias"].mul_(2))
    result = run("verify", "--format", "json")
    assert result.exit_code == 1
    assert not result.json["passed"]
    assert result.json["fault"].startswith("first: ")
    assert len(result.stderr.splitlines()) == 1


def test_an_infinite_error_is_still_json(fused):
    infinite = float("inf")
    change(fused / "model.fused.pth", lambda t: t["first.fused_conv.bias"].fill_(infinite))
    result = run("verify", "--format", "json")
    assert result.exit_code == 1
    assert not result.json["passed"]


def test_what_the_user_s_code_prints_is_no_part_of_the_document(project):
    code = Path("nets.py").read_text()
    talking = code.replace(
        "        return self.head(", "        print('hello')\n        return self.head("
    )
    Path("nets.py").write_text("print('loading')\n" + talking)
    result = run("convert", "model.pth", "--dry-run", *CHECKPOINT, "--format", "json")
    assert result.exit_code == 0
    assert result.json["passed"]


ERRORS = {
    "input": (["convert", "nothing.pth"], 3),
    "usage": (["convert", "model.pth", "--nothing"], 2),
    "output": (["convert", "model.pth", "--output", "nowhere/x.pth", *CHECKPOINT], 6),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_json_as_well(name, project):
    line, code = ERRORS[name]
    result = run(*line, "--format", "json")
    assert result.exit_code == code
    error = result.json["error"]
    assert error["exit_code"] == code
    assert f"error: {error['message']}\n" in result.stderr
    assert run(*line).stdout == ""
