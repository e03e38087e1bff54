"""From a live model to one ONNX file, checked by ONNX's own checker."""

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from acfuse.errors import AcfuseError, InputError, Reason
from acfuse.files.onnx_cost import all_graphs
from acfuse.graph.copies import copied
from acfuse.graph.onnx_values import opset_of
from acfuse.proof.exported import dynamic_dims
from acfuse.proof.running import Inputs, cast, floating_dtype, images, kinds_of, named_shapes
from acfuse.system.escape import one_line

DEFAULT_OPSET = 20
OLDEST_EXPORTED = 18  # by torch's present exporter
GENERIC_NAMES = {"x", "input", "inputs", "inp", "data"}
LARGEST_FILE = 2**31 - 2**20  # protobuf's own limit, with room for the graph
DIM_NAMES = {0: "batch", 2: "height", 3: "width"}


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX model in memory, and what was asked of it."""

    model: onnx.ModelProto
    opset: int
    dynamic: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def bytes(self) -> bytes:
        return bytes(self.model.SerializeToString())

    def count(self, kind: str) -> int:
        """How many nodes of a type there are, those inside other nodes included."""
        return count_nodes(self.model, kind)


def count_nodes(model: onnx.ModelProto, kind: str) -> int:
    """How many nodes of a type a model has, those inside other nodes included."""
    return sum(node.op_type == kind for g in all_graphs(model.graph) for node in g.node)


def to_onnx(
    model: nn.Module,
    inputs: Inputs,
    *,
    opset: int = DEFAULT_OPSET,
    dynamic: str = "batch",
    metadata: Mapping[str, str] | None = None,
) -> OnnxFile:
    """Exports a model in eval mode, with the axes of `dynamic` free: batch, hw, all or none.

    Raises InputError with the exporter's reason where it cannot, and where an axis that should be
    free is not. Node metadata, which names source files of this machine, is taken out.
    """
    shapes = named_shapes(model, inputs)
    axes = dynamic_dims(shapes, dynamic)
    given = example(model, shapes, axes, inputs)
    names = [_input_name(n, len(shapes)) for n in shapes]
    with torch.no_grad():
        result = model(**given)
    if any(isinstance(leaf, Mapping) for leaf in _pytree.tree_leaves(result)):
        model, result = _with_plain_results(model), plain_result(result)
    outputs = _output_names(result)
    free = {n: {i: dimension(i, n, shapes) for i in axes[n]} for n in shapes}
    export = _exported if opset >= OLDEST_EXPORTED else _traced
    with quiet():
        try:
            proto = export(model, given, names, outputs, opset, free)
        except Exception as error:
            raise InputError(export_failure(error, "ONNX", "Give --no-onnx", dynamic)) from error
    _clean(proto, metadata or {})
    if proto.ByteSize() > LARGEST_FILE:
        raise InputError("the model is larger than one ONNX file can be (2 GiB).")
    check_proto(proto)
    fixed = _fixed_axes(proto, [axes[n] for n in shapes])
    if fixed:
        raise InputError(
            f"{Reason.FIXED_AXIS}: the exporter fixed {fixed}, which --dynamic {dynamic} asks to "
            "be free. Give --dynamic none, or make the model independent of that size."
        )
    return OnnxFile(proto, opset, dynamic, tuple(names), tuple(outputs))


Free = Mapping[str, Mapping[int, Any]]  # the symbol of each free axis, by input


def _exported(
    model: nn.Module,
    given: Mapping[str, Tensor],
    names: list[str],
    outputs: list[str],
    opset: int,
    free: Free,
) -> onnx.ModelProto:
    """What torch's own exporter gives."""
    program = torch.onnx.export(
        model,
        kwargs=dict(given),
        input_names=names,
        output_names=outputs,
        opset_version=opset,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes={name: dict(axes) for name, axes in free.items()},
    )
    if program is None:
        raise AcfuseError("torch's exporter gave nothing.")
    return program.model_proto


def _traced(
    model: nn.Module,
    given: Mapping[str, Tensor],
    names: list[str],
    outputs: list[str],
    opset: int,
    free: Free,
) -> onnx.ModelProto:
    """What its older exporter gives, which writes opsets that the other does not.

    It runs the model once. A way that depends on a size is then fixed in the file: whether it is
    right for others, running it on others shows.
    """
    file = io.BytesIO()
    axes = {
        shown: {i: symbol.__name__ for i, symbol in free[own].items()}
        for shown, own in zip(names, given, strict=True)
    }
    torch.onnx.export(
        model,
        (),
        file,  # type: ignore[arg-type]
        kwargs=dict(given),
        input_names=names,
        output_names=outputs,
        opset_version=opset,
        dynamo=False,
        dynamic_axes={name: own for name, own in axes.items() if own},
    )
    return onnx.load_model_from_string(file.getvalue())


