"""What an ONNX file computes, step by step, in onnxruntime without its optimiser."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from acfuse.graph.onnx_values import inputs_without_default, with_free_sizes
from acfuse.proof.onnx_runtime import run_session, session_of
from acfuse.proof.running import Image
from acfuse.proof.trace import Step, Trace
from acfuse.system.limits import LIMITS, Limits

AT_ONCE = 64  # values that are asked for in one run, so that not all are in memory
SIZES = ("Shape", "Size", "NonZero")  # what these give is no value of the network's


def trace_of_onnx(model: onnx.ModelProto, image: Image, limits: Limits = LIMITS) -> Trace:
    """What an ONNX model computes for an image. Bodies of loops are single steps."""
    graph, trace = model.graph, Trace()
    constants = _constants(model)
    named = [value.name for value in inputs_without_default(model)]
    numbers: dict[str, int] = {}
    for name, value in zip(named, image.values(), strict=True):
        numbers[name] = trace.new(value)
    trace.given = tuple(numbers.values())
    steps = [node for node in graph.node if node.op_type != "Constant"]
    alive = set(named)
    for node in steps:
        if node.op_type not in SIZES and alive.intersection(node.input):
            alive.update(filter(None, node.output))
    wanted = [name for node in steps for name in node.output if name in alive and name]
    for name, value in _values(model, wanted, image, limits):
        numbers[name] = trace.new(value)
    for node in steps:
        gives = tuple(numbers[name] for name in node.output if name in numbers)
        if gives:
            reads = tuple(numbers[name] for name in node.input if name in numbers)
            weights = tuple(constants[name] for name in node.input if name in constants)
            name = node.name or node.output[0]
            trace.steps.append(Step(name, node.op_type, _settings(node), reads, gives, weights))
    trace.ends = tuple(numbers[v.name] for v in graph.output if v.name in numbers)
    return trace


def values_of(
    model: onnx.ModelProto, image: Image, limits: Limits = LIMITS
) -> Iterator[tuple[str, Tensor]]:
    """The inputs of a model, and what each of its nodes gives for them, by name."""
    named = (value.name for value in inputs_without_default(model))
    yield from zip(named, image.values(), strict=True)
    wanted = [n for node in model.graph.node if node.op_type != "Constant" for n in node.output]
    yield from _values(model, [*filter(None, wanted)], image, limits)


def shapes_in(
    model: onnx.ModelProto, image: Image, limits: Limits = LIMITS
) -> dict[str, tuple[int, ...]]:
    """The shape of each of these values."""
    return {name: tuple(value.shape) for name, value in values_of(model, image, limits)}


def _values(
    model: onnx.ModelProto, wanted: Sequence[str], image: Image, limits: Limits
) -> Iterator[tuple[str, Tensor]]:
    """What the nodes of a model give, by name, in order; what is no tensor is left out."""
    twin = with_free_sizes(model)
    own = {v.name for v in twin.graph.output}
    twin.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in own)
    session = session_of(twin.SerializeToString(), optimised=False, limits=limits)
    for start in range(0, len(wanted), AT_ONCE):
        names = wanted[start : start + AT_ONCE]
        for name, value in zip(names, run_session(session, image, limits, names), strict=True):
            if isinstance(value, np.ndarray) and value.dtype.kind in "fbi":
                yield name, torch.from_numpy(np.array(value))


def _constants(model: onnx.ModelProto) -> dict[str, Tensor]:
    stored = [(t.name, t) for t in model.graph.initializer]
    for node in model.graph.node:
        stored += [(node.output[0], a.t) for a in node.attribute
                   if node.op_type == "Constant" and a.name == "value"]  # fmt: skip
    arrays = {name: np.array(numpy_helper.to_array(tensor)) for name, tensor in stored}
    return {n: torch.from_numpy(a) for n, a in arrays.items() if a.dtype.kind in "fbi"}


def _settings(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node as PyTorch names and writes them, with their defaults."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    given = {n: v.decode() if isinstance(v, bytes) else v for n, v in given.items()}
    named = {**DEFAULTS.get(node.op_type, {}), **given}
    return {NAMES.get(name, name): _plain(name, value) for name, value in named.items()}


NAMES: Mapping[str, str] = {
    "alpha": "negative_slope", "axis": "dim", "dilations": "dilation", "epsilon": "eps",
    "group": "groups", "kernel_shape": "kernel_size", "keepdims": "keepdim", "pads": "padding",
    "strides": "stride", "training_mode": "training",
}  # fmt: skip
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "BatchNormalization": {"epsilon": 1e-5, "training_mode": 0},
    "Conv": {"group": 1},
    "ConvTranspose": {"group": 1},
    "LeakyRelu": {"alpha": 0.01},
}


def _plain(name: str, value: Any) -> Any:
    """Pads that are the same on both sides are one number an axis."""
    if name != "pads":
        return value
    before, behind = value[: len(value) // 2], value[len(value) // 2 :]
    return before if before == behind else value
