"""The command line: its commands, and what becomes of an error."""

import re
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NoReturn

import click

from acfuse import __version__
from acfuse.commands.batch import batch
from acfuse.commands.bench import bench
from acfuse.commands.completion import completion
from acfuse.commands.config import config
from acfuse.commands.convert import convert, export_onnx, inspect
from acfuse.commands.diff import diff
from acfuse.commands.doctor import doctor
from acfuse.commands.explain import explain
from acfuse.commands.init import init
from acfuse.commands.patterns import list_patterns
from acfuse.commands.report import report
from acfuse.commands.verify import selftest, verify
from acfuse.errors import AcfuseError, Exit
from acfuse.options import HELP
from acfuse.settings import defaults
from acfuse.system.escape import as_json, safe
from acfuse.system.pipes import Unbroken
from acfuse.system.signals import Terminated, handle_signals


@click.group(context_settings=HELP)
@click.version_option(__version__, "-V", "--version", prog_name="acfuse")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn a trained multi-branch network into the plain, fast one that it computes.

    \b
    acfuse convert model.pth      finds, fuses, proves, writes model.fused.*
    acfuse verify --atol 1e-4     proves the last conversion again
    acfuse export-onnx            writes its ONNX file again

    Settings may stand in acfuse.toml, or in [tool.acfuse] of pyproject.toml, of the working
    directory.
    """  # noqa: D301
    context.default_map = defaults(Path.cwd(), cli.commands)


for command in (
    convert, batch, verify, report, diff, selftest, bench, export_onnx, inspect, explain,
    list_patterns, init, config, doctor, completion,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Runs the command line, and turns what goes wrong into one line and an exit code."""
    with redirect_stdout(Unbroken(sys.stdout)), redirect_stderr(Unbroken(sys.stderr)):
        _main()


def _main() -> None:
    told: dict[str, str] = {}  # what the command said of its output, also where it fails
    try:
        with handle_signals():
            sys.exit(cli.main(standalone_mode=False, obj=told) or Exit.DONE)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        if context is not None:
            click.echo(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n",
                       err=True)  # fmt: skip
        _fail(error.format_message(), Exit.USAGE, told)
    except AcfuseError as error:
        _fail(" ".join(str(error).split()), error.exit_code, told)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(Exit.INTERRUPTED)
    except Terminated:
        click.echo("terminated", err=True)
        sys.exit(Exit.TERMINATED)
    except Exception as error:
        if isinstance(error, MemoryError) or "not enough memory" in str(error):
            click.echo("error: there is not enough memory on this machine.", err=True)
            sys.exit(Exit.BAD_INPUT)
        traceback.print_exc()
        click.echo("error: this is a bug of acfuse, not of your file. Please report it.", err=True)
        sys.exit(Exit.BUG)


def _fail(message: str, code: Exit, told: Mapping[str, str]) -> NoReturn:
    """Says what went wrong: in one line, and as JSON where that was asked for."""
    click.echo(f"error: {safe(message)}", err=True)
    given = " ".join(sys.argv)  # a line that cannot be read has told nothing
    if told.get("format") == "json" or re.search(r" --format[ =]json\b", given):
        error = {"message": message, "kind": code.name.lower(), "exit_code": int(code)}
        click.echo(as_json({"schema_version": 1, "error": error}))
    sys.exit(code)
