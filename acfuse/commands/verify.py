"""verify and selftest."""

import sys
from pathlib import Path
from typing import Any

import click

from acfuse.commands.jobs import check_first, job_again, job_of
from acfuse.commands.shown import progress_of, show
from acfuse.errors import Exit
from acfuse.options import (
    COMMON_OPTIONS,
    FORCE,
    INPUT_OPTIONS,
    MODEL_OPTIONS,
    OPSET,
    REPORT,
    RUNTIME_OPTIONS,
    takes,
)
from acfuse.system.escape import safe


@click.command()
@click.argument("original", type=click.Path(path_type=Path), required=False)
@click.argument("fused", type=click.Path(path_type=Path), required=False)
@takes(MODEL_OPTIONS, INPUT_OPTIONS, RUNTIME_OPTIONS, (OPSET, REPORT, FORCE), COMMON_OPTIONS)
def verify(
    original: Path | None,
    fused: Path | None,
    format: str,
    quiet: bool,
    verbose: int,
    report: tuple[Path, ...],
    force: bool,
    **options: Any,
) -> None:
    """Prove that a fused file is the original: the last conversion's, or ORIGINAL FUSED."""
    if original is not None and fused is None:
        raise click.UsageError("give ORIGINAL and FUSED, or neither.")
    _early_report_checks(report, options, original, fused, force=force)
    check_first(original, options, fused)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report as text
        from acfuse.pipeline import replay
        from acfuse.pipeline.manifest import Manifest

        if original is None or fused is None:
            manifest = Manifest.only(Path.cwd())
            conversion = replay.verify_again(manifest, job_again(manifest, options), progress)
        else:
            conversion = replay.verify_files(job_of(original, options), fused, progress=progress)
    show(conversion, format, text, quiet=quiet, verbose=verbose, writes=False, reports=report)


def _early_report_checks(
    reports: tuple[Path, ...],
    options: dict[str, Any],
    original: Path | None,
    fused: Path | None,
    *,
    force: bool,
) -> None:
    from acfuse.reports.where import check_reports, inputs_among

    check_reports(reports, inputs_among(options, original, fused), force=force)


@click.command()
@click.argument("original", type=click.Path(path_type=Path), required=False)
@click.argument("fused", type=click.Path(path_type=Path), required=False)
@takes(MODEL_OPTIONS, INPUT_OPTIONS, RUNTIME_OPTIONS, (OPSET,), COMMON_OPTIONS)
def selftest(
    original: Path | None,
    fused: Path | None,
    format: str,
    quiet: bool,
    verbose: int,
    **options: Any,
) -> None:
    """Plant twenty faults in copies of fused files, and see that each is found.

    Of the last conversion, of ORIGINAL FUSED, or of what ORIGINAL becomes. Nothing is written.
    """
    check_first(original, options, fused)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report
        from acfuse.pipeline import selftest as run
        from acfuse.pipeline.manifest import Manifest

        if original is None:
            manifest = Manifest.only(Path.cwd())
            tested = run.selftest_again(manifest, job_again(manifest, options), progress)
        else:
            files = [fused] if fused is not None else []
            tested = run.selftest(job_of(original, options), files, progress)
    conversion, trials = tested
    if not trials:
        show(conversion, format, report, quiet=quiet, verbose=verbose, writes=False)
    if format == "json":
        report.print_json(report.describe_selftest(trials))
    else:
        report.print_selftest(trials, quiet=quiet)
    unseen = [trial for trial in trials if not trial.is_seen]
    if unseen:
        first = f"{unseen[0].what} in {unseen[0].place} of {unseen[0].file}"
        click.echo(
            f"error: {len(unseen)} of {len(trials)} faults were not seen, the first: {safe(first)}."
            " This is a bug of acfuse, not of your file. Please report it.",
            err=True,
        )
        sys.exit(Exit.BUG)
