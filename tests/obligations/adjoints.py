"""Transposed convolutions: the adjoints of windows, and what they do to a constant image."""

from collections.abc import Iterator
from itertools import product
from types import ModuleType
from typing import Any

import z3

from acfuse.algebra.adjoint_geometry import AdjointGeometry
from tests.obligations.channels import of_two
from tests.obligations.meaning import Window, Word, axis, inside, is_border, window
from tests.obligations.stating import (
    BORDER,
    SIZE,
    Stated,
    beyond,
    entered_in,
    explored,
    in_order,
    layer,
    refused,
    seen_with_another,
)
from tests.obligations.symbolic import Int, Term
from tests.obligations.verdicts import Claim

STATED: Stated = {}
obligation = entered_in(STATED)


def _adjoint(code: ModuleType, of: Any, shifts: Any = False) -> Any:
    """An adjoint of the code; of that in use, where the code is the geometry alone."""
    return getattr(code, "AdjointGeometry", AdjointGeometry)(of, shifts)


@obligation
def flipped_is_the_adjoint(code: ModuleType) -> Iterator[Claim]:
    """Of stride 1, a window's output n reads pixel m exactly if the flipped one's m reads n.

    That is by the same tap, counted from the other end. Of an image as large as the one's output,
    the other makes one as large as the one's image.
    """
    a, count = axis(code, "f", live=3), z3.Int("count")
    n, m = z3.Ints("n m")
    f = window(a)
    for path in explored(code, a.flipped, (f.stride == 1,)):
        g, given = window(path.result), (f.stride == 1, *path.conditions)
        for one, other in zip(f.live, reversed(g.live), strict=True):
            same = (f.reads(n, one) == m) == (g.reads(m, other) == n)
            yield Claim("a tap", given, same)
        sizes = z3.And(g.stride == 1, g.gives(count, SIZE))
        yield Claim("sizes", (*given, SIZE >= 1, f.gives(SIZE, count)), sizes)


@obligation
def chain_of_adjoints(code: ModuleType) -> Iterator[Claim]:
    """Two transposed windows make as many pixels of n as the transposed window of their chain.

    That is the chain in the other order: of the two convolutions, the second one's comes first.
    """
    first, second, n = axis(code, "f", live=1), axis(code, "g", live=1), z3.Int("n")
    f, g = window(first), window(second)
    for path in explored(code, lambda: second.then(first), ()):
        whole = window(path.result)
        one_by_one = _spread_size(g, _spread_size(f, n))
        yield Claim("", path.conditions, _spread_size(whole, n) == one_by_one)


def _spread_size(f: Window, n: Term) -> Term:
    """How many pixels a transposed window makes of n."""
    return f.stride * (n - 1) + f.taps - f.before - f.after


@obligation
def convolution_as_adjoint(code: ModuleType) -> Iterator[Claim]:
    """A convolution is an adjoint exactly if it steps by 1 and sees nothing but zeros outside.

    Any other makes images of one size of images of two sizes, which no transposed one does, or
    sees a pixel where that sees none.
    """
    word = Word(z3.Int("f_border"))
    a = axis(code, "f", live=2)
    f, one = window(a), layer(code, a, border=word)
    kind = getattr(code, "AdjointGeometry", AdjointGeometry)
    assumed = (f.valid, is_border(word.term))
    for path in explored(code, lambda: kind.of_convolution(one), assumed):
        given = (*assumed, *path.conditions)
        if not refused(path):
            sees_zeros = z3.Or(word.term == 0, z3.Not(beyond(f)))
            yield Claim("accepted", given, z3.And(f.stride == 1, sees_zeros))
            continue
        count = 8 * f.extent
        size = f.stride * (count - 1) - f.before - f.after + f.taps
        # That many pixels or one more: the window that begins next fits into neither.
        both = z3.And(f.stride >= 2, f.gives(size, count), f.gives(size + 1, count))
        hints = in_order(f.stride, z3.IntVal(1), count), in_order(count - 1, z3.IntVal(1), f.stride)
        two_sizes = z3.And(both, size >= 1)
        pixel = z3.And(BORDER == 0, seen_with_another(f, word.term))
        yield Claim("refused", (*given, *hints, BORDER == 0), z3.Or(two_sizes, pixel))

    b = axis(code, "g")
    g, two = window(b), layer(code, a, b, border=word)
    for path in explored(code, lambda: kind.of_convolution(two), assumed):
        alone = z3.And(f.stride == 1, g.stride == 1,
                       z3.Or(word.term == 0, z3.Not(z3.Or(beyond(f), beyond(g)))))  # fmt: skip
        yield Claim("two axes", (*assumed, *path.conditions), alone == (not refused(path)))


