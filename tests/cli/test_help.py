"""Help for everything, and usage errors that help."""

import click
import pytest

from acfuse import cli
from tests.cli.command import run, worked

COMMANDS = sorted(cli.cli.commands)
OPTIONS = [
    pytest.param(option, id=f"{name} {option.opts[-1]}")
    for name, command in sorted(cli.cli.commands.items())
    for option in command.params
    if isinstance(option, click.Option)
]


def test_the_commands_are_the_documented_ones():
    assert {"convert", "export-onnx", "inspect", "patterns", "verify"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = worked(run(command, "--help"))
    assert result.stdout.startswith(f"Usage: acfuse {command} ")
    assert run(command, "-h") == result
    listed = worked(run("--help")).stdout
    assert f"\n  {command} " in listed


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_help_that_ends_like_a_sentence(option):
    assert option.help
    assert option.help[0].isupper()
    assert option.help.endswith(".")


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_takes_a_value_says_what_a_value_is(option):
    if not option.is_flag and not option.count:
        assert option.metavar or option.type.name


def test_the_version_is_the_package_s():
    from importlib.metadata import version

    for flag in ("--version", "-V"):
        assert worked(run(flag)).stdout == f"acfuse, version {version('acfuse')}\n"


def test_no_command_at_all_shows_the_help():
    result = run()
    assert result.exit_code == 2
    assert "acfuse convert model.pth" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["covert"], ["No such command 'covert'", "convert"]),
        (["--nothing"], ["No such option '--nothing'"]),
        (["convert", "a.pth", "--input-shap", "1"], ["--input-shap", "--input-shape"]),
        (["convert", "a.pth", "b.pth"], ["unexpected extra argument", "b.pth"]),
        (["convert"], ["SOURCE"]),
        (["inspect"], ["SOURCE"]),
        (["verify", "a.pth"], ["ORIGINAL", "FUSED"]),
        (["patterns", "x"], ["No such command 'x'"]),
        (["patterns", "show", "rep"], ["no pattern 'rep'", "acfuse patterns"]),
        (["convert", "a.pth", "--opset", "3"], ["--opset", "3"]),
        (["convert", "a.pth", "--dynamic", "width"], ["--dynamic", "width", "batch"]),
        (["convert", "a.pth", "--format", "xml"], ["--format", "xml", "json"]),
        (["convert", "a.pth", "--samples", "0"], ["--samples", "0"]),
        (["convert", "a.pth", "--seed", "x"], ["--seed", "x"]),
        (["convert", "a.pth", "--model-args", "[1]"], ["--model-args", "JSON object"]),
        (["convert", "a.pth", "--model-args", "{"], ["--model-args", "not JSON"]),
        (["verify", "--atol", "-1"], ["--atol", "-1"]),
        (["verify", "--rtol", "much"], ["--rtol", "much"]),
        (["export-onnx", "--input-shape", "1,a"], ["--input-shape", "1,a"]),
    ],
)
def test_wrong_usage_exits_with_2_and_names_what_is_wrong(project, arguments, words):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("line", [(), ("config",)])
def test_without_a_command_the_help_is_shown_as_it_is(line):
    result = run(*line)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: acfuse")
    assert "\nCommands:\n" in result.stderr
    assert "\\n" not in result.stderr
