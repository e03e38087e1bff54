"""The command line: click options and nothing else. Heavy modules are imported by the commands."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from acfuse import __version__
from acfuse.errors import AcfuseError, Exit, UsageError
from acfuse.options import (
    COMMON_OPTIONS,
    INPUT_OPTIONS,
    KEY,
    MODEL_OPTIONS,
    ONNX_OPTIONS,
    OPSET,
    OUTPUT_OPTIONS,
    PATTERN_FILES,
    RUNTIME_OPTIONS,
    SHAPE_OPTIONS,
    option,
    takes,
)
from acfuse.settings import defaults
from acfuse.system.escape import safe
from acfuse.system.limits import LIMITS
from acfuse.system.signals import Terminated, handle_signals

if TYPE_CHECKING:
    from acfuse.pipeline.job import Conversion, Job
    from acfuse.pipeline.manifest import Manifest


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="acfuse")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn a trained multi-branch network into the plain, fast one that it computes.

    \b
    acfuse convert model.pth      finds, fuses, proves, writes model.fused.*
    acfuse verify --atol 1e-4     proves the last conversion again
    acfuse export-onnx            writes its ONNX file again

    Settings may stand in acfuse.toml, or in [tool.acfuse] of pyproject.toml, of the working
    directory.
    """  # noqa: D301
    context.default_map = defaults(Path.cwd(), cli.commands)


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@takes(MODEL_OPTIONS, INPUT_OPTIONS, RUNTIME_OPTIONS, ONNX_OPTIONS, OUTPUT_OPTIONS, COMMON_OPTIONS)
@option("--pt2", is_flag=True, help="Write a program of torch.export (.pt2) as well.")
@option("--no-onnx", is_flag=True, help="Write the checkpoint alone.")
@option("--allow-empty", is_flag=True, help="Succeed where there is nothing to fuse.")
@option("-n", "--dry-run", is_flag=True, help="Find and prove, write nothing.")
def convert(source: Path, format: str, quiet: bool, verbose: int, **options: Any) -> None:
    """Fuse a checkpoint: find the blocks, prove equality, write checkpoint, ONNX and manifest."""
    _early_output_checks(source, options)
    with _progress("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report
        from acfuse.pipeline.convert import convert as run

        conversion = run(_job(source, options), progress)
    _show(conversion, format, quiet, report)


@cli.command()
@click.argument("original", type=click.Path(path_type=Path), required=False)
@click.argument("fused", type=click.Path(path_type=Path), required=False)
@takes(MODEL_OPTIONS, INPUT_OPTIONS, RUNTIME_OPTIONS, (OPSET,), COMMON_OPTIONS)
def verify(
    original: Path | None,
    fused: Path | None,
    format: str,
    quiet: bool,
    verbose: int,
    **options: Any,
) -> None:
    """Prove that a fused file is the original: the last conversion's, or ORIGINAL FUSED."""
    if original is not None and fused is None:
        raise click.UsageError("give ORIGINAL and FUSED, or neither.")
    with _progress("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report
        from acfuse.pipeline import replay
        from acfuse.pipeline.manifest import Manifest

        if original is None or fused is None:
            manifest = Manifest.only(Path.cwd())
            conversion = replay.verify_again(manifest, _again(manifest, options), progress)
        else:
            conversion = replay.verify_files(_job(original, options), fused, progress=progress)
    _show(conversion, format, quiet, report)


@cli.command()
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
    with _progress("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report
        from acfuse.pipeline import selftest as run
        from acfuse.pipeline.manifest import Manifest

        if original is None:
            manifest = Manifest.only(Path.cwd())
            tested = run.selftest_again(manifest, _again(manifest, options), progress)
        else:
            files = [fused] if fused is not None else []
            tested = run.selftest(_job(original, options), files, progress)
    conversion, trials = tested
    if not trials:
        _show(conversion, format, quiet, report)
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


@cli.command("export-onnx")
@click.argument("source", type=click.Path(path_type=Path), required=False)
@takes(MODEL_OPTIONS, INPUT_OPTIONS, ONNX_OPTIONS, OUTPUT_OPTIONS, COMMON_OPTIONS)
def export_onnx(
    source: Path | None, format: str, quiet: bool, verbose: int, **options: Any
) -> None:
    """Write the ONNX file of the last conversion again, or of any checkpoint as it is."""
    _early_export_checks(source, options)
    with _progress("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse import report
        from acfuse.pipeline import replay
        from acfuse.pipeline.manifest import Manifest

        if source is None:
            manifest = Manifest.only(Path.cwd())
            job = _again(manifest, options)
            path = replay.export_again(manifest, job, options["output"], progress)
        else:
            path = replay.export_file(_job(source, options), progress)
    if format == "json":
        report.print_json({"written": [str(path)]})
    elif not quiet:
        click.echo(f"wrote   {safe(path)}  ({path.stat().st_size:,} bytes)")


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@takes(MODEL_OPTIONS, SHAPE_OPTIONS, COMMON_OPTIONS)
def inspect(source: Path, format: str, quiet: bool, verbose: int, **options: Any) -> None:
    """Show what would be fused, what not, and why. Writes nothing."""
    with _progress("Loading PyTorch", quiet=quiet, verbose=verbose):
        from acfuse import report
        from acfuse.pipeline.convert import inspect as run

        seen = run(_job(source, {**options, "dry_run": True}))
    if format == "json":
        report.print_json(report.describe_findings(seen))
    else:
        report.print_findings(seen)
    if not seen.findings.found:
        sys.exit(Exit.NOTHING)


@cli.group("patterns", invoke_without_command=True)
@takes((PATTERN_FILES,), COMMON_OPTIONS)
@click.pass_context
def list_patterns(
    context: click.Context, patterns: tuple[Path, ...], format: str, quiet: bool, verbose: int
) -> None:
    """List the blocks that are known by name."""
    if context.invoked_subcommand:
        return
    with _progress("Loading PyTorch", quiet=quiet, verbose=verbose):
        from acfuse import report
        from acfuse.patterns import known_patterns

        known = known_patterns(patterns)
    if format == "json":
        names = ("name", "fused", "source", "bn_eps", "alone", "owner")
        report.print_json([{n: getattr(p, n) for n in names} for p in known])
    else:
        report.print_patterns(known)


@list_patterns.command("show")
@click.argument("name")
@takes((PATTERN_FILES,), COMMON_OPTIONS)
def show_pattern(
    name: str, patterns: tuple[Path, ...], format: str, quiet: bool, verbose: int
) -> None:
    """Show one pattern: its keys, what it assumes, and its source."""
    with _progress("Loading PyTorch", quiet=quiet, verbose=verbose):
        from acfuse import report
        from acfuse.patterns import known_patterns

        known = known_patterns(patterns)
    found = next((p for p in known if p.name == name), None)
    if found is None:
        families = sorted({p.name for p in known if p.family == name.partition("/")[0]})
        hint = f" Of this family: {', '.join(families)}." if families else ""
        raise UsageError(f"there is no pattern {name!r}.{hint} See `acfuse patterns`.")
    if format == "json":
        report.print_json(report.describe_pattern(found))
    else:
        report.print_pattern(found)


@list_patterns.command("test")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@takes((KEY,), COMMON_OPTIONS)
def try_patterns(
    file: Path, checkpoint: Path, key: str | None, format: str, quiet: bool, verbose: int
) -> None:
    """Try the patterns of FILE on a CHECKPOINT: what matches, what nearly does, and why not."""
    with _progress("Loading PyTorch", quiet=quiet, verbose=verbose):
        from acfuse import report
        from acfuse.files.read import read_tensors
        from acfuse.files.records import ReadOptions
        from acfuse.patterns import known_patterns
        from acfuse.patterns.trial import trials

        own = [pattern for pattern in known_patterns([file]) if pattern.file == file]
        found = trials(read_tensors(checkpoint, ReadOptions(key))[1], own)
    if format == "json":
        report.print_json(report.describe_trials(found))
    elif not quiet:
        report.print_trials(found, own, checkpoint)
    if all(trial.why for trial in found):
        sys.exit(Exit.NOTHING)


def _again(manifest: "Manifest", options: dict[str, Any]) -> "Job":
    """The manifest's job, changed by flags and variables: it was not made by the configuration.

    Tolerances are no part of a conversion: those may come from the configuration as well.
    """
    context = click.get_current_context()
    spoken = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    own = {
        name: value
        for name, value in options.items()
        if name in ("atol", "rtol") or context.get_parameter_source(name) in spoken
    }
    if own.get("patterns") or own.get("assume"):
        own = {"patterns": manifest.pattern_files, "assume": manifest.assume, **own}
    job = manifest.job(_changes(own))
    seed, samples = own.get("seed"), own.get("samples")
    if job.inputs is not None:
        seed = job.inputs.seed if seed is None else seed
        job = replace(
            job, inputs=replace(job.inputs, seed=seed, samples=samples or job.inputs.samples)
        )
    return job


def _changes(options: dict[str, Any]) -> dict[str, Any]:
    """The parts of a job that options change."""
    from acfuse.patterns import known_patterns
    from acfuse.proof import Inputs, Tolerance

    plain = ("model", "model_args", "key", "prefix", "sha256", "bn_eps", "opset", "dynamic")
    changes: dict[str, Any] = {name: options.get(name) for name in plain}
    flags = ("force", "allow_nonfinite", "fix_initializers", "no_runtime")
    changes |= {name: options.get(name) or None for name in flags}
    packages = (f"{name}:*" for name in options.get("allow_package") or ())
    changes["allow_classes"] = (*(options.get("allow_class") or ()), *packages) or None
    changes["tolerance"] = Tolerance(options.get("atol"), options.get("rtol"))
    if options.get("limit"):
        changes["limits"] = replace(LIMITS, **dict(options["limit"]))
    if options.get("patterns") or options.get("assume"):
        changes["patterns"] = known_patterns(
            options.get("patterns") or (), options.get("assume") or ()
        )
    if options.get("input_shape") or options.get("inputs"):
        named = [(n, s, *kind) for n, s, *kind in options.get("input_shape") or ()]
        inputs = Inputs(
            tuple((name, shape) for name, shape, *_ in named),
            options.get("seed") or 0,
            options.get("samples") or 3,
            tuple(kind[0] if kind else "" for _, _, *kind in named),
        )
        file = options.get("inputs")
        changes["inputs"] = inputs if file is None else inputs.with_file(file)
    return changes


def _job(source: Path, options: dict[str, Any]) -> "Job":
    from acfuse.pipeline.job import Job

    job = Job(
        source,
        output=options.get("output"),
        onnx=not options.get("no_onnx", False),
        pt2=options.get("pt2", False),
        fold_bn=options.get("fold_bn", False),
        allow_empty=options.get("allow_empty", False),
        dry_run=options.get("dry_run", False),
    )
    return replace(job, **{k: v for k, v in _changes(options).items() if v is not None})


def _early_output_checks(source: Path, options: dict[str, Any]) -> None:
    """What is wrong with the paths is said before PyTorch is loaded."""
    from acfuse.pipeline.paths import Paths, fused_path
    from acfuse.system.atomic_write import check_outputs

    if options["dry_run"]:
        return
    paths = Paths.beside(fused_path(source, options["output"]))
    wanted = paths.wanted(onnx=not options["no_onnx"], pt2=options["pt2"])
    check_outputs(wanted, [source], force=options["force"])


def _early_export_checks(source: Path | None, options: dict[str, Any]) -> None:
    """The same for the ONNX file alone; without a source, it is that of the only manifest."""
    from acfuse.pipeline.paths import MANIFEST, again_path, exported_path
    from acfuse.system.atomic_write import check_outputs

    output, force = options["output"], options["force"]
    if source is not None:
        check_outputs([exported_path(source, output)], [source], force=force)
        return
    manifests = [*Path.cwd().glob(f"*{MANIFEST}")]
    if len(manifests) == 1:  # otherwise, that is the error
        own = [again_path(manifests[0], output), *(manifests if output is None else [])]
        check_outputs(own, [], force=force or output is None)


def _show(conversion: "Conversion", format: str, quiet: bool, report: Any) -> None:
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
def _progress(first: str, *, quiet: bool, verbose: int) -> Iterator[Callable[[str], None]]:
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


def main() -> None:
    """Runs the command line, and turns what goes wrong into one line and an exit code."""
    try:
        with handle_signals():
            sys.exit(cli.main(standalone_mode=False) or Exit.DONE)
    except click.ClickException as error:
        error.show()
        sys.exit(Exit.USAGE)
    except AcfuseError as error:
        click.echo(f"error: {safe(' '.join(str(error).split()))}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(Exit.INTERRUPTED)
    except Terminated:
        click.echo("terminated", err=True)
        sys.exit(Exit.TERMINATED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.DONE)
    except Exception as error:
        if isinstance(error, MemoryError) or "not enough memory" in str(error):
            click.echo("error: there is not enough memory on this machine.", err=True)
            sys.exit(Exit.BAD_INPUT)
        traceback.print_exc()
        click.echo("error: this is a bug of acfuse, not of your file. Please report it.", err=True)
        sys.exit(Exit.BUG)
