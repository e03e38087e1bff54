"""The result goes to stdout, everything else to stderr, and colours to terminals alone."""

import os
import re
import subprocess
import sys

import pytest

from acfuse.system import pipes
from tests.cli.command import Stream, run, worked
from tests.cli.project import CHECKPOINT, MODEL, make_project, state

COMMANDS = {
    "convert": ["convert", "model.pth", "--force", *CHECKPOINT],
    "verify": ["verify"],
    "inspect": ["inspect", "model.pth"],
    "patterns": ["patterns"],
    "help": ["--help"],
    "usage": ["convert", "--nothing"],
}
COLOUR = re.compile(r"\x1b\[[\d;]*[34]\d")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_gets_neither_colours_nor_progress(fused, name):
    result = run(*COMMANDS[name])
    assert "\x1b" not in result.stdout + result.stderr
    assert "\r" not in result.stdout + result.stderr
    assert " ..." not in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_no_color_is_respected_on_a_terminal(fused, name):
    result = run(*COMMANDS[name], terminal=True, env={"NO_COLOR": "1"})
    assert not COLOUR.search(result.stdout + result.stderr)


def test_a_terminal_sees_progress_on_stderr_and_the_same_result_on_stdout(fused):
    piped = run(*COMMANDS["convert"])
    shown = run(*COMMANDS["convert"], terminal=True, env={"COLUMNS": "200"})
    assert "rounding in float32 ..." in shown.stderr
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown.stdout)
    assert plain.split() == piped.stdout.split()


def test_quiet_says_nothing_when_all_is_well(fused):
    result = run(*COMMANDS["convert"], "--quiet", terminal=True)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_quiet_still_says_what_went_wrong(fused):
    result = run("verify", "--quiet", "--atol", "0", "--rtol", "0")
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: not equal: ")


@pytest.mark.parametrize("depth", [20, 40])
def test_names_are_not_cut_off_where_nobody_knows_the_width(project, depth):
    long = "stage." * depth
    make_project(project, {long + key: tensor for key, tensor in state().items()})
    result = worked(run("inspect", "model.pth", env={"COLUMNS": "40"}))
    assert f"{long}second.fused_conv" in result.stdout


def test_names_are_not_cut_off_on_a_narrow_terminal(project):
    make_project(project, {"stage." * 10 + key: tensor for key, tensor in state().items()})
    result = run("inspect", "model.pth", terminal=True, env={"COLUMNS": "60"})
    assert "stage." * 10 + "second.fused_conv" in result.stdout


def test_a_failed_check_is_told_apart_from_its_name(fused):
    result = run("verify", "--atol", "0", "--rtol", "0")
    assert re.search(r"^DIFFERS +whole model as it ships", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", [["verify"], ["inspect", "model.pth"], ["patterns"]])
def test_verbose_says_more_on_stderr_and_no_less_on_stdout(fused, command):
    brief, full = run(*command), run(*command, "-v")
    assert brief.stderr == ""
    assert full.stderr
    assert "\x1b" not in full.stderr
    assert full.stdout.startswith(brief.stdout[:70])  # its table has more columns


def test_a_reader_that_goes_away_is_no_error(project, monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    duplicated = []
    monkeypatch.setattr(pipes.os, "dup2", lambda *numbers: duplicated.append(numbers))
    monkeypatch.setattr(Stream, "fileno", lambda _: 1)
    monkeypatch.setattr(Stream, "write", gone)
    assert run("inspect", "model.pth").exit_code == 0
    assert duplicated
    assert run("verify", "model.pth", "none.pth", *MODEL).exit_code == 3  # as with a reader


def test_a_closed_pipe_has_the_exit_code_of_the_command(project):
    """`acfuse ... | head -1`, as a shell runs it: 1 would say that the models are not equal."""
    line = [sys.executable, "-m", "acfuse", "inspect", "model.pth"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(line, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
