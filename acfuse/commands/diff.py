"""diff: two files side by side."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from acfuse.commands.shown import progress_of
from acfuse.errors import Exit
from acfuse.options import COMMON_OPTIONS, KEY, option, takes
from acfuse.system.escape import columns, safe


@click.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@takes((KEY,), COMMON_OPTIONS)
@option("--second-key", help="The same for the second file.")
def diff(
    first: Path,
    second: Path,
    key: str | None,
    second_key: str | None,
    format: str,
    quiet: bool,
    verbose: int,
    **_: Any,
) -> None:
    """Show what differs between two checkpoints or two ONNX files; exit with 1 if anything does.

    Tensors are compared number for number, and how far they are apart is told in units of the last
    place (ULP). Nothing is run: `acfuse verify` compares what two files compute.
    """
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose):
        from acfuse import report
        from acfuse.files.records import ReadOptions
        from acfuse.pipeline.diff import diff_files

        compared = diff_files(first, second, ReadOptions(key), ReadOptions(second_key or key))
    found = compared.differences
    if format == "json":
        told = {"schema_version": 1, "tensors": compared.tensors}
        report.print_json({**told, "differences": [asdict(one) for one in found]})
    elif not quiet:
        rows = [
            (
                safe(one.name),
                safe(one.what),
                "" if one.ulp is None else f"{one.ulp:.0f}",
                "" if one.absolute is None else f"{one.absolute:.1e}",
                f"{one.count:,} of {one.numbers:,}" if one.numbers else "",
            )
            for one in found
        ]
        if rows:
            header = ("name", "difference", "worst ULP", "max |a-b|", "numbers")
            shown = report.shortened(rows, verbose=verbose > 0)
            click.echo("\n".join(columns(header, shown)))
        verdict = f"{len(found):,} differences" if found else "equal, number for number"
        click.echo(f"{compared.tensors:,} tensors in both files: {verdict}")
    sys.exit(Exit.NOT_EQUAL if found else Exit.DONE)
