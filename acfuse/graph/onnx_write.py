"""Puts regions back into an ONNX graph, and takes out what nothing uses any more."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from acfuse.algebra import Value, lower
from acfuse.algebra.lower import ConvLayer
from acfuse.files.onnx_cost import all_graphs
from acfuse.graph.combination import IDENTITY, Identity, Move
from acfuse.graph.onnx_nodes import PAD_MODES, inverse
from acfuse.graph.onnx_read import OnnxSteps
from acfuse.graph.onnx_values import NOT_STORED_SINCE
from acfuse.graph.steps import Region

MODES = {border: mode for mode, border in PAD_MODES.items()}
Layers = Mapping[str, ConvLayer | Identity]


@dataclass(frozen=True)
class Placed:
    """A new convolution of a graph: its numbers, and the names of its weight and bias there.

    Of rows it is a Gemm, or a MatMul and an Add.
    """

    layer: ConvLayer
    weight: str
    bias: str
    kind: str = "Conv"

    def stored(self, weight: Tensor) -> Tensor:
        """A weight as it lies in the file, or that of the file as the layer has it."""
        return weight.t().contiguous() if self.kind == "MatMul" else weight


def lowered(kernels: Mapping[str, Value | Identity], like: torch.dtype) -> Layers:
    """The layers of a region, their weights rounded once, to `like`.

    Asymmetric pads are ONNX's own. Raises NotFusable if a number is too large for the dtype.
    """
    return {
        source: IDENTITY if isinstance(value, Identity) else lower(value, like, symmetric=False)
        for source, value in kernels.items()
    }


def put_back(
    graph: onnx.GraphProto,
    steps: OnnxSteps,
    regions: Sequence[tuple[Region, Layers, Sequence[Move]]],
    model: onnx.ModelProto,
    opset: int,
) -> list[Placed]:
    """Rewrites a graph of a model in place: each region's output is made by new convolutions.

    The new layers are given back, in order. Nodes that nothing reads any more are left to `sweep`.
    """
    names = _Names(model)
    places = {output: i for i, node in enumerate(graph.node) for output in node.output}
    writers = [_Writer(places, steps, region, names, opset) for region, _, _ in regions]
    for writer, (_, layers, moves) in zip(writers, regions, strict=True):
        writer.write(layers, moves)
    made = {w.region.output: w.nodes for w in writers}
    gone = {value for w in writers for value in w.region.steps}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for output in node.output:
            nodes += made.get(output, ())
        if not gone.issuperset(filter(None, node.output)):  # some of its outputs are used elsewhere
            kept = onnx.NodeProto.FromString(node.SerializeToString())
            kept.output[:] = [names.free(o) if o in made else o for o in node.output]
            nodes.append(kept)
    del graph.node[:]
    graph.node.extend(nodes)
    for writer in writers:
        graph.initializer.extend(writer.tensors)
        if model.ir_version < NOT_STORED_SINCE:  # there every initializer is listed as an input
            for tensor in writer.tensors:
                graph.input.add().CopyFrom(
                    helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                )
    return [placed for writer in writers for placed in writer.placed]


def operator_of(layer: ConvLayer) -> str:
    """The operator that computes a layer."""
    return "ConvTranspose" if layer.transposed else "Conv"


def attributes(layer: ConvLayer, kind: str) -> dict[str, Any]:
    """Those of the operator that it is. What a transposed one adds is `output_padding`."""
    if kind in ("Gemm", "MatMul"):
        return {"transB": 1} if kind == "Gemm" else {}
    befores, afters = ([*side] for side in zip(*layer.pads, strict=True))
    settings = {
        "kernel_shape": [*layer.weight.shape[2:]],
        "strides": [*layer.stride],
        "pads": befores + afters,
        "dilations": [*layer.dilation],
        "group": layer.groups,
    }
    if layer.transposed:
        settings["pads"] = befores + [max(n, 0) for n in afters]
        settings["output_padding"] = [max(-n, 0) for n in afters]
    return settings


def shuffle(move: Move) -> dict[str, Any]:
    """The attributes of the DepthToSpace that a pixel shuffle is."""
    return {"blocksize": move.scale[0], "mode": "CRD"}


class _Names:
    """Names that nothing in a model has yet, whichever graph it is in."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.taken: set[str] = set()
        for graph in all_graphs(model.graph):
            self.taken |= {n for node in graph.node for n in (node.name, *node.input, *node.output)}
            self.taken |= {t.name for t in (*graph.initializer, *graph.input, *graph.output)}
            self.taken |= {t.values.name for t in graph.sparse_initializer}

    def free(self, base: str) -> str:
        name, number = base, 1
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name


