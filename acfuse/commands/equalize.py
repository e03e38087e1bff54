"""equalize: a fused file with channels of even range, for 8 bits."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from acfuse.commands.jobs import check_first, is_configured, job_of
from acfuse.commands.shown import progress_of
from acfuse.errors import UsageError
from acfuse.options import (
    COMMON_OPTIONS,
    INPUT_OPTIONS,
    MODEL_OPTIONS,
    OUTPUT_OPTIONS,
    option,
    takes,
)
from acfuse.system.escape import columns, safe

if TYPE_CHECKING:
    from acfuse.int8.evened import Evened


@click.command()
@click.argument("fused", type=click.Path(path_type=Path))
@takes(
    (
        option("--data", type=click.Path(path_type=Path), metavar="FILE.npz|FOLDER",
               help="Real inputs of an ONNX file, as `acfuse quantize` takes them."),
        option("--all", "everything", is_flag=True, help="Scale wherever that changes no bit, also "
               "where 8 bits lose more by it."),
    ),
    OUTPUT_OPTIONS,
    MODEL_OPTIONS,
    INPUT_OPTIONS,
    COMMON_OPTIONS,
)  # fmt: skip
def equalize(
    fused: Path,
    data: Path | None,
    everything: bool,
    format: str,
    quiet: bool,
    verbose: int,
    **options: Any,
) -> None:
    """Even out the ranges of a fused file's channels, for 8 bits, without changing a bit of it.

    FUSED is an ONNX file, or a checkpoint with its --model. Scales are powers of two, which change
    no bit of what the model gives: that is proved by running both. They are taken where 8 bits per
    tensor lose less by them. The inputs for that should be real ones (--data, --inputs).
    """
    from acfuse.files.many_arrays import files_in
    from acfuse.files.opened_file import check_given
    from acfuse.pipeline.paths import equalized_path
    from acfuse.system.atomic_write import check_outputs

    check_given(fused, "FUSED")
    path = equalized_path(fused, options["output"])
    check_outputs([path], [fused], force=options["force"])
    if data is not None:
        options["input_shape"] = () if is_configured("input_shape") else options["input_shape"]
        if options["input_shape"] or options["inputs"]:
            raise UsageError("--data: inputs are given as well, by --input or --inputs. Give one.")
        read = files_in(data, "--data")
        check_outputs([path], read, force=options["force"], takes_room=False)
    check_first(fused, options)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report
        from acfuse.pipeline.equalize import equalize_file

        job = job_of(fused, options)
        path, made = equalize_file(job, progress, everything=everything, data=data)
    if format == "json":
        written = [str(path)] if made.is_taken else []
        report.print_json({"written": written, **made.to_json()})
    elif not quiet:
        click.echo("\n".join([*_table(made, report, verbose=verbose > 0), *_verdict(made, path)]))


def _table(made: "Evened", report: Any, *, verbose: bool) -> list[str]:
    rows = [
        (safe(row.name), f"{row.before:.1f}", f"{row.after:.1f}", safe(row.why))
        for row in made.rows
    ]
    header = ("layer", "bits lost", "then", "its outputs stay, as")
    return [*columns(header, report.shortened(rows, verbose=verbose)), ""]


def _verdict(made: "Evened", path: Path) -> list[str]:
    lines = [f"8 bits  {made.summary}"]
    if made.is_random:
        lines.append(
            "note    give real inputs with --data or --inputs: 8 bits are measured on them"
        )
    if not made.is_taken:
        return [*lines, "left    nothing is gained, and nothing was written"]
    return [
        *lines,
        f"equal   {made.compared:,} numbers, each bit by bit",
        f"wrote   {safe(path)}  ({path.stat().st_size:,} bytes)",
    ]
