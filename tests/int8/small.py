"""Small ONNX networks to be quantized, written by hand, and inputs for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

Array = np.ndarray[Any, Any]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    stored: dict[str, Array],
    *,
    inputs: dict[str, Sequence[Any]],
    outputs: dict[str, int] | None = None,
    dtype: Any = np.float32,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of these nodes; its outputs are named with their types."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, kind, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, k, None) for n, k in (outputs or {"out": kind}).items()],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def network(
    *,
    seed: int = 0,
    planted: int = 1,
    batch: int | str = "n",
    named: bool = True,
    as_constants: bool = False,
    outputs: dict[str, int] | None = None,
    dtype: Any = np.float32,
    opset: int = 17,
) -> onnx.ModelProto:
    """Three convolutions and a matrix. A channel of the second one is `planted` times as large.

    What reads that channel is smaller by as much, so that the network is the same function.
    """
    generator = np.random.default_rng(seed)

    def drawn(*shape: int) -> Array:
        return (generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(dtype)

    stored = {"w1": drawn(8, 3, 3, 3), "w2": drawn(8, 8, 3, 3), "w3": drawn(8, 8, 3, 3)}
    stored["w2"][3] *= planted
    stored["w3"][:, 3] /= planted
    stored |= {"b1": drawn(8) / 4, "w4": drawn(5, 8), "b4": drawn(5)}
    names = ("first", "second", "third", "head") if named else ("",) * 4
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name=names[0], **pads),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name=names[1], **pads),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], name=names[2], **pads),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w4", "b4"], ["out"], name=names[3], transB=1),
        helper.make_node("ArgMax", ["out"], ["label"], axis=1),
    ]
    if as_constants:
        given = [
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))
            for name, array in stored.items()
        ]
        nodes, stored = given + nodes, {}
    return model_of(
        nodes, stored, inputs={"x": [batch, 3, 8, 8]}, outputs=outputs, dtype=dtype, opset=opset
    )


def images(count: int = 24, seed: int = 0, shape: tuple[int, ...] = (3, 8, 8)) -> Array:
    """So many random images."""
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def batches(count: int = 24, seed: int = 0) -> list[dict[str, Tensor]]:
    """The same as inputs of the network, eight at a time."""
    return [{"x": torch.from_numpy(part)} for part in np.split(images(count, seed), count // 8)]


LABELS = {"out": TensorProto.FLOAT, "label": TensorProto.INT64}
