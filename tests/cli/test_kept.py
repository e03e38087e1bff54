"""`--output-file` and `--log-file`: what a run says, kept in files as well."""

import importlib
import logging
import os
import re
import stat
import subprocess
import sys
from datetime import datetime

import pytest

from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, change, make_project, snapshot, state

KEPT = ("--output-file", "out.txt", "--log-file", "run.log")
LINES = {
    "convert": ["convert", "model.pth", "--force", *CHECKPOINT],
    "verify": ["verify"],
    "inspect": ["inspect", "model.pth"],
    "explain": ["explain", "ACF205"],
    "patterns": ["patterns"],
    "show": ["patterns", "show", "acnet"],
    "diff": ["diff", "model.pth", "model.pth"],
    "config": ["config", "show"],
    "doctor": ["doctor"],
}
STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} (INFO|ERROR) (.*)")


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("format_", ["text", "json"])
def test_the_file_has_what_stdout_gets(fused, name, format_):
    result = worked(run(*LINES[name], "--format", format_, *KEPT))
    assert result.stdout
    assert (fused / "out.txt").read_text() == result.stdout
    assert (fused / "run.log").read_text().endswith("INFO exit code 0\n")


def test_a_terminal_leaves_no_colours_in_it(fused):
    shown = {"TTY_COMPATIBLE": "1", "FORCE_COLOR": "1"}
    worked(run("inspect", "model.pth", "--output-file", "plain.txt"))
    run("inspect", "model.pth", "--output-file", "out.txt", terminal=True, env=shown)
    assert (fused / "out.txt").read_text() == (fused / "plain.txt").read_text()


def test_the_log_says_what_was_done_when(fused):
    worked(run("verify", "--log-file", "run.log"))
    lines = (fused / "run.log").read_text().splitlines()
    told = [match for match in map(STAMP.fullmatch, lines) if match]
    assert len(told) == len(lines)
    times = [datetime.fromisoformat(match[1]) for match in told]
    assert times == sorted(times)
    assert told[0][3].startswith("acfuse ")
    done = [line.removesuffix(" ...") for line in run("verify", "-v").stderr.splitlines()[1:]]
    assert [match[3] for match in told[1:-1]] == done
    assert logging.getLogger("acfuse").level == logging.NOTSET


