"""The branches of a region one by one, for a reader who wants to follow how they are added up."""

from collections.abc import Iterator, Mapping
from math import prod

from acfuse.algebra import Affine, AvgPool, Conv, Pad, Value, identity
from acfuse.errors import NotFusable
from acfuse.findings import Arm, Arms
from acfuse.graph.combination import IDENTITY, LinearCombination, Operand
from acfuse.graph.steps import (
    ChannelSlice,
    Combiner,
    Concat,
    ConvStep,
    Graph,
    Layer,
    LinearSubmodule,
    Moved,
    PerChannel,
    Region,
    Rule,
    Step,
    Sum,
)
from acfuse.system.devices import CPU


def arms_of(graph: Graph, region: Region) -> Arms:
    """What is added in a region, each with the layers that lead to it, and what stands behind.

    Where nothing is added, the whole chain is one arm.
    """
    combiner = Combiner(graph, CPU)
    known = {source: LinearCombination({source: IDENTITY}) for source in region.sources}
    for step in graph.steps:
        if step.value in region.steps:
            known[step.value] = combiner.apply(step.rule, [known[v] for v in step.reads])
    total, behind = _sum_of(graph, region)
    sources = frozenset(region.sources)
    arms = []
    for value, sign in _summands(graph, total, sources):
        steps = {step.value for step in graph.absorbed(value, sources)}
        layers = [_told(s, known) for s in graph.steps if s.value in steps]
        if sign != 1:
            layers.append(("", f"times {sign:g}", None))
        for source, term in known[value].items():
            solid = _solid(graph, source, term)
            if solid is not None and sign != 1:
                solid = solid.affine(sign)
            arms.append(Arm(source, tuple(layers), solid))
    return Arms(tuple(arms), tuple(_told(step, known) for step in behind))


def _sum_of(graph: Graph, region: Region) -> tuple[str, list[Step]]:
    """The last value that is a sum, and the steps behind it; the output, if there is none."""
    behind: list[Step] = []
    value = region.output
    while value in region.steps:
        step = graph.by_value[value]
        if isinstance(step.rule, Sum):
            return value, behind
        if len(step.reads) != 1:
            break
        behind.insert(0, step)
        value = step.reads[0]
    return region.output, []


def _summands(
    graph: Graph, value: str, sources: frozenset[str], sign: float = 1.0
) -> Iterator[tuple[str, float]]:
    """What a sum of sums adds, each with its factor."""
    step = None if value in sources else graph.by_value[value]
    if step is None or not isinstance(step.rule, Sum):
        yield value, sign
        return
    for part, own in zip(step.reads, step.rule.signs, strict=True):
        yield from _summands(graph, part, sources, sign * own)


def _solid(graph: Graph, source: str, term: Operand) -> Value | None:
    """A term as a convolution, the source itself as well where its width is known."""
    if isinstance(term, Value):
        return term
    try:
        return identity(*graph.width(source))
    except NotFusable:
        return None


def _told(step: Step, known: Mapping[str, LinearCombination]) -> tuple[str, str, float | None]:
    terms = [term for term in known[step.value].values() if isinstance(term, Value)]
    return step.value, in_words(step.rule), sum(float(term.bias[0]) for term in terms)


def in_words(rule: Rule | Affine | Layer) -> str:
    """What a layer is, and where it looks; a stride, dilation or groups of 1 are not told."""
    match rule:
        case ConvStep(layer):
            return in_words(layer)
        case Conv():
            return _convolution(rule)
        case AvgPool():
            stride = f", stride {_sizes(rule.stride)}" if prod(rule.stride) > 1 else ""
            return f"average pooling {_sizes(rule.size)}{stride}"
        case PerChannel() | Affine():
            return "factor and shift per channel"
        case Moved(move):
            return move.name
        case LinearSubmodule(graph):
            inner = [in_words(step.rule) for step in graph.steps]
            return inner[0] if len(inner) == 1 else f"a linear module of {len(inner)} steps"
        case Sum(signs):
            return f"a sum of {len(signs)}"
        case Concat():
            return "concatenation"
        case ChannelSlice():
            return "some of the channels"
        case Pad(pads=pads):
            return f"padding {pads_in_words(pads)}"
    return type(rule).__name__


def _convolution(layer: Conv) -> str:
    geometry = layer.geometry
    bias = "" if layer.bias is None else ", with bias"
    channels = f"{geometry.in_channels} -> {geometry.out_channels}"
    if not layer.stride:
        return f"linear layer, {channels}{bias}"
    kind = "transposed convolution" if layer.transposed else "convolution"
    text = f"{kind} {_sizes(tuple(layer.weight.shape[2:]))}, {channels}"
    if prod(layer.stride) > 1:
        text += f", stride {_sizes(layer.stride)}"
    text += f", padding {pads_in_words(layer.pads)}"
    if prod(layer.dilation) > 1:
        text += f", dilation {_sizes(layer.dilation)}"
    if layer.border != "zeros":
        text += f" ({layer.border})"
    groups = f", groups {layer.groups}" if layer.groups > 1 else ""
    return f"{text}{groups}{bias}"


def _sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def pads_in_words(pads: tuple[tuple[int, int], ...]) -> str:
    """1x1, or before/after where these differ: 1/0x1."""
    return "x".join(str(a) if a == b else f"{a}/{b}" for a, b in pads)
