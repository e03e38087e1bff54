"""An ONNX file beside what acfuse made of it: nothing changed but the blocks that are certified.

A certificate is about the layers that acfuse says it put in. Here the nodes of the fused file are
read back: they are those layers, on those inputs, and all else is the original's.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper, numpy_helper

from acfuse.files.onnx_cost import all_graphs
from acfuse.graph.combination import Move
from acfuse.graph.onnx_nodes import Perm, inverse
from acfuse.graph.onnx_values import NOT_STORED_SINCE
from acfuse.graph.onnx_write import MODES, Placed, attributes, read_anywhere, shuffle
from acfuse.proof.onnx_program import Walk, fault, found_in_words
from acfuse.proof.outputs import Check

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # that acfuse writes
LEFT_OUT = ("GraphProto.node", "GraphProto.initializer", "GraphProto.value_info")


@dataclass(frozen=True)
class Rewritten:
    """A value that is made in another way: the layers on each source that are added for it.

    Of an output or source: the order of axes that turns its image into it (none: it is the image).
    """

    output: str
    order: Perm
    terms: Sequence[tuple[Mapping[str, Perm], Placed | None]]
    moves: Sequence[Move] = ()


def compare_rewriting(
    original: onnx.ModelProto, fused: onnx.ModelProto, blocks: Sequence[Rewritten]
) -> Check:
    """Whether a fused file is the original but for its blocks, and has those as they are known."""
    faults = [*rewriting_faults(original, fused, blocks)]
    return Check("rewriting", not faults, float(len(faults)), 0.0, detail=found_in_words(faults))


def rewriting_faults(
    original: onnx.ModelProto, fused: onnx.ModelProto, blocks: Sequence[Rewritten]
) -> Iterator[str]:
    """Every place where a fused file is not the original with its blocks rewritten."""
    old, new = _defined(original), set[tuple[str, ...]]()
    tensors: set[str] = set()
    for block in blocks:
        reading = _Reading(_graph_of(fused, block), old, block)
        yield from reading.faults()
        new |= reading.nodes
        tensors |= reading.tensors
    outputs = frozenset(block.output for block in blocks)
    yield from _Rest(original, new, tensors, outputs).messages(original, fused, "")
    for name in sorted(read_anywhere(fused) - _defined(fused) - {""}):
        yield f"{name} is read, and nothing makes it"


def _defined(model: onnx.ModelProto) -> set[str]:
    """Every name that a model gives to a value."""
    names = {o for g in all_graphs(model.graph) for n in g.node for o in n.output}
    for graph in all_graphs(model.graph):
        names |= {v.name for v in (*graph.input, *graph.initializer)}
        names |= {t.values.name for t in graph.sparse_initializer}
    return names


def _graph_of(model: onnx.ModelProto, block: Rewritten) -> onnx.GraphProto:
    """The graph that reads the weights of a block: their names are in one alone."""
    weights = {placed.weight for _, placed in block.terms if placed is not None}
    graphs = [*all_graphs(model.graph)]
    return next((g for g in graphs if any(weights & {*n.input} for n in g.node)), model.graph)


class _Reading:
    """What a graph adds up for one value: read back from its nodes, one by one."""

    def __init__(self, graph: onnx.GraphProto, old: Set[str], block: Rewritten) -> None:
        self.makers = {o: n for n in graph.node for o in n.output}
        self.stored = {t.name: t for t in graph.initializer}
        self.old, self.block = old, block
        self.nodes: set[tuple[str, ...]] = set()
        self.tensors: set[str] = set()

    def faults(self) -> Iterator[str]:
        where, name = f"node {self.block.output}", self.block.output
        if self.block.order:
            name = self._before_transpose(name, self.block.order)
        for move in reversed(self.block.moves):
            name = self._before(name, "DepthToSpace", shuffle(move))
        convs: dict[str, onnx.NodeProto] = {}
        added: list[str] = []
        for part in self._summands(name):
            node = self._new(part)
            if node is not None and node.op_type in LAYERS and len(node.input) > 1:
                convs[node.input[1]] = node
            else:
                added.append(part)
        for views, placed in self.block.terms:
            if placed is not None:
                conv = convs.pop(placed.weight, None)
                if conv is None:
                    yield f"{where} lacks the {placed.kind} of {placed.weight}"
                else:
                    bias = self._bias(conv, placed, added)
                    yield from self._layer(conv, placed, views, bias)
                continue
            image = next((a for a in added if self._is_image(a, views)), None)
            if image is None:
                yield f"{where} lacks the term {min(views, default='')}"
            else:
                added.remove(image)
        for more in (*convs, *added):
            yield f"{where} adds {more}, which should not be there"

    def _new(self, name: str) -> onnx.NodeProto | None:
        """The node that was put in for a value; None for a value of the original."""
        known = name in self.old and name != self.block.output
        return None if known else self.makers.get(name)

    def _take(self, node: onnx.NodeProto) -> dict[str, Any]:
        """The settings of a node of the block."""
        self.nodes.add(tuple(node.output))
        return {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def _summands(self, name: str) -> Iterator[str]:
        waiting = [name]
        while waiting:
            name = waiting.pop(0)
            node = self._new(name)
            is_sum = node is not None and node.op_type == "Add" and not node.domain
            if node is not None and is_sum and self._take(node) == {}:
                waiting = [*node.input, *waiting]
            else:
                yield name

    def _before_transpose(self, name: str, perm: Perm) -> str:
        """What a Transpose of just that order reads; nothing if there is none."""
        return self._before(name, "Transpose", {"perm": [*perm]})

    def _before(self, name: str, kind: str, settings: Mapping[str, Any]) -> str:
        """What a node of just that kind and settings reads; nothing if there is none."""
        node = self._new(name)
        if node is None or node.op_type != kind or node.domain:
            return ""
        given = {k: v.decode() if isinstance(v, bytes) else v for k, v in self._take(node).items()}
        return node.input[0] if given == settings else ""

    def _is_image(self, name: str, views: Mapping[str, Perm]) -> bool:
        """Whether a value is the image of a source, its channels second."""
        if name in views and name != self.block.output:
            return not views[name]
        turned = {v: p for v, p in views.items() if p}
        return any(self._before_transpose(name, inverse(p)) == v for v, p in turned.items())

    def _bias(self, node: onnx.NodeProto, placed: Placed, added: list[str]) -> str:
        """The bias of a layer: its own, or one of what is added."""
        if placed.kind != "MatMul":
            return node.input[2] if len(node.input) == 3 else ""
        if placed.bias not in added or len(node.input) != 2:
            return ""
        added.remove(placed.bias)
        return placed.bias

    def _layer(
        self, node: onnx.NodeProto, placed: Placed, views: Mapping[str, Perm], bias: str
    ) -> Iterator[str]:
        layer, where = placed.layer, f"node {', '.join(node.output)} ({node.op_type})"
        given, expected = self._take(node), attributes(layer, placed.kind)
        source = node.input[0]
        if layer.border != "zeros" and any(expected.get("pads", ())):
            befores, afters = zip(*layer.pads, strict=True)
            amounts = [0, 0, *befores, 0, 0, *afters]
            source = self._before_pad(source, MODES[layer.border].encode(), amounts)
            expected["pads"] = [0] * len(expected["pads"])
        if node.op_type != placed.kind:
            yield fault(f"{where}, operator", node.op_type, placed.kind)
        if node.domain:
            yield fault(f"{where}, domain", node.domain, "none")
        for name in sorted({*given, *expected}):
            if given.get(name) != expected.get(name):
                at = f"{where}, attribute {name}"
                yield fault(at, str(given.get(name, "missing")), str(expected.get(name, "none")))
        if not self._is_image(source, views):
            yield fault(f"{where}, its image", source or "another", min(views, default=""))
        if bias != placed.bias:
            yield fault(f"{where}, bias", bias or "none", placed.bias)
        weight = placed.stored(layer.weight)
        for name, tensor in ((placed.weight, weight), (placed.bias, layer.bias)):
            self.tensors.add(name)
            array = tensor.numpy()
            have = numpy_helper.to_array(self.stored[name]) if name in self.stored else None
            same = have is not None and (have.dtype, have.shape) == (array.dtype, array.shape)
            if have is None or not same or have.tobytes() != array.tobytes():
                yield f"initializer {name} is not what its certificate is about"

    def _before_pad(self, name: str, mode: bytes, amounts: list[int]) -> str:
        """What a Pad of just that mode and size reads; nothing if there is none."""
        node = self._new(name)
        if node is None or node.op_type != "Pad" or node.domain:
            return ""
        given = self._take(node)
        pads = given.pop("pads", None)
        if len(node.input) == 2 and node.input[1] in self.stored:
            pads = numpy_helper.to_array(self.stored[node.input[1]]).tolist()
            self.tensors.add(node.input[1])
        return node.input[0] if (given, pads) == ({"mode": mode}, amounts) else ""


class _Rest(Walk):
    """The original and the fused file outside of the blocks; what nothing reads may be left out."""

    def __init__(
        self,
        whole: onnx.ModelProto,
        new: Set[tuple[str, ...]],
        tensors: Set[str],
        outputs: frozenset[str],
    ) -> None:
        super().__init__(whole)
        self.new, self.tensors, self.outputs = new, tensors, outputs
        self.stored = tensors | {t.name for g in all_graphs(whole.graph) for t in g.initializer}

    def items(self, full: str, expected: Any, found: Any, where: str) -> Iterator[str]:
        if full == "GraphProto.node":
            found = [n for n in found if tuple(n.output) not in self.new]
            expected = [self._named_as(found, n) for n in expected]
        elif full == "GraphProto.initializer":
            found = [t for t in found if t.name not in self.tensors]
        elif full == "GraphProto.input" and self.whole.ir_version < NOT_STORED_SINCE:
            expected, found = (
                [v for v in values if v.name not in self.stored] for values in (expected, found)
            )
        if full in LEFT_OUT:
            there = {self.key_of(full, item) for item in found}
            expected = [item for item in expected if self.key_of(full, item) in there]
        yield from super().items(full, expected, found, where)

    def _named_as(self, found: Sequence[onnx.NodeProto], node: onnx.NodeProto) -> onnx.NodeProto:
        """A node as it is where an output of it is made by a block: under another name there."""
        if len(node.output) == 1 or not self.outputs.intersection(node.output):
            return node
        for other in found:
            names = zip(node.output, other.output, strict=False)
            if len(node.output) == len(other.output) and all(
                a == b or a in self.outputs for a, b in names
            ):
                twin = onnx.NodeProto()
                twin.CopyFrom(node)
                twin.output[:] = other.output
                return twin
        return node
