"""verify and selftest."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from acfuse.commands.jobs import check_first, job_again, job_of
from acfuse.commands.shown import progress_of, say_wrong, show, told_of
from acfuse.errors import Exit
from acfuse.options import (
    COMMON_OPTIONS,
    INPUT_OPTIONS,
    MODEL_OPTIONS,
    OPSET,
    PAIR,
    REPORT,
    RUNTIME_OPTIONS,
    option,
    takes,
)
from acfuse.system.limits import LIMITS

RESULTS_OPTIONS = (
    option("--save-results", type=click.Path(path_type=Path), metavar="FILE.json",
           help="Keep the inputs, and what the original gives, for --from elsewhere."),
    option("saved", "--from", type=click.Path(path_type=Path), metavar="FILE.json",
           help="Compare an ONNX or .pt2 file, the one argument, with results that were kept."),
)  # fmt: skip


@click.command()
@takes(PAIR, MODEL_OPTIONS, INPUT_OPTIONS, RUNTIME_OPTIONS, (OPSET, REPORT, *RESULTS_OPTIONS),
       COMMON_OPTIONS)  # fmt: skip
def verify(
    original: Path | None,
    fused: Path | None,
    format: str,
    quiet: bool,
    verbose: int,
    report: tuple[Path, ...],
    save_results: Path | None,
    saved: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Prove that a fused file is the original: the last conversion's, or ORIGINAL FUSED.

    ORIGINAL alone may be the manifest of a conversion, *.acfuse.json.
    """
    from acfuse.pipeline.paths import is_last_run

    if saved is not None:
        if original is None or fused is not None or report or save_results:
            raise click.UsageError("--from takes one file, and neither reports nor --save-results.")
        _verify_saved(original, saved, options, format, quiet=quiet)
    again = is_last_run(original, fused)
    if not again and fused is None:
        raise click.UsageError("give ORIGINAL and FUSED, a manifest, or nothing.")
    kept = [] if save_results is None else [save_results]
    _early_report_checks(report, options, original, fused, kept, force=force)
    check_first(original, options, fused, again=again)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report as text
        from acfuse.pipeline import replay
        from acfuse.pipeline.manifest import Manifest

        if original is None or fused is None:
            manifest = Manifest.meant(original)
            conversion = replay.verify_again(manifest, job_again(manifest, options), progress)
        else:
            conversion = replay.verify_files(job_of(original, options), fused, progress=progress)
        if save_results is not None:
            from acfuse.pipeline.recorded import save_results as save

            save(conversion, save_results, force=force)
    told_of(kept, quiet=quiet or format == "json")
    show(conversion, format, text, quiet=quiet, verbose=verbose, writes=False, reports=report)


def _verify_saved(
    path: Path, saved: Path, options: dict[str, Any], format: str, *, quiet: bool
) -> NoReturn:
    """Compares a program with what was kept, says how it went, and ends."""
    from acfuse import report
    from acfuse.files.opened_file import check_given
    from acfuse.pipeline.recorded import compare_with_saved
    from acfuse.proof import Tolerance

    for given, name in ((path, "FUSED"), (saved, "--from")):
        check_given(given, name)
    tolerance = Tolerance.given(options.get("atol"), options.get("rtol"))
    limits = replace(LIMITS, **dict(options.get("limit") or ()))
    results, check = compare_with_saved(path, saved, tolerance, limits)
    if format == "json":
        report.print_json(report.describe_saved(path, results, check))
    else:
        report.print_saved(path, results, check, quiet=quiet)
    if not check.passed:
        say_wrong(f"not equal: {check.name}: {check.detail}", Exit.NOT_EQUAL)
    sys.exit(Exit.DONE if check.passed else Exit.NOT_EQUAL)


def _early_report_checks(
    reports: tuple[Path, ...],
    options: dict[str, Any],
    original: Path | None,
    fused: Path | None,
    kept: Sequence[Path],
    *,
    force: bool,
) -> None:
    from acfuse.reports.where import check_reports, inputs_among
    from acfuse.system.atomic_write import check_outputs

    inputs = inputs_among(options, original, fused)
    check_reports(reports, inputs, kept, force=force)
    check_outputs(kept, inputs, force=force, option="--save-results")


@click.command()
@takes(PAIR, MODEL_OPTIONS, INPUT_OPTIONS, RUNTIME_OPTIONS, (OPSET,), COMMON_OPTIONS)
def selftest(
    original: Path | None,
    fused: Path | None,
    format: str,
    quiet: bool,
    verbose: int,
    **options: Any,
) -> None:
    """Plant twenty faults in copies of fused files, and see that each is found.

    Of the last conversion, of a manifest, of ORIGINAL FUSED, or of what ORIGINAL becomes.
    Nothing is written.
    """
    from acfuse.pipeline.paths import is_last_run

    again = is_last_run(original, fused)
    check_first(original, options, fused, again=again)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report
        from acfuse.pipeline import selftest as run
        from acfuse.pipeline.manifest import Manifest

        if again or original is None:
            manifest = Manifest.meant(original)
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
        say_wrong(
            f"{len(unseen)} of {len(trials)} faults were not seen, the first: {first}."
            " This is a bug of acfuse, not of your file. Please report it.",
            Exit.BUG,
        )
        sys.exit(Exit.BUG)
