"""A layer that follows another."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import z3

from tests.obligations.meaning import (
    CIRCULAR,
    NOTHING,
    ZEROS,
    Word,
    axis,
    border_term,
    defined,
    inside,
    is_border,
    near,
    source,
    window,
)
from tests.obligations.stating import (
    BORDER,
    COUNT,
    SIZE,
    STEP,
    Stated,
    beyond,
    entered_in,
    explored,
    in_order,
    layer,
    one_of,
    refused,
    seen_with_another,
)
from tests.obligations.symbolic import Int, Path, Term
from tests.obligations.verdicts import Claim

STATED: Stated = {}
obligation = entered_in(STATED)


@obligation
def chain_of_windows(code: ModuleType) -> Iterator[Claim]:
    """The chain of two windows reads, through every pair of taps, what g reads of what f reads.

    It reads nothing else, and has the outputs of g over those of f, for every image.
    """
    a, b = axis(code, "f"), axis(code, "g")
    f, g = window(a), window(b)
    assumed = (f.valid, g.valid)
    for path in explored(code, lambda: a.then(b), assumed):
        given, whole = (*assumed, *path.conditions), window(path.result)
        pairs = [(u, t) for u in g.live for t in f.live]
        step = f.stride * STEP  # of the chain: stride_f * (stride_g * n)
        through = tuple(f.reads(f.stride * g.reads(STEP, u), t) for u, t in pairs)
        new = tuple(whole.reads(step, tap) for tap in whole.live)
        yield Claim("all are read", given, z3.And(*(one_of(place, new) for place in through)))
        yield Claim("no other is read", given, z3.And(*(one_of(place, through) for place in new)))
        ends = (whole.first == f.stride * g.first + f.first,
                whole.last == f.stride * g.last + f.last)  # fmt: skip
        parts = (
            whole.stride == f.stride * g.stride,
            whole.taps == f.stride * (g.taps - 1) + f.taps,
            whole.before == f.stride * g.before + f.before,
            whole.after == f.stride * g.after + f.after,
        )  # what stands for it below
        yield Claim("its parts", given, z3.And(*ends, *parts))
        more = COUNT + g.before + g.after - g.taps  # the last step of g
        hints = in_order(f.stride, STEP, more), in_order(f.stride, more + 1, STEP)
        made = (f.gives(SIZE, COUNT), STEP >= 0, *hints)
        yield Claim("its outputs", (*given, *made), whole.has(step, SIZE) == g.has(STEP, COUNT))


class Chain:
    """Two layers on one axis, f and then g, of any border, the first with or without a bias.

    Of `Axis.then` and `nearest_before` there stands what their own obligations say of them.
    """

    def __init__(self, code: ModuleType) -> None:
        self.code = code
        self.a, self.b = axis(code, "f"), axis(code, "g")
        self.f, self.g = window(self.a), window(self.b)
        words = Word(z3.Int("f_border")), Word(z3.Int("g_border"))
        shifts = Int(z3.Int("f_shifts")), Int(z3.Int("g_shifts"))
        self.first, self.second = (
            layer(code, own, border=word, shifts=shift)
            for own, word, shift in zip((self.a, self.b), words, shifts, strict=True)
        )
        (self.f_border, self.g_border), self.bias = (word.term for word in words), shifts[0].term
        self.nearest, self.nearest_tap = z3.Int("nearest"), z3.Int("nearest_tap")
        d, g = self.nearest, self.g
        self.assumed = (
            self.f.valid,
            g.valid,
            is_border(self.f_border),
            is_border(self.g_border),
            z3.And(d >= 0, d <= g.stride),
            (d == 0) == (g.before <= g.first),
            z3.Implies(d > 0, z3.And(self.step_at(-d, self.nearest_tap) >= 0,
                                     g.first <= self.nearest_tap, self.nearest_tap <= g.last)),
        )  # fmt: skip

    def paths(self, *assumed: Term) -> list[Path]:
        """What `Geometry.then` does."""

        def then(a: Any, b: Any) -> Any:
            step = a.stride
            live = step * b.live[0] + a.live[0], step * b.live[-1] + a.live[-1]
            taps, stride = step * (b.taps - 1) + a.taps, step * b.stride
            pads = step * b.before + a.before, step * b.after + a.after
            return self.code.Axis(taps, stride, *pads, live)

        return explored(
            self.code,
            lambda: self.first.then(self.second),
            (*self.assumed, *assumed),
            then=then,
            nearest_before=property(lambda axis: Int(self.nearest)),
        )

    def step_at(self, place: Term, tap: Term) -> Term:
        """The step of g's output that reads a place with a tap."""
        return place + self.g.before - tap

    def runs(self, place: Term, u: Term, t: Term, count: Term, size: Term) -> Term:
        """F makes `count` pixels of `size`; g reads the place there with u, and f there with t.

        What a place before the image is, `nearest` says.
        """
        f, g = self.f, self.g
        position = f.reads(f.stride * place, t)
        return z3.And(
            f.gives(size, count),
            g.has(self.step_at(place, u), count),
            defined(self.g_border, place, count),
            defined(self.f_border, position, size),
            z3.Implies(place < 0, place <= -self.nearest),
        )

    def seen(self, place: Term, t: Term, count: Term, size: Term) -> Term:
        """The pixel of the image that g sees through f at a place of f's output, or beside it."""
        f, stands = self.f, source(self.g_border, place, count)
        through = source(self.f_border, f.reads(f.stride * stands, t), size)
        return z3.If(z3.And(stands == NOTHING, z3.Not(inside(place, count))), NOTHING, through)

    def seen_at_once(self, border: Term, place: Term, t: Term, size: Term) -> Term:
        """The same through one convolution with this border."""
        return source(border, self.f.reads(self.f.stride * place, t), size)

    def loses_bias(self, place: Term, count: Term) -> Term:
        """Whether g sees a zero where the one convolution would see f's bias."""
        outside = z3.Not(inside(place, count))
        return z3.And(self.bias != 0, self.g_border == ZEROS, outside)

    def exact(self, path: Path, *assumed: Term) -> Iterator[Claim]:
        """For what is accepted: every pair of taps sees the same pixel at once."""
        f, g = self.f, self.g
        u, t, count, size, place = z3.Ints("u t count size place")
        taps = (g.first <= u, u <= g.last, f.first <= t, t <= f.last)
        hints = (
            in_order(f.stride, place, -self.nearest),
            in_order(f.stride, count, place),
            in_order(f.stride, place, count - 1),
            in_order(f.stride, z3.IntVal(0), place),
            in_order(f.stride, g.first, g.before),
            in_order(f.stride, g.before, g.first),
        )
        border = border_term(path.result.border)
        alike = self.seen(place, t, count, size) == self.seen_at_once(border, place, t, size)
        given = (*self.assumed, *assumed, *path.conditions, *taps, *hints)
        holds = z3.And(alike, z3.Not(self.loses_bias(place, count)))
        yield Claim("exact", (*given, self.runs(place, u, t, count, size)), holds)

    def differs(self, place: Term, u: Term, t: Term, count: Term, size: Term) -> Term:
        """Whether a single convolution with BORDER is another map, as is seen there."""
        other = self.seen(place, t, count, size) != self.seen_at_once(BORDER, place, t, size)
        there = self.runs(place, u, t, count, size)
        position = self.f.reads(self.f.stride * place, t)
        apart = z3.Or(self.loses_bias(place, count), other)
        return z3.And(there, near(place, count), near(position, size), apart)

    def needed(self, path: Path, *assumed: Term, more: tuple[Term, ...] = ()) -> Iterator[Claim]:
        """For what is refused: a large image at whose edges a single convolution is another map."""
        f, g = self.f, self.g
        count = z3.Int("count")
        largest = f.stride * count - 1 + f.taps - f.before - f.after
        sizes = largest, largest - f.stride + 1  # and the smallest that gives so many pixels
        large = 8 * (f.extent + g.extent + f.stride * (g.extent + self.nearest))
        spots = [
            (place, u, t, count, size)
            for place, u in ((-self.nearest, self.nearest_tap), (count, g.last))
            for t in (f.first, f.last)
            for size in sizes
        ]
        hints = in_order(f.stride, z3.IntVal(1), count), in_order(count, z3.IntVal(1), f.stride)
        given = (*self.assumed, *assumed, *path.conditions, is_border(BORDER), count >= large)
        found = (self.differs(*spot) for spot in spots)
        yield Claim("needed", (*given, *hints), z3.Or(*found, *more))


