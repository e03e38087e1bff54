"""An ONNX model in 8 bits, by onnxruntime's own quantizer, and what is lost by that."""

import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from acfuse.errors import AcfuseError, InputError
from acfuse.files.onnx_cost import subgraphs
from acfuse.graph.onnx_opset import in_opset
from acfuse.graph.onnx_values import (
    NOT_STORED_SINCE,
    inputs_without_default,
    opset_of,
    reads_within,
)
from acfuse.int8.figures import Figure, measured
from acfuse.proof.onnx_runtime import answers_in_onnx
from acfuse.proof.running import Image
from acfuse.system.escape import one_line, safe
from acfuse.system.limits import LIMITS, Limits

OPERATORS = sorted({*QLinearOpsRegistry, *QDQRegistry})  # all that the library can quantize
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
    "distribution": CalibrationMethod.Distribution,
}
NOTHING_LOGGED, USUALLY_LOGGED = 4, 2  # severities of onnxruntime: fatal, and from warnings on
OLDEST = 13  # opset of a DequantizeLinear that has a scale for each channel
OLDEST_OF_HALVES = 19  # of one whose scale is a float16


@dataclass(frozen=True)
class Loss:
    """What 8 bits lose: signal over noise in dB of the worst output, as written and as executed.

    As written each value is computed in float32 between its roundings; executed, by the kernels for
    integers that onnxruntime has for this processor.
    """

    written: float
    executed: float

    @property
    def worst(self) -> float:
        """The smaller of both."""
        return min(self.written, self.executed)


@dataclass(frozen=True)
class Figures:
    """How far a model in 8 bits is from the float one at each output, as written and executed."""

    written: tuple[Figure, ...]
    executed: tuple[Figure, ...]

    @property
    def loss(self) -> Loss:
        """That of the worst output."""
        return Loss(*(min(f.decibels for f in each) for each in (self.written, self.executed)))


@dataclass(frozen=True)
class Ranges:
    """A model as the quantizer takes it, and the range of each of its values on some inputs."""

    model: onnx.ModelProto = field(repr=False)
    values: Any = field(repr=False)  # the library's own, by the name of a value
    # Ranges go below zero also behind a ReLU, which then is more than a range that begins there.
    is_wide: bool = False


def calibrated(model: onnx.ModelProto, data: Sequence[Image], method: str = "minmax") -> Ranges:
    """The range of each value of a float model on `data`, by one of the library's calibrators.

    Raises InputError for a model that cannot be calibrated.
    """
    ready = prepared(model)
    with tempfile.TemporaryDirectory(prefix="acfuse-") as folder, _quiet():
        path = Path(folder) / "model.onnx"
        try:
            onnx.save(ready, path)
            known = load_model_with_shape_infer(path)
            calibrator = create_calibrator(
                path,
                OPERATORS,
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=METHODS[method],
            )
            for image in data:  # one at a time: some calibrators keep what they were given at once
                calibrator.collect_data(_Data(model, [image]))
            values = calibrator.compute_data()
        except Exception as error:
            raise _failed(error, f"{method} calibration") from error
    order = {name: i for i, node in enumerate(ready.graph.node) for name in node.output}
    endless = [name for name, of_value in values.items()
               if not all(np.isfinite(end).all() for end in of_value.range_value)]  # fmt: skip
    if endless:
        name = min(endless, key=lambda name: order.get(name, -1))
        raise InputError(
            f"the value {safe(name)} of the float model is not finite on these inputs, and has no "
            "range; run the float model on them first."
        )
    return Ranges(known, values, method == "distribution")


