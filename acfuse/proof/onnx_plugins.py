"""The part of an ONNX file that can be run here: all that does not come after a plugin's nodes."""

from collections.abc import Iterator, Sequence

import onnx

from acfuse.files.onnx_cost import all_graphs, subgraphs
from acfuse.graph.onnx_values import reads_within

RUN_HERE = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")


def plugins_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """The operators of a model that onnxruntime has not, and the file does not define."""
    own = {(f.domain, f.name) for f in model.functions}
    nodes = (node for graph in all_graphs(model.graph) for node in graph.node)
    return tuple(sorted({f"{n.domain}.{n.op_type}" for n in nodes if _is_plugin(n, own)}))


def _is_plugin(node: onnx.NodeProto, own: set[tuple[str, str]]) -> bool:
    return node.domain not in RUN_HERE and (node.domain, node.op_type) not in own


def _with_inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A node and those of the graphs inside it, at any depth."""
    yield node
    for inner in subgraphs(node):
        for other in inner.node:
            yield from _with_inner(other)


def ends_before_plugins(model: onnx.ModelProto) -> tuple[str, ...]:
    """The values that can be computed without plugins, and that they or a caller read."""
    own = {(f.domain, f.name) for f in model.functions}
    lost: set[str] = set()
    asked = [o.name for o in model.graph.output]
    waiting = [*model.graph.node]
    while True:  # until nothing more is lost: nodes may stand in any order
        kept = []
        for node in waiting:
            reads = [*filter(None, (*node.input, *reads_within(node)))]
            plugin = any(_is_plugin(n, own) for n in _with_inner(node))
            if plugin or lost.intersection(reads):
                lost.update(filter(None, node.output))
                asked += reads
            else:
                kept.append(node)
        if len(kept) == len(waiting):
            break
        waiting = kept
    made = {o for node in waiting for o in node.output}
    return tuple(dict.fromkeys(name for name in asked if name in made))


def cut(model: onnx.ModelProto, ends: Sequence[str]) -> onnx.ModelProto:
    """A copy of a model that gives just those values, without the nodes that they do not need."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    makers = {o: node for node in part.graph.node for o in node.output}
    needed: set[str] = set()
    waiting = [*ends]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            if name in makers:
                waiting += [*makers[name].input, *reads_within(makers[name])]
    nodes = [n for n in model.graph.node if needed.intersection(n.output)]
    typed = {o.name: o for o in (*model.graph.value_info, *model.graph.output)}
    del part.graph.node[:]
    del part.graph.output[:]
    part.graph.node.extend(nodes)
    part.graph.output.extend(typed.get(n, onnx.ValueInfoProto(name=n)) for n in ends)
    kept = [v for v in part.graph.value_info if v.name not in ends]
    kept = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in kept]
    del part.graph.value_info[:]
    part.graph.value_info.extend(kept)
    return part
