"""What stands where in an image that was put together of others and of constants.

The spatial axes are cut at places, and each cell between the cuts is a part of one image, or the
same constants at every pixel. Places are numbers, or expressions of sizes that nobody knows: what
is said here holds for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from math import prod
from typing import Any

import sympy  # type: ignore[import-untyped]
from torch import Tensor

from acfuse.algebra.layers import Pads


class UnknownPlace(Exception):
    """Nothing tells which of two places is the first."""


@dataclass(frozen=True)
class Part:
    """A part of an image of some shape, from these places on."""

    image: Any
    shape: tuple[Any, ...]
    begins: tuple[Any, ...]


Cell = Part | Tensor  # constants have the shape [channels], or are one number


@dataclass(frozen=True)
class Grid:
    """An image as cells. Each axis is cut at 0 first, and at its size last.

    `sizes` are expressions that are known to be at least 1. What is asked of places that cannot be
    told apart raises UnknownPlace.
    """

    cuts: tuple[tuple[Any, ...], ...]
    cells: Mapping[tuple[int, ...], Cell]
    sizes: frozenset[Any]

    @classmethod
    def of(cls, cell: Cell, shape: Sequence[Any], sizes: frozenset[Any]) -> "Grid":
        """One cell alone."""
        return cls(tuple((0, size) for size in shape), {(0,) * len(shape): cell}, sizes)

    @property
    def shape(self) -> tuple[Any, ...]:
        """The size along each axis."""
        return tuple(cuts[-1] for cuts in self.cuts)

    @property
    def constants(self) -> Tensor | None:
        """What stands everywhere, if it is the same constants."""
        cells = [*self.cells.values()]
        return cells[0] if len(cells) == 1 and isinstance(cells[0], Tensor) else None

    def filled(self, constants: Tensor, axis: int, size: Any) -> "Grid":
        """Constants of the same shape, but for one axis."""
        return Grid.of(constants, _replaced(self.shape, axis, size), self.sizes)

    def is_positive(self, length: Any) -> bool:
        """Whether a length is at least 1, for certain."""
        rests = (simple(length - size) for size in (1, *self.sizes))
        return any(isinstance(rest, int) and rest >= 0 for rest in rests)

    def cut(self, axis: int, place: Any) -> tuple["Grid", int]:
        """The same with a cut at a place, and the number of that cut."""
        cuts = self.cuts[axis]
        for number, known in enumerate(cuts):
            if simple(place - known) == 0:
                return self, number
        inside = (
            self.is_positive(place - low) and self.is_positive(high - place)
            for low, high in pairwise(cuts)
        )
        number = next((n for n, is_there in enumerate(inside) if is_there), -1)
        if number < 0:
            raise UnknownPlace
        cells: dict[tuple[int, ...], Cell] = {}
        for index, cell in self.cells.items():
            if index[axis] <= number:
                cells[index] = cell
            if index[axis] == number and isinstance(cell, Part):
                begin = simple(cell.begins[axis] + place - cuts[number])
                cell = replace(cell, begins=_replaced(cell.begins, axis, begin))
            if index[axis] >= number:
                cells[_replaced(index, axis, index[axis] + 1)] = cell
        places = (*cuts[: number + 1], place, *cuts[number + 1 :])
        return replace(self, cuts=_replaced(self.cuts, axis, places), cells=cells), number + 1

    def between(self, axis: int, begin: Any, end: Any) -> "Grid":
        """What stands between two places of an axis."""
        grid, first = self.cut(axis, begin)
        grid, last = grid.cut(axis, end)
        if first >= last:
            raise UnknownPlace
        cuts = tuple(simple(place - begin) for place in grid.cuts[axis][first : last + 1])
        cells = {
            _replaced(index, axis, index[axis] - first): cell
            for index, cell in grid.cells.items()
            if first <= index[axis] < last
        }
        return replace(grid, cuts=_replaced(grid.cuts, axis, cuts), cells=cells)

    def pasted(self, part: "Grid", axis: int, begin: Any, end: Any) -> "Grid":
        """The same with another in place of what stands between two places of an axis."""
        pieces = [part]
        if simple(begin) != 0:
            pieces.insert(0, self.between(axis, 0, begin))
        if simple(self.shape[axis] - end) != 0:
            pieces.append(self.between(axis, end, self.shape[axis]))
        wanted = _replaced(self.shape, axis, end - begin)
        if any(simple(a - b) != 0 for a, b in zip(part.shape, wanted, strict=True)):
            raise UnknownPlace
        return joined(axis, pieces)

    def padded(self, axis: int, pads: tuple[Any, Any], constants: Tensor) -> "Grid":
        """The same with constants before and behind it; negative: less of it."""
        low, high = (0 if self.is_positive(n) else -n for n in pads)
        pieces = [self.between(axis, low, self.shape[axis] - high)]
        for where, n in zip((0, 2), pads, strict=True):
            if self.is_positive(n):
                pieces.insert(where, self.filled(constants, axis, n))
        return joined(axis, pieces)

    def frame(self) -> tuple[Any, Tensor | None, Pads] | None:
        """The one image that stands in it, the constants around it, and how many on each side.

        Negative: so much of the image is not there. None if it is anything else.
        """
        parts = {index: cell for index, cell in self.cells.items() if isinstance(cell, Part)}
        around = [cell for cell in self.cells.values() if isinstance(cell, Tensor)]
        images = {(part.image, part.shape) for part in parts.values()}
        if len(images) != 1 or any(not bool((cell == around[0]).all()) for cell in around):
            return None
        ((image, shape),) = images
        ranges = [range(min(places), max(places) + 1) for places in zip(*parts, strict=True)]
        if len(parts) != prod(map(len, ranges)):
            return None
        sides = []
        for axis, (cuts, places) in enumerate(zip(self.cuts, ranges, strict=True)):
            low, high = cuts[places.start], cuts[places.stop]
            before = {
                simple(cuts[index[axis]] - part.begins[axis]) for index, part in parts.items()
            }
            if len(before) > 1:
                return None
            shift = before.pop()
            after = simple(cuts[-1] - shift - shape[axis])
            # All of the image with something around it, or a part of it with nothing.
            for pad, beside in ((shift, low), (after, cuts[-1] - high)):
                if not isinstance(pad, int) or simple(beside - max(pad, 0)) != 0:
                    return None
            sides.append((shift, after))
        return image, around[0] if around else None, tuple(sides)


def joined(axis: int, grids: Sequence[Grid]) -> Grid:
    """Grids one behind the other, all cut at the same places of the other axes."""
    for other in range(len(grids[0].cuts)):
        if other != axis:
            places = [place for grid in grids for place in grid.cuts[other]]
            grids = [reduce(lambda g, at, o=other: g.cut(o, at)[0], places, g) for g in grids]  # type: ignore[misc]
    cuts: list[Any] = [0]
    cells: dict[tuple[int, ...], Cell] = {}
    for grid in grids:
        before, end = len(cuts) - 1, cuts[-1]
        for index, cell in grid.cells.items():
            cells[_replaced(index, axis, before + index[axis])] = cell
        cuts += [simple(end + place) for place in grid.cuts[axis][1:]]
    return replace(grids[0], cuts=_replaced(grids[0].cuts, axis, tuple(cuts)), cells=cells)


def simple(expression: Any) -> Any:
    """An expression in its simplest form; a number if it is one."""
    if isinstance(expression, int):
        return expression
    expression = sympy.expand(expression)
    return int(expression) if expression.is_Integer else expression


def _replaced(several: tuple[Any, ...], place: int, by: Any) -> tuple[Any, ...]:
    return (*several[:place], by, *several[place + 1 :])