@obligation
def chain_inside(code: ModuleType) -> Iterator[Claim]:
    """Where g never looks outside of f's output, every chain is accepted and exact.

    Whatever the bias and the borders are; the chain has f's border.
    """
    chain = Chain(code)
    within = z3.Not(beyond(chain.g))
    for path in chain.paths(within):
        if refused(path):
            yield Claim("accepted", (*chain.assumed, within, *path.conditions), z3.BoolVal(False))
        else:
            yield from chain.exact(path, within)


@obligation
def chain_with_zeros(code: ModuleType) -> Iterator[Claim]:
    """Where g looks outside and sees zeros, accepted exactly if the chain is one convolution.

    For f without a bias, that sees zeros outside or does not look there; and every stride of both.
    """
    chain = Chain(code)
    f = chain.f
    outside, zeros = beyond(chain.g), chain.g_border == ZEROS
    plain = z3.Or(chain.f_border == ZEROS, z3.Not(beyond(f)))
    assumed = (outside, zeros, plain, chain.bias == 0)
    for path in chain.paths(*assumed):
        yield from (chain.needed if refused(path) else chain.exact)(path, *assumed)


@obligation
def chain_with_bias(code: ModuleType) -> Iterator[Claim]:
    """Where g looks outside and sees zeros, and f has a bias, every chain is refused.

    No single convolution is equal, because g sees zeros where f would give its bias.
    """
    chain = Chain(code)
    assumed = (beyond(chain.g), chain.g_border == ZEROS, chain.bias != 0)
    for path in chain.paths(*assumed):
        yield Claim(
            "refused", (*chain.assumed, *assumed, *path.conditions), z3.BoolVal(refused(path))
        )
        yield from chain.needed(path, *assumed)


