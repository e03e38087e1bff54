"""What an ONNX model has to fuse: the regions of each of its graphs, and what was refused."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx
import torch

from acfuse.errors import NotFusable, Reason
from acfuse.files.cost_table import CostTable
from acfuse.files.onnx_cost import subgraphs
from acfuse.findings import Block, Cost, Findings, Refused, Term
from acfuse.graph.arms import arms_of
from acfuse.graph.combination import Identity, Move
from acfuse.graph.onnx_nodes import FLOATS, Surroundings, is_training_dropout
from acfuse.graph.onnx_quantised import FLOAT_FIRST, quantises_images
from acfuse.graph.onnx_read import OnnxSteps, steps_of
from acfuse.graph.onnx_reference import reference
from acfuse.graph.onnx_values import (
    NOT_STORED_SINCE,
    Constants,
    constants_of,
    facts_of,
    known_values,
    opset_of,
    replaceable,
)
from acfuse.graph.onnx_write import Layers, lowered
from acfuse.graph.regions import choose, kernel_of, kernels, planned
from acfuse.graph.steps import Opaque, Region

OLDEST_OPSET = 7  # onnxruntime runs nothing older: there would be no proof
FIXED = "if none does, give --fix-initializers"
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
          "Bernoulli", "Multinomial")  # fmt: skip
# What onnxruntime writes when it saves a file that it optimised, and nothing else can read.
OPTIMISED = {"com.microsoft": ("FusedConv", "NhwcFusedConv"), "com.microsoft.nchwc": ("Conv",)}


@dataclass(frozen=True)
class Wanted:
    """What is looked for: with `folds`, lone BatchNorms as well; by `costs`, nothing slower."""

    folds: bool = False
    costs: CostTable | None = None


def find_in_model(model: onnx.ModelProto, wanted: Wanted) -> Findings:
    """The blocks of a model, and what was refused."""
    graphs = _graphs(model)
    obstacle = _obstacle(model, graphs)
    if obstacle is not None:
        return Findings((), (obstacle,))
    found: list[Block] = []
    refused: list[Refused] = []
    for index, (graph, around) in enumerate(graphs):
        # Graphs inside nodes stored no tensors before that version.
        if graph is model.graph or model.ir_version >= NOT_STORED_SINCE:
            blocks, left = _find_at_its_sizes(graph, around, index, wanted)
            found += blocks
            refused += [*_optimised(graph), *left]  # the first is what a reader is told
    return Findings(tuple(found), tuple(refused))


def _obstacle(
    model: onnx.ModelProto, graphs: Sequence[tuple[onnx.GraphProto, Surroundings]]
) -> Refused | None:
    """Why nothing of a model can be fused, whatever is in it."""
    where = model.graph.name
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        why = f"opset {opset} is older than what onnxruntime runs ({OLDEST_OPSET})"
        return Refused(where, Reason.UNKNOWN_LAYER, why)
    if model.training_info:
        return Refused(where, Reason.UNKNOWN_LAYER, "the file describes a training as well")
    for graph, around in graphs:
        for node in graph.node:
            if node.op_type in RANDOM:
                why = f"{node.op_type} draws random numbers: nothing could be compared"
                return Refused(node.output[0], Reason.RANDOM, why)
            if is_training_dropout(node, around.constants):
                why = "a Dropout is in training mode: nothing could be compared"
                return Refused(node.output[0], Reason.RANDOM, why)
    return None


def _optimised(graph: onnx.GraphProto) -> list[Refused]:
    """The first convolution that onnxruntime has put in place of another when it saved the file."""
    for node in graph.node:
        if node.op_type in OPTIMISED.get(node.domain, ()):
            why = (
                f"{node.op_type} of {node.domain} is onnxruntime's own: the file was saved after "
                "its optimisation. Give the file from before it"
            )
            return [Refused(node.output[0], Reason.UNKNOWN_LAYER, why)]
    return []


def _graphs(model: onnx.ModelProto) -> list[tuple[onnx.GraphProto, Surroundings]]:
    """Every graph of a model, those inside nodes first, with what can be known of its values."""
    known, facts, opset = known_values(model), facts_of(model), opset_of(model)
    functions = frozenset((f.domain, f.name) for f in model.functions)
    floats = not quantises_images(model)

    def within(graph: onnx.GraphProto, outer: Constants) -> Iterator[Any]:
        defaults = replaceable(graph, model.ir_version)
        quantised = {a.tensor_name for a in graph.quantization_annotation}
        given = {n: f"{n} is an input, which a caller may give ({FIXED})" for n in defaults}
        given |= {n: f"{n} is quantised" for n in quantised}
        made = {v.name: f"{v.name} is an input" for v in graph.input}
        made |= {o: f"{o} is computed by {n.op_type}" for n in graph.node for o in n.output}
        made |= {} if floats else _quantised(graph)
        own = constants_of(graph, outer, opset, frozenset(given), facts, dequantise=floats)
        for node in graph.node:
            for inner in subgraphs(node):
                yield from within(inner, own)
        yield graph, Surroundings(own, known, opset, {**made, **given}, facts, functions)

    return list(within(model.graph, {}))


def _quantised(graph: onnx.GraphProto) -> dict[str, str]:
    """Why weights that are stored as integers stay so, in a file whose images are such as well."""
    made = (n.output[0] for n in graph.node if n.op_type == "DequantizeLinear")
    return {o: f"{o} is quantised, and so are images of the file: {FLOAT_FIRST}" for o in made}


@dataclass(frozen=True)
class OnnxSite:
    """Where in an ONNX model a block stands: the graph, the region, and the layers to put there."""

    graph: int  # in the order of `all_graphs`
    steps: OnnxSteps
    region: Region
    layers: Layers
    moves: tuple[Move, ...] = ()


Found = tuple[list[Block], list[Refused]]


def _find_at_its_sizes(
    graph: onnx.GraphProto, around: Surroundings, index: int, wanted: Wanted
) -> Found:
    """What is found in one graph: for images of every size, or of the one that the file states.

    The second only where arms that would be of different sizes for others lead to a sum.
    """
    steps = steps_of(graph, around)
    found, refused = _find_in_graph(graph, steps, around, index, wanted)
    apart = frozenset(_behind(steps, [r.where for r in refused if r.code == Reason.SIZES]))
    if not apart:
        return found, refused
    fitted = replace(around, fitted=apart)
    more, left = _find_in_graph(graph, steps_of(graph, fitted), fitted, index, wanted)
    return (more, left) if _saved(more) > _saved(found) else (found, refused)


def _saved(blocks: Sequence[Block]) -> int:
    """How many convolutions there are less."""
    return sum(before - after for before, after in (b.convolutions for b in blocks))


def _behind(steps: OnnxSteps, values: Sequence[str]) -> Iterator[str]:
    """The values that lead to some by linear steps, and they themselves."""
    waiting, seen = [*values], set[str]()
    while waiting:
        step = steps.graph.by_value.get(waiting.pop())
        if step is not None and step.value not in seen and not isinstance(step.rule, Opaque):
            seen.add(step.value)
            waiting += step.reads
            yield step.value


def _find_in_graph(
    graph: onnx.GraphProto, steps: OnnxSteps, around: Surroundings, index: int, wanted: Wanted
) -> Found:
    """What is found and refused in one graph of a model, read as steps."""
    regions, misses = choose(steps.graph, folds=wanted.folds, costs=wanted.costs)
    refused = [Refused(m.value, m.code, m.why) for m in misses]
    found: list[Block] = []
    for region in reversed(regions):
        try:
            dtype = _dtype_of(region, around)
            values = kernels(steps.graph, region)
            layers = lowered(values, dtype)
            moves = planned(steps.graph, region).moves
            run = reference(graph, around, steps, region.output, tuple(values), moves)
        except NotFusable as refusal:
            refused.append(Refused(region.output, refusal.code, refusal.why))
            continue
        terms = tuple(
            Term(s)
            if isinstance(v, Identity)
            else Term(s, "conv", partial(kernel_of, steps.graph, region, s))
            for s, v in values.items()
        )
        found.append(
            Block(
                region.output,
                None,
                terms,
                dtype,
                Cost(region.convolutions, region.multiply_adds, region.weights),
                tuple(sorted(region.steps)),
                lambda run=run: run,  # type: ignore[misc]
                OnnxSite(index, steps, region, layers, moves),
                region.is_block,
                arms=partial(arms_of, steps.graph, region),
            )
        )
    return found, refused


def _dtype_of(region: Region, around: Surroundings) -> torch.dtype:
    """The dtype of what a region makes; that of all its weights, or the file would be invalid."""
    known = around.known.get(region.output)
    if known is None or known.kind not in FLOATS:
        raise NotFusable(Reason.UNKNOWN_LAYER, f"nothing tells the type of {region.output}")
    return FLOATS[known.kind]