@obligation
def keeps_constants(code: ModuleType) -> Iterator[Claim]:
    """`keeps_constants` exactly if each output of each image gets something of every tap.

    Else, for some image, there are two outputs of which one gets something of a tap and the other
    does not. Of several axes, all have to.
    """
    a = axis(code, "f")
    f = window(a)
    for path in explored(code, lambda: _adjoint(code, layer(code, a)).keeps_constants, (f.valid,)):
        given = (f.valid, *path.conditions)
        if path.result:
            place = z3.Int("place")
            there = (SIZE >= 1, inside(place, _spread_size(f, SIZE)))
            for tap in f.live:
                # It comes from the pixel at this step, which is a multiple of the stride.
                step = place + f.before - tap
                yield Claim("every output", (*given, *there),
                            z3.And(f.stride == 1, inside(step, SIZE)))  # fmt: skip
            continue
        size = 8 * f.extent
        large = _spread_size(f, size)
        middle, other = 4 * f.extent, z3.Int("other")
        hints = (
            in_order(middle, z3.IntVal(1), f.stride),
            in_order(size - 1 - middle, z3.IntVal(1), f.stride),
            in_order(f.stride, other, middle),
            in_order(f.stride, middle + 1, other),
        )
        # Of a larger stride, that of a pixel gets its tap, and the next one that of no other pixel.
        place = f.stride * middle - f.before + f.first
        jumps = z3.And(
            f.stride >= 2,
            inside(place, large),
            inside(place + 1, large),
            f.stride * other - f.before + f.first != place + 1,
        )
        yield Claim("two outputs", (*given, *hints), z3.Or(jumps, _ends(f, size, large)))

    b = axis(code, "g")
    both = layer(code, a, b)
    g = window(b)
    inner = (z3.And(of.before >= of.last, of.after >= of.taps - 1 - of.first) for of in (f, g))
    alone = z3.And(f.stride == 1, g.stride == 1, *inner)
    for path in explored(code, lambda: _adjoint(code, both).keeps_constants, (f.valid, g.valid)):
        given = (f.valid, g.valid, *path.conditions)
        yield Claim("two axes", given, alone == bool(path.result))


def _ends(f: Window, size: Term, large: Term) -> Term:
    """Whether of stride 1 the first output misses the last tap, or the last one the first tap."""
    middle = 4 * f.extent
    gets = z3.And(
        *(z3.And(inside(middle, large), inside(middle + f.before - tap, size)) for tap in f.live)
    )
    first = z3.And(inside(z3.IntVal(0), large), f.before - f.last < 0)
    last = z3.And(inside(large - 1, large), large - 1 + f.before - f.first >= size)
    return z3.And(f.stride == 1, gets, z3.Or(first, last))


@obligation
def adjoint_channels_and_bias(code: ModuleType) -> Iterator[Claim]:
    """Transposed branches add exactly if they take and give the same channels.

    One follows another exactly if it takes the channels that that one gives, on as many axes, and
    makes a constant of its bias, if it may have one. The result takes and gives what the whole
    does, and may have a bias exactly if one of both may.
    """
    taken, given_ = z3.Ints("f_in g_in"), z3.Ints("f_out g_out")
    shifts = z3.Ints("f_shifts g_shifts")
    for axes, stride in product(product((1, 2), repeat=2), (1, 2)):
        point = code.Axis(1, stride, 0, 0, (0,))
        f, g = (
            _adjoint(code, layer(code, *(point,) * count, channels=(Int(into), Int(out))),
                     Int(shift))
            for count, out, into, shift in zip(axes, given_, taken, shifts, strict=True)
        )  # fmt: skip
        as_many = axes[0] == axes[1]
        sums = z3.And(taken[0] == taken[1], given_[0] == given_[1], as_many)
        carried = z3.Or(shifts[0] == 0, stride == 1)
        chains = z3.And(given_[0] == taken[1], as_many, carried)
        yield from of_two(code, (f, g), (sums, chains), taken, given_, shifts)
