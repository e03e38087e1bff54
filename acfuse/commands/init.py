"""init: an acfuse.toml for this folder, from what a checkpoint says of itself."""

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from acfuse.commands.jobs import check_first
from acfuse.commands.shown import progress_of
from acfuse.errors import OutputError
from acfuse.options import COMMON_OPTIONS, INPUT, KEY, option, takes
from acfuse.system.escape import as_json, safe

FILE = "acfuse.toml"
INIT_OPTIONS = (
    option("--model", metavar="MODULE:NAME", help="The network's code, as convert takes it."),
    option("--input", "--input-shape", "input_shape", metavar="SHAPE",
            help="The shape of its input, such as 1,3,224,224."),
    KEY,
)  # fmt: skip


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@takes(INIT_OPTIONS, COMMON_OPTIONS)
def init(
    checkpoint: Path | None,
    model: str | None,
    input_shape: str | None,
    key: str | None,
    force: bool,
    format: str,
    quiet: bool,
    verbose: int,
) -> None:
    """Write acfuse.toml for this folder, from what CHECKPOINT says and what you are asked.

    On a terminal, what the checkpoint does not say is asked; in a pipe, it is left open.
    """
    path = Path.cwd() / FILE
    if path.exists() and not force:
        raise OutputError(f"{FILE} exists; give --force to replace it.")
    settings: dict[str, Any] = {}
    comments: list[str] = []
    if checkpoint is not None:
        check_first(checkpoint, {"dry_run": True})
        with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose):
            from acfuse.pipeline.beginning import beginning

            settings, comments = beginning(checkpoint, key)
    given = {"model": model, "input-shape": input_shape}
    if sys.stdin.isatty() and sys.stderr.isatty():
        given = {name: value or _ask(name) for name, value in given.items()}
    settings |= {name: value for name, value in given.items() if value}
    if settings.get("input-shape"):
        INPUT.convert(settings["input-shape"], None, click.get_current_context())
    text = toml(settings, comments)
    from acfuse.system.atomic_write import write_all

    write_all({path: text.encode()})
    if format == "json":
        click.echo(as_json({"written": str(path), "settings": settings}))
    elif not quiet:
        click.echo(text, nl=False)
        click.echo(f"\nwrote   {FILE}; `acfuse config show` shows what holds here")


QUESTIONS = {
    "model": "The network's code, as file.py:Class or package.module:factory (empty: none)",
    "input-shape": "The shape of its input, such as 1,3,224,224 (empty: none)",
}


def _ask(name: str) -> str | None:
    return click.prompt(QUESTIONS[name], default="", show_default=False, err=True).strip() or None


def toml(settings: Mapping[str, Any], comments: list[str]) -> str:
    """An acfuse.toml: comments, what is known, and what is left open as a comment."""
    lines = [f"# {safe(comment)}" for comment in comments]
    lines += [f"{name} = {_literal(value)}" for name, value in settings.items()]
    examples = {"model": "nets.py:Net", "input-shape": "1,3,224,224"}
    lines += [f"# {n} = {_literal(v)}" for n, v in examples.items() if n not in settings]
    text = "\n".join(lines) + "\n"
    assert tomllib.loads(text) == settings
    return text


def _literal(value: Any) -> str:
    """A value as TOML writes it: strings as JSON does, but for one sign that only JSON allows."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
