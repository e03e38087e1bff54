"""Networks as ONNX files, and what a file computes in float64."""

import io
import warnings

import numpy as np
import onnx
import onnx.version_converter
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from acfuse.graph.onnx_reference import REFERENCE_OPSET, ConvTranspose
from acfuse.graph.onnx_values import opset_of
from acfuse.targets.onnx_export import count_nodes
from tests.graph.fusing import images
from tests.graph.programs import SIZES


def exported(
    model: nn.Module, outputs: int, *, dynamo: bool = False, opset: int = 17
) -> onnx.ModelProto:
    """What one of torch's exporters writes, nothing folded by it, with free sizes."""
    image = images(SIZES)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            free = dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
            program = torch.onnx.export(
                model, (image,), dynamo=True, opset_version=20, verbose=False,
                dynamic_shapes=[free],
            )  # fmt: skip
            return program.model_proto
        buffer = io.BytesIO()
        torch.onnx.export(
            model, image, buffer, dynamo=False, opset_version=opset, input_names=["x"],
            output_names=[f"y{i}" for i in range(outputs)],
            dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}}, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def answers(model: onnx.ModelProto, image: Tensor) -> list[Tensor]:
    """The outputs in float64, node by node."""
    if opset_of(model) < REFERENCE_OPSET:  # older BatchNormalizations it takes to be in training
        model = onnx.version_converter.convert_version(model, REFERENCE_OPSET)
    evaluator = ReferenceEvaluator(model, new_ops=[ConvTranspose])
    arrays = evaluator.run(None, {model.graph.input[0].name: image.numpy()})
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


def convolutions(model: onnx.ModelProto) -> int:
    return count_nodes(model, "Conv") + count_nodes(model, "ConvTranspose")
