"""A value as the sum of one convolution of each of its sources, and where its pixels stand.

Linear layers do the same to every row, 1x1 convolutions to every pixel. To flatten, permute or
transpose what they give puts pixels elsewhere and leaves them what they are. So what is done to
each pixel alike is written for the places where the sources have them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from math import prod
from typing import Any

from acfuse.algebra import Planned, Value
from acfuse.errors import NotFusable, Reason


@dataclass(frozen=True)
class Move:
    """Puts pixels elsewhere and changes none: what is done to each alike may be done before it.

    `name` and `settings` tell it from others, `undoes` is the one after which it changes nothing.
    What it reads must have so many `axes` and `channels` (None: any number); what it gives has
    `more` axes. `alone` says that it need not undo anything.

    One with a `scale` makes images that many times larger on each axis, of `merged` channels that
    become one (a PixelShuffle), or of copies. It stays behind what is done before it.
    """

    name: str
    settings: tuple[Any, ...] = ()
    axes: int | None = None
    more: int = 0
    undoes: str = ""
    channels: int | None = None
    alone: bool = True
    scale: tuple[int, ...] = ()
    merged: int = 1

    @property
    def pixels(self) -> Fraction:
        """How many pixels it reads for one that it gives."""
        return Fraction(1, prod(self.scale))

    def after(self, moves: tuple["Move", ...]) -> tuple["Move", ...]:
        """These moves and then this one. Raises NotFusable if it should undo another."""
        last = moves[-1] if moves else None
        if last is not None and (last.name, last.settings) == (self.undoes, self.settings):
            return moves[:-1]
        if not self.alone:
            raise NotFusable(Reason.SIZES, f"{self.name}: it did not have that shape before")
        return (*moves, self)


class Identity(Enum):
    """The source itself, unchanged: its width does not matter until something is done to it."""

    IDENTITY = "identity"


IDENTITY = Identity.IDENTITY
Operand = Planned | Value | Identity


class LinearCombination(dict[str, Operand]):
    """A value as the sum of one convolution of each source, all of whose pixels are then moved.

    The sources must have so many `axes` (None: any number).
    """

    def __init__(
        self,
        terms: Mapping[str, Operand],
        moves: tuple[Move, ...] = (),
        axes: int | None = None,
    ) -> None:
        super().__init__(terms)
        self.moves, self.axes = moves, axes

    def with_terms(self, terms: Mapping[str, Operand]) -> "LinearCombination":
        """Others in the same places."""
        return LinearCombination(terms, self.moves, self.axes)

    def of_axes(self, axes: int | None) -> "LinearCombination":
        """The same, which must have so many axes after its moves. Raises NotFusable."""
        before = None if axes is None else axes - sum(move.more for move in self.moves)
        return LinearCombination(self, self.moves, _agreed(self.axes, before))

    def moved(self, move: Move) -> "LinearCombination":
        """The same with its pixels moved once more. Raises NotFusable."""
        alike = self.of_axes(move.axes)
        return LinearCombination(alike, move.after(alike.moves), alike.axes)

    @property
    def merged(self) -> int:
        """How many channels of the terms are one channel of the value."""
        return prod(move.merged for move in self.moves)

    @property
    def pixels(self) -> Fraction:
        """How many pixels the terms have for one of the value."""
        return prod((move.pixels for move in self.moves), start=Fraction(1))

    @property
    def enlarges(self) -> bool:
        """Whether what moves its pixels can stay behind a sum of its terms."""
        return all(move.scale for move in self.moves)


def _agreed(*axes: int | None) -> int | None:
    """The number of axes that all want. Raises NotFusable if these are several."""
    wanted = {n for n in axes if n is not None}
    if len(wanted) > 1:
        why = f"one value would have to be of {min(wanted)} and of {max(wanted)} axes"
        raise NotFusable(Reason.SIZES, why)
    return wanted.pop() if wanted else None


def together(read: Sequence[LinearCombination]) -> LinearCombination:
    """Where the pixels of several values stand, and how many axes these have; without terms.

    Raises NotFusable where they stand in different places.
    """
    first, *others = read
    if any(other.moves != first.moves for other in others):
        why = "it puts together values whose pixels stand in different places"
        raise NotFusable(Reason.SIZES, why)
    return LinearCombination({}, first.moves, _agreed(*(one.axes for one in read)))
