"""The nodes of a region, run one by one by onnx's own reference implementation."""

from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor
from torch.nn import functional as F

from acfuse.errors import NotFusable, Reason
from acfuse.graph.combination import Move
from acfuse.graph.images import as_rows
from acfuse.graph.onnx_nodes import Perm, Surroundings, inverse
from acfuse.graph.onnx_read import OnnxSteps
from acfuse.graph.rules_axes import made_smaller
from acfuse.system.escape import one_line

REFERENCE_OPSET = 15
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
Run = Callable[..., Tensor]


def reference(
    graph: onnx.GraphProto,
    around: Surroundings,
    steps: OnnxSteps,
    output: str,
    sources: tuple[str, ...],
    moves: Sequence[Move] = (),
) -> Run:
    """The nodes of a region, run one by one by onnx's reference implementation in float64.

    What `moves` make larger at its end is given as it was before.
    Raises NotFusable for nodes of an older opset that it does not run.
    """
    views = {name: s for s in sources for name in steps.views[s]}
    nodes = _nodes_between(graph, output, {*views, *around.constants})
    reads = {name for node in nodes for name in node.input}
    given = sorted(reads.intersection(views))
    constants = {
        n: _in_float64(around.constants[n], n) for n in sorted(reads & around.constants.keys())
    }
    # Weights are given like images, as tensors: whoever moves what torch reads moves them as well.
    weights = {
        n: torch.from_numpy(numpy_helper.to_array(t).copy())
        for n, t in constants.items()
        if t.data_type == onnx.TensorProto.DOUBLE
    }
    double = onnx.TensorProto.DOUBLE
    alone = onnx.helper.make_graph(
        nodes,
        "region",
        [onnx.helper.make_tensor_value_info(name, double, None) for name in (*given, *weights)],
        [onnx.helper.make_tensor_value_info(output, double, None)],
        [t for n, t in constants.items() if n not in weights],
    )
    opsets = [onnx.helper.make_opsetid("", around.opset)]
    model = onnx.helper.make_model(alone, opset_imports=opsets)
    if around.opset < REFERENCE_OPSET:  # it takes older BatchNormalizations to be in training
        try:
            model = onnx.version_converter.convert_version(model, REFERENCE_OPSET)
        except Exception as error:
            why = f"onnx cannot run its nodes of opset {around.opset} to prove it"
            raise NotFusable(Reason.UNKNOWN_LAYER, why) from error
    evaluator = ReferenceEvaluator(model, new_ops=[ConvTranspose])
    order = steps.views[output][output]

    def run(*images: Tensor) -> Tensor:
        values = dict(zip(sources, images, strict=True))
        feeds = {n: _given(values[views[n]], steps, views[n], n) for n in given}
        feeds |= {n: (1 * weight).numpy() for n, weight in weights.items()}
        try:
            results: Any = evaluator.run(None, feeds)
        except Exception as error:  # of any kind; as torch's layers say that an image is too small
            raise RuntimeError(one_line(error, 200)) from error
        answer = torch.from_numpy(np.array(results[0], dtype=np.float64))
        if output in steps.graph.axes:
            return answer.flatten(0, -2)[: len(images[0])]
        return made_smaller(_turned(answer, inverse(order)), moves)

    return run


def _given(image: Tensor, steps: OnnxSteps, source: str, name: str) -> Any:
    """What is known of a source under one of its names: in that order of axes, or as rows."""
    if source in steps.graph.axes:
        return as_rows(image, steps.ranks.get(name, 0)).numpy()
    return _turned(image, steps.views[source][name]).numpy()


class ConvTranspose(OpRun):
    """One by torch: that of onnx's reference implementation fails for groups."""

    op_domain = ""

    def _run(self, image: Any, weight: Any, bias: Any = None, **settings: Any) -> tuple[Any]:
        axes = weight.ndim - 2
        strides, dilations, pads, more = (
            settings.get(name) or [default] * count
            for name, default, count in (
                ("strides", 1, axes),
                ("dilations", 1, axes),
                ("pads", 0, 2 * axes),
                ("output_padding", 0, axes),
            )
        )
        if settings.get("output_shape"):
            raise ValueError("a ConvTranspose of a stated output size is not run here")
        if (settings.get("auto_pad") or "NOTSET").startswith("SAME"):  # it gives size * stride
            whole_taps = [d * (n - 1) + 1 for d, n in zip(dilations, weight.shape[2:], strict=True)]
            pads = [(n - s) // 2 for n, s in zip(whole_taps, strides, strict=True)] * 2
        whole = TRANSPOSED[axes](
            torch.tensor(image),
            torch.tensor(weight),
            stride=tuple(strides),
            groups=settings.get("group") or 1,
            dilation=tuple(dilations),
        )
        ends = [n for i in reversed(range(axes)) for n in (-pads[i], more[i] - pads[axes + i])]
        cut = F.pad(whole, ends)
        if bias is not None:
            cut = cut + torch.tensor(bias).reshape(-1, *[1] * axes)
        return (cut.numpy(),)


def _turned(image: Tensor, perm: Perm) -> Tensor:
    return image.permute(*perm).contiguous() if perm else image


def _in_float64(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    value = numpy_helper.to_array(tensor)
    if value.dtype in (np.float32, np.float16):
        value = value.astype(np.float64)
    return numpy_helper.from_array(value, name)


def _nodes_between(graph: onnx.GraphProto, output: str, known: Set[str]) -> list[onnx.NodeProto]:
    """Copies of the nodes that make a value from known ones, in order."""
    maker = {output: node for node in graph.node for output in node.output}
    needed: set[str] = set()
    stack = [output]
    while stack:
        name = stack.pop()
        if name in needed or name in known or name not in maker:
            continue
        needed.add(name)
        stack.extend(maker[name].input)
    return [
        onnx.NodeProto.FromString(node.SerializeToString())
        for node in graph.node
        if needed.intersection(node.output)
    ]
