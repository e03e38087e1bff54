"""Where the channels of each value of a forward stand: second, as in images, or last, as in rows.

What reads a value tells it. A linear layer reads the last axis, a convolution the second one; a sum
has its channels where its summands have them; to permute an image's axes makes rows of it. Where a
value is read in both ways, nothing is told.
"""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from torch import fx

ROWS = 0  # spatial axes of what has its channels last, whatever axes are before them
IMAGE = -1  # an image of as many axes as the other images of its forward


@dataclass(frozen=True)
class Reading:
    """How a node reads what it is given.

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


def axes_of(
    graph: fx.Graph, reading: Callable[[fx.Node], Reading | None], constants: Set[fx.Node]
) -> dict[fx.Node, int | None]:
    """The spatial axes of the values of which they are told: `ROWS`, `IMAGE`, or a number of them.

    None: they are read in several ways.
    """
    return _Layouts(graph, reading, constants).solved()


class _Layouts:
    def __init__(
        self,
        graph: fx.Graph,
        reading: Callable[[fx.Node], Reading | None],
        constants: Set[fx.Node],
    ) -> None:
        self.above: dict[fx.Node, fx.Node] = {}  # those of one layout have one root
        self.told: dict[fx.Node, set[int]] = {}
        self.norms: set[fx.Node] = set()
        self.permutes: list[tuple[fx.Node, fx.Node, int, bool | None]] = []
        self.reshapes: list[tuple[fx.Node, fx.Node]] = []
        self.nodes = [*graph.nodes]
        told: list[tuple[fx.Node, int]] = []
        for node in self.nodes:
            known = None if node in constants else reading(node)
            reads = [n for n in node.all_input_nodes if n not in constants]
            if known is None or not reads:
                continue
            if known.alike:
                for read in reads:
                    self.above[self.root(read)] = self.root(node)
            if known.norm:
                self.norms.add(node)
            if known.rows:
                self.reshapes.append((reads[0], node))
            if known.permuted is not None:
                self.permutes.append((reads[0], node, *known.permuted))
            if known.axes is not None:
                told += [(one, known.axes) for one in (node, *reads)]
        for node, axes in told:
            self.tell(node, axes)

    def root(self, node: fx.Node) -> fx.Node:
        """The same for all values of one layout."""
        while node in self.above and self.above[node] is not node:
            node = self.above[node]
        return node

    def tell(self, node: fx.Node, axes: int) -> bool:
        """Notes what is known of a value; whether that is new."""
        told = self.told.setdefault(self.root(node), set())
        new = axes not in told
        told.add(axes)
        return new

    def axes(self, node: fx.Node) -> int | None:
        """What is told of a value, if that is one thing."""
        told = self.told.get(self.root(node), set())
        return next(iter(told)) if len(told) == 1 else None

    def solved(self) -> dict[fx.Node, int | None]:
        """The axes of all values, through permutes back and forth."""
        normed = {self.root(node) for node in self.norms}
        while any([*self._through_permutes(normed), *self._through_reshapes()]):
            pass
        return {node: self.axes(node) for node in self.nodes if self.told.get(self.root(node))}

    def _through_reshapes(self) -> Iterator[bool]:
        for before, after in self.reshapes:
            if self.axes(before) == ROWS:
                yield self.tell(after, ROWS)

    def _through_permutes(self, normed: set[fx.Node]) -> Iterator[bool]:
        for before, after, count, last in self.permutes:
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
