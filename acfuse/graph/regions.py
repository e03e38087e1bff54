"""Which parts of a graph become one convolution of each of their sources.

From the values that something else needs, the cheapest options (`plans`) are read off: each is a
`Region`. No kernel is multiplied before it is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil

import torch

from acfuse.algebra import Conv, Planned, Value
from acfuse.errors import NotFusable, Reason
from acfuse.files.cost_table import CostTable
from acfuse.graph.combination import IDENTITY, Identity, LinearCombination
from acfuse.graph.explain import explain
from acfuse.graph.plans import Number, Option, Plan, cost_of, plans_of, roots_of
from acfuse.graph.slices import split_layers, with_parts
from acfuse.graph.steps import (
    Combiner,
    ConvStep,
    Graph,
    LinearSubmodule,
    Miss,
    Moved,
    Opaque,
    PerChannel,
    Region,
    Step,
    Sum,
)
from acfuse.graph.times import Slower, slower_region


def choose(
    graph: Graph, *, folds: bool = False, costs: CostTable | None = None
) -> tuple[list[Region], list[Miss]]:
    """The regions of a graph, last value first, and the candidates that were left, with reasons.

    With `folds`, regions that only take up a BatchNorm or factor are chosen as well. By a table of
    `costs`, none is chosen that takes longer than its layers.
    """
    layers = split_layers(graph)
    while layers:
        parts = with_parts(graph, layers)
        taken = frozenset(part.value for own in layers.values() for part in own)
        chosen, plans, misses = _chosen(parts, folds=folds, parts=taken)
        chosen, slow = _timed(parts, chosen, costs)
        used = {v: own for v, own in layers.items() if _takes_part(own, chosen)}
        if used == layers:
            chosen += [*_other_parts(parts, taken, chosen)]
            return chosen, _told(slow, explain(parts, plans, chosen, misses))
        layers = used
    chosen, plans, misses = _chosen(graph, folds=folds)
    chosen, slow = _timed(graph, chosen, costs)
    return chosen, _told(slow, explain(graph, plans, chosen, misses))


def _timed(
    graph: Graph, regions: list[Region], costs: CostTable | None
) -> tuple[list[Region], dict[Region, Slower]]:
    """The regions that are no slower than their layers, and how the others are."""
    slow: dict[Region, Slower] = {}
    if costs is None:
        return regions, slow
    for region in regions:
        try:
            value = planned(graph, region)
        except NotFusable:  # which is told where it is fused
            continue
        why = slower_region(graph, region.output, region.steps, value, costs)
        if why is not None:
            slow[region] = why
    return [region for region in regions if region not in slow], slow


def _told(slow: Mapping[Region, Slower], misses: Sequence[Miss]) -> list[Miss]:
    """Why regions were left: because they are slower, or for what else was found of them."""
    steps = frozenset[str]().union(*(region.steps for region in slow))
    own = [Miss(region.output, Reason.SLOWER, str(why)) for region, why in slow.items()]
    return [*own, *(miss for miss in misses if miss.value not in steps)]


def _goes_beside(region: Region, parts: frozenset[str]) -> bool:
    """Whether what went around something goes beside it now, and costs less there."""
    before, after = region.multiply_adds
    (old, new), taken = region.convolutions, parts & (region.steps - {region.output})
    return bool(taken) and 1 < new == old and after < before


def _takes_up(graph: Graph, region: Region) -> bool:
    """Whether a region is more than a convolution and what moves its pixels."""
    rules = [graph.by_value[value].rule for value in region.steps]
    layers = [rule.layer for rule in rules if isinstance(rule, ConvStep)]
    return len(layers) > 1 or not all(isinstance(rule, ConvStep | Moved) for rule in rules)


def _takes_part(parts: Sequence[Step], regions: Sequence[Region]) -> bool:
    """Whether some part of a layer has become part of a block."""
    within = [r for r in regions for part in parts if part.value in r.steps - {r.output}]
    return any(region.is_block for region in within)


def _other_parts(
    graph: Graph, parts: frozenset[str], regions: Sequence[Region]
) -> Iterator[Region]:
    """The parts of layers that no region takes up, each of which is a layer now."""
    left = parts.difference(*(region.steps for region in regions))
    for step in graph.steps:
        if step.value in left:
            read = [LinearCombination({source: IDENTITY}) for source in step.reads]
            own = Combiner(graph).apply(step.rule, read)
            yield _region(graph, step.value, Option(own, {}))


def _chosen(
    graph: Graph, *, folds: bool, parts: frozenset[str] = frozenset()
) -> tuple[list[Region], dict[str, Plan], dict[str, Miss]]:
    """The regions, the plans that they are from, and what was refused.

    One that takes up some `parts` of layers is a block if it multiplies less, of as many layers.
    """
    kept: frozenset[str] = frozenset()
    while True:
        plans, misses = plans_of(graph, kept)
        regions, computed = _read_off(graph, plans, kept)
        twice = _computed_twice(regions, computed) - kept
        if not twice:
            break
        # What leads to a value that is kept for all its readers may still be absorbed with it.
        readers = graph.readers
        kept |= {v for v in twice if not any(r.value in twice for r in readers.get(v, []))}
    regions = [replace(r, is_block=r.is_block or _goes_beside(r, parts)) for r in regions]
    chosen = [r for r in regions if r.is_block or (folds and not r.adds and _takes_up(graph, r))]
    return chosen, plans, misses


def lone_chains(graph: Graph, costs: CostTable | None = None) -> Iterator[Region]:
    """All that leads to a value, last value first, where it is one convolution and no sum.

    To make one layer of it saves none, so that none is chosen: whoever knows what it is asks.
    """
    plans, _ = plans_of(graph, frozenset())
    for step in reversed(graph.steps):
        full = plans[step.value].full
        if full.stands or len(full.value) != 1 or isinstance(step.rule, Opaque):
            continue
        region = replace(_region(graph, step.value, full), is_block=True)
        if region.convolutions == (1, 1) and not _timed(graph, [region], costs)[1]:
            yield region


def planned(graph: Graph, region: Region) -> LinearCombination:
    """What `kernels` gives, on shapes alone. Raises NotFusable if it does."""
    return _combined(graph, region, None)


def kernels(graph: Graph, region: Region) -> dict[str, Value | Identity]:
    """The convolution of each source, in float64 (`IDENTITY` where the source is added as is).

    One bias is enough: the first convolution has it.
    """
    value = _combined(graph, region, graph.device)
    terms = {s: t for s, t in value.items() if not isinstance(t, Planned)}
    solid = {s: t for s, t in terms.items() if isinstance(t, Value)}
    if len(solid) < 2:
        return terms
    bias = torch.stack([t.bias for t in solid.values()]).sum(0)
    first, *others = solid
    terms[first] = solid[first].without_shift().affine(1.0, bias)
    return terms | {s: solid[s].without_shift() for s in others}


def kernel_of(graph: Graph, region: Region, source: str) -> Value:
    """That of one source, which is not added as it is."""
    value = kernels(graph, region)[source]
    assert isinstance(value, Value)
    return value


def _combined(graph: Graph, region: Region, at: torch.device | None) -> LinearCombination:
    bound = {source: LinearCombination({source: IDENTITY}) for source in region.sources}
    return Combiner(graph, at).of(graph, region.output, bound)


def as_layer(graph: Graph) -> LinearSubmodule | None:
    """The whole graph as one linear rule, if its output is a sum of convolutions of its inputs."""
    if graph.output is None or graph.output in graph.inputs:
        return None
    # Pads, crops and factors tell no width of what they read: it is planned as if it were that of
    # what they make, or one channel. What is done with real values is decided where they are.
    known = next((channels for channels, _ in graph.widths.values()), 1)
    plan = plans_of(replace(graph, assumed=known), frozenset())[0][graph.output]
    inputs = frozenset(graph.inputs)
    if not inputs >= set(plan.full.value):
        return None
    solid = [t for t in plan.full.value.values() if isinstance(t, Planned)]
    return LinearSubmodule(
        graph,
        cost=Fraction(plan.best.price[0]),
        pixels=max((t.pixels for t in solid), default=Fraction(1)) * plan.full.value.pixels,
        weights=plan.best.weights,
        has_convolution=any(s.is_convolution for s in graph.absorbed(graph.output, inputs)),
    )


def _read_off(
    graph: Graph, plans: Mapping[str, Plan], kept: frozenset[str]
) -> tuple[list[Region], set[str]]:
    """The regions that the plans chose, and every value that is still computed."""
    roots = roots_of(graph, kept)
    regions: list[Region] = []
    computed: set[str] = set()
    wanted = [s.value for s in graph.steps if roots[s.value] == s.value]
    while wanted:
        value = wanted.pop()
        if value in computed or value in graph.inputs:
            continue
        computed.add(value)
        step, best = graph.by_value[value], plans[value].best
        if isinstance(step.rule, Opaque) or best.stands:
            wanted.extend(step.reads)
            continue
        regions.append(_region(graph, value, best))
        wanted.extend(best.value)
    return regions, computed


def _region(graph: Graph, output: str, option: Option) -> Region:
    steps = [*graph.absorbed(output, frozenset(option.value))]
    solid = sum(not isinstance(term, Identity) for term in option.value.values())
    before = sum(step.is_convolution for step in steps)
    cost, _, weights = cost_of(option.value)
    added = sum(len(s.rule.signs) - 1 for s in steps if isinstance(s.rule, Sum))
    saves = before > solid or (0 < before == solid and added > len(option.value) - 1)
    return Region(
        output,
        tuple(option.value),
        frozenset(step.value for step in steps),
        is_block=saves,
        convolutions=(sum(map(_convolutions, steps)), solid),
        multiply_adds=(ceil(sum(map(_multiply_adds, steps))), ceil(cost)),
        weights=weights,
    )


def _convolutions(step: Step) -> int:
    """How many convolution layers a step is."""
    match step.rule:
        case ConvStep(layer):
            return int(isinstance(layer, Conv))
        case LinearSubmodule(graph):
            return sum(map(_convolutions, graph.steps))
    return 0


def _multiply_adds(step: Step) -> Number:
    """What the layers of a step cost, per pixel of what each of them makes."""
    match step.rule:
        case ConvStep(layer):
            return layer.multiply_adds
        case PerChannel(by):
            return by.multiply_adds
        case LinearSubmodule(graph):
            return sum(map(_multiply_adds, graph.steps))
    return 0


def _computed_twice(regions: list[Region], computed: set[str]) -> frozenset[str]:
    """Values inside a region that another region or a kept step computes as well."""
    twice: set[str] = set()
    seen = set(computed)
    for region in regions:
        inner = region.steps - {region.output}
        twice |= inner & seen
        seen |= inner
    return frozenset(twice)
