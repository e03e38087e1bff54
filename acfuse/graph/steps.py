"""A forward as steps: each makes one value from others, by a rule or opaquely.

Knows no framework.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate

import torch

from acfuse import algebra
from acfuse.algebra import (
    Affine,
    AvgPool,
    Conv,
    Geometry,
    LinearConv,
    Pad,
    Planned,
    Value,
    chain,
    identity,
)
from acfuse.errors import NotFusable, Reason
from acfuse.graph.combination import Identity, LinearCombination, Move, Operand, together
from acfuse.system.devices import CPU

Layer = Conv | Pad | AvgPool


@dataclass(frozen=True)
class ConvStep:
    """The value goes through a layer that is a convolution.

    What it reads must have so many `axes` (None: as many as the layer takes).
    """

    layer: Layer
    axes: int | None = None


@dataclass(frozen=True)
class PerChannel:
    """A factor and a shift per channel: BatchNorm, LayerScale, minus.

    `like_image` says that what it reads has as many channels as it has factors, for certain. What
    it reads must have so many `axes` (None: any number), where only then these are its channels.
    """

    by: Affine
    like_image: bool = False
    axes: int | None = None


@dataclass(frozen=True)
class Moved:
    """The value with its pixels elsewhere; what else it reads tells a shape alone."""

    by: Move


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

    `cost` is what it takes after its own fusion, in multiply-adds per pixel that it makes, with so
    many `weights`; for each of these it reads `pixels` (less than one, where it enlarges).
    """

    graph: "Graph"
    cost: Fraction
    pixels: Fraction
    weights: int
    has_convolution: bool


@dataclass(frozen=True)
class Opaque:
    """Anything else. `why` says what it is for a reader, `code` which kind of obstacle.

    Of rows with so many `channels` it makes others.
    """

    why: str
    code: Reason = Reason.ACTIVATION
    holds_convolution: bool = False  # a module that is not linear, but has convolutions inside
    channels: int | None = None


Rule = ConvStep | PerChannel | Sum | Concat | ChannelSlice | Moved | LinearSubmodule | Opaque


@dataclass(frozen=True)
class Step:
    """`value` is made from `reads` by `rule`."""

    value: str
    reads: tuple[str, ...]
    rule: Rule

    @property
    def is_convolution(self) -> bool:
        """Whether it is, or holds, a convolution or a pool (a pad costs nothing and is neither)."""
        match self.rule:
            case ConvStep(layer):
                return not isinstance(layer, Pad)
            case LinearSubmodule():
                return self.rule.has_convolution
        return False


