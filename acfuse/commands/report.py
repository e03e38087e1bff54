"""report: the last conversion, from its manifest, as a file."""

from pathlib import Path

import click

from acfuse.commands.shown import progress_of, told_of
from acfuse.options import FORCE, KEPT_OPTIONS, QUIET, option, takes


@click.command("report")
@click.argument("manifest", type=click.Path(path_type=Path))
@option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    metavar="FILE",
    help="The report: .html, .md, .json or .xml (JUnit). Repeatable.",
)
@takes(KEPT_OPTIONS, (FORCE, QUIET))
def report(manifest: Path, output: tuple[Path, ...], force: bool, quiet: bool) -> None:
    """Write a report of a conversion from its manifest alone, without what only a run can see."""
    from acfuse.reports.where import check_reports

    check_reports(output, [manifest], force=force, option="--output")
    with progress_of("Loading PyTorch", quiet=quiet, verbose=0):
        from acfuse.pipeline.manifest import Manifest
        from acfuse.reports.render import report_of_manifest, write_reports

        write_reports(report_of_manifest(Manifest.read(manifest)), output)
    told_of(output, quiet=quiet)
