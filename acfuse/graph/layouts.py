"""Where the channels of each value of a forward stand: second, as in images, or last, as in rows.

What reads a value tells it. A linear layer reads the last axis, a convolution the second one; a sum
has its channels where its summands have them; to permute an image's axes makes rows of it. Where a
value is read in both ways, nothing is told.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

ROWS = 0  # spatial axes of what has its channels last, whatever axes are before them
IMAGE = -1  # an image of as many axes as the other images of its forward


@dataclass(frozen=True)
class Reading:
    """How an operation reads what it is given.

    `axes` are those of what it reads and gives, `alike` says that what it reads and gives has its
    channels at the same place, `norm` that these are second where there are three axes; `permuted`
    is (axes, whether its channels are last in what it gives), or of None where it may be either.
    `rows` says that it gives rows where it reads rows, `each` that it gives one for each of them.
    """

    axes: int | None = None
    alike: bool = False
    norm: bool = False
    permuted: tuple[int, bool | None] | None = None
    rows: bool = False
    each: bool = False


@dataclass(frozen=True)
class Operation:
    """What makes a value from others; constants are not among them."""

    value: Hashable
    reads: Sequence[Hashable]
    reading: Reading


def axes_of(operations: Sequence[Operation]) -> dict[Any, int | None]:
    """The spatial axes of the values of which they are told: `ROWS`, `IMAGE`, or a number of them.

    None: they are read in several ways.
    """
    return _Layouts(operations).solved()


class _Layouts:
    def __init__(self, operations: Sequence[Operation]) -> None:
        self.above: dict[Hashable, Hashable] = {}  # those of one layout have one root
        self.told: dict[Hashable, set[int]] = {}
        self.operations = [o for o in operations if o.reads]
        for operation in self.operations:
            for read in operation.reads if operation.reading.alike else ():
                self.above[self.root(read)] = self.root(operation.value)
        for operation in self.operations:
            axes = operation.reading.axes
            if axes is not None:
                for value in (operation.value, *operation.reads):
                    self.tell(value, axes)

    def root(self, value: Hashable) -> Hashable:
        """The same for all values of one layout."""
        while (above := self.above.get(value, value)) != value:
            self.above[value] = value = self.above.get(above, above)  # halves the way for the next
        return value

    def tell(self, value: Hashable, axes: int) -> bool:
        """Notes what is known of a value; whether that is new."""
        told = self.told.setdefault(self.root(value), set())
        new = axes not in told
        told.add(axes)
        return new

    def axes(self, value: Hashable) -> int | None:
        """What is told of a value, if that is one thing."""
        told = self.told.get(self.root(value), set())
        return next(iter(told)) if len(told) == 1 else None

    def solved(self) -> dict[Any, int | None]:
        """The axes of all values, through permutes back and forth."""
        normed = {self.root(o.value) for o in self.operations if o.reading.norm}
        while any([*self._through_permutes(normed), *self._through_reshapes()]):
            pass
        values = {v: None for o in self.operations for v in (o.value, *o.reads)}
        return {value: self.axes(value) for value in values if self.told.get(self.root(value))}

    def _through_reshapes(self) -> Iterator[bool]:
        for operation in self.operations:
            if operation.reading.rows and self.axes(operation.reads[0]) == ROWS:
                yield self.tell(operation.value, ROWS)

    def _through_permutes(self, normed: set[Hashable]) -> Iterator[bool]:
        for operation in self.operations:
            if operation.reading.permuted is None:
                continue
            before, after = operation.reads[0], operation.value
            count, last = operation.reading.permuted
            images = count - 2
            for one, other, is_last in ((before, after, last), (after, before, _not(last))):
                # What `one` is says what `other` is; `is_last`: whether that has its channels last.
                if self.axes(one) == ROWS and is_last is not True:
                    yield self.tell(other, images)
                elif self.axes(one) not in (None, ROWS) and is_last is not False:
                    yield self.tell(other, ROWS)
                elif (
                    self.axes(one) is self.axes(other) is None
                    and not {self.root(one), self.root(other)} & self.told.keys()
                    and count == 3
                    and self.root(one) in normed
                    and self.root(other) not in normed
                ):
                    yield self.tell(one, images) | self.tell(other, ROWS)


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value
