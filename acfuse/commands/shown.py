"""What a command shows while it works, and at its end."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from acfuse.system.escape import safe

if TYPE_CHECKING:
    from acfuse.pipeline.job import Conversion


def show(conversion: "Conversion", format: str, quiet: bool, report: Any) -> None:
    if format == "json":
        report.print_json(report.conversion_json(conversion))
    else:
        report.print_conversion(conversion, quiet=quiet)
    if not conversion.proofs.passed:
        reason = conversion.proofs.fault
        if conversion.diagnosis:
            reason += f" (looks like: {conversion.diagnosis})"
        click.echo(f"error: not equal: {safe(reason)}", err=True)
    sys.exit(conversion.exit_code)


@contextmanager
def progress_of(first: str, *, quiet: bool, verbose: int) -> Iterator[Callable[[str], None]]:
    """A status line on a terminal, nothing in a pipe; with -v a line for each thing, anywhere.

    What the user's code prints meanwhile goes to stderr: stdout is for the result.
    """
    with redirect_stdout(sys.stderr):
        if verbose:
            click.echo(f"{first} ...", err=True)
            yield lambda what: click.echo(f"{safe(what)} ...", err=True)
        elif quiet or not sys.stderr.isatty():
            yield lambda _: None
        else:
            from rich.console import Console
            from rich.text import Text

            with Console(stderr=True).status(Text(f"{first} ...")) as status:
                yield lambda what: status.update(Text(f"{safe(what)} ..."))
