"""The branches of a block of bare tensors one by one, as its pattern adds them up."""

from collections.abc import Iterator
from dataclasses import replace

from acfuse.findings import Arm, Arms
from acfuse.graph.arms import in_words
from acfuse.patterns.expr import Absent, Each, Expr, Seq, Sum, seq
from acfuse.patterns.pattern import Pattern
from acfuse.patterns.tensors import TensorBlock
from acfuse.patterns.values import Linear
from acfuse.system.devices import CPU

Layers = tuple[tuple[str, str, float | None], ...]


def arms_of(pattern: Pattern, block: TensorBlock) -> Arms:
    """What a pattern adds, each with its layers, and the layers behind the sum; on the CPU."""
    block = replace(block, device=CPU)
    parts = pattern.block.parts if isinstance(pattern.block, Seq) else (pattern.block,)
    place = next((i for i, part in enumerate(parts) if isinstance(part, Sum | Each)), None)
    if place is None:
        parts, place = (pattern.block,), 0
    whole = pattern.value(block)
    arms = []
    for part, sign in _summands(parts[place], block):
        branch = seq(*parts[:place], part)
        value = branch.value(block, Linear())
        fits = value is not None and (value.conv is not None or value.fits(Linear(whole)))
        if fits:
            solid = value.solid(whole.geometry.in_channels, len(whole.geometry.axes))
            layers = _layers(branch, block)
            layers += (("", f"times {sign:g}", None),) * (sign != 1)
            arms.append(Arm("x", layers, solid if sign == 1 else solid.affine(sign)))
    behind = [layer for part in parts[place + 1 :] for layer in _layers(part, block)]
    return Arms(tuple(arms), tuple(behind))


def _summands(expression: Expr, block: TensorBlock) -> Iterator[tuple[Expr, float]]:
    """What an expression adds, each with its sign; what is not there is left out by its value."""
    if isinstance(expression, Each):
        expression = expression.present(block)
    if not isinstance(expression, Sum):
        yield expression, 1.0
        return
    for part, sign in zip(expression.parts, expression.signs, strict=True):
        yield from ((inner, sign * own) for inner, own in _summands(part, block))


def _layers(expression: Expr, block: TensorBlock) -> Layers:
    """The layers of an expression that are there, by name; none: it is the input itself."""
    try:
        names = expression.names(block)
    except Absent:
        return ()
    return tuple(
        (name, in_words(layer), None) for name in names if (layer := block(name)) is not None
    )