@dataclass(frozen=True)
class Graph:
    """The steps of one forward in order. `inputs` come from outside, `outputs` are needed there.

    Values are images, channels second, of `spatial_rank` spatial axes, or of as many as `axes` says
    of them. Those of 0 are rows: of any number of axes, their channels last.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: frozenset[str]
    output: str | None = None  # the one value that the forward returns, if it is one
    spatial_rank: int | None = None  # spatial axes of its images, where that is known
    mutated: frozenset[str] = frozenset()  # written in place: no region may read them
    axes: Mapping[str, int] = field(default_factory=dict)
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
                _spread_width(step, known, self.spatial_axes)
        return known

    @cached_property
    def device(self) -> torch.device:
        """Where its numbers are: those of its first layer. Without any, the CPU."""
        for step in self.steps:
            match step.rule:
                case ConvStep(Conv(weight)):
                    return weight.device
                case PerChannel(Affine(torch.Tensor() as number)):
                    return number.device
                case PerChannel(Affine(_, torch.Tensor() as number)):
                    return number.device
                case LinearSubmodule(graph) if graph.device != CPU:
                    return graph.device
        return CPU

    def spatial_axes(self, value: str) -> int | None:
        """How many spatial axes a value has."""
        return self.axes.get(value, self.spatial_rank)

    def width(self, value: str) -> tuple[int, int]:
        """(channels, spatial axes) of a value. Raises NotFusable where nothing tells them."""
        width = self.widths.get(value)
        axes = self.spatial_axes(value)
        if width is None and self.assumed and axes is not None:
            width = self.assumed, axes
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
    weights: int  # of the kernels afterwards

    @property
    def adds(self) -> bool:
        """Whether it is more convolutions than before: factors alone are none."""
        return self.convolutions[1] > self.convolutions[0]


@dataclass(frozen=True)
class Miss:
    """A candidate that was looked at and not fused."""

    value: str
    code: Reason
    why: str


def _spread_width(
    step: Step, known: dict[str, tuple[int, int]], axes_of: Callable[[str], int | None]
) -> None:
    axes = axes_of(step.value)
    match step.rule:
        case ConvStep(Conv() as layer):
            own = layer.geometry
            known.setdefault(step.reads[0], (own.in_channels, len(own.axes)))
            known.setdefault(step.value, (own.out_channels, len(own.axes)))
        case ConvStep() | PerChannel(like_image=True):
            if isinstance(step.rule, PerChannel) and step.rule.by.channels and axes is not None:
                known.setdefault(step.value, (step.rule.by.channels, axes))
            for one, other in ((step.reads[0], step.value), (step.value, step.reads[0])):
                if one in known:
                    known.setdefault(other, known[one])
        case PerChannel(by):
            # One channel times a factor of several gives several.
            if by.channels and axes is not None:
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
            unknown = [v for v in step.reads if v not in known]
            if step.value in known and len(unknown) == 1:  # it has what the others leave
                total, count = known[step.value]
                rest = total - sum(known[v][0] for v in step.reads if v in known)
                if rest > 0:
                    known.setdefault(unknown[0], (rest, count))
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
        case Moved(move):
            above, read_axes = step.reads[0], axes_of(step.reads[0])
            if above in known and axes is not None:
                known.setdefault(step.value, (known[above][0] // move.merged, axes))
            if step.value in known and read_axes is not None:
                known.setdefault(above, (known[step.value][0] * move.merged, read_axes))
        case Opaque(channels=int(channels)):
            for value in (step.value, *step.reads[:1]):
                known.setdefault(value, (channels, 0))
        case Opaque():
            pass


def geometry_of(value: Planned | Value) -> Planned:
    """The geometry of a planned or computed value."""
    return value if isinstance(value, Planned) else value.geometry


def planned_rule(rule: Rule | None) -> Rule | None:
    """The same rule. Raises NotFusable for a layer that cannot even be planned."""
    if isinstance(rule, ConvStep):
        rule.layer.geometry  # noqa: B018
    return rule


@dataclass(frozen=True)
class Combiner:
    """Applies rules to linear combinations of a graph's values. Raises NotFusable.

    Kernels are multiplied on the device `at`; without one, only geometry is planned. The same code
    does both, so that a plan cannot promise what the numbers do not give.
    """

    graph: Graph
    at: torch.device | None = None

    def of(
        self, graph: Graph, value: str, bound: Mapping[str, LinearCombination]
    ) -> LinearCombination:
        """A value of `graph`, everything expanded back to the values that are bound.

        What these are bound to is written in values of the combiner's own graph, which is `graph`
        itself or that of a module around it.
        """
        known = dict(bound)
        needed = {step.value for step in graph.absorbed(value, frozenset(bound))}
        for step in graph.steps:
            if step.value in needed:
                known[step.value] = self.apply(step.rule, [known[v] for v in step.reads])
        return known[value]

    def apply(self, rule: Rule, read: Sequence[LinearCombination]) -> LinearCombination:
        """What a rule makes of what it reads."""
        match rule:
            case ConvStep(layer):
                return self._convolved(read[0].of_axes(rule.axes), layer)
            case PerChannel(by):
                return self._scaled(read[0], by).of_axes(rule.axes)
            case Moved(move):
                if any(set(like) - set(read[0]) for like in read[1:]):
                    why = f"{move.name}: it has the shape of what it is not made from"
                    raise NotFusable(Reason.SIZES, why)
                if move.merged > 1 and self._width(read[0]) % move.merged:
                    why = f"{move.merged} channels cannot be made one in {self._width(read[0])}"
                    raise NotFusable(Reason.CHANNELS, why)
                if move.channels not in (None, self._width(read[0])):
                    why = f"{move.name}: it puts other numbers together than the channels"
                    raise NotFusable(Reason.CHANNELS, why)
                return read[0].moved(move)
            case Sum(signs):
                return self._added(read, signs)
            case Concat():
                return self._concatenated(read)
            case ChannelSlice():
                width = self._width(read[0])
                channels = rule.channels(width)
                return self._placed(read[0], width, channels, 0, len(channels))
            case LinearSubmodule(inner):
                if inner.output is None:
                    raise NotFusable(Reason.UNTRACEABLE, "a module gives more than one value")
                return self.of(inner, inner.output, dict(zip(inner.inputs, read, strict=True)))
            case Opaque(why, code):
                raise NotFusable(code, why)

    def _convolved(self, read: LinearCombination, record: Layer) -> LinearCombination:
        if not isinstance(record, Conv):  # a pad or pool is for as many channels as there are
            source, term = next(iter(read.items()))
            record = replace(record, channels=geometry_of(self._written(source, term)).out_channels)
        if read.moves and not record.geometry.is_pointwise:
            why = f"it looks at pixels that a {read.moves[-1].name} has moved"
            raise NotFusable(Reason.SIZES, why)
        if len(read) > 1 and not record.geometry.is_pointwise:
            # Whether the summands have one size is not known here: broadcasting may hide another.
            sources = ", ".join(read)
            raise NotFusable(Reason.INPUTS, f"it reads a sum of different inputs ({sources})")
        if read.moves and isinstance(record, Conv):  # the sources have their channels elsewhere
            record = record.pointwise(self._axes(read))
        layer = record.geometry if self.at is None else record.linear(self.at)
        if isinstance(layer, Geometry | LinearConv):  # else nothing was moved
            layer = layer.repeated(read.merged)
        result: dict[str, Operand] = {}
        for source, term in read.items():
            if isinstance(term, Identity) and len(read) > 1:
                term = self._written(source, term)  # of a known width, or refused
            result[source] = layer if isinstance(term, Identity) else chain(term, layer)  # type: ignore[arg-type]
            layer = layer.without_shift()  # the bias belongs to one of the terms only
        return read.with_terms(result)

    def _scaled(self, read: LinearCombination, by: Affine) -> LinearCombination:
        result: dict[str, Operand] = {}
        by = by.repeated(read.merged)
        for source, term in read.items():
            result[source] = by.of(self._written(source, term))
            by = Affine(by.scale)
        return read.with_terms(result)

    def _added(
        self, read: Sequence[LinearCombination], signs: tuple[float, ...]
    ) -> LinearCombination:
        result: dict[str, Operand] = {}
        for summand, sign in zip(read, signs, strict=True):
            signed = summand if sign == 1 else self._scaled(summand, Affine(sign))
            for source, term in signed.items():
                if source in result:
                    a, b = self._written(source, result[source]), self._written(source, term)
                    term = algebra.added(a, b)  # type: ignore[arg-type]
                result[source] = term
        whole = together(read).with_terms(result)
        if any(move.scale for move in whole.moves) and len(whole) > 1:
            # Of one size where they are added, they need not be where they are made larger.
            raise NotFusable(Reason.INPUTS, "different inputs are made larger, and added")
        return whole

    def _concatenated(self, read: Sequence[LinearCombination]) -> LinearCombination:
        """Each value with its channels moved to their place, and zeros everywhere else, added."""
        widths = [self._width(part) for part in read]
        starts, total = accumulate(widths, initial=0), sum(widths)
        placed = [
            self._placed(part, width, range(width), start, total)
            for part, width, start in zip(read, widths, starts, strict=False)
        ]
        return self._added(placed, (1.0,) * len(placed))

    def _width(self, read: LinearCombination) -> int:
        """How many channels a value has; the same for each of its terms, or it is refused."""
        widths = {geometry_of(self._written(s, term)).out_channels for s, term in read.items()}
        if len(widths) > 1:
            raise NotFusable(Reason.CHANNELS, "a channel of one value is added to all of another")
        return widths.pop() // read.merged

    def _axes(self, read: LinearCombination) -> int:
        """How many spatial axes the sources of a value have; the same for each, or refused."""
        axes = {len(geometry_of(self._written(s, term)).axes) for s, term in read.items()}
        if len(axes) > 1:
            raise NotFusable(Reason.SIZES, "its inputs are rows and images")
        return axes.pop()

    def _placed(
        self, read: LinearCombination, width: int, channels: range, start: int, total: int
    ) -> LinearCombination:
        """Some channels, one behind the other from `start` on, among `total`; zeros elsewhere."""
        result: dict[str, Operand] = {}
        for source, term in read.items():
            written = self._written(source, term)
            rank = len(geometry_of(written).axes)
            if self.at is None:  # as large a matrix for every part would cost the cube of them
                taken = Geometry.pointwise(total, width, rank).repeated(read.merged)
                result[source] = chain(written, taken)  # type: ignore[arg-type]
                continue
            shape = (total, width, *[1] * rank)
            weight = torch.zeros(shape, dtype=torch.float64, device=self.at)
            rows = torch.arange(start, start + len(channels), device=CPU)  # places are read there
            weight[rows, torch.tensor(channels, device=CPU).long()] = 1.0
            geometry = Geometry.pointwise(total, width, rank)
            matrix = LinearConv(weight, weight.new_zeros(total), geometry).repeated(read.merged)
            result[source] = chain(written, matrix)  # type: ignore[arg-type]
        return read.with_terms(result)

    def _written(self, source: str, term: Operand) -> Planned | Value:
        """A term as a convolution, the identity as well."""
        if not isinstance(term, Identity):
            return term
        width = self.graph.width(source)
        return Geometry.identity(*width) if self.at is None else identity(*width, self.at)
