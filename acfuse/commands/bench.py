"""bench: how fast a model is beside its original, and what this machine takes for convolutions."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from acfuse.commands.jobs import job_again, job_of
from acfuse.commands.shown import progress_of, say_wrong
from acfuse.errors import Exit, InputError, UsageError
from acfuse.options import (
    COMMON_OPTIONS,
    MODEL_OPTIONS,
    OUTPUT_OPTIONS,
    PAIR,
    SEED,
    SHAPE_OPTIONS,
    option,
    takes,
)
from acfuse.pipeline.speedup import FEWEST
from acfuse.system.escape import safe

if TYPE_CHECKING:
    from acfuse.pipeline.bench_worker import Asked
    from acfuse.pipeline.speedup import Measured

BACKENDS = ("eager", "channels_last", "compile", "onnxruntime")
PROFILED = ("eager", "onnxruntime")
PROVIDER = "CPUExecutionProvider"
BENCH_OPTIONS = (
    option("--backend", type=click.Choice(BACKENDS), multiple=True, help="What runs the models. "
            "Default eager; onnxruntime for ONNX files; with --profile both. Repeatable."),
    option("--provider", metavar="NAME", default=PROVIDER,
            help="The execution provider of onnxruntime. Default CPUExecutionProvider."),
    option("--batch", type=click.IntRange(min=1), metavar="COUNT",
            help="Images at once; as many as the input has else."),
    option("--rounds", type=click.IntRange(min=FEWEST), default=25, metavar="COUNT",
            help="Rounds, in each of which both models have a turn. Default 25."),
    option("--seconds", type=click.FloatRange(min=0, min_open=True, max=60), default=0.1,
            metavar="SECONDS", help="How long a turn is. Default 0.1."),
    option("--min-speedup", type=click.FloatRange(min=0), metavar="FACTOR", help="Exit with 1 "
            "unless the speed-up is at least that, at the lower end of its interval."),
    option("--profile", is_flag=True, help="Measure single convolutions instead, and write a table "
            "for --cost (-o FILE; cost.json else)."),
    option("--size", type=click.IntRange(1, 4096), multiple=True, metavar="PIXELS",
            help="With --profile: height and width of its images. Default 14 and 56. Repeatable."),
)  # fmt: skip
PROVES_NOTHING = "This is time alone. That both are equal is proved by `acfuse verify`."


@click.command()
@takes(PAIR, BENCH_OPTIONS, MODEL_OPTIONS, SHAPE_OPTIONS, (SEED,), OUTPUT_OPTIONS, COMMON_OPTIONS)
@click.option("--worker", hidden=True, metavar="BACKEND:ROLE", help="Be one of its processes.")
def bench(
    original: Path | None,
    fused: Path | None,
    worker: str | None,
    format: str,
    quiet: bool,
    verbose: int,
    **options: Any,
) -> None:
    """Time a fused model beside its original: the last conversion's, or ORIGINAL FUSED.

    ORIGINAL alone may be the manifest of a conversion, *.acfuse.json.
    Each runs in a process of its own, in turn. A speed-up within the noise is told as none.
    """
    if worker is not None:
        _serve(worker, original, fused, options)
        return
    _check(original, fused, options)
    if options["profile"]:
        with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
            path, rows = _profiled(options, progress)
        if format == "json":
            _echo_json({"written": [str(path)], "costs": rows})
        elif not quiet:
            click.echo(f"wrote   {safe(path)}  ({rows} costs)")
        return
    from acfuse.pipeline import bench as run

    names = _names(original, fused)
    backends = _backends(original, fused, options["backend"])
    _check_backends(backends, options)
    measured, skipped = [], []
    with progress_of("Starting", quiet=quiet, verbose=verbose) as progress:
        for backend in backends:
            try:
                measured.append(run.measure(backend, options["rounds"], progress=progress))
            except run.Skipped as reason:
                skipped.append((backend, str(reason)))
    if not measured:
        raise InputError("nothing was timed: " + "; ".join(f"{b}: {why}" for b, why in skipped))
    if format == "json":
        _echo_json(_described(names, measured, skipped, options))
    elif not quiet:
        _show(names, measured, skipped)
    _judge(measured, options["min_speedup"])


FOR_TABLES = {"profile", "backend", "size", "output", "format", "output_file", "log_file", "force",
              "quiet", "verbose"}  # fmt: skip


def _check(original: Path | None, fused: Path | None, options: dict[str, Any]) -> None:
    """What is asked for and would have no effect is an error."""
    context = click.get_current_context()
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        and ((name not in FOR_TABLES) if options["profile"] else (name in ("size", "output")))
    ]
    if given:
        how = "with" if options["profile"] else "without"
        what = {"--original": "ORIGINAL", "--fused": "FUSED"}.get(given[0], given[0])
        raise UsageError(f"{what} has no effect {how} --profile. Remove it.")
    from acfuse.pipeline.paths import is_last_run

    if not is_last_run(original, fused) and fused is None:
        raise click.UsageError("give ORIGINAL and FUSED, a manifest, or nothing.")
    unknown = [b for b in options["backend"] if b not in PROFILED]
    if options["profile"] and unknown:
        raise UsageError(f"--profile measures {' and '.join(PROFILED)}, not {unknown[0]}.")


def _check_backends(backends: list[str], options: dict[str, Any]) -> None:
    """The same of what only some of them look at."""
    if options["device"] not in (None, "cpu") and backends == ["onnxruntime"]:
        raise UsageError("--device has no effect on onnxruntime: give --provider in its stead.")
    if options["provider"] != PROVIDER and "onnxruntime" not in backends:
        raise UsageError(f"--provider has no effect on {backends[0]}: it is for onnxruntime.")


def _backends(original: Path | None, fused: Path | None, asked: tuple[str, ...]) -> list[str]:
    """Those that were asked for; that of ONNX files for such, else torch's."""
    from acfuse.files.detect import is_onnx

    if asked:
        return list(dict.fromkeys(asked))
    files = _files(original, fused)
    return ["onnxruntime" if any(map(is_onnx, files)) else "eager"]


