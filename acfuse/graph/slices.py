"""Convolutions whose channels go separate ways: each part is a convolution of its own.

    y = W2 cat(act(a), b),  a and b the channels of W1 x:  y = W2a act(a) + (W2b W1b) x

What is made of all channels at once is made for all; what each reader takes alone may become part
of what follows. So the parts are planned as layers of their own, which cost no more together.
"""

from collections.abc import Mapping
from dataclasses import replace

from acfuse.algebra import Conv
from acfuse.graph.steps import ChannelSlice, ConvStep, Graph, Step


def split_layers(graph: Graph) -> Mapping[str, tuple[Step, ...]]:
    """The convolutions all of whose channels are taken once, each by a slice; and these slices."""
    found: dict[str, tuple[Step, ...]] = {}
    for step in graph.steps:
        readers = tuple(graph.readers.get(step.value, ()))
        if step.value in graph.outputs or step.value in graph.mutated or len(readers) < 2:
            continue
        parts = [r.rule for r in readers if isinstance(r.rule, ChannelSlice)]
        match step.rule:
            case ConvStep(Conv(groups=1) as layer) if len(parts) == len(readers):
                width = len(layer.weight)
                taken = [n for part in parts for n in part.channels(width)]
                forwards = all(part.channels(width).step > 0 for part in parts)
                whole = sorted(taken) == [*range(width)]
                if whole and forwards and all(part.channels(width) for part in parts):
                    found[step.value] = readers
    return found


def with_parts(graph: Graph, layers: Mapping[str, tuple[Step, ...]]) -> Graph:
    """A graph of the same values to plan with, in which the parts of some layers are layers."""
    parts = {part.value: value for value, own in layers.items() for part in own}
    steps: list[Step] = []
    for step in graph.steps:
        if step.value in parts:
            whole = graph.by_value[parts[step.value]]
            steps.append(Step(step.value, whole.reads, _part(whole, step)))
        elif step.value not in layers:
            steps.append(step)
    return replace(graph, steps=tuple(steps))


def _part(whole: Step, part: Step) -> ConvStep:
    match whole.rule, part.rule:
        case ConvStep(Conv() as layer) as own_rule, ChannelSlice() as rule:
            taken = rule.channels(len(layer.weight))
            own = slice(taken.start, taken.stop, taken.step)  # a view: no weight is copied
            bias = None if layer.bias is None else layer.bias[own]
            return replace(own_rule, layer=replace(layer, weight=layer.weight[own], bias=bias))
    raise ValueError(f"{whole.value} is no convolution that {part.value} takes a part of")
