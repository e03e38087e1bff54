"""One window: what it reads, and which rewriting changes nothing."""

from collections.abc import Iterator
from types import ModuleType

import z3

from tests.obligations.meaning import (
    Window,
    axis,
    inside,
    window,
)
from tests.obligations.stating import (
    SIZE,
    STEP,
    Stated,
    beyond,
    entered_in,
    explored,
    in_order,
    layer,
    refused,
)
from tests.obligations.symbolic import Int, Path, term
from tests.obligations.verdicts import Claim

STATED: Stated = {}
obligation = entered_in(STATED)


@obligation
def scaling_keeps_order(_: ModuleType) -> Iterator[Claim]:
    """Multiplying by a stride keeps numbers in order (a lemma that others below use)."""
    stride, low, high = z3.Ints("stride low high")
    yield Claim("", (), in_order(stride, low, high))


@obligation
def window_of_a_layer(code: ModuleType) -> Iterator[Claim]:
    """A layer's window is accepted exactly if size, stride and dilation are at least 1.

    Its taps are `dilation` apart, nothing stands before the first or behind the last, and stride
    and pads are the layer's. For sizes and dilations up to 4; strides and pads are any.
    """
    stride, before, after = (Int(z3.Int(name)) for name in ("stride", "before", "after"))
    for size in range(5):
        for dilation in range(5):
            where = f"size {size}, dilation {dilation}"
            layer = size, stride, (before, after), dilation
            for path in explored(code, lambda layer=layer: code.Axis.window(*layer), ()):
                if refused(path):
                    holds = (
                        z3.BoolVal(min(size, dilation) < 1)
                        if min(size, dilation) < 1
                        else (stride.term < 1)
                    )
                else:
                    made = window(path.result)
                    live = [z3.IntVal(dilation * place) for place in range(size)]
                    alike = [a == b for a, b in zip(made.live, live, strict=False)]
                    right = min(size, dilation) > 0 and len(made.live) == len(live)
                    settings = (made.stride, made.before, made.after)
                    holds = z3.And(
                        right,
                        stride.term >= 1,
                        *alike,
                        made.taps == dilation * (size - 1) + 1,
                        *(
                            a == b.term
                            for a, b in zip(settings, layer[1:2] + layer[2], strict=True)
                        ),
                    )
                yield Claim(where, path.conditions, holds)


@obligation
def grow_is_the_same_map(code: ModuleType) -> Iterator[Claim]:
    """`grow` changes neither which outputs there are nor what any of them reads."""
    old, before, after = axis(code, "f", live=3), Int(z3.Int("before")), Int(z3.Int("after"))
    for path in explored(code, lambda: old.grow(before, after), ()):
        yield _same_map(window(old), path, window(path.result))


@obligation
def trim_is_the_same_map(code: ModuleType) -> Iterator[Claim]:
    """`trim` changes neither; afterwards the first and the last place of the window are live."""
    old = axis(code, "f", live=3)
    for path in explored(code, old.trim, ()):
        new = window(path.result)
        yield _same_map(window(old), path, new)
        tight = z3.And(new.first == 0, new.last == new.taps - 1)
        yield Claim("nothing is left to trim", path.conditions, tight)


def _same_map(old: Window, path: Path, new: Window) -> Claim:
    reads = zip(old.live, new.live, strict=True)
    same = (old.reads(STEP, a) == new.reads(STEP, b) for a, b in reads)
    outputs = old.has(STEP, SIZE) == new.has(STEP, SIZE)
    holds = z3.And(old.stride == new.stride, outputs, *same)
    return Claim("every output", path.conditions, holds)


@obligation
def looks_before(code: ModuleType) -> Iterator[Claim]:
    """`looks_before` exactly if some output of some image reads a place before the first pixel."""
    a = axis(code, "f", live=3)
    f = window(a)
    for path in explored(code, lambda: a.looks_before, (f.valid,)):
        given = (f.valid, *path.conditions)
        if path.result:
            seen = z3.And(f.has(z3.IntVal(0), f.extent), f.reads(0, f.first) < 0)
            yield Claim("the first output", given, seen)
        else:
            for tap in f.live:
                yield Claim("no output", (*given, STEP >= 0), f.reads(STEP, tap) >= 0)


