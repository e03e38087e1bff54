"""quantize: a fused ONNX file in 8 bits, and what that loses, as written and as executed."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from acfuse.commands.jobs import is_configured
from acfuse.commands.shown import annotate, progress_of, say_wrong
from acfuse.errors import Exit, UsageError
from acfuse.options import COMMON_OPTIONS, OUTPUT_OPTIONS, SEED, SHAPE_OPTIONS, option, takes
from acfuse.system.escape import columns, safe

if TYPE_CHECKING:
    from acfuse.pipeline.quantize import Advice, Quantized
    from acfuse.pipeline.quantize_file import QuantizedFile

SUFFIX = ".int8.onnx"
CALIBRATORS = ("minmax", "entropy", "percentile", "distribution")


@click.command()
@click.argument("fused", type=click.Path(path_type=Path))
@takes(
    (
        option("--data", type=click.Path(path_type=Path), metavar="FILE.npz|FOLDER",
               help="Real inputs as the network is given them: arrays by the names of the inputs, "
               "images along the first axis; of a folder all .npz and .npy files."),
        option("--random", "random", is_flag=True, help="Make inputs up instead, to try things "
               "out; the file is not to be shipped."),
        *OUTPUT_OPTIONS,
        option("--per-tensor", is_flag=True, help="One scale for a whole weight, and not one for "
               "each of its outputs."),
        option("--calibrate", type=click.Choice(CALIBRATORS), default="minmax",
               help="How onnxruntime chooses the range of a value. Default minmax."),
        option("--reduce-range/--no-reduce-range", default=None, help="Weights of 7 bits, or "
               "never. Without either they are tried where sums of products are cut off here."),
        option("--keep", multiple=True, metavar="LAYER", help="Leave a layer in float: the "
               "name of its node, its weight or its module. Repeatable."),
        option("--min-sqnr", type=float, metavar="DB", help="Write nothing, and end with exit code "
               "1, unless each output has so much signal over noise."),
        option("--min-agreement", type=click.FloatRange(0, 100), metavar="PERCENT",
               help="The same, unless the largest class is the same for so many of the images."),
        SHAPE_OPTIONS[0],
        SEED,
    ),
    COMMON_OPTIONS,
)  # fmt: skip
def quantize(
    fused: Path,
    data: Path | None,
    output: Path | None,
    min_sqnr: float | None,
    min_agreement: float | None,
    force: bool,
    format: str,
    quiet: bool,
    verbose: int,
    **options: Any,
) -> None:
    """Write an ONNX file in 8 bits, by onnxruntime's quantizer, and say what that loses.

    Float and 8 bits are compared on the data: as the file is written, and as it is executed here.
    The layers that lose most are named, with what was tried and helps.
    """
    from acfuse.files.many_arrays import files_in
    from acfuse.files.opened_file import check_given
    from acfuse.system.atomic_write import check_outputs

    check_given(fused, "FUSED")
    is_random = options["random"]
    if data is not None and is_random:  # the command line stands in place of the configuration
        data = None if is_configured("data") else data
        is_random = is_random and not (data is not None and is_configured("random"))
    if data is not None and is_configured("input_shape"):
        options["input_shape"] = ()
    if data is None and not is_random:
        raise UsageError(
            "--data is missing: the ranges of values are those of real inputs. Give --data "
            "FILE.npz with about a hundred; or --random, to try it with inputs that are made up."
        )
    if data is not None and (is_random or options["input_shape"]):
        other = "--random" if is_random else "--input"
        raise UsageError(f"--data: {other} is given as well; inputs are real or made up, not both.")
    read = [] if data is None else files_in(data, "--data")
    path, manifest = _written_to(fused, output)
    check_outputs([path, manifest], [fused], force=force)
    check_outputs([path, manifest], read, force=force, takes_room=False)
    with progress_of("Loading onnxruntime", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report
        from acfuse.commands.jobs import inputs_of
        from acfuse.pipeline.quantize import Settings
        from acfuse.pipeline.quantize_file import Gates, quantize_file

        reduce, per_channel = options["reduce_range"], not options["per_tensor"]
        settings = Settings(per_channel, options["calibrate"], reduce, tuple(options["keep"]))
        inputs = inputs_of({**options, "samples": SAMPLES})
        gates = Gates(min_sqnr, min_agreement)
        done = quantize_file(fused, path, manifest, data, settings, gates, inputs, force=force,
                             progress=progress)  # fmt: skip
    if format == "json":
        report.print_json({**done.told, "written": [str(path) for path in done.written]})
    elif not quiet:
        click.echo("\n".join(_lines(done, fused, data, verbose=verbose > 0)))
    if format == "github":
        _tell_github(done, fused)
    if done.missed:
        say_wrong(_fault(done), Exit.NOT_EQUAL)
        sys.exit(Exit.NOT_EQUAL)


SAMPLES = 16  # batches that are made up


def _written_to(fused: Path, output: Path | None) -> tuple[Path, Path]:
    """The file in 8 bits and its manifest: beside the given one, or where it is asked for."""
    path = fused.with_name(f"{fused.name.removesuffix('.onnx')}{SUFFIX}")
    if output is not None:
        path = output / path.name if output.is_dir() else output
    return path, path.with_name(f"{path.name.removesuffix('.onnx')}.json")


def _lines(
    done: "QuantizedFile", fused: Path, data: Path | None, *, verbose: bool
) -> Iterator[str]:
    from acfuse.int8.data import counted

    made = done.made
    weights = "per channel" if made.settings.per_channel else "per tensor"
    bits = "weights of 7 bits" if made.reduced else "8 bits"
    source = "made up" if data is None else f"of {safe(data.name)}"
    yield f"{safe(fused.name)}: {bits}, {weights}, {made.settings.calibrate}, " + (
        f"{counted(made.images)} {source}"
    )
    yield ""
    yield from _outputs(made)
    yield ""
    yield from _layers(made, verbose=verbose)
    yield from (f"note    {note}" for note in made.notes)
    for one in made.advice:
        if len(one.layers) != 1:
            yield f"helps   {_advice(one)}: {db(one.before)} -> {db(one.after)}"
    gates = done.told["gates"]
    for name, unit in (("min_sqnr", "dB"), ("min_agreement", "%")):
        if gates[name] is not None and not done.missed:
            flag = name.replace("_", "-")
            yield f"passed  --{flag} {gates[name]:g}: no output has less {unit}"
    yield from (f"wrote   {safe(p)}  ({p.stat().st_size:,} bytes)" for p in done.written)


def _outputs(made: "Quantized") -> list[str]:
    """How far each output is from the float one."""
    rows = []
    for written, executed in zip(made.written, made.executed, strict=True):
        same = (f"{f.agreement:.1f} %" if f.agreement is not None else "-"
                for f in (written, executed))  # fmt: skip
        rows.append((safe(written.output), db(written.decibels),
                     db(executed.decibels), *same))  # fmt: skip
    header = ("output", "as written", "executed here", "same top-1 written", "executed")
    return columns(header, rows)


def _layers(made: "Quantized", *, verbose: bool) -> Iterator[str]:
    """The layers that lose most, each with what was tried on it and helps."""
    by_layer = {a.layers[0]: a for a in made.advice if len(a.layers) == 1}
    rows = []
    for one in made.worst:
        advice = by_layer.get(one.layer)
        helps = "" if advice is None else (
            f"{_advice(advice)}: {db(advice.before)} -> {db(advice.after)}"
        )  # fmt: skip
        named = (safe(one.layer), safe(one.weight) if one.weight else one.operator)
        rows.append((*named, db(one.alone), f"{one.share:.0f} %", helps))
    if rows:
        header = ("worst layers", "weight", "alone", "of the noise", "helps")
        yield from columns(header, rows)
        yield f"tried on {made.tried_on:,} images; what gains less than 1 dB is not named"
        yield ""


def db(number: float) -> str:
    """A figure as it is shown; nothing is minus zero."""
    return f"{round(number, 1) + 0.0:.1f} dB"


def _advice(advice: "Advice") -> str:
    """What a user gives for it."""
    if advice.what == "keep":
        return " ".join(f"--keep {safe(shlex.quote(name))}" for name in advice.layers)
    if advice.what == "per channel":
        return "leave --per-tensor out"
    if advice.what == "per tensor":
        return "--per-tensor --no-reduce-range"
    return "acfuse equalize before"


def _fault(done: "QuantizedFile") -> str:
    """What was missed, and what would help: one line."""
    first, more = done.missed[0], len(done.missed) - 1
    others = f" (and {more} more)" if more else ""
    helps = "; nothing that was tried gains 1 dB"
    if done.made.advice:
        best = done.made.advice[0]
        helps = f"; {_advice(best)} gives {db(best.after)} of {db(best.before)}"
    return f"not good enough: {first}{others}{helps}. Nothing was written."


def _tell_github(done: "QuantizedFile", fused: Path) -> None:
    """Tells GitHub of it: beside the job, and in the summary of its step."""
    from acfuse.reports.github import annotation

    for note in done.made.notes:
        click.echo(annotation("warning" if done.made.is_random else "notice", note))
    annotate({}, _markdown(done, fused))


def _markdown(done: "QuantizedFile", fused: Path) -> str:
    """The figures as a table, what fell short, and what has to be said."""
    rows = ["| output | as written | executed here |", "|---|---|---|"]
    for written, executed in zip(done.made.written, done.made.executed, strict=True):
        cells = (_cell(figure.decibels, figure.agreement) for figure in (written, executed))
        rows.append(f"| {safe(written.output, 'markdown')} | {' | '.join(cells)} |")
    mark = "\u274c not good enough" if done.missed else "\u2705 8 bits"
    lines = [f"- {safe(text, 'markdown')}" for text in (*done.missed, *done.made.notes)]
    head = f"## acfuse: {safe(fused.name, 'markdown')}\n\n{mark}\n"
    return "\n".join([head, *rows, "", *lines])


def _cell(decibels: float, agreement: float | None) -> str:
    return db(decibels) + (f", the same top-1 {agreement:.1f} %" if agreement is not None else "")
