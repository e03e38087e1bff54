"""The options of the command line, in the groups in which commands take them."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from acfuse.system.kept import Run
from acfuse.system.limits import Limits
from acfuse.system.threads import prepare_threads

HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}  # of every command
F = TypeVar("F", bound=Callable[..., Any])


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option that can also be given as ACFUSE_NAME."""
    variable = "ACFUSE_" + names[-1].lstrip("-").upper().replace("-", "_").partition("/")[0]
    return click.option(*names, envvar=variable, show_envvar=False, **settings)


class Parsed(click.ParamType[Any]):
    """A value with a parser of its own, whose ValueError says what is wrong with it.

    A configuration file may have it as a number, or as a value of the kind `given`.
    """

    def __init__(self, name: str, parse: Callable[[str], Any], given: type | None = None) -> None:
        self.name, self.parse, self.given = name, parse, given

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """What the parser makes of a text."""
        if self.given is not None and isinstance(value, self.given):
            return value
        if isinstance(value, (int, float)):
            value = str(value)
        if not isinstance(value, str):
            self.fail(f"{value!r}: expected a text, as on the command line", param, ctx)
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


def _input(text: str) -> tuple[str | None, tuple[int, ...], str]:
    """1,3,224,224 or 1x3x224x224 or [1,3,224,224], with NAME: and DTYPE: in front as needed.

    An integer may say which numbers it takes, int64=0..99. Nothing behind the last colon is the
    shape of a single number.
    """
    front, colon, numbers = text.rpartition(":")
    name, _, kind = front.rpartition(":")
    if not _KIND.fullmatch(kind):
        name, kind = front, ""
    parts = [part.strip() for part in numbers.strip("[]() ").replace("x", ",").split(",")]
    if colon and kind and parts == [""]:
        parts = []
    if not all(part.lstrip("-").isdigit() for part in parts):
        raise ValueError("expected numbers such as 1,3,224,224, or NAME:int64:1,77")
    if "=" in name:
        raise ValueError("expected a dtype with its numbers as int64=0..99")
    shape = tuple(int(part) for part in parts)
    if any(n < 1 for n in shape):
        raise ValueError("every size must be at least 1")
    low, _, high = kind.partition("=")[2].partition("..")
    if high and int(low) > int(high):
        raise ValueError(f"there is no number from {low} to {high}")
    return name or None, shape, kind


_KIND = re.compile(r"(float(16|32|64)|bfloat16|bool|(uint8|u?int(8|16|32|64))(=-?\d+\.\.-?\d+)?)")


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


