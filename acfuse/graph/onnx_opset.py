"""An ONNX model in another opset, by onnx's own converter."""

import onnx
import onnx.version_converter
from onnx import helper

from acfuse.errors import InputError
from acfuse.files.onnx_cost import all_graphs
from acfuse.graph.onnx_values import NOT_STORED_SINCE, opset_of, with_fixed_inputs
from acfuse.system.escape import one_line

# What a conversion is there to change: all else has to stay as it is.
MODEL_FIELDS = ("ir_version", "opset_import", "producer_name", "producer_version", "doc_string")
GRAPH_FIELDS = ("node", "initializer", "value_info", "doc_string")


def in_opset(model: onnx.ModelProto, opset: int, name: str) -> onnx.ModelProto:
    """The model in another opset; the given one itself where it is of that opset.

    Whether the converter was right is not known here: its result has to be run beside the original.
    Raises InputError for what it cannot do, and where it would lose a part of the file.
    """
    own = opset_of(model)
    if own == opset:
        return model
    why = _obstacle(model)
    if not why:
        try:
            made: onnx.ModelProto = onnx.version_converter.convert_version(model, opset)
        except Exception as error:  # of the library's own, of many kinds
            why = one_line(error, 300).rpartition("failed: ")[2]
        else:
            del made.graph.output[:]  # whose sizes it may have inferred
            made.graph.output.extend(model.graph.output)
            why = "it would lose a part of the file" if _rest(made) != _rest(model) else ""
    if why:
        raise InputError(
            f"{name}: onnx's converter cannot make opset {opset} of {own}: {why.rstrip('.')}. Give "
            "another --opset, or leave it out."
        )
    least = helper.find_min_ir_version_for(made.opset_import, ignore_unknown=True)
    made.ir_version = max(made.ir_version, least)
    # Before that version, initializers were listed as inputs, and no caller could give them.
    return with_fixed_inputs(made)[0] if model.ir_version < NOT_STORED_SINCE else made


def _obstacle(model: onnx.ModelProto) -> str:
    """What the converter passes over in silence."""
    if len([*all_graphs(model.graph)]) > 1:
        return "it leaves the graphs inside nodes as they are"
    return "it drops the functions of the file" if model.functions else ""


def _rest(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without what a conversion may change."""
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    for field in MODEL_FIELDS:
        rest.ClearField(field)
    for field in GRAPH_FIELDS:
        rest.graph.ClearField(field)
    return rest
