"""Fused files that others made: their convolutions by name or by number, and their own program.

A file of another program, or with other names, is no less right. Its convolutions are told by
their numbers and proved like any; what the program around them does is shown by running it.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from acfuse.errors import InputError, UsageError
from acfuse.files.detect import is_onnx
from acfuse.files.onnx_cost import all_graphs
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.read import read_tensors
from acfuse.files.records import ReadOptions
from acfuse.graph.fx_read import is_norm
from acfuse.graph.onnx_nodes import FLOATS
from acfuse.graph.onnx_values import CONVOLUTIONS, inputs_without_default
from acfuse.int8.unscaled import unscaled
from acfuse.proof import Check, Inputs, Tolerance
from acfuse.proof.onnx_runtime import answers_in_onnx, compare_onnx, compare_with_onnx, image_of
from acfuse.proof.running import Image
from acfuse.proof.trace import Trace
from acfuse.proof.trace_onnx import shapes_in, trace_of_onnx
from acfuse.sources.bare import same_bits
from acfuse.sources.base import Fused, Progress, Source, Weights, silent
from acfuse.sources.scales import in_order
from acfuse.system.devices import CPU
from acfuse.system.limits import Limits
from acfuse.targets.onnx_export import to_onnx
from acfuse.targets.pt2_export import answers_of_program, compare_pt2_file, trace_of_program

NEAR = 0.1  # of a kernel: two that are no further apart are one and the same, rounded or faulty
ROUNDINGS = 16  # machine epsilons of the largest weight: of a factor, and of one more folding
KIN = 0.01  # the same for tensors that should not differ at all


@dataclass(frozen=True)
class Held:
    """What a file of others is, as the fused form of an original."""

    fused: Fused
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    is_run: bool = False  # whether its own program was run: there is nothing else to compare
    traced: Callable[[Image, torch.dtype], Trace] | None = None  # runs that step by step
    scaled: Fused | None = None  # with the numbers as they lie in the file, if it has scales


@dataclass(frozen=True)
class _File:
    """What stands in a file: all tensors, its convolutions, and its program if it has one."""

    path: Path
    tensors: Mapping[str, Tensor]
    convolutions: Sequence[Weights]
    model: onnx.ModelProto | None = None
    is_exported: bool = False

    @property
    def is_program(self) -> bool:
        return self.model is not None or self.is_exported


def held_in(
    path: Path,
    read: ReadOptions,
    source: Source,
    fused: Fused,
    inputs: Inputs | None,
    tolerance: Tolerance,
    progress: Progress = silent,
) -> Held:
    """A file as the fused form of a source. Raises InputError for one that is none."""
    own: InputError | None = None
    stored = None
    if read.key is not None and not _has_key(path, read):
        read = replace(read, key=None)
    try:
        stored = fused.with_file(path, read)
    except InputError as error:  # it may be that of others
        own = error
    if stored is not None and (fused.onnx_file is not None or not _is_program(path, read)):
        return Held(stored)
    try:
        file = _opened(path, read)
    except InputError:
        raise own or InputError(f"{path.name} cannot be read.") from None
    is_of_its_format = (file.model is None) is (fused.onnx_original is None)
    if own is not None and is_of_its_format and not fused.names.isdisjoint(file.tensors):
        raise own  # it has acfuse's own names, and does not fit
    if not file.is_program:
        return _by_numbers(file, fused, own)
    if not source.is_run:
        raise InputError(
            f"{path.name} is not as acfuse writes it: it has to be run. Remove --no-runtime."
        )
    check = _run(file, source, fused, inputs, tolerance, read.limits, progress)
    if check is None:
        told = (
            f"the program of {path.name} was not run: the original has no code to compare it with"
        )
        return replace(_by_numbers(file, fused, own) if stored is None else Held(stored),
                       notes=(told,))  # fmt: skip
    if stored is not None:
        return Held(stored, (check,), traced=_traced(file, read.limits))
    given, missing = _beside_equal(fused.weights, file.convolutions)
    kept, plain = _kept(fused.kept, file.tensors, fused.network), file
    if check.passed and (missing or not kept.passed):
        plain = _without_scales(file, fused, inputs, read.limits)
        given, missing = _beside_equal(fused.weights, plain.convolutions)
        kept = _kept(fused.kept, plain.tensors, fused.network)
    if not check.passed:
        given, missing = _matched(fused.weights, file.convolutions, loose=True)
    is_alien = not _matched(fused.weights, file.convolutions, loose=False)[0]
    if own is not None and is_alien and not check.passed and not math.isfinite(check.error):
        raise own  # neither its outputs nor its tensors are of this model
    found = tuple(b for b in fused.found if not missing.intersection(b.names))
    notes = (
        f"{path.name} is taken as a program of others: {len(found)} of {len(fused.found)} blocks "
        "are proved weight by weight, and all else by what it gives",
    )
    findings = replace(fused.findings, found=found)
    stored = replace(fused.with_weights(given), findings=findings)
    scaled = None
    if plain is not file:  # the same layers, in the same order
        places = {id(pair): place for place, pair in enumerate(plain.convolutions)}
        own_numbers = {n: file.convolutions[places[id(pair)]] for n, pair in given.items()}
        scaled = replace(fused.with_weights(own_numbers), findings=findings)
    return Held(stored, (kept, check), notes, True, _traced(file, read.limits), scaled)


def _traced(file: _File, limits: Limits) -> Callable[[Image, torch.dtype], Trace]:
    """How the program of a file is run step by step. A program of torch.export has its dtype."""
    model = file.model
    if model is not None:
        return lambda image, _: trace_of_onnx(model, image, limits)
    return lambda image, _: trace_of_program(file.path, image)


def known_by_numbers(fused: Fused, model: nn.Module, named: Set[str]) -> Fused:
    """The blocks of a fused form that stand in a model of others, whose outputs are equal.

    They hold that model's numbers. Those that are `named` there are not looked for.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    held = [_with_bias(m.weight.detach().cpu(), _on_cpu(m.bias), _out_of(m)) for m in layers]
    wanted = {name: pair for name, pair in fused.weights.items() if name not in named}
    given, missing = _beside_equal(wanted, held)
    found = tuple(b for b in fused.found if not (missing | named).intersection(b.names))
    return replace(fused.with_weights(given), findings=replace(fused.findings, found=found))


