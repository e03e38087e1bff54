"""The ranges of every layer of a network or of an ONNX model, by name."""

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from acfuse.algebra.adjoint import by_output
from acfuse.errors import InputError
from acfuse.graph.onnx_values import constants_of, opset_of, replaceable
from acfuse.int8.channels import Layer, helper_int
from acfuse.int8.ranges import Ranges, ranges_of, ranges_of_array
from acfuse.system.escape import one_line

NOBODY = np.empty(0, np.int64)  # channels whose scales nobody asks for
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def ranges_of_network(model: nn.Module) -> dict[str, Ranges]:
    """The ranges of each convolution and linear layer of a network, by its path in it.

    Raises InputError where a layer has no numbers.
    """
    return {
        name: ranges_of(_by_output(layer, name))
        for name, layer in model.named_modules()
        if isinstance(layer, _ConvNd | nn.Linear) and isinstance(layer.weight, Tensor)
    }


def _by_output(layer: _ConvNd | nn.Linear, name: str) -> Tensor:
    """The weight of a layer, its output channels first."""
    weight = layer.weight
    if is_lazy(weight) or weight.is_meta:
        raise InputError(
            f"{name or 'the model'} has no weights yet: run the model once, or load a checkpoint."
        )
    if isinstance(layer, _ConvTransposeNd):
        return by_output(weight.detach(), layer.groups)
    return weight


def ranges_of_onnx(model: onnx.ModelProto) -> dict[str, Ranges]:
    """The same of an ONNX model, by the name of the node, or of its output where it has none.

    Of its main graph, each layer whose weight is stored; one that is stored in 8 bits already as
    it is read. Raises InputError for a weight that is not in the model, or fits no such layer.
    """
    given = replaceable(model.graph, model.ir_version)
    known = constants_of(model.graph, {}, opset_of(model), frozenset(given), dequantise=True)
    found: dict[str, Ranges] = {}
    for node in model.graph.node:
        if node.op_type not in LAYERS or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            continue
        tensor = known.get(node.input[1])
        if tensor is None:
            continue
        name = node.name if node.name and node.name not in found else node.output[0]
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(
                f"{name}: its weight {tensor.name} lies in a file of its own; give the path of the "
                "ONNX file, or load it with onnx.load."
            )
        matrix = _matrix(node, name, tensor)
        if matrix is not None:
            found[name] = ranges_of_array(matrix)
    return found


def _matrix(node: onnx.NodeProto, name: str, tensor: onnx.TensorProto) -> np.ndarray | None:
    """The weight of a node as [out, in of a group, taps]; None of a batch of matrices."""
    groups = helper_int(node, "group", 1)
    is_matrix = node.op_type in ("Gemm", "MatMul")
    is_turned = node.op_type in ("ConvTranspose", "MatMul") or (
        node.op_type == "Gemm" and not helper_int(node, "transB", 0)
    )
    if is_matrix and len(tensor.dims) != 2:
        return None
    layer = Layer(name, node.op_type, tensor.name, None, NOBODY, NOBODY, groups, is_turned)
    try:
        array = numpy_helper.to_array(tensor).astype(np.float64)  # whatever the file holds
        if array.ndim > 1 and groups > 0 and array.shape[0] % groups == 0:
            return layer.matrix(array) if array.size else array
        why = f"it is none of a {node.op_type} of groups {groups}"
    except (ValueError, TypeError, KeyError) as error:
        why = one_line(error, 100)
    told = f"{name}: its weight {tensor.name} {list(tensor.dims)} cannot be read: {why}."
    raise InputError(told)
