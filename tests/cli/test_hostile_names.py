"""Names that come from a file are only ever data: never markup, links, escapes or commands."""

import sys
from collections import OrderedDict
from contextlib import redirect_stderr

import pytest
import torch
from torch import nn

from acfuse.commands.shown import progress_of
from tests.cli.command import Stream, run
from tests.cli.project import make_project, own_module, state, trained

NAMES = {
    "escape": "\x1b[31mred\x1b[0m",
    "csi": "\x9b31m",
    "title": "\x1b]0;title\x07",
    "link": "[link=http://example.org]here[/link]",
    "markup": "[/oops]",
    "colour": "[bold red]x[/]",
    "newline": "line\n::error::break",
    "return": "gone\rnew",
    "command": "::error::no",
    "bidi": "\u202egnp.exe",
    "backspace": "a\b\bb",
    "delete": "\x7f",
    "emoji": ":smile:",
}
BARE = ("--no-onnx", "--force")


@pytest.fixture(params=NAMES)
def name(request):
    return NAMES[request.param]


def harmless(result, name):
    """Asserts that nothing in the streams is obeyed by a terminal, rich or a CI log."""
    assert result.exit_code != 7, result.stderr
    for text in (result.stdout, result.stderr):
        for character in text:
            # A space of no width is how "::" is kept apart.
            assert character.isprintable() or character in "\n\u200b", repr(text)
            assert character not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        for line in text.splitlines():
            assert not line.lstrip().startswith("::")
    if name.startswith("[") and result.stdout:
        assert name in result.stdout  # shown as it is, not taken for markup


def commands(source="model.pth"):
    yield "convert", source, *BARE
    yield "inspect", source
    yield "convert", source, *BARE, "--format", "json"
    yield "inspect", source, "--format", "json"


def test_as_the_prefix_of_every_key(project, name):
    make_project(project, {f"{name}.{key}": tensor for key, tensor in state().items()})
    for command in commands():
        harmless(run(*command), "" if "json" in command else name)


def test_a_command_behind_spaces(project):
    """A CI job takes the spaces before a command away."""
    make_project(project, {f"  ::error::no.{key}": tensor for key, tensor in state().items()})
    harmless(run("inspect", "model.pth"), "")


def test_as_a_block_that_is_refused(project, name):
    tensors = {f"{name}.{k}": v for k, v in state().items() if "first.ver_bn.running" not in k}
    make_project(project, tensors)
    result = run("inspect", "model.pth")
    assert "refused" in result.stdout
    harmless(result, name)


ERRORS = {
    "not a number": lambda name: {**state(), name: torch.tensor([torch.nan])},
    "several": lambda name: {name: state(), "other": state()},
    "no tensors": lambda name: {name: 1},
    "sparse": lambda name: {**state(), name: torch.eye(2).to_sparse()},
    "unknown": lambda name: {**state(), name: torch.ones(1)},
}


@pytest.mark.parametrize("kind", ERRORS)
def test_in_an_error_message(project, name, kind):
    make_project(project, ERRORS[kind](name))
    model = ("--model", "nets.py:Net") if kind == "unknown" else ()
    result = run("convert", "model.pth", "--quiet", *model, terminal=True)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    harmless(result, "")


def test_as_a_file_name(project, name):
    source = project / (name.replace("/", "_") + ".pth")
    (project / "model.pth").rename(source)
    for command in commands(source.name):
        result = run(*command)
        assert result.exit_code == 0
        harmless(result, "")


def test_as_the_name_of_a_child_of_a_pickled_module(project, name):
    try:
        nets = own_module(project)
        model = nn.Sequential(OrderedDict([(name.replace(".", "_"), nets.ACBlock((3, 4)))]))
        torch.save(trained(model), "model.pth")
    finally:
        sys.modules.pop("nets", None)
    flags = ("--allow-class", "nets:ACBlock", "--input-shape", "1,3,9,7")
    result = run("convert", "model.pth", *BARE, *flags)
    assert result.exit_code == 0
    harmless(result, "")


@pytest.mark.parametrize("verbose", [0, 1])
def test_in_the_progress_line_of_a_terminal(verbose):
    stream = Stream(terminal=True)
    with redirect_stderr(stream):
        for name in NAMES.values():
            with progress_of("loading", quiet=False, verbose=verbose) as progress:
                progress(f"certificate of {name}")
    for name in NAMES.values():
        assert name.isprintable() or name not in stream.getvalue()
    assert NAMES["markup"] in stream.getvalue()