def _on_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().cpu()


def _out_of(layer: nn.Module) -> int:
    out = getattr(layer, "out_channels", None) or layer.out_features
    assert isinstance(out, int)
    return out


def _beside_equal(
    wanted: Mapping[str, Weights], held: Sequence[Weights]
) -> tuple[dict[str, Weights], set[str]]:
    """Those of another program that gives the same: near enough, and not merely rescaled.

    Who takes the BatchNorm behind a block up as well has other kernels, and is right.
    """
    given, missing = _matched(wanted, held, loose=False)
    rescaled = {n for n, pair in given.items() if _is_rescaled(wanted[n], pair)}
    return {n: pair for n, pair in given.items() if n not in rescaled}, missing | rescaled


def _has_key(path: Path, read: ReadOptions) -> bool:
    """Whether a fused file has its weights under the original's key; a bare state dict has not."""
    if is_onnx(path):
        return False
    try:
        read_tensors(path, read)
    except UsageError:
        return False
    return True


def _without_scales(file: _File, fused: Fused, inputs: Inputs | None, limits: Limits) -> _File:
    """An ONNX file without the powers of two by which its channels are scaled.

    It stays as it is where it is not acfuse's own export, scaled.
    """
    if file.model is None or fused.network is None or inputs is None:
        return file
    try:
        own = to_onnx(fused.network, inputs, dynamic="none").model
        shapes = shapes_in(own, image_of(own, in_order(inputs)), limits)
    except InputError:  # it cannot be exported here, or run
        return file
    plain = unscaled(file.model, own, shapes)
    return file if plain is None else _File(file.path, *_convolutions_of(plain), plain)


def _is_program(path: Path, read: ReadOptions) -> bool:
    return is_onnx(path) or read_tensors(path, read)[0].kind == "exported"


def _opened(path: Path, read: ReadOptions) -> _File:
    if is_onnx(path):
        model, _ = read_onnx(path, ReadOptions(limits=read.limits))
        return _File(path, *_convolutions_of(model), model)
    container, tensors = read_tensors(path, read)
    plain = [
        (tensor, tensors.get(f"{key.removesuffix('weight')}bias"))
        for key, tensor in tensors.items()
        if key.endswith("weight") and tensor.ndim > 2
    ]
    convolutions = [_with_bias(w, b, len(w)) for w, b in plain]
    return _File(path, tensors, convolutions, is_exported=container.kind == "exported")


