"""An ONNX model in 8 bits, by onnxruntime's own quantizer, and what is lost by that."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import helper
from onnxruntime import quantization
from torch import Tensor

from acfuse.proof.leaves import Leaves, is_discrete
from acfuse.proof.onnx_runtime import answers_in_onnx
from acfuse.proof.running import Image
from acfuse.system.limits import LIMITS, Limits


@dataclass(frozen=True)
class Loss:
    """What 8 bits lose: signal over noise in dB of the worst output, as written and as executed.

    As written each value is computed in float32 between its roundings; executed, by the kernels for
    integers that onnxruntime has for this processor.
    """

    written: float
    executed: float


def quantized(
    model: onnx.ModelProto,
    data: Sequence[Image],
    *,
    per_channel: bool = False,
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """The model with its values and weights in 8 bits, in the range that they have on `data`."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    with tempfile.TemporaryDirectory(prefix="acfuse-") as folder, _quiet():
        path = Path(folder) / "quantized.onnx"
        quantization.quantize_static(
            twin,
            str(path),
            _Data(model, data),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=per_channel,
            reduce_range=reduce_range,
        )
        return onnx.load(path)


class _Data(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Inputs, as the quantizer asks for them."""

    def __init__(self, model: onnx.ModelProto, data: Sequence[Image]) -> None:
        stored = {t.name for t in model.graph.initializer}
        values = [v for v in model.graph.input if v.name not in stored]
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
    """Without the advice that the quantizer gives to its own users."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def loss_of(
    model: onnx.ModelProto,
    in_8_bits: onnx.ModelProto,
    data: Sequence[Image],
    limits: Limits = LIMITS,
) -> Loss:
    """How far a model in 8 bits is from the model itself, on these inputs."""
    exact = [*map(answers_in_onnx(model, limits, False), data)]
    written, executed = (
        [*map(answers_in_onnx(in_8_bits, limits, optimised), data)] for optimised in (False, True)
    )
    return Loss(signal_to_noise(exact, written), signal_to_noise(exact, executed))


def signal_to_noise(true: Sequence[Leaves], given: Sequence[Leaves]) -> float:
    """The worst output's signal over noise in dB: 10 log10(sum b^2 / sum (a - b)^2)."""
    ratios = []
    for name, value in (true[0] if true else {}).items():
        if isinstance(value, Tensor) and not is_discrete(value):
            b, a = (
                torch.cat([x[name].double().reshape(-1) for x in each]) for each in (true, given)
            )
            ratios.append(float(10 * torch.log10(b.square().sum() / (a - b).square().sum())))
    return min(ratios, default=float("inf"))
