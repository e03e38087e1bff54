"""The command line: click options and nothing else. Heavy modules are imported by the commands."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from acfuse import __version__
from acfuse.errors import AcfuseError, Exit, UsageError
from acfuse.settings import defaults
from acfuse.system.escape import safe
from acfuse.system.limits import LIMITS, Limits
from acfuse.system.signals import Terminated, handle_signals

if TYPE_CHECKING:
    from acfuse.pipeline.job import Conversion, Job
    from acfuse.pipeline.manifest import Manifest

F = TypeVar("F", bound=Callable[..., Any])


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option that can also be given as ACFUSE_NAME."""
    variable = "ACFUSE_" + names[-1].lstrip("-").upper().replace("-", "_").partition("/")[0]
    return click.option(*names, envvar=variable, show_envvar=False, **settings)


class Parsed(click.ParamType[Any]):
    """A value with a parser of its own, whose ValueError says what is wrong with it."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """What the parser makes of a text; what is no text was parsed before."""
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


def _shape(text: str) -> tuple[str | None, tuple[int, ...]]:
    """1,3,224,224 or 1x3x224x224 or [1,3,224,224], with NAME: in front where there are several."""
    name, _, numbers = text.rpartition(":")
    parts = numbers.strip("[]() ").replace("x", ",").split(",")
    if not all(part.strip().lstrip("-").isdigit() for part in parts):
        raise ValueError("expected numbers such as 1,3,224,224")
    shape = tuple(int(part) for part in parts)
    if any(n < 1 for n in shape):
        raise ValueError("every size must be at least 1")
    return name or None, shape


def _json_object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object such as '{\"num_classes\": 10}'")  # noqa: TRY004
    return data


def _limit(text: str) -> tuple[str, int]:
    """NAME=NUMBER, one of the limits on what a file may cost."""
    name, _, number = text.partition("=")
    known = [f.name for f in fields(Limits)]
    if name not in known:
        raise ValueError(f"expected one of {', '.join(known)}, then =NUMBER")
    if not number.isascii() or not number.isdigit() or int(number) < 1:
        raise ValueError(f"expected a number above zero, as in {name}=1000")
    return name, int(number)


def _sha256(text: str) -> str:
    if len(text) != 64 or set(text.lower()) - set("0123456789abcdef"):
        raise ValueError("expected the 64 hexadecimal digits of a SHA-256")
    return text.lower()


SHAPE, JSON = Parsed("SHAPE", _shape), Parsed("JSON", _json_object)
LIMIT, SHA256 = Parsed("NAME=NUMBER", _limit), Parsed("HEX", _sha256)
PATTERN_FILES = _option(
    "--patterns",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Patterns of your own, as TOML. Repeatable.",
)
KEY = _option("--key", help="Entry of the checkpoint that holds the weights.")
MODEL_OPTIONS = (
    _option("--model", metavar="MODULE:NAME", help="The network's code: package.module:factory or "
            "path/to/file.py:Class."),
    _option("--model-args", type=JSON, default=None, help="Arguments for it, as JSON."),
    KEY,
    _option("--allow-class", multiple=True, metavar="MODULE:CLASS",
            help="A class of your own that a pickled module may hold. Repeatable."),
    _option("--sha256", type=SHA256, help="What the file must be, as sha256sum prints it."),
    _option("--limit", type=LIMIT, multiple=True, help="Read a file beyond a limit, e.g. "
            "operations=2000000; `acfuse inspect` names the one. Repeatable."),
    _option("--allow-nonfinite", is_flag=True, help="Read a model that holds NaN or Inf, and leave "
            "the blocks with such tensors as they are."),
    _option("--bn-eps", type=click.FloatRange(min=0), help="BatchNorm eps, for checkpoints without "
            "their code."),
    _option("--fold-bn", is_flag=True, help="Fold lone conv+BatchNorm pairs as well."),
    PATTERN_FILES,
    _option("--assume", multiple=True, metavar="PATTERN", help="A pattern that holds although the "
            "tensors alone, or a forward that cannot be read, do not decide it. Repeatable."),
)  # fmt: skip
SHAPE_OPTIONS = (
    _option(
        "--input-shape",
        type=SHAPE,
        multiple=True,
        help="Shape of an input, e.g. 1,3,224,224; NAME:SHAPE where there are several.",
    ),
)
INPUT_OPTIONS = (
    *SHAPE_OPTIONS,
    _option("--seed", type=int, default=None, help="Seed of the random inputs. Default 0."),
    _option("--samples", type=click.IntRange(min=1), default=None,
            help="How many random inputs. Default 3."),
    _option("--atol", type=click.FloatRange(min=0), help="Absolute tolerance, on every element."),
    _option("--rtol", type=click.FloatRange(min=0), help="Relative tolerance beside it."),
)  # fmt: skip
ONNX_OPTIONS = (
    _option("--opset", type=click.IntRange(18, 24), help="ONNX opset. Default 20."),
    _option("--dynamic", type=click.Choice(["batch", "hw", "all", "none"]),
            help="Which axes of the ONNX file are free. Default batch."),
)  # fmt: skip
OUTPUT_OPTIONS = (
    _option("-o", "--output", type=click.Path(path_type=Path), help="File or directory."),
    _option("-f", "--force", is_flag=True, help="Replace files that exist."),
)
COMMON_OPTIONS = (
    _option("--format", type=click.Choice(["text", "json"]), default="text",
            help="What stdout gets."),
    _option("-q", "--quiet", is_flag=True, help="Say only what went wrong."),
    click.option("-v", "--verbose", count=True, help="Say more."),
)  # fmt: skip


def _options(*groups: tuple[Callable[[Any], Any], ...]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return add


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
@_options(MODEL_OPTIONS, INPUT_OPTIONS, ONNX_OPTIONS, OUTPUT_OPTIONS, COMMON_OPTIONS)
@_option("--pt2", is_flag=True, help="Write a program of torch.export (.pt2) as well.")
@_option("--no-onnx", is_flag=True, help="Write the checkpoint alone.")
@_option("--allow-empty", is_flag=True, help="Succeed where there is nothing to fuse.")
@_option("-n", "--dry-run", is_flag=True, help="Find and prove, write nothing.")
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
@_options(MODEL_OPTIONS, INPUT_OPTIONS, COMMON_OPTIONS)
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


@cli.command("export-onnx")
@click.argument("source", type=click.Path(path_type=Path), required=False)
@_options(MODEL_OPTIONS, INPUT_OPTIONS, ONNX_OPTIONS, OUTPUT_OPTIONS, COMMON_OPTIONS)
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
@_options(MODEL_OPTIONS, SHAPE_OPTIONS, COMMON_OPTIONS)
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
@_options((PATTERN_FILES,), COMMON_OPTIONS)
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
@_options((PATTERN_FILES,), COMMON_OPTIONS)
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
@_options((KEY,), COMMON_OPTIONS)
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

    plain = ("model", "model_args", "key", "sha256", "bn_eps", "opset", "dynamic")
    changes: dict[str, Any] = {name: options.get(name) for name in plain}
    changes |= {name: options.get(name) or None for name in ("force", "allow_nonfinite")}
    changes["allow_classes"] = options.get("allow_class") or None
    changes["tolerance"] = Tolerance(options.get("atol"), options.get("rtol"))
    if options.get("limit"):
        changes["limits"] = replace(LIMITS, **dict(options["limit"]))
    if options.get("patterns") or options.get("assume"):
        changes["patterns"] = known_patterns(
            options.get("patterns") or (), options.get("assume") or ()
        )
    if options.get("input_shape"):
        changes["inputs"] = Inputs(
            tuple(options["input_shape"]), options.get("seed") or 0, options.get("samples") or 3
        )
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
