"""The little language in which a block is written, and what a `Pattern` is.

    seq("square_conv", "square_bn") + seq("ver_conv", "ver_bn") + maybe(seq("hor_conv", "hor_bn"))

or, as it is printed and as `notation.parse` reads it,

    square_conv > square_bn + ver_conv > ver_bn + [hor_conv > hor_bn]

A name is a layer, looked up on a module or among tensors; `seq` chains, `+` and `-` add, `maybe`
may be absent, `each` is as many as there are, `x` is what the expression reads (the block's input),
`scaled` multiplies by a stored parameter. `layer` is a name with what only the code says of it,
`padded` a chain that is padded before its first layer, `pool` an average pooling. A pattern is
data: it never touches a tensor and never decides what is exact.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from acfuse.algebra import Affine, Conv, LinearConv
from acfuse.errors import NotFusable, Reason
from acfuse.patterns.values import (
    Image,
    Layer,
    Linear,
    Value,
    in_channels_of,
    kernel_size_of,
    placed,
)

__all__ = [
    "Expr",
    "Layer",
    "Lookup",
    "Pattern",
    "each",
    "layer",
    "layer_names",
    "maybe",
    "padded",
    "pool",
    "scaled",
    "seq",
    "x",
]

Lookup = Callable[[str], Any]  # a name to its layer; None: there is no such layer

PLAIN_NAME = re.compile(r"(?:\w+|\*)(?:\.(?:\w+|\*))*")
"""A name that needs no quotes. A star stands for the number of a repeated layer."""


class Expr:
    """Something that a block computes from its input."""

    def __add__(self, other: "Expr | str") -> "Expr":
        return self._with(_expr(other), 1.0)

    def __sub__(self, other: "Expr | str") -> "Expr":
        return self._with(_expr(other), -1.0)

    def _with(self, other: "Expr", sign: float) -> "Expr":
        parts, signs = (self.parts, self.signs) if isinstance(self, _Sum) else ((self,), (1.0,))
        return _Sum((*parts, other), (*signs, sign))

    def value(self, look: Lookup, start: Value) -> Any:
        """What it makes of the block's input `start`; None where it is absent.

        Raises _Absent for a layer that must be there, and what the layers raise (NotFusable).
        """
        raise TypeError(type(self).__name__)

    def names(self, look: Lookup) -> list[str]:
        """The names of the layers that it uses, in order. Raises _Absent."""
        raise TypeError(type(self).__name__)

    def arms(self, look: Lookup) -> int:
        """How many branches it adds. Raises _Absent."""
        self.names(look)
        return 1

    def first(self) -> str:
        """The first layer that is always there; "" if each may be absent."""
        return next(filter(None, (part.first() for part in self.inner())), "")

    def inner(self) -> "tuple[Expr, ...]":
        """The expressions that it is made of."""
        return ()

    def everywhere(self) -> "Iterator[Expr]":
        """The expression and all that is inside of it."""
        yield self
        for part in self.inner():
            yield from part.everywhere()


class _Absent(Exception):
    """A layer that the pattern needs is not there."""


@dataclass(frozen=True)
class _Input(Expr):
    def __str__(self) -> str:
        return "x"

    def value(self, look: Lookup, start: Value) -> Any:
        return start

    def names(self, look: Lookup) -> list[str]:
        return []


x = _Input()


@dataclass(frozen=True)
class _Layer(Expr):
    name: str
    size: tuple[int, ...] | None = None  # equal numbers are meant for every axis
    dilation: int = 1
    depthwise: bool = False

    def __str__(self) -> str:
        told = ["x".join(map(str, self.size))] if self.size is not None else []
        told += [f"dilation {self.dilation}"] if self.dilation > 1 else []
        told += ["depthwise"] if self.depthwise else []
        name = _written(self.name)
        return f"{name} ({', '.join(told)})" if told else name

    def value(self, look: Lookup, start: Value) -> Any:
        found = self.layer(look)
        return start.then(self._as_told(found) if self.size is not None else found)

    @property
    def is_placed(self) -> bool:
        """Whether its kernel has a middle by what is said of it, also if its size is even."""
        return all((n - 1) * self.dilation % 2 == 0 for n in self.size or (2,))

    def layer(self, look: Lookup) -> Any:
        found = look(self.name)
        if found is None:
            raise _Absent(self.name)
        return found

    def _as_told(self, found: Any) -> Any:
        """The layer with what the pattern says of it. Raises NotFusable for another kernel."""
        assert self.size is not None
        size = kernel_size_of(found)
        told = self.size if len(set(self.size)) > 1 else self.size[:1] * len(size)
        if size != told:
            why = f"{self.name} has a kernel of {size}, where its pattern has {told}"
            raise NotFusable(Reason.ASSUMPTION, why)
        if self.depthwise and isinstance(found, Conv) and found.weight.shape[1] != 1:
            why = f"{self.name} is not depthwise, and its pattern's is"
            raise NotFusable(Reason.ASSUMPTION, why)
        if self.dilation == 1:
            return found
        half = tuple((n - 1) * self.dilation // 2 for n in size)
        return placed(found, half, (self.dilation,) * len(size))

    def names(self, look: Lookup) -> list[str]:
        self.layer(look)
        return [self.name]

    def first(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Seq(Expr):
    parts: tuple[Expr, ...]

    def __str__(self) -> str:
        return " > ".join(map(_as_part, self.parts))

    def value(self, look: Lookup, start: Value) -> Any:
        value: Any = start
        for part in self.parts:
            result = part.value(look, value)
            value = value if result is None else result
        return value

    def names(self, look: Lookup) -> list[str]:
        return [name for part in self.parts for name in part.names(look)]

    def arms(self, look: Lookup) -> int:
        self.names(look)
        return next((n for n in (part.arms(look) for part in self.parts) if n), 0)

    def inner(self) -> tuple[Expr, ...]:
        return self.parts


@dataclass(frozen=True)
class _Sum(Expr):
    parts: tuple[Expr, ...]
    signs: tuple[float, ...]

    def __str__(self) -> str:
        texts = [f"({p})" if isinstance(p, _Sum) else str(p) for p in self.parts]
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

    def names(self, look: Lookup) -> list[str]:
        return [name for part in self.parts for name in part.names(look)]

    def arms(self, look: Lookup) -> int:
        return sum(part.arms(look) for part in self.parts)

    def inner(self) -> tuple[Expr, ...]:
        return self.parts


@dataclass(frozen=True)
class _Maybe(Expr):
    of: Expr

    def __str__(self) -> str:
        return f"[{self.of}]"

    def value(self, look: Lookup, start: Value) -> Any:
        try:
            return self.of.value(look, start)
        except _Absent:
            return None

    def names(self, look: Lookup) -> list[str]:
        try:
            return self.of.names(look)
        except _Absent:
            return []

    def arms(self, look: Lookup) -> int:
        try:
            return self.of.arms(look)
        except _Absent:
            return 0

    def inner(self) -> tuple[Expr, ...]:
        return (self.of,)

    def first(self) -> str:
        return ""


MAYBE_INPUT = _Maybe(x)
"""The input as a branch, where it has as many channels as the others give."""


@dataclass(frozen=True)
class _Each(Expr):
    prefix: str
    parts: tuple[str, ...]

    def numbered(self, number: int) -> list[str]:
        """The names of the layers of one arm."""
        return [".".join(filter(None, (self.prefix, str(number), p))) for p in self.parts]

    def _arms(self, look: Lookup) -> list[Expr]:
        arms: list[Expr] = []
        while True:
            names = self.numbered(len(arms))
            if look(names[0]) is None:
                return arms
            arms.append(seq(*names))

    def __str__(self) -> str:
        names = (".".join(filter(None, (self.prefix, "*", p))) for p in self.parts)
        return f"{{{' > '.join(map(_written, names))}}}"

    def value(self, look: Lookup, start: Value) -> Any:
        arms = self._arms(look)
        return _Sum(tuple(arms), (1.0,) * len(arms)).value(look, start)

    def names(self, look: Lookup) -> list[str]:
        return [name for arm in self._arms(look) for name in arm.names(look)]

    def arms(self, look: Lookup) -> int:
        return len(self._arms(look))

    def first(self) -> str:
        return self.numbered(0)[0]


@dataclass(frozen=True)
class _Scaled(Expr):
    name: str
    of: Expr

    def __str__(self) -> str:
        of = f"({self.of})" if isinstance(self.of, _Seq) else _as_part(self.of)
        return f"{_written(self.name)} * {of}"

    def value(self, look: Lookup, start: Value) -> Any:
        value = self.of.value(look, start)
        return None if value is None else value.then(_Layer(self.name).layer(look))

    def names(self, look: Lookup) -> list[str]:
        return [*self.of.names(look), *_Layer(self.name).names(look)]

    def arms(self, look: Lookup) -> int:
        return self.of.arms(look)

    def inner(self) -> tuple[Expr, ...]:
        return (self.of,)


@dataclass(frozen=True)
class _Padded(Expr):
    """The layer `like` lends its padding, which is put around what the chain reads."""

    like: str
    of: Expr

    def __str__(self) -> str:
        return f"pad as {_written(self.like)} > {_as_part(self.of)}"

    def value(self, look: Lookup, start: Value) -> Any:
        size = kernel_size_of(_Layer(self.like).layer(look))
        around = tuple(((n - 1) // 2, n // 2) for n in size)

        def unpadded(name: str) -> Any:
            found = look(name)
            if found is None or isinstance(found, Affine) or not kernel_size_of(found):
                return found
            return placed(found, (0,) * len(size))

        layers = [look(name) for name in (*self.of.names(look), self.like)]
        channels = next(in_channels_of(found) for found in layers if kernel_size_of(found))
        return self.of.value(unpadded, start.padded(around, channels))

    def names(self, look: Lookup) -> list[str]:
        return self.of.names(look)

    def inner(self) -> tuple[Expr, ...]:
        return (self.of,)


@dataclass(frozen=True)
class _Pool(Expr):
    like: str

    def __str__(self) -> str:
        return f"average pool as {_written(self.like)}"

    def value(self, look: Lookup, start: Value) -> Any:
        return start.pooled(_Layer(self.like).layer(look))

    def names(self, look: Lookup) -> list[str]:
        return []


def layer_names(pattern: "Pattern") -> frozenset[str]:
    """The names of all layers that a pattern's expression has, whether they may be absent or not.

    Of `each`, those of the first.
    """
    named = [e for e in pattern.block.everywhere() if isinstance(e, _Layer | _Each)]
    return frozenset(e.name if isinstance(e, _Layer) else e.first() for e in named)


def _expr(part: Expr | str) -> Expr:
    return _Layer(part) if isinstance(part, str) else part


def _written(name: str) -> str:
    """A name as it is written: in quotes where it would be read as something else."""
    plain = PLAIN_NAME.fullmatch(name) and name != "x"
    return name if plain else "'" + name.replace("'", "''") + "'"


def _own(part: Expr) -> tuple[str, ...]:
    """The name of a layer or factor."""
    return (part.name,) if isinstance(part, _Layer | _Scaled) else ()


def _as_part(part: Expr) -> str:
    """A part of a chain as it is written."""
    return f"({part})" if isinstance(part, _Sum | _Padded) else str(part)


def seq(*parts: Expr | str) -> Expr:
    """One after the other, each part reading what the one before gives. Parts may be `maybe`."""
    flat: list[Expr] = []
    for part in map(_expr, parts):
        flat += part.parts if isinstance(part, _Seq) else [part]
    return flat[0] if len(flat) == 1 else _Seq(tuple(flat))


def maybe(*parts: Expr | str) -> Expr:
    """A layer or an arm that may be absent."""
    return _Maybe(_expr(parts[0]) if len(parts) == 1 else seq(*parts))


def each(prefix: str, *parts: str) -> Expr:
    """As many arms as there are, counted from 0.

    each("rbr_conv", "conv", "bn") is seq("rbr_conv.0.conv", "rbr_conv.0.bn") + ...
    """
    return _Each(prefix, parts or ("",))


def layer(
    name: str, size: int | tuple[int, ...], dilation: int = 1, *, depthwise: bool = False
) -> Expr:
    """A layer with the shape of its kernel, and its dilation, which no state dict holds."""
    return _Layer(name, (size, size) if isinstance(size, int) else size, dilation, depthwise)


def padded(like: str, *parts: Expr | str) -> Expr:
    """A chain whose convolutions are not padded, because its input is, as `like` would need it.

    A map in the middle that is padded with what the layers before make of zero (DBB, ECB) is the
    same.
    """
    return _Padded(like, seq(*parts))


def pool(like: str) -> Expr:
    """Average pooling with the window, stride and padding of the convolution `like`."""
    return _Pool(like)


def scaled(name: str, of: Expr | str) -> Expr:
    """An arm times a stored parameter, one number or one per channel."""
    return _Scaled(name, _expr(of))


@dataclass(frozen=True)
class Pattern:
    """What a published block looks like, and what its fused form is called.

    `block` is the expression, `fused` the name of the one convolution in the authors' deploy form,
    `tail` the names that may stand beside and take no part (an activation, a squeeze-excite).
    `bn_eps` is what the family's BatchNorms are built with: a state dict does not hold it. Where
    it differs from one code to the other, it is None, and `usual_eps` says what it is in which.
    `alone` says, if it is not so, why a state dict without its code does not decide the block, and
    `claim` what has to be so for the expression to hold; with `is_assumed` the user says that it
    is. `witness` is a layer or tensor without which the same names may mean something else.
    `owner` is who brought the pattern, and `file` the file that it was read from, if it was.
    """

    family: str
    block: Expr
    fused: str
    source: str
    dialect: str = "original"
    tail: tuple[str, ...] = ()
    bn_eps: float | None = 1e-5
    usual_eps: str = ""
    alone: str = ""
    claim: str = ""
    witness: str = ""
    is_assumed: bool = field(default=False, compare=False)
    owner: str = field(default="acfuse", compare=False)
    file: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """`family`, or `family/dialect` for attribute names that are not the original ones."""
        return self.family if self.dialect == "original" else f"{self.family}/{self.dialect}"

    def layers(self, look: Lookup) -> list[str]:
        """The names of the layers of a block, if there is one under this lookup (else empty)."""
        try:
            return list(dict.fromkeys(self.block.names(look)))
        except _Absent:
            return []

    def missing(self, look: Lookup) -> str:
        """The first layer that must be there and is not; "" if there is none."""
        try:
            self.block.names(look)
        except _Absent as missing:
            return str(missing)
        return ""

    def arms(self, look: Lookup) -> int:
        """How many branches the block under this lookup adds; 0 where there is none."""
        try:
            return self.block.arms(look)
        except _Absent:
            return 0

    @property
    def names(self) -> tuple[str, ...]:
        """Every name in it, repeated layers with the number 0."""
        found = self.block.everywhere()
        names = [n for e in found for n in (e.numbered(0) if isinstance(e, _Each) else _own(e))]
        return tuple(dict.fromkeys(names))

    @property
    def factors(self) -> frozenset[str]:
        """The names that are factors per channel, and not layers."""
        return frozenset(e.name for e in self.block.everywhere() if isinstance(e, _Scaled))

    @property
    def placed(self) -> frozenset[str]:
        """The layers of which it says where they stand: even kernels have no middle."""
        told = (e for e in self.block.everywhere() if isinstance(e, _Layer))
        return frozenset(e.name for e in told if e.is_placed)

    @property
    def depthwise(self) -> frozenset[str]:
        """The layers that it says have one channel a group."""
        told = (e for e in self.block.everywhere() if isinstance(e, _Layer))
        return frozenset(e.name for e in told if e.depthwise)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What its word alone says of the layers, beyond parallel, centred branches."""
        found = list(self.block.everywhere())
        told = [f"{e.name} has dilation {e.dilation}" for e in found
                if isinstance(e, _Layer) and e.dilation > 1]  # fmt: skip
        told += [f"what leads to {e.like} is padded at its beginning" for e in found
                 if isinstance(e, _Padded)]  # fmt: skip
        told += [f"an average pooling has the window of {e.like}" for e in found
                 if isinstance(e, _Pool)]  # fmt: skip
        if MAYBE_INPUT in found:
            told.append(
                "the input itself is a branch wherever it has as many channels as the output, and "
                "no layer is grouped"
            )
        elif x in found:
            told.append("the input itself is one of the branches")
        return tuple(dict.fromkeys(told))

    @property
    def anchor(self) -> str:
        """The layer by whose key the block is looked for among bare tensors."""
        return self.block.first()

    def run(self, look: Lookup, image: Tensor) -> Tensor:
        """What the block computes from an image, its layers run as modules."""
        result: Tensor = self.block.value(look, Image(image)).image
        return result

    def value(self, look: Lookup) -> LinearConv:
        """The one convolution that the block is. Raises NotFusable."""
        try:
            total = self.block.value(look, Linear())
        except _Absent as missing:
            raise NotFusable(Reason.ASSUMPTION, f"{missing} is missing") from missing
        if total is None or total.conv is None:
            raise NotFusable(Reason.ASSUMPTION, "no convolution stands in the block")
        conv: LinearConv = total.conv
        return conv
