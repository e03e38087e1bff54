"""`--format github`: annotations beside the text, and the summary of a step."""

import re
from pathlib import Path

import pytest

from acfuse.reports import github
from acfuse.reports.github import add_summary, annotation, annotations_of
from tests.cli.command import run, worked
from tests.cli.project import CHECKPOINT, change, make_project, state

GITHUB = ("--format", "github")
LINE = re.compile(r"::(error|warning|notice) title=([^:,]*)::(.*)")


@pytest.fixture
def summary(tmp_path) -> Path:
    """The file of a step's summary, which earlier commands have written to."""
    path = tmp_path / "summary"
    path.write_text("before\n")
    return path


def annotated(text: str) -> list[tuple[str, ...]]:
    """The annotations in a text: kind, title, message."""
    lines = [line for line in text.splitlines() if line.lstrip().startswith("::")]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found)
    return [match.groups() for match in found if match]


def test_a_conversion_is_text_an_annotation_and_a_summary(project, summary):
    line = ("convert", "model.pth", "--force", *CHECKPOINT)
    shown = worked(run(*line, *GITHUB, env={"GITHUB_STEP_SUMMARY": str(summary)}))
    assert shown.stdout.startswith(worked(run(*line)).stdout)
    assert annotated(shown.stdout) == [("notice", "acfuse", "2 blocks proved equal, 0 refused")]
    assert summary.read_text().startswith("before\n## acfuse: model&#46;pth\n")
    assert "**Equal&#58; 2 of 2 blocks" in summary.read_text()


def test_without_the_variable_or_the_format_there_is_no_summary(project, summary):
    worked(run("inspect", "model.pth", *GITHUB))
    line = ("convert", "model.pth", "--dry-run", *CHECKPOINT)
    worked(run(*line, env={"GITHUB_STEP_SUMMARY": str(summary)}))
    worked(run(*line, *GITHUB))
    assert summary.read_text() == "before\n"


def test_what_is_not_equal_is_an_error(fused, summary):
    change(fused / "model.fused.pth", lambda t: t["first.fused_conv.bias"].mul_(2))
    result = run("verify", "--quiet", *GITHUB, env={"GITHUB_STEP_SUMMARY": str(summary)})
    assert result.exit_code == 1
    ((kind, title, message),) = annotated(result.stdout)
    assert (kind, title) == ("error", "acfuse (exit 1)")
    assert message.startswith("not equal%3A first%3A ")
    assert "Not equal" in summary.read_text()


@pytest.mark.parametrize(
    ("line", "code"), [(["convert", "none.pth"], 3), (["inspect", "model.pth", "--nothing"], 2)]
)
def test_an_error_is_one_annotation_and_a_summary(project, summary, line, code):
    result = run(*line, *GITHUB, env={"GITHUB_STEP_SUMMARY": str(summary)})
    assert result.exit_code == code
    ((kind, title, _),) = annotated(result.stdout)
    assert (kind, title) == ("error", f"acfuse (exit {code})")
    assert f"Exit code {code}" in summary.read_text()


def test_a_summary_that_cannot_be_written_is_a_warning(project):
    variable = {"GITHUB_STEP_SUMMARY": str(project / "no" / "such")}
    result = worked(run("convert", "model.pth", "-n", *CHECKPOINT, *GITHUB, env=variable))
    assert ("warning", "acfuse") in [told[:2] for told in annotated(result.stdout)]


HOSTILE = ["a\n::error::b", "::error::b", "a%0A::error::b", "a%::b,c", "\r::x", "##[error]", ","]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_one_line_that_says_it(name):
    line = annotation("error", name, title=name)
    (found,) = annotated(line)
    assert len(line.splitlines()) == 1
    assert "##[" not in line
    for part in found[1:]:
        assert not re.search(r"%(?!25|3A|2C)", part)  # what a runner decodes is only what we wrote


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_in_a_file_make_no_annotation_of_their_own(project, summary, name):
    make_project(project, {f"{name}.{key}": tensor for key, tensor in state().items()})
    line = ("convert", "model.pth", "--no-onnx", "--force", *GITHUB)
    result = worked(run(*line, env={"GITHUB_STEP_SUMMARY": str(summary)}))
    assert [kind for kind, *_ in annotated(result.stdout)] == ["notice"]
    assert annotated(summary.read_text()) == []


def test_of_many_refusals_some_are_shown_and_the_rest_is_counted():
    rows = [{"where": f"b{i}", "why": "it is", "code": "ACF201"} for i in range(1000)]
    lines = annotations_of({"found": [], "refused": rows, "passed": True, "checks": []})
    assert len(lines) == github.MOST
    assert "and 992 more" in lines[-2]
    few = annotations_of({"found": [], "refused": rows[:9], "passed": True, "checks": []})
    assert not [line for line in few if "more" in line]


def test_a_summary_is_never_larger_than_is_shown(tmp_path):
    path = tmp_path / "summary"
    path.write_bytes(b"x" * (github.MOST_BYTES - 5))
    given = {"GITHUB_STEP_SUMMARY": str(path)}
    assert "full" in add_summary("\u274c\u274c", given)  # 2 characters, 7 bytes with their end
    assert path.stat().st_size == github.MOST_BYTES - 5
    assert add_summary("\u274cx", given) == ""
    assert path.stat().st_size == github.MOST_BYTES
