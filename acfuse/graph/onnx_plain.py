"""An ONNX model in the plain form that is read: one that computes the same, said in fewer ways.

Functions that hold layers are written out, nodes stand in order, sparse tensors are dense ones,
padding that follows from a size is written as numbers where the size is known, and a convolution
has no axis that is put in for it alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper

from acfuse.files.onnx_cost import all_graphs, subgraphs
from acfuse.graph.onnx_flat import drop_axes
from acfuse.graph.onnx_values import CONVOLUTIONS, Known, facts_of

LARGEST_DENSE = 2**26  # numbers in all sparse tensors together, when they are written out

SIZED = ("Conv", "AveragePool")  # what may be padded by its image's size
LAYERS = (*CONVOLUTIONS, "BatchNormalization")  # functions without any are left as they are


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in plain form: the given one itself where it is plain. It is never changed."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for graph in all_graphs(made.graph):
        _sort(graph)
    if any(n.op_type in LAYERS for f in made.functions for n in f.node):
        made = _written_out(made)
    if drop_axes(made):
        for graph in all_graphs(made.graph):
            _sort(graph)
    dense = sum(_size(t.dims) for g in all_graphs(made.graph) for t in g.sparse_initializer)
    if dense <= LARGEST_DENSE:
        for graph in all_graphs(made.graph):
            _fill(graph)
    _pad(made)
    return model if made == model else made


def _sort(graph: onnx.GraphProto) -> None:
    """Puts each node behind those that it reads from, otherwise as they stood.

    Nodes that read one another in a circle stay: the checker has a word for them.
    """
    makers = {o: i for i, node in enumerate(graph.node) for o in node.output if o}
    needs = [{makers[n] for n in _reads(node) if n in makers} for node in graph.node]
    if all(max(need, default=-1) < i for i, need in enumerate(needs)):
        return
    order: list[int] = []
    done: set[int] = set()
    open_: set[int] = set()
    for first in range(len(needs)):
        waiting = [first]
        while waiting:
            index = waiting[-1]
            missing = needs[index] - done
            if index in done or not missing:
                waiting.pop()
                open_.discard(index)
                if index not in done:
                    done.add(index)
                    order.append(index)
                continue
            if missing & open_ or index in missing:
                return
            open_.add(index)
            waiting.append(min(missing))
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, and what the graphs inside it do."""
    yield from node.input
    for inner in subgraphs(node):
        for other in inner.node:
            yield from _reads(other)
        yield from (o.name for o in inner.output)


def _written_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without functions of its own; as it was where onnx cannot write them out."""
    try:
        made: onnx.ModelProto = inliner.inline_local_functions(model)
    except Exception:  # of the library's own: what the file defines stays unknown, and is not fused
        return model
    return made


def _fill(graph: onnx.GraphProto) -> None:
    """Writes sparse tensors as dense ones of the same numbers."""
    left = []
    for tensor in graph.sparse_initializer:
        try:
            dense = _dense(tensor)
        except (ValueError, IndexError, TypeError):  # the checker has a word for it
            left.append(tensor)
            continue
        graph.initializer.append(numpy_helper.from_array(dense, tensor.values.name))
    if len(left) < len(graph.sparse_initializer):
        kept = [onnx.SparseTensorProto.FromString(t.SerializeToString()) for t in left]
        del graph.sparse_initializer[:]
        graph.sparse_initializer.extend(kept)


def _dense(tensor: onnx.SparseTensorProto) -> Any:
    values, indices = (numpy_helper.to_array(t) for t in (tensor.values, tensor.indices))
    shape = tuple(tensor.dims)
    flat = np.ravel_multi_index(tuple(indices.T), shape) if indices.ndim == 2 else indices
    if flat.shape != values.shape or (flat.size and (flat.min() < 0 or flat.max() >= _size(shape))):
        raise ValueError("indices outside of the tensor")
    dense = np.zeros(shape, values.dtype)
    dense.reshape(-1)[flat] = values
    return dense


def _pad(model: onnx.ModelProto) -> None:
    """Writes the pads of layers that follow from a size, where that size is a fact."""
    modes = [(n, _mode(n)) for n in model.graph.node if n.op_type in SIZED and not n.domain]
    sized = [(node, mode) for node, mode in modes if mode in (b"SAME_UPPER", b"SAME_LOWER")]
    if not sized:
        return
    facts = facts_of(model)
    for node, mode in sized:
        pads = _pads(node, mode, facts)
        if pads is not None:
            kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
            kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("pads", pads)])


def _mode(node: onnx.NodeProto) -> bytes:
    return next((a.s for a in node.attribute if a.name == "auto_pad"), b"")


def _pads(node: onnx.NodeProto, mode: bytes, known: Mapping[str, Known]) -> list[int] | None:
    """The pads [all befores, all afters] of a layer; None where they are not known.

    Source: ONNX operators, "Conv" and "AveragePool", auto_pad.
    """
    given = {a.name: list(a.ints) for a in node.attribute}
    image, weight = (known.get(name) for name in (*node.input, "", "")[:2])
    if image is None or not image.sizes:
        return None
    kernel: Sequence[int | None] = given.get("kernel_shape", [])
    if weight is not None:
        kernel = (weight.sizes or ())[2:]
    sizes = image.sizes[2:]
    ones = [1] * len(sizes)
    strides, dilations = given.get("strides", ones), given.get("dilations", ones)
    if {len(kernel), len(strides), len(dilations)} != {len(sizes)} or set(dilations) != {1}:
        return None  # runtimes differ in what they make of dilation
    if all(stride == 1 for stride in strides):
        return None  # the same for every size: read as it is
    befores, afters = [], []
    for size, width, stride in zip(sizes, kernel, strides, strict=True):
        if not size or not width or size < 1 or stride < 1:
            return None
        total = (-(-size // stride) - 1) * stride + width - size
        if total < -1:
            return None  # and in where a window that is smaller than its stride begins
        less, more = max(total, 0) // 2, (max(total, 0) + 1) // 2
        befores.append(less if mode == b"SAME_UPPER" else more)
        afters.append(more if mode == b"SAME_UPPER" else less)
    return befores + afters


def _size(dims: Any) -> int:
    return int(np.prod([int(n) for n in dims], dtype=object)) if len(dims) else 1