def _convolutions_of(model: onnx.ModelProto) -> tuple[dict[str, Tensor], list[Weights]]:
    """The stored tensors of an ONNX model, and its convolutions in their order."""
    stored = {
        t.name: torch.from_numpy(np.array(numpy_helper.to_array(t)))
        for graph in all_graphs(model.graph)
        for t in graph.initializer
        if t.data_type in FLOATS
    }
    graphs = all_graphs(model.graph)
    nodes = [n for graph in graphs for n in graph.node if n.op_type in CONVOLUTIONS]
    pairs = [(n, stored.get(n.input[1]), stored.get((*n.input, "", "")[2])) for n in nodes]
    return stored, [_with_bias(w, b, _out_channels(n, w)) for n, w, b in pairs if w is not None]


def _out_channels(node: onnx.NodeProto, weight: Tensor) -> int:
    """How many channels a convolution gives: transposed, its weight has those of a group second."""
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return groups * weight.shape[1] if node.op_type == "ConvTranspose" else len(weight)


def _with_bias(weight: Tensor, bias: Tensor | None, out: int) -> Weights:
    return weight, weight.new_zeros(out) if bias is None else bias


def _by_numbers(file: _File, fused: Fused, own: InputError | None) -> Held:
    """A file of tensors alone, under other names. Raises InputError if not all are there."""
    given, missing = _matched(fused.weights, file.convolutions, loose=False)
    kept = _kept(fused.kept, file.tensors)
    wanted = [*(t for pair in fused.weights.values() for t in pair), *fused.kept.values()]
    least = 1 if fused.onnx_original is None else 2  # what a graph holds beside are its constants
    sizes = [
        sum(t.numel() for t in some if t.ndim >= least and t.is_floating_point())
        for some in (wanted, file.tensors.values())
    ]
    if (
        missing
        or kept.compared != len(fused.kept)
        or (sizes[0] != sizes[1] and not file.is_program)
    ):
        why = f"{file.path.name} is not the fused form of this model: it holds other tensors."
        raise own if own and not fused.onnx_original else InputError(why)
    note = f"{file.path.name} has names of its own: its tensors are told by their numbers"
    return Held(fused.with_weights(given), (kept,), (note,))


def _matched(
    wanted: Mapping[str, Weights], held: Sequence[Weights], *, loose: bool
) -> tuple[dict[str, Weights], set[str]]:
    """The convolution of a file for each wanted one, by its numbers; those for which there is none.

    With `loose`, of those that are left the first is the first, if there are as many of its shape.
    """
    left, found = list(held), dict[str, Weights]()
    for name, own in wanted.items():
        alike = [(_apart(own, other), i) for i, other in enumerate(left) if _is_alike(own, other)]
        distance, index = min(alike, default=(NEAR, -1))
        if distance < NEAR:
            found[name] = left.pop(index)
    for name, own in wanted.items() if loose else ():
        rest = [other for other in left if _is_alike(own, other)]
        open_ = [n for n, w in wanted.items() if n not in found and _is_alike(own, w)]
        if name not in found and len(rest) == len(open_):
            found[name] = rest[0]
            left = [other for other in left if other is not rest[0]]
    return found, set(wanted) - set(found)


def _is_rescaled(own: Weights, other: Weights) -> bool:
    """Whether a kernel is another's times a factor for each channel that it gives, and reads."""
    a, b = (pair[0].double().flatten(2) for pair in (own, other))
    room = ROUNDINGS * torch.finfo(own[0].dtype).eps * b.abs().amax()
    factor = torch.ones(*a.shape[:2], 1, dtype=torch.float64, device=CPU)
    for axes in ((1, 2), (0, 2)) * 2:  # by one kind of channels, then by the other, and once more
        scaled = a * factor
        norm = scaled.square().sum(axes, keepdim=True)
        factor = factor * ((scaled * b).sum(axes, keepdim=True) / norm.clamp_min(1e-300))
    is_factor = bool(((a * factor - b).abs() <= room).all())
    return is_factor and bool(((a - b).abs() > room).any())


def _is_alike(one: Weights, other: Weights) -> bool:
    return all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def _apart(one: Weights, other: Weights) -> float:
    """How far two convolutions are apart, of how large the first is."""
    (a, b), (c, d) = ([x.double().reshape(-1) for x in pair] for pair in (one, other))
    own, given = torch.cat([a, b]), torch.cat([c, d])
    return float((own - given).norm() / own.norm().clamp_min(1e-300))


