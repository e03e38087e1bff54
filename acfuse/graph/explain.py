"""Why what looked like branches of one sum was not fused.

An arm is what leads to a value: the linear steps back to where they begin. Two arms that begin at
the same value, with a convolution each, are branches, and a reader wants to know why they stay.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from acfuse.errors import Reason
from acfuse.graph.plans import Plan, roots_of
from acfuse.graph.steps import (
    Concat,
    ConvStep,
    Graph,
    LinearSubmodule,
    Miss,
    Opaque,
    Region,
    Step,
    Sum,
)


def explain(
    graph: Graph, plans: Mapping[str, Plan], regions: Sequence[Region], refused: Mapping[str, Miss]
) -> list[Miss]:
    """Why each remaining sum, chain or concatenation of convolutions was left as it is.

    `refused` says of each value that the algebra could not make why that is.
    """
    return [*_Explainer(graph, plans, regions, refused).misses()]


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


def _same_source(arms: Sequence[_Arm]) -> bool:
    branches = [arm for arm in arms if arm.convolves]
    return len(branches) > 1 and bool(frozenset.intersection(*(b.sources for b in branches)))


class _Explainer:
    def __init__(
        self,
        graph: Graph,
        plans: Mapping[str, Plan],
        regions: Sequence[Region],
        refused: Mapping[str, Miss],
    ) -> None:
        self.graph, self.plans, self.regions, self.refused = graph, plans, regions, refused
        self.made = frozenset(region.output for region in regions)
        self.fused = frozenset().union(*(region.steps for region in regions))

    def misses(self) -> Iterator[Miss]:
        """The reasons, region by region and step by step."""
        for region in self.regions:
            yield from self._rest(region)
        for step in self.graph.steps:
            miss = None if step.value in self.fused else self._left(step)
            if miss is not None:
                yield miss

    @cached_property
    def arms(self) -> dict[str, _Arm]:
        """The arm behind each value, up to what something else needs as well."""
        return self._arms(beyond_roots=False)

    @cached_property
    def beyond(self) -> dict[str, _Arm]:
        """The arm behind each value, as if nothing else needed what is inside of it."""
        return self._arms(beyond_roots=True)

    def _arms(self, *, beyond_roots: bool) -> dict[str, _Arm]:
        """What is made by a region is no arm any more, but a beginning."""
        graph, roots = self.graph, roots_of(self.graph, frozenset())
        opaque = {step.value for step in graph.steps if isinstance(step.rule, Opaque)}
        arms = {value: _Arm(frozenset({value})) for value in graph.inputs}
        for step in graph.steps:
            own = frozenset({step.value})
            if step.value in self.made:
                arms[step.value] = _Arm(own)
                continue
            if isinstance(step.rule, Opaque):
                obstacle = (
                    step.rule.holds_convolution
                    or step.rule.code not in (Reason.ACTIVATION, Reason.CONCATENATED)
                    or any(arms[v].is_branch for v in step.reads)
                )
                alone = len(graph.readers.get(step.value, [])) == 1
                arms[step.value] = _Arm(own, behind=step.rule if obstacle and alone else None)
                continue
            inner = [v for v in step.reads if beyond_roots or roots.get(v, v) != v]
            begins = [v for v in step.reads if v not in inner]
            behind = (arms[v].behind for v in (*inner, *(v for v in begins if v in opaque)))
            arms[step.value] = _Arm(
                frozenset(begins).union(*(arms[v].sources for v in inner)),
                step.is_convolution or any(arms[v].convolves for v in inner),
                next(filter(None, behind), None),
            )
        return arms

    def _left(self, step: Step) -> Miss | None:
        """Why a step is not fused, where that is a question."""
        value, reads = step.value, [self.arms[v] for v in step.reads]
        convolves = any(arm.convolves for arm in reads)
        if value in self.refused:
            return self.refused[value] if convolves else None
        match step.rule:
            case Opaque(why, Reason.CONCATENATED) if _same_source(reads):
                return Miss(value, Reason.CONCATENATED, why)
            case Opaque(why, Reason.UNKNOWN_LAYER) if sum(arm.is_branch for arm in reads) > 1:
                return Miss(value, Reason.UNKNOWN_LAYER, why)
            case Concat() if _same_source(reads):
                dear = self._cost(value)
                why = "the arms are concatenated, not added" + (f"; {dear.why}" if dear else "")
                return Miss(value, Reason.CONCATENATED, why)
            case Sum():
                readers = self.graph.readers.get(value, [])
                if not any(isinstance(r.rule, Sum) and r.value not in self.fused for r in readers):
                    return self._sum(step) or self._shared(step)
            case ConvStep() | LinearSubmodule() if convolves:
                return self._cost(value) or self._growth(value)
        return None

    def _cost(self, value: str) -> Miss | None:
        """Where one convolution for all of it would cost more than what was chosen."""
        plan = self.plans[value]
        full, best = plan.full.price[0], plan.best.price[0]
        if plan.full.stands or not full > best > 0:
            return None
        return Miss(
            value, Reason.COST, f"fusing would cost {float(full / best):.1f}x more multiply-adds"
        )

    def _growth(self, value: str) -> Miss | None:
        """Where one convolution for all of it would store more than what was chosen."""
        plan = self.plans[value]
        more = plan.full.weights - plan.best.weights
        if plan.full.stands or plan.best.weights == 0 or more <= 0:
            return None
        return Miss(value, Reason.COST, f"fusing would store {more:,} more weights")

    def _sum(self, step: Step) -> Miss | None:
        """A sum of branches that stays: too dear, behind an obstacle, or of different inputs."""
        values = [*self._summands(self.arms, step)]
        summands = [self.arms[value] for value in values]
        beside = {v for v in values if self.arms[v].behind and self._is_beside(v, values)}
        branches = [
            arm
            for v, arm in zip(values, summands, strict=True)
            if (v in beside if arm.behind else arm.convolves)
        ]
        is_rest = any(arm.sources <= self.made for arm in summands)  # the others were fused
        if len(branches) < (1 if is_rest else 2):
            return None
        cost = self._cost(step.value)
        obstacle = next((arm.behind for arm in branches if arm.behind), None)
        if cost is not None:
            return cost
        if obstacle is not None:
            return Miss(step.value, obstacle.code, obstacle.why)
        if is_rest:
            return None
        sources = frozenset().union(*(arm.sources for arm in branches))
        if len(sources) > 1:
            why = f"the arms read different inputs ({' and '.join(sorted(sources))})"
            return Miss(step.value, *(self._between(sources) or (Reason.INPUTS, why)))
        within = self.graph.absorbed(step.value, sources | {*self.graph.inputs})
        missed = next((self.refused[s.value] for s in within if s.value in self.refused), None)
        reason = missed or self._growth(step.value)
        return reason and Miss(step.value, reason.code, reason.why)

    def _rest(self, region: Region) -> Iterator[Miss]:
        """A region that adds some of its branches: the others are too dear, or cannot be added."""
        within = [step for step in self.graph.steps if step.value in region.steps]
        arms = {v: self.arms[v] for v in region.sources}
        read = [arm.sources for arm in arms.values() if arm.convolves]
        read += [frozenset(r.sources) for r in self.regions if r.output in region.sources]
        if any(not begins.isdisjoint(region.sources) for begins in read):
            missed = next((self.refused[s.value] for s in within if s.value in self.refused), None)
            why = self._cost(region.output) or missed
            if why is not None:
                yield Miss(region.output, why.code, why.why)
        added = {v for step in within if isinstance(step.rule, Sum) for v in step.reads}
        behind = (a.behind for v, a in arms.items() if v in added and a.sources == {v})
        obstacle = next(filter(None, behind), None)
        if region.is_block and obstacle is not None:
            yield Miss(region.output, obstacle.code, obstacle.why)

    def _shared(self, step: Step) -> Miss | None:
        """A sum that would be one of branches, were it not that something else needs one."""
        if not _same_source([self.beyond[v] for v in self._summands(self.beyond, step)]):
            return None
        for value in step.reads:
            others = [r for r in self.graph.readers.get(value, []) if r is not step]
            if self.beyond[value].convolves and (others or value in self.graph.outputs):
                user = others[0].value if others else "what the forward returns"
                return Miss(step.value, Reason.SHARED, f"{value} is also used by {user}")
        return None

    def _is_beside(self, value: str, values: Sequence[str]) -> bool:
        """Whether another branch of a sum stands beside a value, and not before or behind it.

        What is added to its own input, as the body of a residual block is, is no branch of it.
        """
        others = (v for v in values if self.arms[v].is_branch or self.arms[v].sources <= self.made)
        before = self._before(value)
        return any(v not in before and value not in self._before(v) for v in others)

    def _before(self, value: str) -> frozenset[str]:
        """The values of which one is made, itself included."""
        return frozenset(s.value for s in self.graph.absorbed(value, frozenset(self.graph.inputs)))

    def _summands(self, arms: Mapping[str, _Arm], step: Step) -> Iterator[str]:
        """What a sum of sums adds. Of a sum that is added many times, two count as many."""
        visits: Counter[str] = Counter()
        pending = [*reversed(step.reads)]
        while pending:
            value = pending.pop()
            inner = self.graph.by_value.get(value)
            if inner is None or not isinstance(inner.rule, Sum) or arms[value].sources == {value}:
                yield value
            elif visits[value] < 2:
                visits[value] += 1
                pending += reversed(inner.reads)

    def _between(self, sources: frozenset[str]) -> tuple[Reason, str] | None:
        """What stands between two sources, if one is made from the other."""
        for source in sorted(sources):
            step = self.graph.by_value.get(source)
            while step is not None and isinstance(step.rule, Opaque):
                if not sources.isdisjoint(step.reads):
                    return step.rule.code, step.rule.why
                step = self.graph.by_value.get(step.reads[0]) if step.reads else None
        return None
