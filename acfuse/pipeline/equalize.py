"""A fused model with channels of even range, of which every bit of what it gives is proved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from acfuse.errors import InputError, NotEqual, UsageError
from acfuse.files.detect import is_onnx
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.records import ReadOptions
from acfuse.graph.copies import copied
from acfuse.int8.equalize import Equalized, equalized, tensor_named
from acfuse.int8.quantized import Loss, loss_of, quantized
from acfuse.proof.leaves import Leaves
from acfuse.proof.onnx_runtime import answers_in_onnx, images_of
from acfuse.proof.original import Original
from acfuse.proof.running import Image, Inputs, floating_dtype, run
from acfuse.proof.trace_onnx import values_of
from acfuse.system.atomic_write import reserved, write_all
from acfuse.system.limits import LIMITS, Limits
from acfuse.targets.onnx_export import to_onnx

SCALES = (1.0, 1e3, 1e-3)  # of the inputs on which both models must give the same bits


@dataclass(frozen=True)
class Row:
    """A layer: the bits that 8 bits per tensor lose of its median channel, and why it stays."""

    name: str
    before: float
    after: float
    why: str


@dataclass(frozen=True)
class Evened:
    """An equalized model, what 8 bits per tensor lose before and after, and whether it is taken.

    It is taken where it gains, or where that is asked for; else the model is the given one.
    """

    model: onnx.ModelProto = field(repr=False)
    scaled: Equalized = field(repr=False)
    before: Loss
    after: Loss
    is_taken: bool
    is_random: bool  # the inputs on which the loss was measured were made up
    compared: int  # numbers that are the same, bit by bit

    @property
    def rows(self) -> tuple[Row, ...]:
        """What 8 bits per tensor lose of each layer, before and after."""
        after = {layer.name: lost for layer, lost in self.scaled.lost_after}
        return tuple(
            Row(layer.name, lost, after[layer.name] if self.is_taken else lost,
                self.scaled.reasons.get(layer.name, ""))
            for layer, lost in self.scaled.lost_before
        )  # fmt: skip

    @property
    def gain(self) -> float:
        """What is gained in dB, as written and as executed: the smaller of both."""
        return min(self.after.written - self.before.written,
                   self.after.executed - self.before.executed)  # fmt: skip


def evened(
    model: onnx.ModelProto,
    inputs: Inputs | None = None,
    limits: Limits = LIMITS,
    *,
    everything: bool = False,
) -> Evened:
    """Equalizes an ONNX model where that gains something, and proves that no bit changes.

    Raises InputError where the scales would take a weight out of its range, NotEqual where the
    outputs are not the same bits.
    """
    data = images_of(model, inputs)
    shapes = {name: tuple(value.shape) for name, value in values_of(model, data[0], limits)}
    scaled = equalized(model, shapes, only_gains=not everything)
    compared = _same_bits(model, scaled.model, data, limits) if scaled.changed else 0
    before = after = loss_of(model, quantized(model, data), data, limits)
    if scaled.changed:
        after = loss_of(model, quantized(scaled.model, data), data, limits)
    made = Evened(
        scaled.model,
        scaled,
        before,
        after,
        is_taken=bool(scaled.changed),
        is_random=inputs is None or not any(x is not None for x in inputs.data),
        compared=compared,
    )
    if made.is_taken and made.gain <= 0 and not everything:
        return replace(made, model=model, is_taken=False)
    return made


def equalize_file(
    path: Path, output: Path, inputs: Inputs | None, *, everything: bool, force: bool
) -> Evened:
    """Equalizes an ONNX file, and writes the result if it is taken. Raises as `evened` does."""
    if not is_onnx(path):
        raise UsageError(
            f"{path.name} is no ONNX file; give the one that `acfuse convert` wrote. A network in "
            "PyTorch is equalized by acfuse.equalize(model, shape)."
        )
    model, _ = read_onnx(path, ReadOptions())
    with reserved([output], [path], force=force):
        made = evened(model, inputs, everything=everything)
        if made.is_taken:
            write_all({output: made.model.SerializeToString()})
    return made


def _same_bits(
    one: onnx.ModelProto, other: onnx.ModelProto, data: Sequence[Image], limits: Limits
) -> int:
    """How many numbers both models give, each the same bit by bit. Raises NotEqual for another."""
    compared = 0
    for optimised in (False, True):
        answers = [answers_in_onnx(model, limits, optimised) for model in (one, other)]
        for image in _scaled(data):
            compared += check_same_bits(*(answer(image) for answer in answers))
    return compared


def _scaled(data: Sequence[Image]) -> list[Image]:
    return [
        {n: x * factor if x.is_floating_point() else x for n, x in image.items()}
        for factor in SCALES
        for image in data
    ]


def check_same_bits(true: Leaves, given: Leaves) -> int:
    """How many numbers two results hold. Raises NotEqual unless each is the same, bit by bit."""
    count = 0
    for name, value in true.items():
        other = given[name]
        if not isinstance(value, Tensor):
            continue
        same = (value == other) | ((value != value) & (other != other))
        if not bool(same.all()):
            raise NotEqual(
                f"output {name}: {int((~same).sum())} of {value.numel()} numbers are not the same "
                "after scaling by powers of two. The model is left as it is."
            )
        count += value.numel()
    return count


def evened_network(
    model: nn.Module, inputs: Inputs, limits: Limits = LIMITS, *, everything: bool = False
) -> tuple[nn.Module, Evened]:
    """The same of a PyTorch model: a copy whose tensors are those of its equalized ONNX form.

    Its outputs are compared in PyTorch as well. Raises InputError where a tensor that was scaled
    is not one of the model's own.
    """
    file = to_onnx(model, inputs, dynamic="none").model
    made = evened(file, inputs, limits, everything=everything)
    twin = copied(model)
    if not made.is_taken:
        return twin, made
    replaced = _by_name(twin, file, made)
    with torch.no_grad():
        for tensor, numbers in replaced:
            tensor.copy_(numbers)
    dtype, compared = floating_dtype(model), made.compared
    for image in _scaled(Original(model, inputs).given):
        compared += check_same_bits(run(model, image, dtype), run(twin, image, dtype))
    return twin, replace(made, compared=compared)


def _by_name(model: nn.Module, file: onnx.ModelProto, made: Evened) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of a model that was scaled, and its new numbers: told by its old ones."""
    before, after = (_arrays(m, made.scaled.changed) for m in (file, made.model))
    own: Mapping[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = []
    for name, old in before.items():
        new, turned = torch.from_numpy(after[name].copy()), False
        alike = [t for t in own.values() if _is(t, old)]
        if not alike and old.ndim == 2:
            alike, turned = [t for t in own.values() if _is(t, old.T)], True
        if any(tensor is own.get(name) for tensor in alike):
            alike = [own[name]]
        if len(alike) != 1:
            raise InputError(
                f"{name} of the exported model is {len(alike)} tensors of the network; expected "
                "one. Equalize its ONNX file instead."
            )
        found.append((alike[0], new.mT if turned else new))
    return found


def _is(tensor: Tensor, array: np.ndarray) -> bool:
    return tuple(tensor.shape) == array.shape and np.array_equal(tensor.detach().cpu(), array)


def _arrays(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: np.array(numpy_helper.to_array(tensor_named(model, name))) for name in names}
