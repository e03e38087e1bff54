"""A forward as steps: each makes one value from others, by a rule or opaquely.

Knows no framework.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property

import torch

from acfuse.algebra import Affine, AvgPool, Conv, Geometry, LinearConv, Pad, identity
from acfuse.errors import NotFusable, Reason

Layer = Conv | Pad | AvgPool


@dataclass(frozen=True)
class ConvStep:
    """The value goes through a layer that is a convolution."""

    layer: Layer


@dataclass(frozen=True)
class PerChannel:
    """A factor and a shift per channel: BatchNorm, LayerScale, minus.

    `like_image` says that what it reads has as many channels as it has factors, for certain.
    """

    by: Affine
    like_image: bool = False


@dataclass(frozen=True)
class Sum:
    """The values are added, each with its sign (or another plain factor)."""

    signs: tuple[float, ...]


@dataclass(frozen=True)
class Concat:
    """The values are concatenated: the channels of each stand behind those of the one before."""


@dataclass(frozen=True)
class ChannelSlice:
    """Some of the channels: those of a slice, or the n-th of so many chunks (index, chunks)."""

    part: slice | tuple[int, int]

    def channels(self, width: int) -> range:
        """Which ones, of so many."""
        if isinstance(self.part, slice):
            return range(width)[self.part]
        index, chunks = self.part
        size = -(-width // chunks)  # as torch divides: the last one may be smaller
        return range(width)[index * size : (index + 1) * size]


@dataclass(frozen=True)
class LinearSubmodule:
    """A sub-module that is linear as a whole.

    `cost` is what it takes after its own fusion, in multiply-adds per pixel that it makes; for each
    of these it reads `pixels`.
    """

    graph: "Graph"
    cost: int
    pixels: int
    has_convolution: bool


@dataclass(frozen=True)
class Opaque:
    """Anything else. `why` says what it is for a reader, `code` which kind of obstacle."""

    why: str
    code: Reason = Reason.ACTIVATION
    holds_convolution: bool = False  # a module that is not linear, but has convolutions inside


Rule = ConvStep | PerChannel | Sum | Concat | ChannelSlice | LinearSubmodule | Opaque


@dataclass(frozen=True)
class Step:
    """`value` is made from `reads` by `rule`."""

    value: str
    reads: tuple[str, ...]
    rule: Rule


@dataclass(frozen=True)
class Graph:
    """The steps of one forward in order. `inputs` come from outside, `outputs` are needed there."""

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: frozenset[str]
    output: str | None = None  # the one value that the forward returns, if it is one
    axes: int | None = None  # spatial axes of its images, where that is known
    mutated: frozenset[str] = frozenset()  # written in place: no region may read them
    assumed: int | None = None  # channels of values for which any number will do
    by_value: Mapping[str, Step] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_value", {step.value: step for step in self.steps})

    @cached_property
    def readers(self) -> dict[str, list[Step]]:
        """Who reads each value."""
        readers: dict[str, list[Step]] = {}
        for step in self.steps:
            for value in step.reads:
                readers.setdefault(value, []).append(step)
        return readers

    @cached_property
    def widths(self) -> dict[str, tuple[int, int]]:
        """(channels, spatial axes) of each value, as far as the layers around it tell."""
        known: dict[str, tuple[int, int]] = {}
        before = -1
        while len(known) != before:
            before = len(known)
            for step in (*self.steps, *reversed(self.steps)):
                _spread_width(step, known, self.axes)
        return known

    def unit(self, value: str) -> Geometry:
        """The map that changes nothing, for a value of known width."""
        return Geometry.identity(*self._width(value))

    def unit_kernel(self, value: str) -> LinearConv:
        """The same with its numbers."""
        return identity(*self._width(value))

    def _width(self, value: str) -> tuple[int, int]:
        """(channels, spatial axes) of a value. Raises NotFusable where nothing tells them."""
        width = self.widths.get(value)
        if width is None and self.assumed and self.axes:
            width = self.assumed, self.axes
        if width is None:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"nothing tells how many channels {value} has")
        return width

    def absorbed(self, output: str, sources: frozenset[str]) -> Iterator[Step]:
        """The steps between `sources` and `output`, the one of `output` included."""
        seen, stack = set(sources), [output]
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            step = self.by_value[value]
            yield step
            stack.extend(step.reads)


def _spread_width(step: Step, known: dict[str, tuple[int, int]], axes: int | None) -> None:
    match step.rule:
        case ConvStep(Conv() as layer):
            out, per_group, *size = layer.weight.shape
            known.setdefault(step.reads[0], (per_group * layer.groups, len(size)))
            known.setdefault(step.value, (out, len(size)))
        case ConvStep() | PerChannel(like_image=True):
            if isinstance(step.rule, PerChannel) and step.rule.by.channels and axes:
                known.setdefault(step.value, (step.rule.by.channels, axes))
            for one, other in ((step.reads[0], step.value), (step.value, step.reads[0])):
                if one in known:
                    known.setdefault(other, known[one])
        case PerChannel(by):
            # One channel times a factor of several gives several.
            if by.channels and axes:
                known.setdefault(step.value, (by.channels, axes))
            elif step.reads[0] in known and (not by.channels or known[step.reads[0]][0] > 1):
                known.setdefault(step.value, known[step.reads[0]])
        case Sum():
            # Other summands may have one channel, and be added to each of these.
            wide = [known[v] for v in step.reads if v in known and known[v][0] > 1]
            if wide:
                known.setdefault(step.value, wide[0])
        case Concat():
            if all(v in known for v in step.reads):
                total = sum(known[v][0] for v in step.reads)
                known.setdefault(step.value, (total, known[step.reads[0]][1]))
        case ChannelSlice():
            if step.reads[0] in known:
                width, count = known[step.reads[0]]
                known.setdefault(step.value, (len(step.rule.channels(width)), count))
        case LinearSubmodule(graph):
            pairs = [*zip(step.reads, graph.inputs, strict=False)]
            if graph.output is not None:
                pairs.append((step.value, graph.output))
            for outer, inner in pairs:
                if inner in graph.widths:
                    known.setdefault(outer, graph.widths[inner])
        case Opaque():
            pass


class Identity(Enum):
    """The source itself, unchanged: its width does not matter until something is done to it."""

    IDENTITY = "unit"


def geometry_of(value: Geometry | LinearConv) -> Geometry:
    """The geometry of a planned or computed value."""
    return value if isinstance(value, Geometry) else value.geometry


IDENTITY = Identity.IDENTITY
Operand = Geometry | LinearConv | Identity
LinearCombination = Mapping[str, Operand]  # a value as the sum of one convolution of each source


def planned_rule(rule: Rule | None) -> Rule | None:
    """The same rule. Raises NotFusable for a layer that cannot even be planned."""
    if isinstance(rule, ConvStep):
        rule.layer.geometry  # noqa: B018
    return rule


def apply(
    graph: Graph, rule: Rule, forms: list[LinearCombination], *, numbers: bool
) -> LinearCombination:
    """The form of what a rule makes from values of these forms; NotFusable if it has none.

    With `numbers` kernels are multiplied, without only geometry is planned; the same code does
    both, so that a plan cannot promise what the numbers do not give.
    """
    match rule:
        case ConvStep(layer):
            return _through(graph, forms[0], layer, numbers=numbers)
        case PerChannel(by):
            return _scaled(graph, forms[0], by, numbers=numbers)
        case Sum(signs):
            return _sum(graph, forms, signs, numbers=numbers)
        case Concat():
            return _stacked(graph, forms, numbers=numbers)
        case ChannelSlice():
            width = _width(graph, forms[0])
            channels = rule.channels(width)
            placed = {c: i for i, c in enumerate(channels)}
            return _moved(graph, forms[0], width, placed, len(channels), numbers=numbers)
        case LinearSubmodule(inner):
            if inner.output is None:
                raise NotFusable(Reason.UNTRACEABLE, "a module gives more than one value")
            bound = dict(zip(inner.inputs, forms, strict=True))
            return combination_of(inner, inner.output, bound, numbers=numbers, host=graph)
        case Opaque(why, code):
            raise NotFusable(code, why)


def combination_of(
    graph: Graph,
    value: str,
    bound: Mapping[str, LinearCombination],
    *,
    numbers: bool,
    host: Graph | None = None,
) -> LinearCombination:
    """The form of `value`, everything expanded back to the values that `bound` gives forms for.

    `host` is the graph whose values the bound forms are written in (of a module around this one).
    """
    known = dict(bound)
    needed = {step.value for step in graph.absorbed(value, frozenset(bound))}
    for step in graph.steps:
        if step.value in needed:
            known[step.value] = apply(
                host or graph, step.rule, [known[v] for v in step.reads], numbers=numbers
            )
    return known[value]


def _through(
    graph: Graph, form: LinearCombination, record: Layer, *, numbers: bool
) -> LinearCombination:
    if not isinstance(record, Conv):  # a pad or pool is for as many channels as there are
        source, term = next(iter(form.items()))
        channels = geometry_of(_solid(graph, source, term, numbers=False)).out_channels
        record = replace(record, channels=channels)
    layer = record.linear() if numbers else record.geometry
    if len(form) > 1 and not record.geometry.is_pointwise:
        # Whether the summands have one size is not known here: broadcasting may hide another.
        raise NotFusable(Reason.INPUTS, f"it reads a sum of different inputs ({', '.join(form)})")
    result: dict[str, Operand] = {}
    for source, term in form.items():
        if isinstance(term, Identity) and len(form) > 1:
            term = _solid(graph, source, term, numbers=numbers)  # of a known width, or refused
        result[source] = layer if isinstance(term, Identity) else term.then(layer)  # type: ignore[arg-type]
        layer = layer.without_shift()  # the bias belongs to one of the terms only
    return result


def _scaled(
    graph: Graph, form: LinearCombination, by: Affine, *, numbers: bool
) -> LinearCombination:
    result: dict[str, Operand] = {}
    for source, term in form.items():
        result[source] = by.of(_solid(graph, source, term, numbers=numbers))
        by = Affine(by.scale)
    return result


def _sum(
    graph: Graph, forms: list[LinearCombination], signs: tuple[float, ...], *, numbers: bool
) -> LinearCombination:
    result: dict[str, Operand] = {}
    for form, sign in zip(forms, signs, strict=True):
        for source, plain in form.items():
            term = plain
            if sign != 1:
                term = Affine(sign).of(_solid(graph, source, plain, numbers=numbers))
            if source in result:
                a = _solid(graph, source, result[source], numbers=numbers)
                b = _solid(graph, source, term, numbers=numbers)
                term = a + b  # type: ignore[operator]
            result[source] = term
    return result


def _stacked(graph: Graph, forms: list[LinearCombination], *, numbers: bool) -> LinearCombination:
    """Each value with its channels moved to their place, and zeros everywhere else, added."""
    widths = [_width(graph, form) for form in forms]
    placed: list[LinearCombination] = []
    start = 0
    for form, width in zip(forms, widths, strict=True):
        places = {c: start + c for c in range(width)}
        placed.append(_moved(graph, form, width, places, sum(widths), numbers=numbers))
        start += width
    return _sum(graph, placed, (1.0,) * len(placed), numbers=numbers)


def _width(graph: Graph, form: LinearCombination) -> int:
    """How many channels a form has; the same for each of its summands, or it is refused."""
    widths = {
        geometry_of(_solid(graph, source, term, numbers=False)).out_channels
        for source, term in form.items()
    }
    if len(widths) > 1:
        raise NotFusable(Reason.CHANNELS, "a channel of one value is added to all of another")
    return widths.pop()


def _moved(
    graph: Graph,
    form: LinearCombination,
    width: int,
    places: Mapping[int, int],
    total: int,
    *,
    numbers: bool,
) -> LinearCombination:
    """The channels that have a place, moved there: a 1x1 convolution of zeros and ones."""
    result: dict[str, Operand] = {}
    for source, term in form.items():
        solid = _solid(graph, source, term, numbers=numbers)
        geometry = geometry_of(solid)
        weight = torch.zeros(total, width, *[1] * len(geometry.axes), dtype=torch.float64)
        for channel, place in places.items():
            weight[place, channel] = 1.0
        ones, none = (1,) * len(geometry.axes), ((0, 0),) * len(geometry.axes)
        mover = Conv(weight, None, ones, none, ones, 1)
        result[source] = solid.then(mover.linear() if numbers else mover.geometry)  # type: ignore[arg-type]
    return result


def _solid(graph: Graph, source: str, term: Operand, *, numbers: bool) -> Geometry | LinearConv:
    if isinstance(term, Identity):
        return graph.unit_kernel(source) if numbers else graph.unit(source)
    return term
