"""The Python calls: a few functions on values. None of them changes what it is given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, overload

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from acfuse.errors import UsageError
from acfuse.files.cost_table import CostTable, read_cost_table
from acfuse.files.detect import is_onnx
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.opened_file import check_given
from acfuse.find import find_in_module
from acfuse.findings import Findings
from acfuse.graph.calls import Call
from acfuse.graph.copies import copied, unwrapped
from acfuse.int8.evened import evened
from acfuse.int8.layers import ranges_of_network, ranges_of_onnx
from acfuse.int8.ranges import Ranges
from acfuse.patterns import PATTERNS, Pattern
from acfuse.pipeline.convert import certified, logged, prove
from acfuse.pipeline.convert import convert as convert_job
from acfuse.pipeline.job import Conversion, Job
from acfuse.pipeline.locate import diagnosed
from acfuse.pipeline.quantize import Quantized, Settings
from acfuse.pipeline.quantize_file import quantize_given
from acfuse.proof import Inputs, Proofs, Tolerance
from acfuse.proof.live_program import has_its_forwards, is_of_its_structure
from acfuse.proof.witness import Given, example_of, seen
from acfuse.sources.bare import BareFused, BareSource
from acfuse.sources.base import FindOptions, Fused, silent
from acfuse.sources.live import LiveFused, LiveSource, load_fused
from acfuse.sources.onnx import OnnxFused, fuse_onnx
from acfuse.sources.others import known_by_numbers

FusedTensors = BareFused  # its former name

__all__ = [
    "BareFused",
    "Fused",
    "FusedTensors",
    "LiveFused",
    "OnnxFused",
    "convert",
    "equalize",
    "fuse",
    "fuse_onnx",
    "fuse_tensors",
    "load_fused",
    "quantize",
    "ranges",
    "verify",
]

Shape = tuple[int, ...]
P = ParamSpec("P")
R = TypeVar("R")


def _with_plain_tensors(function: Callable[P, R]) -> Callable[P, R]:
    """Calls a function so that new tensors are on the CPU, whatever the caller's default is."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return called


@_with_plain_tensors
def fuse(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    fold_bn: bool = False,
    patterns: Sequence[Pattern] = PATTERNS,
    cost: str | Path | None = None,
) -> LiveFused:
    """Fuses every block of a model for inference. The given model is untouched.

    Each block is run beside the layers that it replaces, and so is the whole model: on
    `example_inputs` (a tensor, or the model's arguments by place or by name), else on images that
    are made up. Of a model that is compiled or runs in parallel, the model inside is taken. With
    `fold_bn`, lone convolutions take up the BatchNorm behind them as well; with the table of a file
    `cost`, no block is fused that is slower than its layers. A model in training mode is read as it
    would be in eval mode.
    """
    model = unwrapped(model)
    model = copied(model).eval() if model.training else model
    given = _given(example_inputs)
    call = None if given is None else _call_of(model, given)
    findings = find_in_module(model, patterns, folds=fold_bn, call=call, costs=_costs(cost))
    return LiveSource.of(model, given).fuse(findings)


def _costs(cost: str | Path | None) -> CostTable | None:
    return None if cost is None else read_cost_table(Path(cost))


def _call_of(model: nn.Module, given: Given) -> Call | None:
    """How a model is called with some inputs. Raises UsageError where it does not take them."""
    shown = seen(copied(model), given.cast(None))
    if shown.failure:
        raise UsageError(f"example_inputs: the model does not take them ({shown.failure}).")
    try:
        return Call.given(model, given.args, given.kwargs)
    except TypeError:
        return None


def _given(inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] | None) -> Given | None:
    if inputs is None:
        return None
    if isinstance(inputs, Mapping):
        return Given(kwargs=inputs)
    return Given(inputs if isinstance(inputs, tuple) else (inputs,))


def fuse_tensors(
    tensors: Mapping[str, Tensor],
    *,
    bn_eps: float | None = None,
    patterns: Sequence[Pattern] = PATTERNS,
    cost: str | Path | None = None,
) -> BareFused:
    """Fuses the blocks of a state dict whose code is not at hand, by named patterns.

    What a state dict does not hold (eps, stride, alignment) is assumed and listed in `notes`.
    """
    source, costs = BareSource(tensors), _costs(cost)
    return source.fuse(source.find(FindOptions(patterns, bn_eps=bn_eps, costs=costs)))


@_with_plain_tensors
def verify(
    original: nn.Module,
    fused: nn.Module,
    *input_shapes: Shape,
    atol: float | None = None,
    rtol: float | None = None,
    fold_bn: bool = False,
    patterns: Sequence[Pattern] = PATTERNS,
    cost: str | Path | None = None,
) -> Proofs:
    """Proves that a fused model is the original one, block by block, and on inputs of given shapes.

    `fused` has the structure that `fuse` gives, and is compared with that as it is written:
    classes, modes, attributes, hooks, and what is not in a block bit by bit. Of a model of another
    structure, as its authors' deploy form, only the outputs are compared, which is said. The result
    is passed, or says what is wrong. As in `fuse`, an original in training mode is read as it would
    be in eval mode; parts of it that are in training mode stay so.
    """
    original, fused = copied(unwrapped(original)), unwrapped(fused)
    if original.training:
        original.eval()
    findings = find_in_module(original, patterns, folds=fold_bn, costs=_costs(cost))
    inputs = Inputs(tuple((None, _shape(s)) for s in input_shapes)) if input_shapes else None
    expected = LiveSource.of(original).fuse(findings)
    if inputs is not None and not has_its_forwards(expected.model, fused):  # fused with an example?
        expected = LiveSource.of(original, example_of(original, inputs)).fuse(findings)
    left = expected.findings
    names = dict(fused.named_modules(remove_duplicate=False))
    there = tuple(b for b in left.found if all(_is_layer(names.get(name)) for name in b.names))
    findings = replace(left, found=there)
    given = replace(
        expected,
        findings=findings,
        model=fused,
        read_back=fused.state_dict(),
        made=expected.model,
    )
    proofs = prove(given, inputs, Tolerance(atol, rtol), logged(silent), by_others=True)
    if not proofs.passed or is_of_its_structure(expected.model, fused):
        return diagnosed(proofs, expected.source, given, inputs)
    # Of another structure, and its outputs are equal: what else is a block there?
    others = known_by_numbers(expected, fused, {name for block in there for name in block.names})
    more = replace(proofs, certificates=certified(others, by_others=True))
    more = diagnosed(more, expected.source, others, inputs)
    return replace(more, certificates=(*proofs.certificates, *more.certificates))