def in_8_bits(
    ranges: Ranges,
    *,
    per_channel: bool = False,
    reduce_range: bool = False,
    keep: Sequence[str] = (),
) -> onnx.ModelProto:
    """The model with its values and weights in 8 bits, but for the nodes of the names to `keep`.

    As the library has it by default, both are signed. Weights are symmetric, and per channel have a
    scale for each output; with `reduce_range` they have 7 bits. Values have a zero point. A ReLU or
    Clip before which somebody looks is left in float.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(ranges.model)
    keep = [*keep, *_looked_before(twin.graph)]
    with _quiet():
        try:
            quantizer = QDQQuantizer(
                twin,
                per_channel,
                reduce_range,
                quantization.QuantType.QInt8,
                quantization.QuantType.QInt8,
                copy.deepcopy(ranges.values),  # it changes some
                [],
                keep,
                OPERATORS,
                {"QDQKeepRemovableActivations": ranges.is_wide},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            _sort(quantizer.model.model.graph)
        except Exception as error:
            raise _failed(error, "quantizer") from error
    made: onnx.ModelProto = quantizer.model.model
    return made


def _looked_before(graph: onnx.GraphProto) -> list[str]:
    """The ReLUs and Clips whose input is given out, or read by a graph inside a node.

    The library sees neither: it gives the input the range behind the node, and may take it away.
    """
    seen = {value.name for value in graph.output}
    seen.update(name for node in graph.node for name in reads_within(node))
    return [n.name for n in graph.node if n.op_type in ("Clip", "Relu") and n.input[0] in seen]


def _sort(graph: onnx.GraphProto) -> None:
    """Puts nodes behind what the graphs inside them read as well: the library does not."""
    nodes = [*graph.node]
    if not any(True for node in nodes for _ in subgraphs(node)):
        return
    makers = {out: i for i, node in enumerate(nodes) for out in node.output if out}
    needs = {
        i: sorted({makers[n] for n in (*node.input, *reads_within(node)) if n in makers})
        for i, node in enumerate(nodes)
    }
    order = [*TopologicalSorter(needs).static_order()]
    kept = [onnx.NodeProto.FromString(nodes[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(kept)


def quantized(
    model: onnx.ModelProto,
    data: Sequence[Image],
    *,
    per_channel: bool = False,
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """The model with its values and weights in 8 bits, in the range that they have on `data`."""
    ranges = calibrated(model, data)
    return in_8_bits(ranges, per_channel=per_channel, reduce_range=reduce_range)


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy as the quantizer takes it: of a new opset, each node with a name of its own.

    Weights that nodes give are stored, as it looks for them there alone, and what has a default is
    no input.
    """
    tensors = (t.data_type for t in model.graph.initializer)
    is_half = onnx.TensorProto.FLOAT16 in tensors
    oldest = OLDEST_OF_HALVES if is_half else OLDEST
    ready = onnx.ModelProto()
    try:
        ready.CopyFrom(model if opset_of(model) >= oldest else in_opset(model, oldest, "the model"))
    except InputError as error:
        raise InputError(
            f"the model is of opset {opset_of(model)}, and 8 bits need {oldest}, which onnx's "
            "converter cannot make of it; export it again."
        ) from error
    inputs = inputs_without_default(ready)
    del ready.graph.input[:]
    ready.graph.input.extend(inputs)
    ready.ir_version = max(ready.ir_version, NOT_STORED_SINCE)
    left = []
    for node in ready.graph.node:
        tensor = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and tensor is not None:
            own = ready.graph.initializer.add()
            own.CopyFrom(tensor)
            own.name = node.output[0]
        else:
            left.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in left]
    del ready.graph.node[:]
    ready.graph.node.extend(kept)
    taken: set[str] = set()
    for node in ready.graph.node:
        name = base = node.name or next(filter(None, node.output), node.op_type)
        count = 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        node.name = name
        taken.add(name)
    return ready


class _Data(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Inputs, as the quantizer asks for them."""

    def __init__(self, model: onnx.ModelProto, data: Sequence[Image]) -> None:
        values = inputs_without_default(model)
        dtypes = [helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in values]
        self.left: Iterator[Mapping[str, object]] = iter(
            {
                value.name: x.numpy().astype(dtype)
                for value, dtype, x in zip(values, dtypes, image.values(), strict=True)
            }
            for image in data
        )

    def get_next(self) -> Mapping[str, object] | None:
        """The next inputs; None at the end."""
        return next(self.left, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the quantizer tells its own users: on stdout, as advice, as warnings."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(NOTHING_LOGGED)  # of the sessions that it makes itself
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
        onnxruntime.set_default_logger_severity(USUALLY_LOGGED)


def _failed(error: Exception, what: str) -> AcfuseError | Exception:
    """What became of the library's own work, in one line."""
    if isinstance(error, (AcfuseError, MemoryError)):
        return error
    return InputError(f"onnxruntime's {what} cannot take this model: {one_line(error, 200)}.")


def figures_of(
    model: onnx.ModelProto,
    in_8_bits: onnx.ModelProto,
    data: Sequence[Image],
    limits: Limits = LIMITS,
) -> Figures:
    """How far a model in 8 bits is from the float one at each output, on these inputs."""
    exact = answers_in_onnx(model, limits, False)
    ways = [answers_in_onnx(in_8_bits, limits, optimised) for optimised in (False, True)]
    return Figures(*measured(exact, ways, data))


def loss_of(
    model: onnx.ModelProto,
    in_8_bits: onnx.ModelProto,
    data: Sequence[Image],
    limits: Limits = LIMITS,
) -> Loss:
    """How far a model in 8 bits is from the model itself, on these inputs."""
    return figures_of(model, in_8_bits, data, limits).loss