def _kept(
    kept: Mapping[str, Tensor], held: Mapping[str, Tensor], network: nn.Module | None = None
) -> Check:
    """Whether what is not fused stands in a file as it was, wherever it stands there.

    An exporter turns matrices, and takes BatchNorms up: what is not there at all is no fault. Nor
    is a convolution with the BatchNorm of a `network` in it, whose file is run.
    """
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for tensor in held.values():
        by_shape.setdefault(tuple(tensor.shape), []).append(tensor)
        if tensor.ndim == 2:
            by_shape.setdefault(tuple(tensor.mT.shape), []).append(tensor.mT)
    same, altered = 0, []
    for name, own in kept.items():
        others = [t for t in by_shape.get(tuple(own.shape), []) if t.dtype == own.dtype]
        if any(same_bits(own, other) for other in others) or (
            name in held and network is not None and _is_folded(name, held[name], network)
        ):
            same += 1
        elif name in held or (own.ndim == 2 and any(_is_kin(own, other) for other in others)):
            altered.append(name)
    detail = f"{altered[0]} is not the original's ({len(altered)} in all)" if altered else ""
    return Check("untouched", not altered, float(len(altered)), 0.0, detail=detail, compared=same)


def _is_folded(name: str, held: Tensor, network: nn.Module) -> bool:
    """Whether a convolution's tensor, under its own name, has taken up a BatchNorm of the network.

    Its numbers are then those of the fold, but for their rounding.
    """
    path, _, kind = name.rpartition(".")
    layer = dict(network.named_modules()).get(path)
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return False
    norms: list[Any] = [m for m in network.modules() if is_norm(m)]
    return any(
        held.shape == terms[0].shape
        and bool((held.double() - sum(terms)).abs().le(_room(held, terms)).all())
        for norm in norms
        if (terms := _folded(layer, norm, kind))
    )


def _room(held: Tensor, terms: Sequence[Tensor]) -> Tensor:
    room = torch.stack([t.abs() for t in terms]).sum(0)
    return ROUNDINGS * torch.finfo(held.dtype).eps * room


def _folded(layer: nn.modules.conv._ConvNd, norm: Any, kind: str) -> tuple[Tensor, ...]:
    """The summands of a convolution's weight or bias with a BatchNorm in it; none of another."""
    given = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if any(t is None or len(t) != layer.out_channels for t in given):
        return ()
    scale, shift, mean, variance = (t.detach().cpu().double() for t in given)
    factor = scale / (variance + norm.eps).sqrt()
    if kind == "weight":
        return (_per_channel(factor, layer) * layer.weight.detach().cpu().double(),)
    if layer.bias is None:
        return ()
    return factor * layer.bias.detach().cpu().double(), -factor * mean, shift


def _per_channel(numbers: Tensor, layer: nn.modules.conv._ConvNd) -> Tensor:
    """One number for each channel that a convolution gives, beside its weight."""
    ones = (1,) * (layer.weight.ndim - 2)
    if not layer.transposed:
        return numbers.reshape(-1, 1, *ones)
    inside = layer.in_channels // layer.groups
    return (
        numbers.reshape(layer.groups, -1)
        .repeat_interleave(inside, 0)
        .reshape(layer.in_channels, -1, *ones)
    )


def _is_kin(own: Tensor, other: Tensor) -> bool:
    return bool((own.double() - other.double()).norm() < KIN * own.double().norm())


def _run(
    file: _File,
    source: Source,
    fused: Fused,
    inputs: Inputs | None,
    tolerance: Tolerance,
    limits: Limits,
    progress: Progress,
) -> Check | None:
    """What the program of a file gives, beside the original; None if that cannot be run."""
    progress(f"the program of {file.path.name}")
    if source.network is not None and inputs is not None:
        original = source.original(inputs)
        if file.model is None:
            return compare_pt2_file(file.path, original, tolerance, "none")
        data = file.model.SerializeToString()
        dynamic = "batch" if _has_free_batch(file.model) else "none"
        return compare_onnx(
            data, original, tolerance, dynamic=dynamic, limits=limits, progress=progress
        )
    if fused.onnx_original is None:
        return None
    answers = (
        partial(answers_of_program, file.path)
        if file.model is None
        else partial(answers_in_onnx, file.model, limits)
    )
    return compare_with_onnx(fused.onnx_original, answers, inputs, tolerance, limits)


def _has_free_batch(model: onnx.ModelProto) -> bool:
    given = [v.type.tensor_type.shape.dim for v in inputs_without_default(model)]
    return all(len(dims) > 0 and not dims[0].HasField("dim_value") for dims in given)
