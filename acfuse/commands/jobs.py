"""What a command is asked to do: a job of its options, or the last one changed by them."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from acfuse.system.limits import LIMITS, Limits

if TYPE_CHECKING:
    from acfuse.pipeline.job import Job
    from acfuse.pipeline.manifest import Manifest
    from acfuse.proof import Inputs


def job_again(manifest: "Manifest", options: dict[str, Any]) -> "Job":
    """The manifest's job, changed by flags and variables: it was not made by the configuration.

    Tolerances are no part of a conversion: those may come from the configuration as well.
    """
    own = _spoken(options)
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


def _spoken(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were not given by the configuration, and tolerances."""
    context = click.get_current_context()
    spoken = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return {
        name: value
        for name, value in options.items()
        if name in ("atol", "rtol") or context.get_parameter_source(name) in spoken
    }


def is_configured(name: str) -> bool:
    """Whether an option was given by the configuration file."""
    context = click.get_current_context(silent=True)
    source = None if context is None else context.get_parameter_source(name)
    return source == ParameterSource.DEFAULT_MAP


def _limits(options: dict[str, Any]) -> Limits:
    return replace(LIMITS, **dict(options.get("limit") or ()))


def check_first(
    source: Path | None,
    options: dict[str, Any],
    fused: Path | None = None,
    *,
    again: bool = False,
) -> None:
    """What is wrong with the files and the network's name is said before PyTorch is loaded.

    `again` says that a conversion is meant: of the manifest `source`, or of the only one.
    """
    from acfuse.files.opened_file import check_given
    from acfuse.pipeline.early import check_early
    from acfuse.pipeline.paths import only_manifest

    if again:
        check_given(source or only_manifest(Path.cwd()), "MANIFEST")
        source = None
    own = _spoken(options) if again else options
    names = ("model", "model_args", "inputs", "patterns", "cost", "sha256")
    check_early(
        source,
        fused,
        **{name: own.get(name) for name in names},
        limits=_limits(own),
        has_inputs=bool(own.get("input_shape") or own.get("inputs") or own.get("dry_run")),
    )


def _changes(options: dict[str, Any]) -> dict[str, Any]:
    """The parts of a job that options change."""
    from acfuse.files.cost_table import read_cost_table
    from acfuse.patterns import known_patterns
    from acfuse.proof import Tolerance

    plain = (
        "model", "model_args", "key", "prefix", "sha256", "bn_eps", "opset", "dynamic", "device",
        "equalize",
    )  # fmt: skip
    changes: dict[str, Any] = {name: options.get(name) for name in plain}
    flags = ("force", "allow_nonfinite", "fix_initializers", "no_runtime", "exhaustive")
    changes |= {name: options.get(name) or None for name in flags}
    packages = (f"{name}:*" for name in options.get("allow_package") or ())
    changes["allow_classes"] = (*(options.get("allow_class") or ()), *packages) or None
    changes["tolerance"] = Tolerance.given(options.get("atol"), options.get("rtol"))
    if options.get("limit"):
        changes["limits"] = _limits(options)
    if options.get("patterns") or options.get("assume"):
        changes["patterns"] = known_patterns(
            options.get("patterns") or (), options.get("assume") or ()
        )
    if options.get("cost") is not None:
        changes["costs"] = read_cost_table(options["cost"])
    if (inputs := inputs_of(options)) is not None:
        changes["inputs"] = inputs
    return changes


def inputs_of(options: dict[str, Any]) -> "Inputs | None":
    """The inputs that options name; None where there are none."""
    from acfuse.proof import Inputs

    if not options.get("input_shape") and not options.get("inputs"):
        return None
    shapes = options.get("input_shape") or ()
    if options.get("inputs") and is_configured("input_shape") and not is_configured("inputs"):
        shapes = [shape for shape in shapes if shape[0] is not None]  # real ones are in their place
    named = [(n, s, *kind) for n, s, *kind in shapes]
    inputs = Inputs(
        tuple((name, shape) for name, shape, *_ in named),
        options.get("seed") or 0,
        options.get("samples") or 3,
        tuple(kind[0] if kind else "" for _, _, *kind in named),
    )
    file = options.get("inputs")
    return inputs if file is None else inputs.with_file(file)


def _without_needless(source: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Options for an ONNX file: what the configuration says of a network's code is no part of it.

    What is given on the command line is, and refused.
    """
    from acfuse.files.detect import is_onnx

    if not is_onnx(source):
        return options
    return {
        name: value
        for name, value in options.items()
        if name not in OF_CODE or not is_configured(name)
    }


OF_CODE = ("model", "model_args", "key", "prefix", "allow_class", "allow_package", "bn_eps",
           "patterns", "assume")  # fmt: skip


def job_of(source: Path, options: dict[str, Any]) -> "Job":
    from acfuse.pipeline.job import Job

    options = _without_needless(source, options)
    job = Job(
        source,
        output=options.get("output"),
        onnx=not options.get("no_onnx", False),
        pt2=options.get("pt2", False),
        fold_bn=options.get("fold_bn", False),
        allow_empty=options.get("allow_empty", False),
        strict=options.get("strict", False),
        dry_run=options.get("dry_run", False),
    )
    return replace(job, **{k: v for k, v in _changes(options).items() if v is not None})
