"""convert, inspect and export-onnx."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from acfuse.commands.jobs import check_first, job_again, job_of
from acfuse.commands.shown import annotate, progress_of, show
from acfuse.errors import Exit
from acfuse.options import (
    COMMON_OPTIONS,
    INPUT_OPTIONS,
    MODEL_OPTIONS,
    ONNX_OPTIONS,
    OUTPUT_OPTIONS,
    REPORT,
    RUNTIME_OPTIONS,
    SHAPE_OPTIONS,
    option,
    takes,
)
from acfuse.system.escape import safe


def _wanted(options: Mapping[str, Any]) -> list[Path]:
    """The files that a conversion writes."""
    from acfuse.pipeline.paths import Paths, fused_path

    paths = Paths.beside(fused_path(options["source"], options["output"]))
    return paths.wanted(onnx=not options["no_onnx"], pt2=options["pt2"])


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@takes(MODEL_OPTIONS, INPUT_OPTIONS, RUNTIME_OPTIONS, ONNX_OPTIONS, OUTPUT_OPTIONS, COMMON_OPTIONS,
       writes=_wanted)  # fmt: skip
@REPORT
@option("--pt2", is_flag=True, help="Write a program of torch.export (.pt2) as well.")
@option(
    "--equalize",
    is_flag=False,
    flag_value="gain",
    type=click.Choice(["gain", "force"]),
    help="Even out the ranges of channels for 8 bits, by powers of two, which change no bit: "
    "where 8 bits gain by it, or with --equalize=force wherever it can be done.",
)
@option("--no-onnx", is_flag=True, help="Write the checkpoint alone.")
@option("--allow-empty", is_flag=True, help="Succeed where there is nothing to fuse.")
@option(
    "--strict",
    is_flag=True,
    help="Exit with 5, and write nothing, where a block was "
    "refused for another reason than its cost.",
)
@option("-n", "--dry-run", is_flag=True, help="Find and prove, write nothing but reports.")
def convert(
    source: Path,
    format: str,
    quiet: bool,
    verbose: int,
    report: tuple[Path, ...],
    **options: Any,
) -> None:
    """Fuse a checkpoint: find the blocks, prove equality, write checkpoint, ONNX and manifest."""
    _early_output_checks(source, options, report)
    check_first(source, options)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report as text
        from acfuse.pipeline.convert import convert as run

        conversion = run(job_of(source, options), progress)
    show(conversion, format, text, quiet=quiet, verbose=verbose, reports=report)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@takes(MODEL_OPTIONS, SHAPE_OPTIONS, COMMON_OPTIONS)
@option("--tree", is_flag=True, help="Show the modules as a tree.")
def inspect(
    source: Path, format: str, quiet: bool, verbose: int, tree: bool, **options: Any
) -> None:
    """Show what would be fused, what not, and why. Writes nothing."""
    options["dry_run"] = True
    check_first(source, options)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report
        from acfuse.pipeline.convert import inspect as run

        seen = run(job_of(source, options), progress)
    if format == "json":
        report.print_json(report.describe_findings(seen))
    elif not quiet:
        report.print_findings(seen, verbose=verbose > 0, tree=tree)
    if format == "github":
        annotate(report.describe_findings(seen))
    if not seen.findings.found:
        sys.exit(Exit.NOTHING)


@click.command("export-onnx")
@click.argument("source", type=click.Path(path_type=Path), required=False)
@takes(MODEL_OPTIONS, INPUT_OPTIONS, ONNX_OPTIONS, OUTPUT_OPTIONS, COMMON_OPTIONS)
def export_onnx(
    source: Path | None, format: str, quiet: bool, verbose: int, **options: Any
) -> None:
    """Write the ONNX file of the last conversion again, or of any checkpoint as it is.

    Of several conversions, SOURCE is the manifest of the one that is meant, *.acfuse.json.
    """
    from acfuse.pipeline.paths import is_last_run

    again = is_last_run(source)
    _early_export_checks(source, options)
    check_first(source, options, again=again)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report
        from acfuse.pipeline import replay
        from acfuse.pipeline.manifest import Manifest

        if again or source is None:
            manifest = Manifest.meant(source)
            job = job_again(manifest, options)
            path = replay.export_again(manifest, job, options["output"], progress)
        else:
            path = replay.export_file(job_of(source, options), progress)
    if format == "json":
        report.print_json({"written": [str(path)]})
    elif not quiet:
        click.echo(f"wrote   {safe(path)}  ({path.stat().st_size:,} bytes)")
        if not again:
            click.echo("note    the network as it is: `acfuse convert` fuses it")


def _early_output_checks(source: Path, options: dict[str, Any], reports: tuple[Path, ...]) -> None:
    """What is wrong with the paths is said before PyTorch is loaded."""
    from acfuse.reports.where import check_reports, inputs_among
    from acfuse.system.atomic_write import check_outputs

    wanted = _wanted({**options, "source": source})
    if not options["dry_run"]:
        check_outputs(wanted, [source], force=options["force"])
    check_reports(reports, inputs_among(options, source), wanted, force=options["force"])


def _early_export_checks(source: Path | None, options: dict[str, Any]) -> None:
    """The same for the ONNX file alone; without a source, it is that of the only manifest."""
    from acfuse.pipeline.paths import MANIFEST, again_path, exported_path, is_last_run
    from acfuse.system.atomic_write import check_outputs

    output, force = options["output"], options["force"]
    if source is not None and not is_last_run(source):
        check_outputs([exported_path(source, output)], [source], force=force)
        return
    manifests = [source] if source is not None else [*Path.cwd().glob(f"*{MANIFEST}")]
    if len(manifests) == 1:  # otherwise, that is the error
        own = [again_path(manifests[0], output), *(manifests if output is None else [])]
        check_outputs(own, [], force=force or output is None)
