"""Which values one convolution can make, and where that is worth it. Plans on shapes only.

Every value gets its ways to be had: computed as it stands, or as a sum of convolutions of values
before it. Ways are costed in multiply-adds per pixel; the cheapest wins, the one with fewer
operations among equals. From the values that something else needs, the chosen ways are read off:
each is a `Region`. No kernel is multiplied here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import torch

from acfuse.algebra import Conv, Geometry, LinearConv, Pad
from acfuse.errors import NotFusable, Reason
from acfuse.graph.steps import (
    IDENTITY,
    ChannelSlice,
    Concat,
    ConvStep,
    Graph,
    Identity,
    LinearCombination,
    LinearSubmodule,
    Opaque,
    PerChannel,
    Rule,
    Step,
    Sum,
    apply,
    combination_of,
    geometry_of,
)


@dataclass(frozen=True)
class Region:
    """The steps that make `output` from `sources`: to be one convolution of each source.

    A region that saves a convolution or an addition of branches is a block; any other is a fold
    (a BatchNorm, a factor or a pad that a convolution next to it takes up).
    """

    output: str
    sources: tuple[str, ...]
    steps: frozenset[str]
    is_block: bool
    convolutions: tuple[int, int]
    multiply_adds: tuple[int, int]


@dataclass(frozen=True)
class Miss:
    """A candidate that was looked at and not fused."""

    value: str
    code: Reason
    why: str


@dataclass(frozen=True)
class _Way:
    """One way to have a value: a form, and what has to be computed for it besides.

    `made` maps each further value to its (multiply-adds per pixel of this value, operations).
    `stands` says that the step itself is kept.
    """

    form: LinearCombination
    made: Mapping[str, tuple[int, int]]
    stands: bool = False
    own: tuple[int, int] = (0, 0)

    @property
    def price(self) -> tuple[int, int, bool]:
        cost, operations = self.own
        return (
            cost + sum(c for c, _ in self.made.values()),
            operations + sum(n for _, n in self.made.values()),
            not self.stands,
        )


@dataclass(frozen=True)
class _Plan:
    full: _Way  # expanded as far back as the algebra allows
    parts: tuple[_Way, ...]  # expanded less far, the cheapest few, no two from the same values
    best: _Way  # the cheapest, or the step as it stands
    unit: _Way  # the value computed for itself, and then read


def choose(graph: Graph, *, folds: bool = False) -> tuple[list[Region], list[Miss]]:
    """The regions of a graph, last value first, and the candidates that were left, with reasons.

    With `folds`, regions that only take up a BatchNorm or factor are chosen as well.
    """
    kept: frozenset[str] = frozenset()
    while True:
        plans, misses = _plan(graph, kept)
        regions, computed = _read_off(graph, plans, kept)
        twice = _computed_twice(regions, computed) - kept
        if not twice:
            break
        # What leads to a value that is kept for all its readers may still be swallowed with it.
        readers = graph.readers
        kept |= {v for v in twice if not any(r.value in twice for r in readers.get(v, []))}
    chosen = [region for region in regions if region.is_block or folds]
    return chosen, [*_explain(graph, plans, chosen, misses)]


def planned(graph: Graph, region: Region) -> LinearCombination:
    """What `kernels` gives, on shapes alone. Raises NotFusable if it does."""
    bound: dict[str, LinearCombination] = {source: {source: IDENTITY} for source in region.sources}
    return combination_of(graph, region.output, bound, numbers=False)


def kernels(graph: Graph, region: Region) -> dict[str, LinearConv | Identity]:
    """The convolution of each source, in float64 (`IDENTITY` where the source is added as is).

    One bias is enough: the first convolution has it.
    """
    bound: dict[str, LinearCombination] = {source: {source: IDENTITY} for source in region.sources}
    form = combination_of(graph, region.output, bound, numbers=True)
    terms = {s: t for s, t in form.items() if not isinstance(t, Geometry)}
    solid = {s: t for s, t in terms.items() if isinstance(t, LinearConv)}
    if len(solid) < 2:
        return terms
    bias = torch.stack([t.bias for t in solid.values()]).sum(0)
    first, *others = solid
    terms[first] = solid[first].without_shift().affine(1.0, bias)
    return terms | {s: solid[s].without_shift() for s in others}


def as_layer(graph: Graph) -> LinearSubmodule | None:
    """The whole graph as one linear rule, if its output is a sum of convolutions of its inputs."""
    if graph.output is None or graph.output in graph.inputs:
        return None
    # Pads, crops and factors tell no width of what they read: it is planned as if it were that of
    # what they make, or one channel. What is done with real values is decided where they are.
    known = next((channels for channels, _ in graph.widths.values()), 1)
    plan = _plan(replace(graph, assumed=known), frozenset())[0][graph.output]
    inputs = frozenset(graph.inputs)
    if not inputs >= set(plan.full.form):
        return None
    solid = [t for t in plan.full.form.values() if isinstance(t, Geometry)]
    return LinearSubmodule(
        graph,
        cost=plan.best.price[0],
        pixels=max((prod(t.stride) for t in solid), default=1),
        has_convolution=any(map(_is_convolution, graph.absorbed(graph.output, inputs))),
    )


def _roots(graph: Graph, kept: frozenset[str]) -> dict[str, str]:
    """For each value, the last one that all its readers lead to (itself if needed as such)."""
    root: dict[str, str] = {}
    for step in reversed(graph.steps):
        value = step.value
        readers = graph.readers.get(value, [])
        ends = {r.value if isinstance(r.rule, Opaque) else root[r.value] for r in readers}
        opaque = any(isinstance(r.rule, Opaque) for r in readers)
        alone = len(ends) == 1 and not opaque
        if alone and value not in graph.outputs and value not in kept:
            root[value] = ends.pop()
        else:
            root[value] = value
    return root


def _plan(graph: Graph, kept: frozenset[str]) -> tuple[dict[str, _Plan], dict[str, Miss]]:
    roots = _roots(graph, kept)
    plans: dict[str, _Plan] = {}
    misses: dict[str, Miss] = {}
    for value in graph.inputs:
        plans[value] = _given(value)
    for step in graph.steps:
        if isinstance(step.rule, Opaque):
            plans[step.value] = _given(step.value)
            continue
        mutated = [v for v in step.reads if v in graph.mutated]
        if mutated:
            misses[step.value] = Miss(
                step.value, Reason.IN_PLACE, f"{mutated[0]} is overwritten in place"
            )
            plans[step.value] = _given(step.value)
            continue
        options = [_options(plans[v], expandable=roots.get(v, v) != v) for v in step.reads]
        plan, miss = _plan_step(graph, step, options)
        if len(plan.unit.made) > LONGEST:  # what is behind it begins anew
            why = f"more than {LONGEST:,} linear steps are in a row"
            plan, miss = _given(step.value), Miss(step.value, Reason.COST, why)
        plans[step.value] = plan
        if miss:
            misses[step.value] = miss
    return plans, misses


LONGEST = 1_000  # steps that are planned as one; the longest of a network has a few dozen


def _given(value: str) -> _Plan:
    way = _Way({value: IDENTITY}, {}, stands=True)
    return _Plan(way, (), way, way)


def _options(plan: _Plan, *, expandable: bool) -> list[_Way]:
    """The ways in which a reader may take a value: the fullest first, by itself last."""
    (source,) = plan.unit.form
    if not expandable:
        return [_Way({source: IDENTITY}, {})]
    options = [plan.full, *plan.parts]
    if set(plan.full.form) != {source}:
        options.append(plan.unit)
    return options


def _plan_step(graph: Graph, step: Step, options: list[list[_Way]]) -> tuple[_Plan, Miss | None]:
    ways: list[_Way] = []
    miss = None
    for taken in _combinations(options):
        try:
            ways.append(_way(graph, step.rule, taken))
        except NotFusable as refusal:
            miss = miss or Miss(step.value, refusal.code, refusal.why)
    stands = _standing(step, [o[-1] for o in options])
    best = min((*ways, stands), key=lambda way: way.price)
    cost, operations, _ = best.price
    own = (
        cost - sum(c for c, _ in best.made.values()),
        operations - sum(n for _, n in best.made.values()),
    )
    unit = _Way({step.value: IDENTITY}, {**best.made, step.value: own}, stands=True)
    full = ways[0] if ways else unit
    return _Plan(
        full, _parts(ways, {frozenset(full.form), frozenset({step.value})}), best, unit
    ), miss


def _parts(ways: list[_Way], known: set[frozenset[str]]) -> tuple[_Way, ...]:
    """The cheapest ways to make a value from other values than the known ones."""
    parts: list[_Way] = []
    for way in sorted(ways, key=lambda way: (way.price, len(way.form))):
        if frozenset(way.form) not in known and len(parts) < PARTS:
            known.add(frozenset(way.form))
            parts.append(way)
    return tuple(parts)


PARTS = 3


def _combinations(options: list[list[_Way]]) -> Iterable[tuple[_Way, ...]]:
    """Every choice of ways for a few reads; only the uniform ones for many."""
    if len(options) <= 3:
        return product(*options)
    longest = max(len(o) for o in options)
    return (tuple(o[min(i, len(o) - 1)] for o in options) for i in range(longest))


def _way(graph: Graph, rule: Rule, taken: tuple[_Way, ...]) -> _Way:
    form = apply(graph, rule, [way.form for way in taken], numbers=False)
    per_pixel = _pixels(rule)
    made: dict[str, tuple[int, int]] = {}
    for way in taken:
        for value, (cost, operations) in way.made.items():
            made[value] = (cost * per_pixel, operations)
    return _Way(form, made, own=_form_price(form))


def _form_price(form: LinearCombination) -> tuple[int, int]:
    """(multiply-adds per pixel, operations) of the convolutions of a form and their additions."""
    solid = [term for term in form.values() if not isinstance(term, Identity)]
    operations = CONVOLUTION * len(solid) + len(form) - 1
    return sum(geometry_of(t).multiply_adds for t in solid), operations


CONVOLUTION = 4  # so many operations: no factor or sum is worth a further convolution


def _pixels(rule: Rule) -> int:
    """How many pixels of what it reads a rule takes for one pixel of what it makes."""
    match rule:
        case ConvStep(layer):
            return prod(layer.geometry.stride)
        case LinearSubmodule():
            return rule.pixels
    return 1


def _standing(step: Step, units: list[_Way]) -> _Way:
    """The step kept as it is, with everything that it reads."""
    per_pixel = _pixels(step.rule)
    made = {
        value: (cost * per_pixel, operations)
        for way in units
        for value, (cost, operations) in way.made.items()
    }
    match step.rule:
        case ConvStep(layer):
            own = (layer.multiply_adds, 1 if isinstance(layer, Pad) else CONVOLUTION)
        case PerChannel(by):
            own = (by.multiply_adds, 1)
        case Sum(signs):
            own = (0, len(signs) - 1)
        case LinearSubmodule(_, cost):
            own = (cost, CONVOLUTION)
        case Concat() | ChannelSlice():
            own = (0, 1)
        case Opaque():
            own = (0, 0)
    return _Way({step.value: IDENTITY}, made, stands=True, own=own)


def _read_off(
    graph: Graph, plans: Mapping[str, _Plan], kept: frozenset[str]
) -> tuple[list[Region], set[str]]:
    """The regions that the plans chose, and every value that is still computed."""
    roots = _roots(graph, kept)
    regions: list[Region] = []
    computed: set[str] = set()
    wanted = [s.value for s in graph.steps if roots[s.value] == s.value]
    while wanted:
        value = wanted.pop()
        if value in computed or value in graph.inputs:
            continue
        computed.add(value)
        step, plan = graph.by_value[value], plans[value]
        if isinstance(step.rule, Opaque) or plan.best.stands:
            wanted.extend(step.reads)
            continue
        regions.append(_region(graph, value, plan.best))
        wanted.extend(plan.best.form)
    return regions, computed


def _region(graph: Graph, output: str, way: _Way) -> Region:
    steps = [*graph.absorbed(output, frozenset(way.form))]
    solid = sum(not isinstance(term, Identity) for term in way.form.values())
    before = sum(map(_is_convolution, steps))
    added = sum(len(s.rule.signs) - 1 for s in steps if isinstance(s.rule, Sum))
    saves = before > solid or (0 < before == solid and added > len(way.form) - 1)
    return Region(
        output,
        tuple(way.form),
        frozenset(step.value for step in steps),
        is_block=saves,
        convolutions=(sum(_count(s) for s in steps), solid),
        multiply_adds=(sum(_cost(s) for s in steps), _form_price(way.form)[0]),
    )


def _is_convolution(step: Step) -> bool:
    """Whether a step is, or holds, a convolution or a pool (a pad costs nothing and is neither)."""
    match step.rule:
        case ConvStep(layer):
            return not isinstance(layer, Pad)
        case LinearSubmodule():
            return step.rule.has_convolution
    return False


def _count(step: Step) -> int:
    match step.rule:
        case ConvStep(layer):
            return int(isinstance(layer, Conv))
        case LinearSubmodule(graph):
            return sum(_count(s) for s in graph.steps)
    return 0


def _cost(step: Step) -> int:
    match step.rule:
        case ConvStep(layer):
            return layer.multiply_adds
        case PerChannel(by):
            return by.multiply_adds
        case LinearSubmodule(graph):
            return sum(_cost(s) for s in graph.steps)
    return 0


def _computed_twice(regions: list[Region], computed: set[str]) -> frozenset[str]:
    """Values inside a region that another region or a kept step computes as well."""
    inner = [region.steps - {region.output} for region in regions]
    twice: set[str] = set()
    seen: set[str] = set()
    for steps in inner:
        twice |= steps & (computed | seen)
        seen |= steps
    return frozenset(twice)


def _explain(
    graph: Graph, plans: Mapping[str, _Plan], chosen: list[Region], misses: Mapping[str, Miss]
) -> Iterator[Miss]:
    """Why each remaining sum, chain or concatenation of convolutions was left as it is."""
    fused = frozenset().union(*(region.steps for region in chosen))
    made = frozenset(region.output for region in chosen)
    arms, beyond = _arms(graph, made), _arms(graph, made, beyond_roots=True)
    for region in chosen:
        yield from _explain_rest(graph, plans, misses, arms, chosen, region)
    for step in graph.steps:
        if step.value in fused:
            continue
        reads = [arms[v] for v in step.reads]
        if step.value in misses:
            if any(arm.convolves for arm in reads):
                yield misses[step.value]
        elif isinstance(step.rule, Opaque):
            if step.rule.code == Reason.CONCATENATED and _same_source(reads):
                yield Miss(step.value, Reason.CONCATENATED, step.rule.why)
        elif isinstance(step.rule, Concat):
            if _same_source(reads):
                dear = [m.why for m in _explain_cost(plans[step.value], step.value)]
                text = "; ".join(["the arms are concatenated, not added", *dear])
                yield Miss(step.value, Reason.CONCATENATED, text)
        elif isinstance(step.rule, Sum):
            readers = graph.readers.get(step.value, [])
            if not any(isinstance(r.rule, Sum) and r.value not in fused for r in readers):
                why = [*_explain_sum(graph, plans, misses, arms, made, step)]
                yield from why or _explain_shared(graph, beyond, step)
        elif isinstance(step.rule, ConvStep | LinearSubmodule) and any(
            arm.convolves for arm in reads
        ):
            yield from _explain_cost(plans[step.value], step.value)


@dataclass(frozen=True)
class _Arm:
    """What leads to a value: where its linear steps begin, and if one of them is a convolution.

    `behind` is the obstacle at which they begin, if only this arm reads what is behind it and a
    convolution is there, or something that would be one with other settings.
    """

    sources: frozenset[str]
    convolves: bool = False
    behind: Opaque | None = None

    @property
    def is_branch(self) -> bool:
        return self.convolves or self.behind is not None


def _arms(
    graph: Graph, made: frozenset[str] = frozenset(), *, beyond_roots: bool = False
) -> dict[str, _Arm]:
    """The arm behind each value; up to what something else needs as well, or beyond that.

    What is `made` by a region is no arm any more, but a beginning.
    """
    roots = _roots(graph, frozenset())
    opaque = {step.value for step in graph.steps if isinstance(step.rule, Opaque)}
    arms = {value: _Arm(frozenset({value})) for value in graph.inputs}
    for step in graph.steps:
        reads = [arms[v] for v in step.reads]
        if step.value in made:
            arms[step.value] = _Arm(frozenset({step.value}))
            continue
        if isinstance(step.rule, Opaque):
            obstacle = (
                step.rule.holds_convolution
                or step.rule.code not in (Reason.ACTIVATION, Reason.CONCATENATED)
                or any(arm.is_branch for arm in reads)
            )
            alone = len(graph.readers.get(step.value, [])) == 1
            behind = step.rule if obstacle and alone else None
            arms[step.value] = _Arm(frozenset({step.value}), behind=behind)
            continue
        sources: set[str] = set()
        for value, arm in zip(step.reads, reads, strict=True):
            ends = not beyond_roots and roots.get(value, value) == value
            sources |= {value} if ends else arm.sources
        inner = [arms[v] for v in step.reads if beyond_roots or roots.get(v, v) != v]
        begins = [arms[v] for v in step.reads if v in opaque]
        arms[step.value] = _Arm(
            frozenset(sources),
            _is_convolution(step) or any(arm.convolves for arm in inner),
            next((arm.behind for arm in (*inner, *begins) if arm.behind), None),
        )
    return arms


def _same_source(arms: list[_Arm]) -> bool:
    branches = [arm for arm in arms if arm.convolves]
    return len(branches) > 1 and bool(frozenset.intersection(*(b.sources for b in branches)))


def _explain_sum(
    graph: Graph,
    plans: Mapping[str, _Plan],
    misses: Mapping[str, Miss],
    arms: Mapping[str, _Arm],
    made: frozenset[str],
    step: Step,
) -> Iterator[Miss]:
    """A sum of branches that stays: too dear, behind an obstacle, or of different inputs."""
    summands = [*_summands(graph, arms, step)]
    branches = [arm for arm in summands if arm.is_branch]
    is_rest = any(arm.sources <= made for arm in summands)  # the others were fused
    if len(branches) < (1 if is_rest else 2):
        return
    cost = [*_explain_cost(plans[step.value], step.value)]
    obstacle = next((arm.behind for arm in branches if arm.behind), None)
    sources = frozenset().union(*(arm.sources for arm in branches))
    within = (s.value for s in graph.absorbed(step.value, sources | {*graph.inputs}))
    missed = next((misses[value] for value in within if value in misses), None)
    if cost:
        yield from cost
    elif obstacle is not None:
        yield Miss(step.value, obstacle.code, obstacle.why)
    elif is_rest:
        return
    elif len(sources) > 1:
        between = _between(graph, sources)
        why = f"the arms read different inputs ({' and '.join(sorted(sources))})"
        yield Miss(step.value, *(between or (Reason.INPUTS, why)))
    elif missed is not None:
        yield Miss(step.value, missed.code, missed.why)


def _explain_rest(
    graph: Graph,
    plans: Mapping[str, _Plan],
    misses: Mapping[str, Miss],
    arms: Mapping[str, _Arm],
    chosen: Sequence[Region],
    region: Region,
) -> Iterator[Miss]:
    """A region that adds some of its branches: the others are too dear, or cannot be added."""
    within = [step for step in graph.steps if step.value in region.steps]
    read = {v: arms[v].sources for v in region.sources if arms[v].convolves}
    read |= {r.output: frozenset(r.sources) for r in chosen if r.output in region.sources}
    if any(not begins.isdisjoint(region.sources) for begins in read.values()):
        missed = [misses[step.value] for step in within if step.value in misses]
        cost = [*_explain_cost(plans[region.output], region.output)]
        yield from cost or (Miss(region.output, m.code, m.why) for m in missed[:1])
    added = {v for step in within if isinstance(step.rule, Sum) for v in step.reads}
    behind = [arms[v].behind for v in region.sources if v in added and arms[v].sources == {v}]
    obstacle = next((rule for rule in behind if rule is not None), None)
    if region.is_block and obstacle is not None:
        yield Miss(region.output, obstacle.code, obstacle.why)


def _between(graph: Graph, sources: frozenset[str]) -> tuple[Reason, str] | None:
    """What stands between two sources, if one is made from the other."""
    for source in sorted(sources):
        step = graph.by_value.get(source)
        while step is not None and isinstance(step.rule, Opaque):
            if not sources.isdisjoint(step.reads):
                return step.rule.code, step.rule.why
            step = graph.by_value.get(step.reads[0]) if step.reads else None
    return None


def _explain_shared(graph: Graph, beyond: Mapping[str, _Arm], step: Step) -> Iterator[Miss]:
    """A sum that would be one of branches, were it not that something else needs one of them."""
    branches = [arm for arm in _summands(graph, beyond, step) if arm.convolves]
    if not _same_source(branches):
        return
    for value in step.reads:
        others = [r for r in graph.readers.get(value, []) if r is not step]
        if beyond[value].convolves and (others or value in graph.outputs):
            user = others[0].value if others else "what the forward returns"
            yield Miss(step.value, Reason.SHARED, f"{value} is also used by {user}")
            return


def _summands(graph: Graph, arms: Mapping[str, _Arm], step: Step) -> Iterator[_Arm]:
    """The arms of a sum of sums."""
    for value in step.reads:
        inner = graph.by_value.get(value)
        if inner is not None and isinstance(inner.rule, Sum) and arms[value].sources != {value}:
            yield from _summands(graph, arms, inner)
        else:
            yield arms[value]


def _explain_cost(plan: _Plan, value: str) -> Iterator[Miss]:
    """Where one convolution for all of it would cost more than what was chosen."""
    full, best = plan.full.price[0], plan.best.price[0]
    if not plan.full.stands and full > best > 0:
        yield Miss(value, Reason.COST, f"fusing would cost {full / best:.1f}x more multiply-adds")