def _files(original: Path | None, fused: Path | None) -> list[Path]:
    """The files that are timed; without any, those of a manifest."""
    if original is not None and fused is not None:
        return [original, fused]
    from acfuse.pipeline.manifest import Manifest

    manifest = Manifest.meant(original)
    return [manifest.path.parent / manifest.data["source"]["file"], manifest.paths.checkpoint]


def _names(original: Path | None, fused: Path | None) -> tuple[str, str]:
    one, other = (path.name for path in _files(original, fused))
    return one, other


def _profiled(options: dict[str, Any], progress: Any) -> tuple[Path, int]:
    from acfuse.files.cost_table import table_json
    from acfuse.pipeline import cost_profile
    from acfuse.system.atomic_write import reserved, write_all

    path = options["output"] or Path("cost.json")
    path = path / "cost.json" if path.is_dir() else path
    with reserved([path], [], force=options["force"]):
        backends = list(dict.fromkeys(options["backend"])) or PROFILED
        sizes = list(dict.fromkeys(options["size"])) or cost_profile.SIZES
        rows = cost_profile.profile(backends, sizes, progress)
        write_all({path: table_json(rows, cost_profile.about())})
    return path, len(rows)


def _serve(worker: str, original: Path | None, fused: Path | None, options: dict[str, Any]) -> None:
    """Runs one model, as this command line says, for the process that started this one."""
    from acfuse.pipeline.bench_worker import serve

    def asked() -> "Asked":
        from acfuse.pipeline.bench_worker import Asked
        from acfuse.pipeline.manifest import Manifest

        backend, _, role = worker.partition(":")
        unchanged, own = False, {**options, "device": None}  # it is opened on the CPU
        if original is None or fused is None:
            manifest = Manifest.meant(original)
            job, path = job_again(manifest, own), manifest.paths.checkpoint
            unchanged = not manifest.changed()
        else:
            job, path = job_of(original, own), fused
        how = {name: options[name] for name in ("batch", "provider", "seconds")}
        device = options["device"] or "cpu"
        return Asked(job, path, role, backend, unchanged, device=device, **how)

    serve(asked)


def _judge(measured: "list[Measured]", least: float | None) -> None:
    """Exits with 1 where a speed-up is less than what was asked for."""
    slow = [m for m in measured if least is not None and m.ratio.low < least]
    if slow:
        found = f"{slow[0].backend}: the speed-up may be {slow[0].ratio.low:.2f}"
        say_wrong(f"{found}, expected at least {least:g}.", Exit.NOT_EQUAL)
        sys.exit(Exit.NOT_EQUAL)


def _echo_json(data: Any) -> None:
    from acfuse.system.escape import as_json

    click.echo(as_json(data))


def _described(
    names: tuple[str, str],
    measured: "list[Measured]",
    skipped: list[tuple[str, str]],
    options: dict[str, Any],
) -> dict[str, Any]:
    """What `--format json` prints: all raw figures, and where they are from."""
    from dataclasses import asdict

    from acfuse.pipeline.bench import machine
    from acfuse.pipeline.speedup import FORMULA

    how = ("rounds", "seconds", "batch", "provider")
    return {
        "original": names[0],
        "fused": names[1],
        "proves_equality": False,
        "machine": machine(),
        **{name: options[name] for name in how},
        "device": options["device"] or "cpu",
        "interval": FORMULA,
        "backends": [
            {
                **asdict(m),
                "ratio": asdict(m.ratio),
                "cpu_ratio": asdict(m.cpu_ratio),
                "speedup": m.speedup,
            }
            for m in measured
        ],
        "skipped": [{"backend": backend, "why": why} for backend, why in skipped],
    }


WIDTH, BAR = 80, 30  # columns


def _show(
    names: tuple[str, str], measured: "list[Measured]", skipped: list[tuple[str, str]]
) -> None:
    """Both models as bars, and how many times as fast the fused one is, if it is."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    full = "█" if console.encoding.lower().startswith("utf") else "#"
    for m in measured:
        times = [_median([t.wall for t in turns]) for turns in (m.original, m.fused)]
        colours = ("blue", "green")
        console.print(Text(m.backend))
        for name, seconds, colour in zip(names, times, colours, strict=True):
            bar = full * max(1, round(BAR * seconds / max(times)))
            label = safe(name)
            label = label if len(label) <= 30 else f"{label[:27]}..."
            line = Text(f"  {label:<30} ").append(bar, style=colour)
            console.print(line.append(f" {' ' * (BAR - len(bar))}{_time(seconds):>10}"))
        console.print(Text(f"  {_verdict(m)}"))
    for backend, why in skipped:
        console.print(Text(f"{backend}: skipped: {safe(why)}"))
    console.print(Text(PROVES_NOTHING))


def _median(values: list[float]) -> float:
    from statistics import median

    return median(values)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _verdict(m: "Measured") -> str:
    """What the ratio says; a speed-up only where it is more than noise."""
    ratio = m.ratio
    if ratio.is_noise:
        return "no difference beyond the noise"
    faster = ratio.low > 1
    ends = (ratio.low, ratio.high) if faster else (1 / ratio.high, 1 / ratio.low)
    interval = f"({ratio.level:.1%} interval {ends[0]:.2f} to {ends[1]:.2f})"
    if faster:
        return f"{ratio.median:.2f} times as fast {interval}"
    return f"slower: it takes {1 / ratio.median:.2f} times as long {interval}"
