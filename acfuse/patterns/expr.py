"""The little language in which a block is written.

    seq("square_conv", "square_bn") + seq("ver_conv", "ver_bn") + maybe(seq("hor_conv", "hor_bn"))

or, as it is printed and as `notation.parse` reads it,

    square_conv > square_bn + ver_conv > ver_bn + [hor_conv > hor_bn]

A name is a layer, looked up on a module or among tensors; `seq` chains, `+` and `-` add, `maybe`
may be absent, `each` is as many as there are, `x` is what the expression reads (the block's input),
`scaled` multiplies by a stored parameter. `layer` is a name with what only the code says of it,
`padded` a chain that is padded before its first layer, `pool` an average pooling. An expression is
data: it never touches a tensor and never decides what is exact.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from acfuse.algebra import Affine, Conv
from acfuse.errors import NotFusable, Reason
from acfuse.patterns.values import Value, in_channels_of, kernel_size_of, placed

Lookup = Callable[[str], Any]  # a name to its layer; None: there is no such layer
Answer = TypeVar("Answer")

PLAIN_NAME = re.compile(r"(?:\w+|\*)(?:\.(?:\w+|\*))*")
"""A name that needs no quotes. A star stands for the number of a repeated layer."""


class Absent(Exception):
    """A layer that the pattern needs is not there."""


def if_there(ask: Callable[[], Answer], otherwise: Answer) -> Answer:
    """The answer to a question about an expression, or another one where a layer is absent."""
    try:
        return ask()
    except Absent:
        return otherwise


class Expr:
    """Something that a block computes from its input."""

    def __add__(self, other: "Expr | str") -> "Expr":
        return self._with(_expr(other), 1.0)

    def __sub__(self, other: "Expr | str") -> "Expr":
        return self._with(_expr(other), -1.0)

    def _with(self, other: "Expr", sign: float) -> "Expr":
        parts, signs = (self.parts, self.signs) if isinstance(self, Sum) else ((self,), (1.0,))
        return Sum((*parts, other), (*signs, sign))

    def inner(self) -> "tuple[Expr, ...]":
        """The expressions that it is made of."""
        return ()

    def everywhere(self) -> "Iterator[Expr]":
        """The expression and all that is inside of it."""
        yield self
        for part in self.inner():
            yield from part.everywhere()

    def value(self, look: Lookup, start: Value) -> Any:
        """What it makes of the block's input `start`; None where it is absent.

        Raises Absent for a layer that must be there, and what the layers raise (NotFusable).
        """
        raise TypeError(type(self).__name__)

    def names(self, look: Lookup) -> list[str]:
        """The names of the layers that it uses, in order. Raises Absent."""
        return [name for part in self.inner() for name in part.names(look)]

    def arms(self, look: Lookup) -> int:
        """How many branches it adds. Raises Absent."""
        self.names(look)
        return 1

    def first(self) -> str:
        """The first layer that is always there; "" if each may be absent."""
        return next(filter(None, (part.first() for part in self.inner())), "")


@dataclass(frozen=True)
class _Several(Expr):
    parts: tuple[Expr, ...]

    def inner(self) -> tuple[Expr, ...]:
        return self.parts


@dataclass(frozen=True)
class _Around(Expr):
    of: Expr

    def inner(self) -> tuple[Expr, ...]:
        return (self.of,)

    def arms(self, look: Lookup) -> int:
        return self.of.arms(look)


@dataclass(frozen=True)
class Input(Expr):
    def __str__(self) -> str:
        return "x"

    def value(self, look: Lookup, start: Value) -> Any:
        return start


@dataclass(frozen=True)
class NamedLayer(Expr):
    name: str
    size: tuple[int, ...] | None = None  # equal numbers are meant for every axis
    dilation: int = 1
    depthwise: bool = False

    def __str__(self) -> str:
        if self.size is None:
            return _written(self.name)
        dilation = f", dilation {self.dilation}" if self.dilation > 1 else ""
        depthwise = ", depthwise" if self.depthwise else ""
        return f"{_written(self.name)} ({'x'.join(map(str, self.size))}{dilation}{depthwise})"

    def value(self, look: Lookup, start: Value) -> Any:
        found = self.layer(look)
        return start.then(found if self.size is None else self._as_written(found, self.size))

    @property
    def is_placed(self) -> bool:
        """Whether its kernel has a middle by what is said of it, also if its size is even."""
        return all((n - 1) * self.dilation % 2 == 0 for n in self.size or (2,))

    def layer(self, look: Lookup) -> Any:
        found = look(self.name)
        if found is None:
            raise Absent(self.name)
        return found

    def _as_written(self, found: Any, size: tuple[int, ...]) -> Any:
        """The layer with what the pattern says of it. Raises NotFusable for another kernel."""
        have = kernel_size_of(found)
        wanted = size if len(set(size)) > 1 else size[:1] * len(have)
        if have != wanted:
            why = f"{self.name} has a kernel of {have}, where its pattern has {wanted}"
            raise NotFusable(Reason.ASSUMPTION, why)
        if self.depthwise and isinstance(found, Conv) and found.weight.shape[1] != 1:
            why = f"{self.name} is not depthwise, and its pattern's is"
            raise NotFusable(Reason.ASSUMPTION, why)
        if self.dilation == 1:
            return found
        half = tuple((n - 1) * self.dilation // 2 for n in have)
        return placed(found, half, (self.dilation,) * len(have))

    def names(self, look: Lookup) -> list[str]:
        self.layer(look)
        return [self.name]

    def first(self) -> str:
        return self.name


@dataclass(frozen=True)
class Seq(_Several):
    def __str__(self) -> str:
        return " > ".join(map(_as_part, self.parts))

    def value(self, look: Lookup, start: Value) -> Any:
        value: Any = start
        for part in self.parts:
            result = part.value(look, value)
            value = value if result is None else result
        return value

    def arms(self, look: Lookup) -> int:
        self.names(look)
        return next((n for n in (part.arms(look) for part in self.parts) if n), 0)


@dataclass(frozen=True)
class Sum(_Several):
    signs: tuple[float, ...]

    def __str__(self) -> str:
        texts = [f"({p})" if isinstance(p, Sum) else str(p) for p in self.parts]
        for i, sign in enumerate(self.signs[1:], 1):
            texts[i] = f"{'+' if sign > 0 else '-'} {texts[i]}"
        return " ".join(texts)

    def value(self, look: Lookup, start: Value) -> Any:
        values = [part.value(look, start) for part in self.parts]
        certain = [v for v, part in zip(values, self.parts, strict=True) if part != MAYBE_INPUT]
        fits = any(start.fits(value) for value in certain if value is not None)
        total: Any = None
        for part, value, sign in zip(self.parts, values, self.signs, strict=True):
            if value is not None and (fits or part != MAYBE_INPUT):
                value = value if sign == 1 else value.then(Affine(sign))
                total = value if total is None else total + value
        return total

    def arms(self, look: Lookup) -> int:
        return sum(part.arms(look) for part in self.parts)


@dataclass(frozen=True)
class Maybe(_Around):
    def __str__(self) -> str:
        return f"[{self.of}]"

    def value(self, look: Lookup, start: Value) -> Any:
        return if_there(lambda: self.of.value(look, start), None)

    def names(self, look: Lookup) -> list[str]:
        return if_there(lambda: self.of.names(look), [])

    def arms(self, look: Lookup) -> int:
        return if_there(lambda: self.of.arms(look), 0)

    def first(self) -> str:
        return ""


@dataclass(frozen=True)
class Each(Expr):
    prefix: str
    parts: tuple[str, ...]

    def numbered(self, number: int | str) -> list[str]:
        """The names of the layers of one arm."""
        return [".".join(filter(None, (self.prefix, str(number), p))) for p in self.parts]

    def present(self, look: Lookup) -> Sum:
        """The sum of the arms that are there."""
        arms: list[Expr] = []
        while look(self.numbered(len(arms))[0]) is not None:
            arms.append(seq(*self.numbered(len(arms))))
        return Sum(tuple(arms), (1.0,) * len(arms))

    def __str__(self) -> str:
        return f"{{{' > '.join(map(_written, self.numbered('*')))}}}"

    def value(self, look: Lookup, start: Value) -> Any:
        return self.present(look).value(look, start)

    def names(self, look: Lookup) -> list[str]:
        return self.present(look).names(look)

    def arms(self, look: Lookup) -> int:
        return len(self.present(look).parts)

    def first(self) -> str:
        return self.numbered(0)[0]


@dataclass(frozen=True)
class Scaled(_Around):
    name: str

    def __str__(self) -> str:
        of = f"({self.of})" if isinstance(self.of, Seq) else _as_part(self.of)
        return f"{_written(self.name)} * {of}"

    def value(self, look: Lookup, start: Value) -> Any:
        value = self.of.value(look, start)
        return None if value is None else value.then(NamedLayer(self.name).layer(look))

    def names(self, look: Lookup) -> list[str]:
        return [*self.of.names(look), *NamedLayer(self.name).names(look)]


@dataclass(frozen=True)
class Padded(_Around):
    """The layer `like` lends its padding, which is put around what the chain reads."""

    like: str

    def __str__(self) -> str:
        return f"pad as {_written(self.like)} > {_as_part(self.of)}"

    def value(self, look: Lookup, start: Value) -> Any:
        size = kernel_size_of(NamedLayer(self.like).layer(look))
        around = tuple(((n - 1) // 2, n // 2) for n in size)

        def unpadded(name: str) -> Any:
            found = look(name)
            if found is None or isinstance(found, Affine) or not kernel_size_of(found):
                return found
            return placed(found, (0,) * len(size))

        layers = [look(name) for name in (*self.of.names(look), self.like)]
        channels = next(in_channels_of(found) for found in layers if kernel_size_of(found))
        return self.of.value(unpadded, start.padded(around, channels))

    def arms(self, look: Lookup) -> int:
        return Expr.arms(self, look)


@dataclass(frozen=True)
class Pool(Expr):
    like: str

    def __str__(self) -> str:
        return f"average pool as {_written(self.like)}"

    def value(self, look: Lookup, start: Value) -> Any:
        return start.pooled(NamedLayer(self.like).layer(look))


x = Input()
MAYBE_INPUT = Maybe(x)
"""The input as a branch, where it has as many channels as the others give."""


def _expr(part: Expr | str) -> Expr:
    return NamedLayer(part) if isinstance(part, str) else part


def _written(name: str) -> str:
    """A name as it is written: in quotes where it would be read as something else."""
    plain = PLAIN_NAME.fullmatch(name) and name != "x"
    return name if plain else "'" + name.replace("'", "''") + "'"


def _as_part(part: Expr) -> str:
    """A part of a chain as it is written."""
    return f"({part})" if isinstance(part, Sum | Padded) else str(part)


def seq(*parts: Expr | str) -> Expr:
    """One after the other, each part reading what the one before gives. Parts may be `maybe`."""
    flat: list[Expr] = []
    for part in map(_expr, parts):
        flat += part.parts if isinstance(part, Seq) else [part]
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def maybe(*parts: Expr | str) -> Expr:
    """A layer or an arm that may be absent."""
    return Maybe(seq(*parts))


def each(prefix: str, *parts: str) -> Expr:
    """As many arms as there are, counted from 0.

    each("rbr_conv", "conv", "bn") is seq("rbr_conv.0.conv", "rbr_conv.0.bn") + ...
    """
    return Each(prefix, parts or ("",))


def layer(
    name: str, size: int | tuple[int, ...], dilation: int = 1, *, depthwise: bool = False
) -> Expr:
    """A layer with the shape of its kernel, and its dilation, which no state dict holds."""
    return NamedLayer(name, (size, size) if isinstance(size, int) else size, dilation, depthwise)


def padded(like: str, *parts: Expr | str) -> Expr:
    """A chain whose convolutions are not padded, because its input is, as `like` would need it.

    A map in the middle that is padded with what the layers before make of zero (DBB, ECB) is the
    same.
    """
    return Padded(seq(*parts), like)


def pool(like: str) -> Expr:
    """Average pooling with the window, stride and padding of the convolution `like`."""
    return Pool(like)


def scaled(name: str, of: Expr | str) -> Expr:
    """An arm times a stored parameter, one number or one per channel."""
    return Scaled(_expr(of), name)
