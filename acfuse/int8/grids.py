"""The grids of a model in 8 bits: what its nodes read there, and which numbers a value can have."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

ROUNDED = "_QuantizeLinear_Input"  # behind the name of an output, for the value before its grid
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Grid:
    """The numbers that a value can have: (q - zero) times scale, for each q of 8 bits."""

    scale: onnx.TensorProto = field(repr=False)
    zero: onnx.TensorProto = field(repr=False)

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest number that are rounded, and not cut off."""
        scale, zero = (numpy_helper.to_array(t) for t in (self.scale, self.zero))
        step, whole = float(scale.max()), np.iinfo(zero.dtype)
        return (
            (whole.min - int(zero.min()) - 0.5) * step,
            (whole.max - int(zero.max()) + 0.5) * step,
        )


@dataclass(frozen=True)
class Read:
    """What a node reads at a place: stored numbers as they are in 8 bits, or a value on a grid."""

    place: int
    numbers: NDArray[np.floating] | None = field(default=None, repr=False)
    grid: Grid | None = None


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether any node of a model reads or gives small integers."""
    return any(
        QUANTIZE in n.op_type or DEQUANTIZE in n.op_type or n.op_type.startswith("QLinear")
        or n.op_type.endswith("Integer")
        for n in model.graph.node
    )  # fmt: skip


def reads_of(model: onnx.ModelProto) -> dict[str, list[Read]]:
    """What each node reads in 8 bits, by its name; only of nodes that read something so."""
    stored = {t.name: t for t in model.graph.initializer}
    dequantizing = {n.output[0]: n for n in model.graph.node if n.op_type == DEQUANTIZE}
    found: dict[str, list[Read]] = {}
    for node in model.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            continue
        for place, name in enumerate(node.input):
            if name in dequantizing:
                read = _read(place, dequantizing[name], stored)
                found.setdefault(node.name, []).append(read)
    return found


def _read(place: int, node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> Read:
    inside, scale, zero = (stored.get(name) for name in [*node.input, "", ""][:3])
    assert scale is not None, "a scale of the quantizer's is stored"
    if inside is None:
        assert zero is not None, "so is a zero point"
        return Read(place, grid=Grid(scale, zero))
    numbers, steps = numpy_helper.to_array(inside).astype(np.int64), numpy_helper.to_array(scale)
    along = [1] * numbers.ndim
    if steps.ndim and steps.size > 1:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        along[axis] = steps.size
    if zero is not None:
        numbers = numbers - numpy_helper.to_array(zero).astype(np.int64).reshape(along)
    made = numbers.astype(steps.dtype) * steps.reshape(along)
    return Read(place, np.asarray(made).reshape(tuple(inside.dims)))


def grids_of(model: onnx.ModelProto) -> Iterator[tuple[str, Grid]]:
    """Each value that is rounded to a grid, by its name in the float model."""
    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == QUANTIZE and node.input[0] not in stored:
            name = node.input[0].removesuffix(ROUNDED)
            yield name, Grid(stored[node.input[1]], stored[node.input[2]])
