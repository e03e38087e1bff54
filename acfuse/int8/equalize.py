"""Channels of even range, by scales that are powers of two: the float model keeps every bit.

A product by a power of two is exact, and so is everything that is homogeneous, as long as nothing
leaves the range of normal numbers. That is checked for each weight by its exponent; for what is
computed, by running both models and comparing with ==.

Scales are those of cross-layer equalization (Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction, ICCV 2019): s = sqrt(r1 / r2) makes the range r1 of a channel's
row as large as the range r2 of the columns that read it. Here it is rounded to a power of two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from acfuse.errors import InputError
from acfuse.int8.channels import Channels, Layer, Shapes, channels_of

SWEEPS = 64  # at most: each evens what is left by about half
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Equalized:
    """A model with other scales, the exponent of each channel of each layer, and what stayed."""

    model: onnx.ModelProto = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)
    exponents: Mapping[str, NDArray[np.int64]] = field(repr=False)  # by layer: of its outputs
    changed: tuple[str, ...] = ()  # tensors
    reasons: Mapping[str, str] = field(default_factory=dict)  # by layer: why its outputs stay


def equalized(model: onnx.ModelProto, shapes: Shapes) -> Equalized:
    """A copy of a model whose channels have ranges as even as powers of two make them.

    `shapes` are those of its values. Raises InputError where a weight would not be a normal number.
    """
    channels = channels_of(model, shapes)
    stored = {t.name: t for t in model.graph.initializer}
    arrays = {
        layer.weight: np.array(numpy_helper.to_array(stored[layer.weight]))
        for layer in channels.layers
        if layer.weight in stored
    }
    layers = [layer for layer in channels.layers if layer.weight in arrays]
    exponents = _chosen(channels, layers, arrays)
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    changed = [*_scaled(twin, channels, layers, exponents)]
    pinned = {root: why for root, why in channels.pinned.items() if channels.find(root) == root}
    rows = {layer.name: channels.roots(layer.rows) for layer in layers}
    reasons = {
        name: pinned[int(ids[0])] for name, ids in rows.items() if all(int(i) in pinned for i in ids)
    }
    own = {name: exponents[ids] for name, ids in rows.items()}
    return Equalized(twin, tuple(layers), own, tuple(changed), reasons)


def _chosen(
    channels: Channels, layers: list[Layer], arrays: Mapping[str, Array]
) -> NDArray[np.int64]:
    """The exponent of the scale of each class."""
    count = len(channels._parents)
    rows = [channels.roots(layer.rows) for layer in layers]
    columns = [channels.roots(layer.columns) for layer in layers]
    sizes = [_logarithms(layer, arrays[layer.weight]) for layer in layers]
    free = np.ones(count, bool)
    free[[channels.find(n) for n in channels.pinned]] = False
    exponents = np.zeros(count, np.int64)
    for _ in range(SWEEPS):
        given, read = np.full(count, -np.inf), np.full(count, -np.inf)
        for out, inside, size in zip(rows, columns, sizes, strict=True):
            now = size + exponents[out][:, None] - exponents[inside]
            np.maximum.at(given, out, now.max(1))
            np.maximum.at(read, inside, now)
        known = free & np.isfinite(given) & np.isfinite(read)
        step = np.zeros(count, np.int64)
        step[known] = np.rint((read[known] - given[known]) / 2).astype(np.int64)
        if not step.any():
            break
        exponents += step
    return exponents


def _logarithms(layer: Layer, weight: Array) -> Array:
    """The binary logarithm of the largest weight between each output and each of its inputs."""
    largest = np.abs(layer.matrix(weight).astype(np.float64)).max(2)
    with np.errstate(divide="ignore"):
        logarithms: Array = np.log2(largest)
    return logarithms


def _scaled(
    model: onnx.ModelProto, channels: Channels, layers: list[Layer], exponents: NDArray[np.int64]
) -> list[str]:
    """Scales every weight, bias and constant of a model; the names of those that changed."""
    changed = []
    for layer in layers:
        out, inside = (exponents[channels.roots(ids)] for ids in (layer.rows, layer.columns))
        steps = (out[:, None] - inside)[:, :, None]
        if steps.any():
            tensor = _tensor(model, layer.weight)
            array = numpy_helper.to_array(tensor)
            matrix = times_power(layer.matrix(array), steps, layer.weight)
            _put(tensor, layer.stored(matrix, array))
            changed.append(layer.weight)
        if layer.bias is not None and out.any():
            tensor = _tensor(model, layer.bias)
            _put(tensor, times_power(numpy_helper.to_array(tensor), out, layer.bias))
            changed.append(layer.bias)
    for follower in channels.followers:
        steps = exponents[channels.roots(follower.classes)]
        if steps.any():
            tensor = _tensor(model, follower.constant)
            _put(tensor, times_power(numpy_helper.to_array(tensor), steps, follower.constant))
            changed.append(follower.constant)
    return changed


def times_power(values: Array, exponents: NDArray[np.int64], name: str) -> Array:
    """Values times powers of two, exactly. Raises InputError where one would lose a digit.

    A number keeps all its digits as long as it is normal: its exponent is what changes.
    """
    made: Array = np.ldexp(values, exponents).astype(values.dtype)
    info, there = np.finfo(values.dtype), values != 0
    is_normal = np.isfinite(made) & (np.abs(made) >= info.tiny)
    if bool((there & ~is_normal).any()):
        raise InputError(
            f"{name}: a weight times a power of two is no normal {values.dtype} any more; the model "
            "is left as it is."
        )
    return made


def _tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    constants = [a.t for n in model.graph.node if n.op_type == "Constant" and name in n.output
                 for a in n.attribute if a.name == "value"]  # fmt: skip
    return next((t for t in model.graph.initializer if t.name == name), None) or constants[0]


def _put(tensor: onnx.TensorProto, array: Array) -> None:
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
