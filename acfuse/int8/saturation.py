"""What 8 bits cut off: sums of products on some processors, and values past their range.

The kernels of an x86 processor without VNNI add products of 8 bits in pairs, in 16 bits: of
255 x 127 + 255 x 127 = 64,770 only 32,767 is left. Whether it is so here is not told by a list of
flags, but tried. Weights of 7 bits never come there: 255 x 64 + 255 x 64 = 32,640.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from acfuse.int8.grids import grids_of
from acfuse.proof.onnx_runtime import answers_in_onnx
from acfuse.proof.running import Image
from acfuse.proof.trace_onnx import values_of
from acfuse.system.devices import CPU
from acfuse.system.limits import LIMITS, Limits

CHANNELS, SIZE = 16, 4  # of the probe: as many as the usual kernels want
LARGEST, LARGEST_WEIGHT = 255, 127


@dataclass(frozen=True)
class Clipped:
    """A value of which some numbers lie past its range, and the node that gives it."""

    layer: str
    percent: float


def saturates(limits: Limits = LIMITS) -> bool:
    """Whether sums of products of 8 bits are cut off here, seen by a model that is run."""
    model, true = _probe()
    image = {"x": torch.full((1, CHANNELS, SIZE, SIZE), float(LARGEST), device=CPU)}
    given = answers_in_onnx(model, limits, True)(image)["y"]
    return bool((given < 0.75 * true).any())  # what is cut off leaves half of it


def _probe() -> tuple[onnx.ModelProto, float]:
    """A convolution in 8 bits of the largest numbers that there are, and what it gives."""
    true = float(LARGEST * LARGEST_WEIGHT * CHANNELS)
    stored: dict[str, NDArray[Any]] = {
        "one": np.array(1, np.float32),
        "zero": np.array(-128, np.int8),  # as the quantizer writes it behind a ReLU
        "signed": np.array(0, np.int8),
        "weight": np.full((CHANNELS, CHANNELS, 1, 1), LARGEST_WEIGHT, np.int8),
        "step": np.array(true / LARGEST, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "one", "zero"], ["read"]),
        helper.make_node("DequantizeLinear", ["weight", "one", "signed"], ["kernel"]),
        helper.make_node("Conv", ["read", "kernel"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "step", "zero"], ["y8"]),
        helper.make_node("DequantizeLinear", ["y8", "step", "zero"], ["y"]),
    ]
    shape = [1, CHANNELS, SIZE, SIZE]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:], tensors)
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8), true


def clipped(
    model: onnx.ModelProto,
    in_8_bits: onnx.ModelProto,
    data: Sequence[Image],
    limits: Limits = LIMITS,
) -> tuple[Clipped, ...]:
    """How many of a float model's numbers lie past the range that they have in 8 bits.

    By the value, those that lose most first; values of which none does are left out.
    """
    ends = {name: grid.ends for name, grid in grids_of(in_8_bits)}
    makers = {out: node.name for node in model.graph.node for out in node.output}
    past, whole = dict.fromkeys(ends, 0), dict.fromkeys(ends, 0)
    for image in data:
        for name, value in values_of(model, image, limits):
            if name in ends:
                low, high = ends[name]
                past[name] += int(((value < low) | (value > high)).sum())
                whole[name] += value.numel()
    found = [
        Clipped(makers.get(name, name), 100 * n / whole[name]) for name, n in past.items() if n
    ]
    return tuple(sorted(found, key=lambda one: -one.percent))
