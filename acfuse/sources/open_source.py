"""A file to what can be fused: the one place that asks what it is, by content and not by name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from acfuse.errors import UsageError
from acfuse.files.detect import is_onnx
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.read import read_tensors
from acfuse.files.tensor_check import check_numbers, norms_of
from acfuse.files.user_code import build_model, fit_prefix, load_into, stripped
from acfuse.graph.copies import unwrapped
from acfuse.graph.onnx_values import opset_of, with_fixed_inputs
from acfuse.proof.onnx_plugins import plugins_of
from acfuse.proof.witness import example_of
from acfuse.sources.bare import BareSource
from acfuse.sources.base import OpenOptions, Source, SourceFile
from acfuse.sources.live import LiveSource
from acfuse.sources.onnx import OnnxSource, numbers_of
from acfuse.system.devices import named_device, prepare_products
from acfuse.system.escape import listed


def open_source(path: Path, options: OpenOptions) -> Source:
    """Reads a file: an ONNX model, a model of PyTorch, or its tensors alone.

    Raises InputError for a file that cannot be used, also for numbers that are none unless they are
    allowed; UnsafeError for one that would run code; UsageError for settings without an effect.
    """
    if is_onnx(path):
        _refuse_without_effect(path, OnnxSource.ignores, options)
        return _open_onnx(path, options)
    device = named_device(options.device or "cpu")
    prepare_products(device)
    source = _open_torch(path, options)
    norms = norms_of(source.tensors, source.network, options.bn_eps)
    if isinstance(source, BareSource):
        source = replace(source, device=device)
    else:
        source.model.to(device)
        if options.inputs is not None:
            source = replace(source, example=example_of(source.model, options.inputs))
    odd = check_numbers(source.tensors, norms, path.name, allow_nonfinite=options.allow_nonfinite)
    _refuse_without_effect(path, source.ignores, options)
    return replace(source, file=replace(source.file, notes=(*source.file.notes, *odd)))


def _open_onnx(path: Path, options: OpenOptions) -> OnnxSource:
    model, files = read_onnx(path, options.read)
    notes: tuple[str, ...] = ()
    if options.fix_initializers:
        model, fixed = with_fixed_inputs(model)
        if not fixed:
            raise UsageError(
                f"{path.name}: --fix-initializers has no effect here: no input has a default. "
                "Remove it."
            )
        notes = (f"no inputs any more, but constants: {listed(fixed)}",)
    whole = not notes and len(files) == 1  # nothing that only stands in memory
    tensors, norms = numbers_of(model)
    odd = check_numbers(tensors, norms, path.name, allow_nonfinite=options.allow_nonfinite)
    missing = plugins_of(model)
    if missing and not options.no_runtime:
        odd = (*odd, f"onnxruntime has no {', '.join(missing)}: what is run ends before it")
    source = OnnxSource(
        model,
        SourceFile(path.name, files, (*notes, *odd)),
        options.read.limits,
        path=path if whole else None,
        is_run=not options.no_runtime,
    )
    if options.opset in (None, opset_of(model)):
        return source
    if missing or options.no_runtime:
        raise UsageError(
            f"{path.name}: --opset needs a run of the whole file: nothing else shows that onnx's "
            "converter changed nothing. Leave it out"
            f"{', or --no-runtime' if options.no_runtime else ''}."
        )
    return source.in_opset(options.opset)


def _open_torch(path: Path, options: OpenOptions) -> LiveSource | BareSource:
    """A checkpoint; where it holds no model, in the network that --model names, if it names one."""
    container, tensors = read_tensors(path, options.read)
    if any(_aliased(key) != key for key in tensors):
        tensors = {_aliased(key): tensor for key, tensor in tensors.items()}
        told = "the statistics of BatchNorms have Paddle's names; they are written with torch's"
        container = replace(container, notes=(*container.notes, told))
    file = SourceFile(path.name, container.files, container.notes)
    if container.network is not None:
        if options.model is not None:
            raise UsageError(f"{path.name} holds a whole model; --model is for state dicts.")
        if options.prefix is not None:
            raise UsageError(f"{path.name} holds a whole model; --prefix is for state dicts.")
        network = unwrapped(container.network)
        if network is not container.network:
            told = f"the model inside of its {type(container.network).__name__} is taken"
            tensors, file = dict(network.state_dict()), replace(file, notes=(*file.notes, told))
        return LiveSource(network.eval() if network.training else network, tensors, container, file)
    if options.model is None:
        return BareSource(tensors, container, file)
    network = unwrapped(build_model(options.model, options.model_args))
    prefix, fitting = _fitted(tensors, network, options.prefix, path.name)
    renamed = load_into(network, fitting, path.name)
    rest = {key: t for key, t in tensors.items() if not key.startswith(prefix)}
    notes = file.notes
    if prefix:
        whose = "of the model" if rest else ""
        notes += (f"stripped the prefix {prefix!r} from every key {whose}".rstrip(),)
    if rest:
        notes += (f"{listed(list(rest))}: no tensor of the model, kept as it is",)
    if renamed:
        notes += (f"the model's own code reads {listed(list(renamed))} under other names",)
        fitting = dict(network.state_dict())
    network = network.eval() if network.training else network
    held = replace(container, prefix=prefix, rest=rest, order=tuple(tensors) if rest else ())
    return LiveSource(network, fitting, held, replace(file, notes=notes))


# What Paddle calls the statistics of a BatchNorm.
ALIASES = {"._mean": ".running_mean", "._variance": ".running_var"}


def _aliased(key: str) -> str:
    return next((key.removesuffix(a) + b for a, b in ALIASES.items() if key.endswith(a)), key)


def _fitted(
    tensors: Mapping[str, Tensor], network: nn.Module, prefix: str | None, name: str
) -> tuple[str, dict[str, Tensor]]:
    """The tensors of a checkpoint that are the model's, and what stands in front of their keys."""
    if prefix is None:
        found, fitting = fit_prefix(tensors, network)
        return found, fitting
    fitting = stripped(tensors, prefix)
    if not fitting:
        raise UsageError(f"{name}: --prefix {prefix}: no key begins with it.")
    return prefix, fitting


def _refuse_without_effect(path: Path, ignores: Mapping[str, str], options: OpenOptions) -> None:
    """A request that would change nothing is an error: it is never ignored silently."""
    for name, why in ignores.items():
        if name in options.asked:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{path.name}: {flag} has no effect here: {why}. Remove it.")
