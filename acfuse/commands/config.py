"""config show: each setting, its value, and where that came from."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from acfuse.options import RESULT_OPTIONS, takes
from acfuse.settings import configured
from acfuse.system.escape import as_json, columns, safe


class Setting(NamedTuple):
    """A setting as flags and files call it, what it is, and where that was said."""

    name: str
    value: Any
    origin: str  # "default", the name of a file, or that of a variable
    variable: str


@click.group("config")
def config() -> None:
    """Show the settings of this folder."""


@config.command("show")
@takes(RESULT_OPTIONS)
def show_config(format: str, **_: Any) -> None:
    """Show each setting, its value, and where it came from.

    A flag of the command line stands before a variable ACFUSE_*, that before acfuse.toml or
    pyproject.toml of this folder, and that before the default.
    """
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    found = [*settings_of(root, Path.cwd())]
    if format == "json":
        click.echo(as_json([setting._asdict() for setting in found]))
        return
    rows = [(s.name, _shown(s.value), safe(s.origin)) for s in found]
    click.echo("\n".join(columns(("setting", "value", "from"), rows)))


def settings_of(root: click.Group, folder: Path) -> Iterator[Setting]:
    """Every setting that some command takes, by name."""
    file, given = configured(folder)
    options = {
        str(p.name): p
        for command in root.commands.values()
        for p in command.params
        if isinstance(p, click.Option) and isinstance(p.envvar, str)
    }
    for name, known in sorted(options.items()):
        variable = str(known.envvar)
        flag = max(known.opts, key=len).lstrip("-")
        if os.environ.get(variable):
            yield Setting(flag, os.environ[variable], variable, variable)
        elif name in given:
            yield Setting(flag, given[name], file, variable)
        else:
            yield Setting(flag, known.to_info_dict()["default"], "default", variable)


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "-"
    return safe(value) if isinstance(value, str) else safe(as_json(value, indent=None))