@pytest.mark.parametrize(
    ("line", "code"),
    [(["convert", "none.pth"], 3), (["convert", "model.pth", "--nothing"], 2), (["inspect"], 2)],
)
def test_an_error_is_in_both(project, line, code):
    result = run(*line, *KEPT)
    assert (result.exit_code, result.stdout) == (code, "")
    (error,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert (project / "out.txt").read_text() == f"{error}\n"
    log = (project / "run.log").read_text()
    assert f"ERROR {error.removeprefix('error: ')}" in log
    assert log.endswith(f"INFO exit code {code}\n")


def test_an_error_as_json_is_one_document_in_the_file(project):
    result = run("convert", "none.pth", "--format", "json", *KEPT)
    assert result.json["error"]["exit_code"] == 3
    assert (project / "out.txt").read_text() == result.stdout


def test_what_is_not_equal_is_in_both(fused):
    change(fused / "model.fused.pth", lambda t: t["first.fused_conv.bias"].mul_(2))
    assert run("verify", *KEPT).exit_code == 1
    assert "error: not equal: first: " in (fused / "out.txt").read_text()
    assert "ERROR not equal: first: " in (fused / "run.log").read_text()


def test_the_log_has_the_traceback_of_our_own_mistake(project, monkeypatch):
    def broken(*_):
        raise RuntimeError("impossible\n::error::\x1b[31m")

    monkeypatch.setattr(importlib.import_module("acfuse.pipeline.convert"), "find", broken)
    assert run("convert", "model.pth", *KEPT).exit_code == 7
    log = (project / "run.log").read_text()
    assert "RuntimeError: impossible" in log
    assert "in broken" in log
    assert "\x1b" not in log
    assert not [line for line in log.splitlines() if line.startswith("::")]
    assert "bug of acfuse" in (project / "out.txt").read_text()


@pytest.mark.parametrize("option", ["--output-file", "--log-file"])
@pytest.mark.parametrize("command", ["inspect", "convert", "verify"])
def test_no_file_is_replaced_unless_force_says_so(fused, option, command):
    line = {"verify": ("verify",)}.get(command, (command, "model.pth", "-o", "x.pth", "--no-onnx"))
    line = line[:2] if command == "inspect" else line
    (fused / "mine").write_text("mine")
    before = snapshot(fused)
    refused(run(*line, option, "mine"), 6, "mine exists", "--force", option)
    refused(run(*line, option, "no/such"), 6, "no is not a directory", option)
    refused(run(*line, option, "."), 6, "not a regular file")
    assert snapshot(fused) == before
    worked(run(*line, option, "mine", "--force"))
    assert (fused / "mine").read_text() not in ("mine", "")


def test_a_log_is_replaced_by_the_next_one(project):
    worked(run("patterns", "--log-file", "run.log"))
    first = (project / "run.log").read_text()
    refused(run("inspect", "none.pth", "--log-file", "run.log"), 3, "none.pth")
    second = (project / "run.log").read_text()
    assert (first.splitlines()[-1][-4:], second.splitlines()[-1][-4:]) == ("de 0", "de 3")
    refused(run("patterns", "--output-file", "run.log"), 6, "run.log exists", "--force")
    assert (project / "run.log").read_text() == second


def test_a_log_that_is_replaced_keeps_its_mode_and_no_link_is_followed(project):
    log, precious = project / "run.log", project / "precious"
    worked(run("patterns", "--log-file", "run.log"))
    log.chmod(0o600)
    with log.open("a") as of_another_run:
        worked(run("patterns", "--log-file", "run.log"))
        of_another_run.write("later")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert log.read_text().endswith("INFO exit code 0\n")
    log.rename(precious)
    log.symlink_to(precious)
    before = precious.read_text()
    for more in ([], ["--force"]):
        worked(run("inspect", "model.pth", "--log-file", "run.log", *more))
        assert (log.is_symlink(), precious.read_text()) == (False, before)
        log.unlink()
        log.symlink_to(precious)


@pytest.mark.parametrize("text", ["", "notes\n{log}", " {log}", "{other}", "acfuse 0, Python\n"])
def test_what_does_not_begin_as_a_log_is_kept(project, text):
    worked(run("patterns", "--log-file", "run.log"))
    log = (project / "run.log").read_text()
    text = text.format(log=log, other=log.replace("INFO acfuse", "INFO other"))
    (project / "mine").write_text(text)
    refused(run("patterns", "--log-file", "mine"), 6, "mine exists", "--force", "--log-file")
    assert (project / "mine").read_text() == text
    worked(run("patterns", "--log-file", "mine", "-f"))


@pytest.mark.parametrize("option", ["--output-file", "--log-file"])
def test_no_input_and_no_result_is_replaced(fused, option):
    before = snapshot(fused)
    (fused / "link").symlink_to("model.pth")
    refused(run("inspect", "model.pth", "-f", option, "link"), 6, "is the input itself")
    convert = ("convert", "model.pth", "-f", *CHECKPOINT)
    refused(run(*convert, option, "nets.py"), 6, "is the input itself")
    refused(run(*convert, option, "model.fused.pth"), 2, "written twice")
    refused(run(*convert, option, "r.md", "--report", "./r.md"), 2, "written twice")
    assert "written twice" in (fused / "r.md").read_text()  # it has room for the error
    (fused / "r.md").unlink()
    (fused / "link").unlink()
    if option == "--output-file":
        refused(run("verify", *KEPT[:2], "--log-file", "out.txt"), 2, "written twice")
    assert snapshot(fused) == before


def test_what_a_command_has_written_is_not_replaced_by_what_it_says(project):
    result = run("init", "--model", "nets.py:Net", "--output-file", "acfuse.toml")
    assert result.exit_code == 6
    assert "written by something else" in result.stderr
    assert (project / "acfuse.toml").read_text().startswith("model = ")


def test_a_line_that_cannot_be_read_replaces_nothing(project):
    (project / "out.txt").write_text("mine")
    assert run("inspect", "model.pth", "--nothing", "-f", *KEPT).exit_code == 2
    assert (project / "out.txt").read_text() == "mine"


def test_hostile_names_are_text_in_both(project):
    hostile = "a\n::error::b\x1b[31m\u202e"
    make_project(project, {f"{hostile}.{key}": tensor for key, tensor in state().items()})
    worked(run("convert", "model.pth", "--no-onnx", *KEPT))
    for name in ("out.txt", "run.log"):
        text = (project / name).read_text()
        assert "\\n::error::b" in text or "\\x1b" in text
        assert not {"\x1b", "\u202e"} & set(text)
        assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]


def test_a_reader_that_goes_away_leaves_the_file_whole(project):
    """`acfuse ... | head -1`, as a shell runs it."""
    line = [sys.executable, "-m", "acfuse", "inspect", "model.pth", "--output-file", "out.txt"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(line, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (project / "out.txt").read_text() == run("inspect", "model.pth").stdout


def test_a_batch_keeps_its_own_lines_alone(project):
    result = run("batch", "none.pth", "model.pth", "--no-onnx", *KEPT)
    assert result.exit_code == 3
    assert (project / "out.txt").read_text().startswith(result.stdout.splitlines()[0])
    assert len([x for x in (project / "out.txt").read_text().splitlines() if x[0] == "{"]) == 2


def test_variables_and_the_configuration_name_them_too(project):
    (project / "acfuse.toml").write_text('log-file = "run.log"\n')
    worked(run("inspect", "model.pth", env={"ACFUSE_OUTPUT_FILE": "out.txt"}))
    assert (project / "run.log").is_file()
    assert (project / "out.txt").is_file()