@obligation
def looks_after(code: ModuleType) -> Iterator[Claim]:
    """`looks_after` exactly if some output of some image reads a place past the last pixel."""
    a = axis(code, "f", live=3)
    f = window(a)
    for path in explored(code, lambda: a.looks_after, (f.valid,)):
        given = (f.valid, *path.conditions)
        if path.result:
            size = f.reads(STEP, f.last)
            there = (f.extent <= STEP,)  # such a multiple of the stride exists
            yield Claim("an output that ends so", (*given, *there), f.has(STEP, size))
        else:
            for tap in f.live:
                outputs = (*given, f.has(STEP, SIZE))
                yield Claim("no output", outputs, f.reads(STEP, tap) < SIZE)


@obligation
def looks_outside(code: ModuleType) -> Iterator[Claim]:
    """`looks_outside` exactly if it looks before or after, and so on any axis of several."""
    a, b = axis(code, "f"), axis(code, "g")
    both = layer(code, a, b)
    outside = [beyond(window(of)) for of in (a, b)]
    for where, run, truth in (
        ("an axis", lambda: a.looks_outside, outside[0]),
        ("two axes", lambda: both.looks_outside, z3.Or(*outside)),
    ):
        for path in explored(code, run, ()):
            yield Claim(where, path.conditions, truth == bool(path.result))


@obligation
def nearest_before(code: ModuleType) -> Iterator[Claim]:
    """`nearest_before` is d exactly if place -d is read by an output and none from 1-d to -1 is.

    It is 0 if no place before the image is read, and never more than the stride. For up to three
    live taps, and any stride.
    """
    a = axis(code, "f", live=3)
    f = window(a)
    n, m = z3.Ints("n m")
    for path in explored(code, lambda: a.nearest_before, (f.valid,)):
        d, given = term(path.result), (f.valid, *path.conditions)
        for tap in f.live:
            place, behind = f.reads(f.stride * n, tap), f.before - tap - 1
            parts = (behind == f.stride * m + behind % f.stride, n >= 0, place < 0)
            hints = in_order(f.stride, n, m), in_order(f.stride, m + 1, n)
            yield Claim("no nearer place", (*given, *parts, *hints), place <= -d)
        places = [
            z3.And(f.reads(f.stride * ((f.before - t - 1) / f.stride), t) == -d, f.before > t)
            for t in f.live
        ]
        there = z3.And(d >= 1, d <= f.stride, z3.Or(*places))
        yield Claim("that place", given, z3.If(d == 0, f.before <= f.first, there))


@obligation
def is_pointwise(code: ModuleType) -> Iterator[Claim]:
    """`is_pointwise` exactly if for every image y[n] reads x[n] alone, and has as many pixels.

    Of several axes, all have to be.
    """
    a = axis(code, "f", live=3)
    f = window(a)
    for path in explored(code, lambda: a.is_pointwise, (f.valid,)):
        given = (f.valid, *path.conditions)
        if path.result:
            reads = (f.reads(STEP, tap) == STEP for tap in f.live)
            outputs = f.has(STEP, SIZE) == z3.And(inside(STEP, SIZE), SIZE >= 1)
            yield Claim("every output", given, z3.And(f.stride == 1, outputs, *reads))
        else:
            elsewhere = (f.reads(n * f.stride, tap) != n for n in (0, 1) for tap in f.live)
            size = f.extent
            more, fewer = f.has(f.stride * size, size), z3.Not(f.has(f.stride * (size - 1), size))
            yield Claim("some output", given, z3.Or(more, fewer, *elsewhere))

    b = axis(code, "g")
    both = layer(code, a, b)
    alone = [z3.And(of.stride == 1, of.first == of.last, of.last == of.before,
                    of.taps - 1 - of.last == of.after) for of in (f, window(b))]  # fmt: skip
    for path in explored(code, lambda: both.is_pointwise, ()):
        yield Claim("two axes", path.conditions, z3.And(*alone) == bool(path.result))
