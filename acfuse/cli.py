"""The command line: its commands, and what becomes of an error."""

import errno
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import click

from acfuse import __version__
from acfuse.commands.batch import batch
from acfuse.commands.bench import bench
from acfuse.commands.completion import completion
from acfuse.commands.config import config
from acfuse.commands.convert import convert, export_onnx, inspect
from acfuse.commands.diff import diff
from acfuse.commands.doctor import doctor
from acfuse.commands.equalize import equalize
from acfuse.commands.explain import explain
from acfuse.commands.init import init
from acfuse.commands.patterns import list_patterns
from acfuse.commands.quantize import quantize
from acfuse.commands.report import report
from acfuse.commands.shown import annotate, say_wrong
from acfuse.commands.verify import selftest, verify
from acfuse.errors import AcfuseError, Exit
from acfuse.options import HELP, begin_anyway
from acfuse.settings import defaults
from acfuse.system.escape import as_json
from acfuse.system.kept import Copied, Run
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
    convert, batch, verify, report, diff, selftest, bench, export_onnx, equalize, quantize,
    inspect, explain, list_patterns, init, config, doctor, completion,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Runs the command line, and turns what goes wrong into one line and an exit code."""
    run = Run(f"acfuse {__version__}")
    with redirect_stdout(Copied(sys.stdout, run)), redirect_stderr(Unbroken(sys.stderr)):
        sys.exit(_kept(run, _outcome(run)))


def _outcome(run: Run) -> int:
    """Runs a command. What it was told of its output holds where it fails as well."""
    try:
        with handle_signals():
            return int(cli.main(standalone_mode=False, obj=run) or Exit.DONE)
    except SystemExit as end:
        return int(end.code or Exit.DONE)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()  # its message is the whole help
        return Exit.USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        with suppress(AcfuseError):  # of two mistakes, the first is told
            begin_anyway(run, sys.argv[1:], context)
        if context is not None:
            click.echo(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n",
                       err=True)  # fmt: skip
        return _failed(run, error.format_message(), Exit.USAGE)
    except AcfuseError as error:
        return _failed(run, " ".join(str(error).split()), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        run.wrong("interrupted", "")
        return Exit.INTERRUPTED
    except Terminated:
        run.wrong("terminated", "")
        return Exit.TERMINATED
    except Exception as error:
        if isinstance(error, MemoryError) or "not enough memory" in str(error):
            return _failed(run, "there is not enough memory on this machine.", Exit.BAD_INPUT)
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.EACCES):
            name = str(error.filename)
            name = name if len(name) < 200 else f"{name[:100]}..."
            return _failed(run, f"{name} cannot be used: {error.strerror}.", Exit.BAD_INPUT)
        traceback.print_exc()
        said = "this is a bug of acfuse, not of your file. Please report it."
        return _failed(run, said, Exit.BUG)


def _failed(run: Run, message: str, code: Exit) -> int:
    """Says what went wrong: in one line, and in every other form that was asked for."""
    say_wrong(message, code, run)
    if run.format != "text" or run.reports:
        from acfuse.reports.failure import Failure, failure_markdown, write_failure

        failure = Failure(run.source, message, code)
        if run.format == "json":
            click.echo(as_json(failure.data))
        elif run.format == "github":
            annotate({}, failure_markdown(failure))
        write_failure(failure, run.reports, [*run.inputs, *run.files], force=run.force)
    return code


def _kept(run: Run, code: int) -> int:
    """Writes what is kept of a run that has ended, and says how it ends then."""
    try:
        run.save()
    except AcfuseError as error:
        code = code or error.exit_code
        say_wrong(str(error), Exit(code), run)
    run.close(code)
    return code