class _Writer:
    """The nodes and tensors of one region."""

    def __init__(
        self,
        places: Mapping[str, int],
        steps: OnnxSteps,
        region: Region,
        names: _Names,
        opset: int,
    ) -> None:
        self.places, self.steps, self.region = places, steps, region
        self.names, self.opset = names, opset
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.placed: list[Placed] = []

    def write(self, layers: Layers, moves: Sequence[Move]) -> None:
        """One convolution for each source, their sum, and the order of axes that the output had."""
        output = self.region.output
        order = self.steps.views[output][output]
        image = self.names.free(f"{output}_image") if order else output
        small = [self.names.free(f"{output}_small") for _ in moves]
        target = [*small, image][0]
        parts: list[str] = []
        for source, layer in layers.items():
            read = self._image(source)
            if isinstance(layer, Identity):
                parts.append(read)
                continue
            result = target if len(layers) == 1 else self.names.free(f"{output}_part")
            if layer.stride:
                self._conv(layer, read, result)
            elif self.steps.ranks.get(source) == 2:
                self._matrix("Gemm", layer, read, result)
            else:
                result = self.names.free(f"{output}_part")
                parts.append(self._matrix("MatMul", layer, read, result))
            parts.append(result)
        while len(parts) > 1:  # Add, not Sum: before opset 8 only Add extends its operands
            result = target if len(parts) == 2 else self.names.free(f"{output}_part")
            parts = [self._node("Add", parts[:2], result), *parts[2:]]
        for move, *names in zip(moves, small, [*small, image][1:], strict=True):
            self._node("DepthToSpace", names[:1], names[1], **shuffle(move))
        if order:
            self._node("Transpose", [image], output, perm=order)

    def _image(self, source: str) -> str:
        """The name under which a source can be read here, channels second."""
        views, here = self.steps.views[source], self.places[self.region.output]
        ready = [n for n, axes in views.items() if not axes and self.places.get(n, -1) < here]
        if ready:
            return min(ready, key=lambda n: self.places.get(n, -1))
        image = self.names.free(f"{source}_image")
        return self._node("Transpose", [source], image, perm=inverse(views[source]))

    def _node(self, kind: str, reads: Sequence[str], result: str, **settings: Any) -> str:
        name = self.names.free(f"{self.region.output}_{kind.lower()}")
        self.nodes.append(helper.make_node(kind, reads, [result], name=name, **settings))
        return result

    def _conv(self, layer: ConvLayer, source: str, result: str) -> None:
        placed = self._stored(layer, operator_of(layer))
        settings = attributes(layer, placed.kind)
        if layer.border != "zeros" and any(settings["pads"]):
            befores, afters = zip(*layer.pads, strict=True)
            source = self._padded(source, [0, 0, *befores, 0, 0, *afters], MODES[layer.border])
            settings["pads"] = [0] * len(settings["pads"])
        self._node(placed.kind, [source, placed.weight, placed.bias], result, **settings)

    def _matrix(self, kind: str, layer: ConvLayer, source: str, result: str) -> str:
        """A matrix for each row; gives the name of its bias."""
        placed = self._stored(layer, kind)
        bias = [placed.bias] if kind == "Gemm" else []
        self._node(kind, [source, placed.weight, *bias], result, **attributes(layer, kind))
        return placed.bias

    def _stored(self, layer: ConvLayer, kind: str) -> Placed:
        """The numbers of a new layer, put into the file."""
        label = self.region.output
        weight, bias = self.names.free(f"{label}.weight"), self.names.free(f"{label}.bias")
        placed = Placed(layer, weight, bias, kind)
        stored = placed.stored(layer.weight)
        self.tensors.append(numpy_helper.from_array(stored.numpy(), weight))
        self.tensors.append(numpy_helper.from_array(layer.bias.numpy(), bias))
        self.placed.append(placed)
        return placed

    def _padded(self, source: str, amounts: list[int], mode: str) -> str:
        padded = self.names.free(f"{self.region.output}_padded")
        if self.opset < 11:
            return self._node("Pad", [source], padded, mode=mode, pads=amounts)
        name = self.names.free(f"{self.region.output}_pads")
        int64 = onnx.TensorProto.INT64
        self.tensors.append(helper.make_tensor(name, int64, [len(amounts)], amounts))
        return self._node("Pad", [source, name], padded, mode=mode)


def sweep(model: onnx.ModelProto, before: frozenset[str]) -> None:
    """Takes out what was read `before`, and nothing reads any more.

    ONNX nodes have no side effects: one whose outputs are not read does nothing. What nothing read
    in the first place stays, and so do the inputs that a caller gives.
    """
    dead = True
    while dead:
        used = read_anywhere(model)
        dead = False
        for graph in all_graphs(model.graph):
            for node in list(graph.node):
                if before.intersection(node.output) and not used.intersection(node.output):
                    graph.node.remove(node)
                    dead = True
    stale = before - used
    for graph in all_graphs(model.graph):
        stored = {t.name for t in graph.initializer} & stale
        if model.ir_version < NOT_STORED_SINCE:
            _remove(graph.input, stored)
        else:
            stored -= {v.name for v in graph.input}
        _remove(graph.initializer, stored)
        there = {o for n in graph.node for o in n.output}
        there |= {t.name for t in (*graph.initializer, *graph.input, *graph.output)}
        _remove(graph.value_info, {v.name for v in graph.value_info} & stale - there)


def _remove(items: Any, names: Set[str]) -> None:
    for item in [i for i in items if i.name in names]:
        items.remove(item)


def read_anywhere(model: onnx.ModelProto) -> frozenset[str]:
    """Every name that a node reads or a graph gives out, at any depth."""
    names: set[str] = set()
    for graph in all_graphs(model.graph):
        names |= {name for node in graph.node for name in node.input}
        names |= {value.name for value in graph.output}
    return frozenset(names)
