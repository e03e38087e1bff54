"""Puts regions back into an ONNX graph, and takes out what nothing uses any more."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
from onnx import helper, numpy_helper

from acfuse.algebra import LinearConv, lower
from acfuse.algebra.lower import ConvLayer
from acfuse.errors import InputError, NotFusable
from acfuse.graph.from_onnx import PAD_MODES, subgraphs
from acfuse.graph.regions import Region
from acfuse.graph.steps import Unit

MODES = {border: mode for mode, border in PAD_MODES.items()}
Kernels = Mapping[str, LinearConv | Unit]


@dataclass(frozen=True)
class Placed:
    """A new Conv of a graph: its numbers, and the names of its weight and bias there."""

    layer: ConvLayer
    weight: str
    bias: str


def put_back(
    graph: onnx.GraphProto, regions: Sequence[tuple[Region, Kernels]], opset: int, like: torch.dtype
) -> list[Placed]:
    """Rewrites the graph in place: each region's output is made by new Conv nodes.

    Weights are rounded once, to `like`; the new layers are given back, in order. Asymmetric pads
    are ONNX's own; other borders become a Pad in front.
    """
    names = _Names(graph)
    placed: list[Placed] = []
    for region, values in regions:
        made: list[onnx.NodeProto] = []
        parts: list[str] = []
        for source, value in values.items():
            if isinstance(value, Unit):
                parts.append(source)
                continue
            try:
                layer = lower(value, like, symmetric=False)
            except NotFusable as refusal:
                raise InputError(f"{region.output}: {refusal.why}.") from refusal
            result = region.output if len(values) == 1 else names.free(f"{region.output}_part")
            nodes, tensors = _conv(layer, source, result, region.output, names, opset)
            placed.append(Placed(layer, tensors[0].name, tensors[1].name))
            made += nodes
            graph.initializer.extend(tensors)
            parts.append(result)
        if len(parts) > 1:
            made.append(helper.make_node("Sum", parts, [region.output], name=region.output))
        kept: list[onnx.NodeProto] = []
        for node in graph.node:
            if region.output in node.output:
                kept += made
            elif not region.steps.intersection(node.output):
                kept.append(node)
        _set_nodes(graph, kept)
    sweep(graph)
    return placed


def _set_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


class _Names:
    """Names that nothing in a graph has yet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.taken = {n for node in graph.node for n in (*node.input, *node.output)}
        self.taken |= {t.name for t in graph.initializer}

    def free(self, base: str) -> str:
        name, number = base, 1
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name


def _conv(
    layer: ConvLayer, source: str, result: str, label: str, names: _Names, opset: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    weight = numpy_helper.from_array(layer.weight.numpy(), names.free(f"{label}.weight"))
    bias = numpy_helper.from_array(layer.bias.numpy(), names.free(f"{label}.bias"))
    flat = [n for n, _ in layer.pads] + [n for _, n in layer.pads]
    nodes, tensors = [], [weight, bias]
    if layer.border != "zeros" and any(flat):
        whole = [0, 0, *flat[: len(layer.pads)], 0, 0, *flat[len(layer.pads) :]]
        padded = names.free(f"{label}_padded")
        mode = MODES[layer.border]
        if opset < 11:
            pad = helper.make_node("Pad", [source], [padded], mode=mode, pads=whole)
        else:
            shape = helper.make_tensor(
                names.free(f"{label}_pads"), onnx.TensorProto.INT64, [len(whole)], whole
            )
            tensors.append(shape)
            pad = helper.make_node("Pad", [source, shape.name], [padded], mode=mode)
        pad.name = padded
        nodes.append(pad)
        source, flat = padded, [0] * len(flat)
    conv = helper.make_node(
        "Conv",
        [source, weight.name, bias.name],
        [result],
        name=names.free(f"{label}_conv"),
        kernel_shape=list(layer.weight.shape[2:]),
        strides=list(layer.stride),
        pads=flat,
        dilations=list(layer.dilation),
        group=layer.groups,
    )
    return [*nodes, conv], tensors


def sweep(graph: onnx.GraphProto) -> None:
    """Takes out constants, and what is said of values, that nothing uses any more.

    ONNX nodes have no side effects: one whose outputs are not read does nothing.
    """
    while True:
        used = {o.name for o in graph.output} | set(_all_reads(graph))
        dead = [n for n in graph.node if not used.intersection(n.output)]
        for node in dead:
            graph.node.remove(node)
        if not dead:
            break
    made = {o for n in graph.node for o in n.output}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
        for value in [v for v in graph.input if v.name == tensor.name]:
            graph.input.remove(value)
    for value in [v for v in graph.value_info if v.name not in made]:
        graph.value_info.remove(value)


def _all_reads(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from _all_reads(inner)
            yield from (o.name for o in inner.output)
