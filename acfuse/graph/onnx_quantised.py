"""Weights that a file stores as small integers, and what a runtime makes of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from acfuse.files.onnx_cost import all_graphs

INTEGERS = (
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.INT32,
)
# Numbers up to here are the same in either type: a difference of integers is not rounded.
SCALES: dict[int, int] = {onnx.TensorProto.FLOAT: 2**24, onnx.TensorProto.FLOAT16: 2**11}
QUANTISING = ("QuantizeLinear", "DynamicQuantizeLinear")
FLOAT_FIRST = "fuse the float model, and quantise the result"


def dequantised(
    node: onnx.NodeProto, found: Mapping[str, onnx.TensorProto]
) -> Mapping[str, onnx.TensorProto]:
    """(x - zero_point) * scale of stored integers, by ONNX's rule; nothing where that is not one.

    The product is rounded once, to the type of the scale: that is what a runtime computes with,
    and so it is the weight. A scale is one number, or one for each place along an axis; blocks of
    an axis are not read. Source: ONNX operators, "DequantizeLinear".
    """
    given = {a.name: a for a in node.attribute}
    names = [*node.input, ""][:3]
    tensors = [found[n] for n in names if n]
    kinds = [t.data_type for t in tensors]
    if not given.keys() <= {"axis"} or len(tensors) < 2 or kinds[1] not in SCALES:
        return {}
    if kinds[0] not in INTEGERS or {*kinds[2:]} - {kinds[0]}:
        return {}
    values, scale, *zero = map(numpy_helper.to_array, tensors)
    along = _along(values, scale, given["axis"].i if "axis" in given else 1)
    if along is None or any(z.shape != scale.shape for z in zero):
        return {}
    steps = values.astype(np.int64) - (zero[0].astype(np.int64).reshape(along) if zero else 0)
    if steps.size and np.abs(steps).max() > SCALES[kinds[1]]:
        return {}  # rounded before it is multiplied, or not: runtimes may differ
    made = (steps * scale.astype(np.float64).reshape(along)).astype(scale.dtype)
    return {node.output[0]: numpy_helper.from_array(made, node.output[0])}


def _along(values: Any, scale: Any, axis: int) -> tuple[int, ...] | None:
    """The shape in which a scale meets the values: of one number, or along an axis."""
    if scale.size == 1 and scale.ndim < 2:
        return (1,) * int(values.ndim)
    if scale.ndim != 1 or not -values.ndim <= axis < values.ndim:
        return None
    shape = [1] * values.ndim
    shape[axis] = values.shape[axis]
    return tuple(shape) if scale.shape == (values.shape[axis],) else None


def quantises_images(model: onnx.ModelProto) -> bool:
    """Whether a file rounds what it computes to integers: then its layers are meant to be such."""
    nodes = (node for graph in all_graphs(model.graph) for node in graph.node)
    return any(node.op_type in QUANTISING for node in nodes)