@overload
def equalize(model: nn.Module, *inputs: Shape | Tensor, everything: bool = False) -> nn.Module: ...


@overload
def equalize(
    model: ModelProto, *inputs: Shape | Tensor, everything: bool = False
) -> ModelProto: ...


@_with_plain_tensors
def equalize(
    model: nn.Module | ModelProto, *inputs: Shape | Tensor, everything: bool = False
) -> nn.Module | ModelProto:
    """A copy of a fused model whose channels have ranges as even as powers of two make them.

    It is for 8 bits per tensor: the float model gives the same bits, which is proved by running
    both, in onnxruntime and, a network, in PyTorch as well. Each of its inputs is given by real
    values, on which 8 bits are measured, or by its shape; an ONNX model needs none. Where nothing
    is gained the copy is as the model is, unless it is asked for `everything` that changes no bit.
    Channels of which a weight would leave the range of its dtype stay as they are.
    """
    data = tuple(x if isinstance(x, Tensor) else None for x in inputs)
    shapes = tuple(tuple(x.shape) if isinstance(x, Tensor) else _shape(x) for x in inputs)
    given = Inputs(tuple((None, shape) for shape in shapes), data=data)
    if isinstance(model, ModelProto):
        return evened(model, given if inputs else None, everything=everything).model
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"acfuse.equalize takes a network or an ONNX model, and not {type(model).__name__}; of "
            "what acfuse.fuse gives, take .model, and `acfuse equalize` takes files."
        )
    model = unwrapped(model)
    source = LiveSource.of(copied(model).eval() if model.training else model)
    form, _ = source.fuse(Findings((), ())).evened(given, everything=everything)
    return form.model


@_with_plain_tensors
def quantize(
    model: ModelProto | str | Path,
    data: str | Path | Tensor | np.ndarray | Mapping[str, Tensor | np.ndarray] | None = None,
    *,
    per_channel: bool = True,
    calibrate: str = "minmax",
    keep: Sequence[str] = (),
    reduce_range: bool | None = None,
    random: bool = False,
) -> Quantized:
    """A fused ONNX model in 8 bits, by onnxruntime's quantizer, and what that loses on `data`.

    `data` are real inputs, images along the first axis: an array, arrays by the names of the
    inputs, or an .npz file or folder; only with `random` are they made up. `keep` are layers that
    stay in float. Weights have 7 bits with `reduce_range`; where nothing is said, if sums of
    products saturate on this processor and 7 bits lose less. Nothing is written. Raises InputError
    for a model or data that cannot be used.
    """
    settings = Settings(per_channel, calibrate, reduce_range, tuple(keep))
    return quantize_given(model, data, settings, is_random=random)


@_with_plain_tensors
def ranges(model: nn.Module | ModelProto | str | Path) -> dict[str, Ranges]:
    """How widely the channels of each layer range, and how many bits 8 bits lose by that.

    Of each convolution and linear layer of a network, of an ONNX model or of an ONNX file, by name.
    Nothing is run: it takes the weights alone. Raises UsageError for any other file, InputError for
    a layer without numbers.
    """
    if isinstance(model, nn.Module):
        return ranges_of_network(unwrapped(model))
    if isinstance(model, ModelProto):
        return ranges_of_onnx(model)
    if not isinstance(model, str | Path):
        raise UsageError(
            f"acfuse.ranges takes a network, an ONNX model or the path of an ONNX file, and not "
            f"{type(model).__name__}; of what acfuse.fuse gives, take .model."
        )
    path = Path(model)
    check_given(path, "the model")
    if not is_onnx(path):
        raise UsageError(
            f"{path.name} is no ONNX file. Of a checkpoint, load the network and give that; "
            f"`acfuse inspect {path.name}` tells the ranges of its blocks."
        )
    return ranges_of_onnx(read_onnx(path)[0])


def _shape(given: Any) -> Shape:
    """The sizes of an input. Raises UsageError for what is none."""
    if isinstance(given, (tuple, list)) and given and all(type(n) is int and n > 0 for n in given):
        return tuple(given)
    raise UsageError(f"{given!r} is no shape: give sizes of at least one, as (1, 3, 224, 224).")


def _is_layer(layer: object) -> bool:
    """Whether it is a layer of one of the kinds that blocks become."""
    return isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)


def convert(source: str | Path, *, input_shape: Shape | None = None, **options: Any) -> Conversion:
    """What `acfuse convert` does: files in, files out. Options are the fields of a `Job`.

    Raises AcfuseError for what a user can mend. A failed proof is a result; nothing is written.
    """
    if input_shape is not None:
        options["inputs"] = Inputs(((None, tuple(input_shape)),))
    if options.get("output") is not None:
        options["output"] = Path(options["output"])
    return convert_job(Job(Path(source), **options))
