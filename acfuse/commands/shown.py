"""What a command shows while it works, and at its end."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from acfuse.errors import Exit
from acfuse.system.escape import safe
from acfuse.system.kept import Run

if TYPE_CHECKING:
    from acfuse.pipeline.job import Conversion


def show(
    conversion: "Conversion",
    format: str,
    report: Any,
    *,
    quiet: bool,
    verbose: int,
    writes: bool = True,
    reports: Sequence[Path] = (),
) -> None:
    """Prints what became of a command, writes its reports, and ends it with its exit code."""
    from acfuse.pipeline.manifest import conversion_json

    if format == "json":
        report.print_json(conversion_json(conversion))
    else:
        report.print_conversion(conversion, quiet=quiet, verbose=verbose > 0, writes=writes)
    if reports or format == "github":
        from acfuse.reports.render import report_of_run, write_reports

        told = report_of_run(conversion)
        write_reports(told, reports)
        told_of(reports, quiet=quiet or format == "json")
        if format == "github":
            from acfuse.reports.markdown import as_markdown

            annotate(told.data, as_markdown(told))
    if not conversion.proofs.passed:
        reason = conversion.proofs.fault
        if conversion.diagnosis:
            reason += f" (looks like: {conversion.diagnosis})"
        say_wrong(f"not equal: {reason}", conversion.exit_code)
    sys.exit(conversion.exit_code)


def annotate(data: Mapping[str, Any], markdown: str = "") -> None:
    """Tells GitHub of a result: beside the job, and in the summary of its step."""
    from acfuse.reports.github import add_summary, annotation, annotations_of

    lines = annotations_of(data)
    if problem := add_summary(markdown) if markdown else "":
        lines.append(annotation("warning", problem))
    for line in lines:
        click.echo(line)


def say_wrong(message: str, code: Exit, run: Run | None = None) -> None:
    """Says what went wrong, in the way that the run was told to speak."""
    if run is None:
        known = click.get_current_context().find_root().obj
        run = known if isinstance(known, Run) else Run()
    run.wrong(message)
    if run.format == "github":
        from acfuse.reports.github import annotation

        click.echo(annotation("error", message, f"acfuse (exit {int(code)})"))


def told_of(paths: Sequence[Path], *, quiet: bool) -> None:
    """Says which reports were written."""
    for path in paths if not quiet else ():
        click.echo(f"wrote   {safe(path)}  ({path.stat().st_size:,} bytes)")


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
            with _bar(first) as update:
                yield update


@contextmanager
def _bar(first: str) -> Iterator[Callable[[str], None]]:
    """What is being done; where it is one of several, how many are left, and for how long."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description} ...", markup=False),
        BarColumn(20),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(first, total=None)

        def update(what: str) -> None:
            count = COUNT.search(what)
            done, total = (int(count[1]) - 1, int(count[2])) if count else (0, None)
            if (count and done == 0) or not count:  # the time that is left is of this stage alone
                progress.reset(task, total=total, description=safe(what))
            progress.update(task, completed=done, total=total, description=safe(what))

        yield update


COUNT = re.compile(r"\((\d+) of (\d+)\)$")