@obligation
def chain_with_zeros_after_a_border(code: ModuleType) -> Iterator[Claim]:
    """Where g sees zeros outside, and f pixels again, every chain is refused.

    No single convolution is equal if g reads, in some image, a pixel of f whose window looks
    outside. Where g jumps over or crops all of these, the refusal is by choice.
    """
    chain = Chain(code)
    f = chain.f
    u, t, count, size, place = z3.Ints("read_u read_t read_count read_size read_place")
    position = f.reads(f.stride * place, t)
    outside = z3.Not(inside(position, size))
    reads = z3.And(inside(place, count), outside, chain.runs(place, u, t, count, size),
                   near(position, size))  # fmt: skip
    assumed = (beyond(chain.g), chain.g_border == ZEROS, chain.bias == 0, beyond(f),
               chain.f_border != ZEROS)  # fmt: skip
    for path in chain.paths(*assumed):
        yield Claim(
            "refused", (*chain.assumed, *assumed, *path.conditions), z3.BoolVal(refused(path))
        )
        more = (chain.differs(place, u, t, count, size),)
        yield from chain.needed(path, *assumed, reads, more=more)


@obligation
def chain_with_repeated_pixels(code: ModuleType) -> Iterator[Claim]:
    """Where g looks outside and sees pixels again, a chain is accepted exactly if f is pointwise.

    It is then exact, whatever the bias. That the others are no convolution holds if f looks nowhere
    outside, g reads the place next to the image, and g is circular or f has more than one tap; the
    other refusals are by choice.
    """
    chain = Chain(code)
    f, g = chain.f, chain.g
    assumed = (beyond(g), chain.g_border != ZEROS)
    wide = z3.Or(chain.g_border == CIRCULAR, f.first < f.last)
    for path in chain.paths(*assumed):
        if refused(path):
            yield from chain.needed(path, *assumed, z3.Not(beyond(f)), chain.nearest <= 1, wide)
        else:
            yield from chain.exact(path, *assumed)
        given = (*chain.assumed, *assumed, *path.conditions)
        edges = z3.And(f.before == f.first, f.first == f.last, f.taps - 1 - f.last == f.after)
        yield Claim("pointwise", given, z3.And(f.stride == 1, edges) != refused(path))


@obligation
def chain_of_several_axes(code: ModuleType) -> Iterator[Claim]:
    """On two axes, accepted exactly if one border is right on each axis that looks outside.

    Which one an axis needs stands in the obligations of one axis.
    """
    axes = [axis(code, f"both{n}", live=1) for n in range(2)]
    words = [Word(z3.Int(f"border{n}")) for n in range(2)]
    windows = [window(of) for of in axes]
    assumed = (*(w.valid for w in windows), *(is_border(word.term) for word in words))
    # A layer of pointwise windows, told apart by their taps: what they are is not asked.
    one = layer(code, *(code.Axis(n + 1, 1, 0, 0, (0,)) for n in range(2)))
    for path in explored(
        code,
        lambda: one.then(one),
        assumed,
        then=lambda a, b: axes[a.taps - 1],
        border_between=lambda a, b, f, g: words[a.taps - 1],
    ):
        given = (*assumed, *path.conditions)
        if refused(path):
            wrong = (seen_with_another(w, b.term) for w, b in zip(windows, words, strict=True))
            yield Claim("no border", (*given, is_border(BORDER)), z3.Or(*wrong))
        else:
            right = border_term(path.result.border)
            fits = (z3.Implies(beyond(w), b.term == right)
                    for w, b in zip(windows, words, strict=True))  # fmt: skip
            yield Claim("one border", given, z3.And(*fits))