def _tolerances(text: str) -> dict[str, float]:
    """1e-4, or NAME:1e-3 for one output, or several of these with commas between.

    What holds for all others is under "".
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().rpartition(":")
        try:
            value = float(number)
        except ValueError:
            raise ValueError("expected a number, or NAME:NUMBER for one output") from None
        if not 0 <= value < math.inf:
            raise ValueError("expected a number of at least 0")
        if name in found:
            raise ValueError(f"{name or 'what holds for all'} is given twice")
        found[name] = value
    return found


PAIR = (  # of what compares two files; without both, those of the last conversion
    click.argument("original", type=click.Path(path_type=Path), required=False),
    click.argument("fused", type=click.Path(path_type=Path), required=False),
)
INPUT, JSON = Parsed("INPUT", _input), Parsed("JSON", _json_object, dict)
TOLERANCE = Parsed("NUMBER", _tolerances)
LIMIT, SHA256 = Parsed("NAME=NUMBER", _limit), Parsed("HEX", _sha256)
PATTERN_FILES = option(
    "--patterns",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Patterns of your own, as TOML. Repeatable.",
)
KEY = option("--key", help="Entry of the checkpoint that holds the weights.")
MODEL_OPTIONS = (
    option("--model", metavar="MODULE:NAME", help="The network's code: package.module:factory, "
            "path/to/file.py:Class, or a name of a package: timm:repvgg_a0, torchvision:resnet18, "
            "transformers:FOLDER, ultralytics:yolov10n.yaml."),
    option("--model-args", type=JSON, default=None, help="Arguments for it, as JSON."),
    KEY,
    option("--prefix", help="What stands in front of the model's keys in the checkpoint; other "
            "tensors are kept as they are."),
    option("--allow-class", multiple=True, metavar="MODULE:CLASS",
            help="A class of your own that a pickled module may hold. Repeatable."),
    option("--allow-package", multiple=True, metavar="NAME",
            help="An installed package whose torch modules a pickled module may hold. Repeatable."),
    option("--sha256", type=SHA256, help="What the file must be, as sha256sum prints it."),
    option("--limit", type=LIMIT, multiple=True, help="Read a file beyond a limit, e.g. "
            "operations=2000000; `acfuse inspect` names the one. Repeatable."),
    option("--allow-nonfinite", is_flag=True, help="Read a model that holds NaN or Inf, and leave "
            "the blocks with such tensors as they are."),
    option("--fix-initializers", is_flag=True, help="Take the inputs of an ONNX file that have a "
            "default as constants: no caller gives another."),
    option("--device", metavar="DEVICE", help="Where all is fused and proved: cpu, cuda, "
            "cuda:1. Default cpu."),
    option("--bn-eps", type=click.FloatRange(min=0), help="BatchNorm eps, for checkpoints without "
            "their code."),
    option("--fold-bn", is_flag=True, help="Fold lone conv+BatchNorm pairs as well."),
    PATTERN_FILES,
    option("--assume", multiple=True, metavar="PATTERN", help="A pattern that holds although the "
            "tensors alone, or a forward that cannot be read, do not decide it. Repeatable."),
    option("--cost", type=click.Path(path_type=Path), metavar="FILE", help="Fuse no block that is "
            "slower than its layers, by a table of `acfuse bench --profile`."),
)  # fmt: skip
SHAPE_OPTIONS = (
    option("input_shape", "--input", "--input-shape", type=INPUT, multiple=True,
            help="An input: 1,3,224,224; NAME:SHAPE where there are several; NAME:int64:1,77 of "
            "another dtype, int64=0..99 with the numbers it takes; sr:int64: for one number."),
    option("--inputs", type=click.Path(path_type=Path), metavar="FILE.npz",
            help="Real inputs, as numpy.savez(FILE, name=array) writes them."),
)  # fmt: skip
SEED = option("--seed", type=int, default=None, help="Seed of the random inputs. Default 0.")
INPUT_OPTIONS = (
    *SHAPE_OPTIONS,
    SEED,
    option("--samples", type=click.IntRange(min=1), default=None,
            help="How many random inputs. Default 3."),
    option("--atol", type=TOLERANCE, help="Absolute tolerance, on every element; beside it --rtol "
            "is 1e-5 if it is not given, as torch.allclose has it. With 1e-4,boxes:1e-2 the output "
            "boxes has its own."),
    option("--rtol", type=TOLERANCE, help="Relative tolerance, likewise; alone, --atol is 0."),
)  # fmt: skip
RUNTIME_OPTIONS = (
    option("--exhaustive", is_flag=True, help="Read every weight of a block's layers by impulses, "
            "where random numbers would do."),
    option("--no-runtime", is_flag=True, help="Prove an ONNX file without running it, where "
            "onnxruntime cannot: by its certificates, and node by node."),
)  # fmt: skip
OPSET = option("--opset", type=click.IntRange(11, 24), help="ONNX opset. Default 20; an ONNX file "
               "keeps its own.")  # fmt: skip
ONNX_OPTIONS = (
    OPSET,
    option("--dynamic", type=click.Choice(["batch", "hw", "all", "none"]),
            help="Which axes of the ONNX file are free. Default batch."),
)  # fmt: skip
FORCE = option("-f", "--force", is_flag=True, help="Replace files that exist.")
OUTPUT_OPTIONS = (
    option("-o", "--output", type=click.Path(path_type=Path), help="File or directory."),
)

REPORT = option("--report", type=click.Path(path_type=Path), multiple=True,
                metavar="FILE", help="Write a report as well, also of what is not equal: .html to "
                "look at, .md for a review, .json, .xml (JUnit). Repeatable.")  # fmt: skip


def _prepare(context: click.Context, parameter: click.Parameter, count: int | None) -> None:
    prepare_threads(count)


KEPT_OPTIONS = (
    option("--output-file", type=click.Path(path_type=Path), metavar="FILE",
            help="Keep what stdout gets in a file as well, without colours."),
    option("--log-file", type=click.Path(path_type=Path), metavar="FILE",
            help="Keep a log in a file: what was done when, and what went wrong. It replaces an "
            "earlier log."),
)  # fmt: skip
RESULT_OPTIONS = (  # of every command that prints a result
    option("--format", type=click.Choice(["text", "json", "github"]), default="text",
            help="What stdout gets; with json errors as well; github: text, with annotations, and "
            "a summary of the step."),
    *KEPT_OPTIONS,
    FORCE,
)  # fmt: skip
QUIET = option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
THREADS = option(
    "--threads",
    type=click.IntRange(min=1),
    callback=_prepare,
    expose_value=False,
    help="Compute with so many threads; as many as there are processors else.",
)
COMMON_OPTIONS = (
    *RESULT_OPTIONS,
    QUIET,
    click.option("-v", "--verbose", count=True, help="Say more."),
    THREADS,
)


Writes = Callable[[Mapping[str, Any]], Sequence[Path]]


def takes(
    *groups: tuple[Callable[[Any], Any], ...], writes: Writes = lambda _: ()
) -> Callable[[F], F]:
    """The options that a command takes. What it says is kept from the moment that it begins.

    `writes` are the files in whose place nothing may be kept.
    """

    def add(command: F) -> F:
        command = _beginning(command, writes)
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return add


def _beginning(command: F, writes: Writes) -> F:
    @wraps(command)
    def begun(*arguments: Any, **options: Any) -> Any:
        kept = {name: options.pop(name, None) for name in ("output_file", "log_file")}
        run = click.get_current_context().find_root().obj
        if isinstance(run, Run) and not options.get("worker"):  # it speaks to who started it
            begin(run, {**options, **kept}, writes)
        return command(*arguments, **options)

    return cast(F, begun)


def begin(run: Run, options: Mapping[str, Any], writes: Writes = lambda _: ()) -> None:
    """Takes down what a command is told of its output, and says what cannot be written.

    Raises OutputError and UsageError.
    """
    from acfuse.reports.where import check_apart, inputs_among

    given = [v for k, v in options.items() if isinstance(v, Path) and k not in KEPT]
    run.inputs = inputs_among(options, *given)
    run.format = options.get("format") or run.format
    run.force = bool(options.get("force"))
    run.reports = options.get("report") or run.reports
    sources = [options.get(name) for name in ("source", "original", "checkpoint")]
    run.source = next((path.name for path in sources if isinstance(path, Path)), run.source)
    files = [options.get(name) for name in KEPT]
    if any(files):
        check_apart([*run.reports, *filter(None, files), *writes(options)])
    run.keep(*files)


KEPT = ("output_file", "log_file")


@click.command("acfuse", add_help_option=False)
@takes(RESULT_OPTIONS, (REPORT,))
def _any_command(**_: Any) -> None:
    """What all commands have in common."""


def begin_anyway(run: Run, line: Sequence[str], context: click.Context | None) -> None:
    """The same for a line that cannot be read, which may say all the same what is wanted.

    Nothing that exists is replaced but a log: who knows what such a line means.
    """
    told = _any_command.make_context(
        "acfuse",
        list(line),
        resilient_parsing=True,
        ignore_unknown_options=True,
        allow_extra_args=True,
        default_map=context and context.default_map,
    ).params
    begin(run, {**told, "force": False})
