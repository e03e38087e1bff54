"""What a convolution is, in the solver's terms: the other side of every obligation.

    y[n] = sum over live t of k[t] * x[stride*n - before + t], wherever the window still fits

No weight stands here: two maps are equal for all weights if and only if every tap (of a chain,
every pair of taps) reads the same pixel in both, because each can be the only one that is not zero.
An output n is told by `step`, which is stride*n: so strides stay unbounded as well.
"""

from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import z3

from tests.obligations.symbolic import Int, Term, term

BORDERS = ("zeros", "reflect", "replicate", "circular")
ZEROS, REFLECT, REPLICATE, CIRCULAR = map(z3.IntVal, range(4))
NOTHING = z3.IntVal(-1)  # what stands at a place beside the image that is filled with zeros


class Word(Int):
    """A border that may be any of the four."""

    __slots__ = ()
    __hash__ = Int.__hash__

    def __eq__(self, other: object) -> bool:
        return Int.__eq__(self, BORDERS.index(other) if isinstance(other, str) else other)


@dataclass(frozen=True)
class Window:
    """An axis of the code, taken apart into terms."""

    taps: Term
    stride: Term
    before: Term
    after: Term
    live: tuple[Term, ...]

    @property
    def first(self) -> Term:
        """The first live tap."""
        return self.live[0]

    @property
    def last(self) -> Term:
        """The last live tap."""
        return self.live[-1]

    @property
    def valid(self) -> Term:
        """The window has a stride, and its live taps lie in it, in order."""
        places = (z3.IntVal(0), *self.live, self.taps - 1)
        return z3.And(self.stride >= 1, *(a <= b for a, b in pairwise(places)))

    def reads(self, step: Term, tap: Term) -> Term:
        """Where the output at `step` looks with a tap."""
        return step - self.before + tap

    def has(self, step: Term, size: Term) -> Term:
        """Whether an image of `size` pixels has an output at `step`: the padded window fits."""
        ends = self.reads(step, self.taps - 1)
        return z3.And(step >= 0, size >= 1, ends <= size - 1 + self.after)

    def gives(self, size: Term, count: Term) -> Term:
        """Whether an image of `size` pixels becomes `count` of them, at least one."""
        step = self.stride
        fits = self.has(step * (count - 1), size)
        return z3.And(count >= 1, fits, z3.Not(self.has(step * count, size)))

    def same(self, other: "Window") -> Term:
        """Both have the same outputs, for all images."""
        rooms = (axis.before + axis.after - axis.taps for axis in (self, other))
        one, two = rooms
        return z3.And(self.stride == other.stride, one == two)

    @property
    def extent(self) -> Term:
        """More than any number of this window, its stride left out."""
        return 1 + self.taps + z3.Abs(self.before) + z3.Abs(self.after)


def axis(code: ModuleType, name: str, live: int = 2) -> Any:
    """An axis of the code that stands for every one with so many live taps, or fewer.

    They may coincide; what lies between them decides nothing unless an obligation says so.
    """
    parts = (Int(z3.Int(f"{name}_{part}")) for part in ("taps", "stride", "before", "after"))
    lives = tuple(Int(z3.Int(f"{name}_live{place}")) for place in range(live))
    return code.Axis(*parts, live=lives)


def window(of: Any) -> Window:
    """The terms of an axis."""
    parts = (term(part) for part in (of.taps, of.stride, of.before, of.after))
    return Window(*parts, live=tuple(map(term, of.live)))


def border_term(border: Any) -> Term:
    """The number of a border in the list above."""
    return z3.IntVal(BORDERS.index(border)) if isinstance(border, str) else term(border)


def is_border(border: Term) -> Term:
    """It is one of the four."""
    return z3.And(border >= 0, border < len(BORDERS))


def inside(place: Term, size: Term) -> Term:
    """Whether a place is a pixel."""
    return z3.And(place >= 0, place < size)


def near(place: Term, size: Term) -> Term:
    """Whether every border is defined at a place: it is less than the image away from it."""
    return z3.And(-size < place, place < 2 * size - 1)


def defined(border: Term, place: Term, size: Term) -> Term:
    """Whether this border is: zeros and the edge's pixel go on for ever, the others do not."""
    return z3.Or(border == ZEROS, border == REPLICATE, near(place, size))


def source(border: Term, place: Term, size: Term) -> Term:
    """The pixel that stands at a place; NOTHING where zeros do."""
    mirrored = z3.If(place < 0, -place, 2 * (size - 1) - place)
    nearest = z3.If(place < 0, z3.IntVal(0), size - 1)
    around = z3.If(place < 0, place + size, place - size)
    repeated = z3.If(border == REFLECT, mirrored, z3.If(border == REPLICATE, nearest, around))
    return z3.If(inside(place, size), place, z3.If(border == ZEROS, NOTHING, repeated))
