"""The options to have each value, and what they cost. Plans on shapes only.

A value can be computed as it stands, or as a sum of convolutions of values before it. An option
costs multiply-adds per pixel; of equals the one with fewer operations is the cheaper. None is taken
that stores more weights than what it replaces: a network is fused to be smaller as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from acfuse.algebra import Conv, Pad
from acfuse.errors import NotFusable, Reason
from acfuse.graph.combination import IDENTITY, Identity, LinearCombination
from acfuse.graph.steps import (
    ChannelSlice,
    Combiner,
    Concat,
    ConvStep,
    Graph,
    LinearSubmodule,
    Miss,
    Moved,
    Opaque,
    PerChannel,
    Rule,
    Step,
    Sum,
    geometry_of,
)

LONGEST = 1_000  # steps that are planned as one; the longest of a network has a few dozen
PARTS = 3
CONVOLUTION = 4  # so many operations: no factor or sum is worth a further convolution

Number = int | Fraction  # what is paid for each pixel of a smaller image is a fraction of a larger
Cost = tuple[Number, int, int]  # multiply-adds per pixel, operations, weights of kernels


@dataclass(frozen=True)
class Option:
    """One way to have a value: from which others, and what has to be computed besides.

    `made` maps each further value to what it costs, per pixel of this one; `own` is what the value
    itself costs. `stands` says that the step is kept as it is.
    """

    value: LinearCombination
    made: Mapping[str, Cost]
    stands: bool = False
    own: Cost = (0, 0, 0)

    @property
    def price(self) -> tuple[Number, int, bool]:
        """What the value and all that is made for it cost; to be compared."""
        cost, operations, _ = self._total
        return cost, operations, not self.stands

    @property
    def weights(self) -> int:
        """How many weights the kernels have that it takes."""
        return self._total[2]

    @property
    def _total(self) -> Cost:
        cost, operations, weights = map(sum, zip(self.own, *self.made.values(), strict=True))
        return cost, operations, weights


@dataclass(frozen=True)
class Plan:
    """The options of one value.

    `full` is expanded as far back as the algebra allows, `parts` less far (the cheapest few, no two
    from the same values), `best` is the cheapest of all, or the step as it stands. `itself` is what
    a reader takes that does not look behind the value: computed in the best way, and then read.
    """

    full: Option
    parts: tuple[Option, ...]
    best: Option
    itself: Option

    @classmethod
    def given(cls, value: str) -> "Plan":
        """Of a value that nothing is known of but its name."""
        option = Option(LinearCombination({value: IDENTITY}), {}, stands=True)
        return cls(option, (), option, option)

    def for_reader(self, *, expandable: bool) -> list[Option]:
        """The options that a reader has: the fullest first, the value itself last."""
        (source,) = self.itself.value
        if not expandable:
            return [Option(LinearCombination({source: IDENTITY}), {})]
        own = [] if set(self.full.value) == {source} else [self.itself]
        return [self.full, *self.parts, *own]


def roots_of(graph: Graph, kept: frozenset[str]) -> dict[str, str]:
    """For each value, the last one that all its readers lead to (itself if needed as such)."""
    roots: dict[str, str] = {}
    for step in reversed(graph.steps):
        value = step.value
        readers = graph.readers.get(value, [])
        ends = {roots[r.value] for r in readers}
        opaque = any(isinstance(r.rule, Opaque) for r in readers)
        needed = opaque or len(ends) != 1 or value in graph.outputs or value in kept
        roots[value] = value if needed else ends.pop()
    return roots


def plans_of(graph: Graph, kept: frozenset[str]) -> tuple[dict[str, Plan], dict[str, Miss]]:
    """A plan for each value, and what was refused on the way.

    What is `kept`, or needed by several, is computed for itself: its readers do not look behind it.
    """
    roots = roots_of(graph, kept)
    plans = {value: Plan.given(value) for value in graph.inputs}
    misses: dict[str, Miss] = {}
    for step in graph.steps:
        value = step.value
        plan, miss = Plan.given(value), None
        mutated = [v for v in step.reads if v in graph.mutated]
        if mutated and not isinstance(step.rule, Opaque):
            miss = Miss(value, Reason.IN_PLACE, f"{mutated[0]} is overwritten in place")
        elif not isinstance(step.rule, Opaque):
            options = [plans[v].for_reader(expandable=roots.get(v, v) != v) for v in step.reads]
            plan, miss = _plan_step(graph, step, options)
            if len(plan.itself.made) > LONGEST:  # what is behind it begins anew
                why = f"more than {LONGEST:,} linear steps are in a row"
                plan, miss = Plan.given(value), Miss(value, Reason.COST, why)
        plans[value] = plan
        if miss:
            misses[value] = miss
    return plans, misses


def _plan_step(graph: Graph, step: Step, options: list[list[Option]]) -> tuple[Plan, Miss | None]:
    expanded: list[Option] = []
    miss = None
    for taken in _combinations(options):
        try:
            value = Combiner(graph).apply(step.rule, [o.value for o in taken])
        except NotFusable as refusal:
            if not expanded:  # the fullest come first: what they can be, others need not
                miss = miss or Miss(step.value, refusal.code, refusal.why)
        else:
            cost, operations, weights = cost_of(value)
            paid = cost * value.pixels, operations, weights
            expanded.append(Option(value, _made(step.rule, taken), own=paid))
    needed = _made(step.rule, [o[-1] for o in options])
    own = LinearCombination({step.value: IDENTITY})
    stands = Option(own, needed, stands=True, own=_standing_cost(step.rule))
    # What is still moved is made where it is put back, unless that can be done behind it.
    small = [o for o in expanded if o.weights <= stands.weights and o.value.enlarges]
    best = min((*small, stands), key=lambda option: option.price)
    itself = Option(own, {**best.made, step.value: best.own}, stands=True)
    full = expanded[0] if expanded else itself
    known = {frozenset(full.value), frozenset({step.value})}
    return Plan(full, _parts(expanded, known), best, itself), miss


def _parts(options: list[Option], known: set[frozenset[str]]) -> tuple[Option, ...]:
    """The cheapest options to make a value from other values than the known ones."""
    parts: list[Option] = []
    for option in sorted(options, key=lambda option: (option.price, len(option.value))):
        if frozenset(option.value) not in known and len(parts) < PARTS:
            known.add(frozenset(option.value))
            parts.append(option)
    return tuple(parts)


def _combinations(options: list[list[Option]]) -> Iterable[tuple[Option, ...]]:
    """Every choice of options for a few reads; only the uniform ones for many."""
    if len(options) <= 3:
        return product(*options)
    longest = max(len(o) for o in options)
    return (tuple(o[min(i, len(o) - 1)] for o in options) for i in range(longest))


def _made(rule: Rule, taken: Sequence[Option]) -> dict[str, Cost]:
    """What is computed for the options that were taken, per pixel of what the rule makes."""
    match rule:  # how many pixels of what it reads a rule takes for one of what it makes
        case ConvStep(layer):
            pixels = layer.geometry.pixels
        case LinearSubmodule():
            pixels = Fraction(rule.pixels)
        case Moved(move):
            pixels = move.pixels
        case _:
            pixels = Fraction(1)
    return {
        value: (cost * pixels, operations, weights)
        for option in taken
        for value, (cost, operations, weights) in option.made.items()
    }


def cost_of(value: LinearCombination) -> Cost:
    """What the convolutions of a value and their additions cost."""
    solid = [term for term in value.values() if not isinstance(term, Identity)]
    operations = CONVOLUTION * len(solid) + len(value) - 1
    costs = [geometry_of(term).multiply_adds for term in solid]
    return sum(costs), operations, sum(geometry_of(term).weights for term in solid)


def _standing_cost(rule: Rule) -> Cost:
    """What a step costs that is kept as it is."""
    match rule:
        case ConvStep(layer):
            weights = layer.weights if isinstance(layer, Conv) else 0
            return layer.multiply_adds, 1 if isinstance(layer, Pad) else CONVOLUTION, weights
        case PerChannel(by):
            return by.multiply_adds, 1, 0
        case Sum(signs):
            return 0, len(signs) - 1, 0
        case LinearSubmodule(_, cost):
            return cost, CONVOLUTION, rule.weights
        case Concat() | ChannelSlice():
            return 0, 1, 0
        case Moved():  # the same pixels
            return 0, 0, 0
        case Opaque():
            return 0, 0, 0