def dimension(axis: int, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The symbol of a free axis. The batch is one for all inputs, a size belongs to its input."""
    label = DIM_NAMES[axis]
    return torch.export.Dim(label if axis == 0 or len(shapes) == 1 else f"{name}_{label}", min=1)


def _input_name(parameter: str, count: int) -> str:
    return "input" if count == 1 and parameter in GENERIC_NAMES else parameter


def plain_result(value: Any) -> Any:
    """A result, with a dict in place of each mapping of a class that torch does not know.

    ONNX has tensors with names, and no containers: in the file, both are the same.
    """

    def plain(leaf: Any) -> Any:
        is_dict = isinstance(leaf, Mapping)
        return {key: plain_result(part) for key, part in leaf.items()} if is_dict else leaf

    return _pytree.tree_map(plain, value)


def _with_plain_results(model: nn.Module) -> nn.Module:
    """A copy of a model, with the same tensors, that gives dicts in place of other mappings."""
    tensors = (*model.parameters(), *model.buffers())
    twin: Any = copied(model, {id(tensor): tensor for tensor in tensors})
    own = twin.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return plain_result(own(*args, **kwargs))

    twin.forward = forward
    return twin  # type: ignore[no-any-return]


def _output_names(result: Any) -> list[str]:
    if isinstance(result, Tensor):
        return ["output"]
    leaves, _ = _pytree.tree_flatten_with_path(result)
    names = []
    for path, leaf in leaves:
        if isinstance(leaf, Tensor):
            keys = [str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", "")))) for p in path]
            names.append("_".join(k if not k.isdigit() else f"output_{k}" for k in keys))
    return names


def example(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    axes: Mapping[str, list[int]],
    inputs: Inputs,
) -> dict[str, Tensor]:
    """Images to export a model with.

    An axis of size 1 counts as fixed for torch: free ones are shown to it with 2.
    """
    seen = {n: tuple(2 if i in axes[n] and d == 1 else d for i, d in enumerate(s))
            for n, s in shapes.items()}  # fmt: skip
    given = images(seen, inputs.seed, kinds_of(shapes, inputs, model))
    return {name: cast(value, floating_dtype(model)) for name, value in given.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress lines and its own deprecation warnings off the streams."""
    logger = logging.getLogger("torch")
    level = logger.level
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def export_failure(error: Exception, form: str, without: str, dynamic: str) -> str:
    """Torch's reason for not exporting a model, in one line, with what may help."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0][:240].rstrip(".") if lines else type(cause).__name__
    hint = f"{without} to write the checkpoint alone"
    if "onstraint" in str(cause) or "dynamic" in str(cause).lower():
        code = Reason.FIXED_AXIS
        hint = f"A size may be fixed in the model [{code}]: try another --dynamic than {dynamic}"
    return f"torch cannot export the model to {form}: {text}. {hint}."


def _clean(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Takes out what tells about the machine, and puts in where the file comes from."""
    for graph in all_graphs(proto.graph):
        del graph.metadata_props[:]
        graph.doc_string = ""
        for item in (
            *graph.node,
            *graph.initializer,
            *graph.value_info,
            *graph.input,
            *graph.output,
        ):
            item.doc_string = ""
            del item.metadata_props[:]
    for function in proto.functions:
        del function.metadata_props[:]
        function.doc_string = ""
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    del proto.metadata_props[:]
    proto.doc_string = ""
    proto.graph.name = "main_graph"
    onnx.helper.set_model_props(proto, dict(metadata))


def check_proto(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        first = str(error).splitlines()[0]
        raise AcfuseError(f"the exported model is not valid ONNX: {first}") from error
    except onnx.shape_inference.InferenceError as error:  # an operator has not this type
        raise InputError(
            f"ONNX of opset {opset_of(proto)} cannot express the model: {one_line(error, 200)}; "
            "another dtype may do (model.float())."
        ) from error


def _fixed_axes(proto: onnx.ModelProto, wanted: list[list[int]]) -> str:
    """The axes that should be free and are not, in words."""
    fixed = []
    for value, axes in zip(proto.graph.input, wanted, strict=False):
        dims = value.type.tensor_type.shape.dim
        fixed += [f"axis {i} of {value.name}" for i in axes if not dims[i].dim_param]
    return " and ".join(fixed)
