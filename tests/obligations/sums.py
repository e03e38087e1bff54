"""Two branches of one input, added."""

from collections.abc import Iterator
from types import ModuleType

import z3

from tests.obligations.meaning import (
    Window,
    Word,
    axis,
    border_term,
    defined,
    is_border,
    source,
    window,
)
from tests.obligations.stating import (
    BORDER,
    SIZE,
    STEP,
    Stated,
    entered_in,
    explored,
    in_order,
    layer,
    one_of,
    refused,
    seen_with_another,
)
from tests.obligations.symbolic import Term
from tests.obligations.verdicts import Claim

STATED: Stated = {}
obligation = entered_in(STATED)


@obligation
def sum_of_windows(code: ModuleType) -> Iterator[Claim]:
    """Two windows of one stride add exactly if their outputs are as many for every image.

    The sum then has these outputs, and reads what either reads and nothing else.
    """
    a, b = axis(code, "f"), axis(code, "g")
    f, g = window(a), window(b)
    assumed = (f.valid, g.valid, f.stride == g.stride)
    for path in explored(code, lambda: a + b, assumed):
        given = (*assumed, *path.conditions)
        if refused(path):
            yield Claim("other sizes", given, _sizes_differ(f, g))
            continue
        whole = window(path.result)
        yield Claim("outputs", given, z3.And(whole.same(f), whole.same(g), whole.valid))
        own = tuple(of.reads(STEP, tap) for of in (f, g) for tap in of.live)
        new = tuple(whole.reads(STEP, tap) for tap in whole.live)
        yield Claim("all are read", given, z3.And(*(one_of(place, new) for place in own)))
        yield Claim("no other is read", given, z3.And(*(one_of(place, own) for place in new)))


def _sizes_differ(f: Window, g: Window) -> Term:
    """An image of which one has an output that the other has not: any large multiple of the stride.

    The stride itself would do, times a number, so it is one such multiple.
    """
    many = f.extent + g.extent
    step = f.stride * many
    sizes = [step - of.before - of.after + of.taps for of in (f, g)]
    return z3.Or(*(z3.And(s >= 1, f.has(step, s) != g.has(step, s)) for s in sizes))


@obligation
def sum_of_strides(code: ModuleType) -> Iterator[Claim]:
    """Branches that step differently are refused, and then give different sizes for some image."""
    a, b = axis(code, "f", live=1), axis(code, "g", live=1)
    f, g = window(a), window(b)
    one, two = layer(code, a), layer(code, b)
    assumed = (f.valid, g.valid, f.stride != g.stride)
    for path in explored(code, lambda: one + two, assumed):
        given = (*assumed, *path.conditions)
        many = 2 * (f.extent + g.extent)
        differ = []
        for low, high in ((f, g), (g, f)):
            size = low.stride * many - low.before - low.after + low.taps
            apart = z3.And(
                low.has(low.stride * many, size), z3.Not(high.has(high.stride * many, size))
            )
            differ.append(z3.And(low.stride < high.stride, apart))
        hints = in_order(many, f.stride + 1, g.stride), in_order(many, g.stride + 1, f.stride)
        yield Claim("other sizes", (*given, *hints), z3.And(refused(path), z3.Or(*differ)))


@obligation
def sum_of_borders(code: ModuleType) -> Iterator[Claim]:
    """Branches of one size add exactly if one border is right for every place either reads.

    On one axis and on two, where one branch may look outside on one and the other on the other.
    Of the windows there stands what `sum_of_windows` says of them.
    """
    for count in (1, 2):
        axes = [[axis(code, f"{name}{n}", live=1) for n in range(count)] for name in "fg"]
        words = [Word(z3.Int(f"{name}_border")) for name in "fg"]
        one, two = (layer(code, *own, border=word) for own, word in zip(axes, words, strict=True))
        branches = [[window(a) for a in own] for own in axes]
        assumed = (
            *(of.valid for own in branches for of in own),
            *(f.same(g) for f, g in zip(*branches, strict=True)),
            *(is_border(word.term) for word in words),
        )
        for path in explored(code, lambda one=one, two=two: one + two, assumed, add=lambda a, b: a):
            given = (*assumed, *path.conditions)
            if refused(path):
                wrong = z3.Or(
                    *(
                        seen_with_another(of, word.term)
                        for own, word in zip(branches, words, strict=True)
                        for of in own
                    )
                )
                yield Claim(f"{count} axes, no border", (*given, is_border(BORDER)), wrong)
                continue
            result = border_term(path.result.border)
            for own, word in zip(branches, words, strict=True):
                for of in own:
                    for tap in of.live:
                        place = of.reads(STEP, tap)
                        at = (of.has(STEP, SIZE), defined(word.term, place, SIZE))
                        same = source(word.term, place, SIZE) == source(result, place, SIZE)
                        yield Claim(f"{count} axes, one border", (*given, *at), same)
