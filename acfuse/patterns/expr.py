"""The little language in which a block is written, and what a `Pattern` is.

    seq("square_conv", "square_bn") + seq("ver_conv", "ver_bn") + maybe(seq("hor_conv", "hor_bn"))

A name is a layer, looked up on a module or among tensors; `seq` chains, `+` and `-` add, `maybe`
may be absent, `each` is as many as there are, `x` is what the expression reads (the block's input),
`scaled` multiplies by a stored parameter. `layer` is a name with what only the code says of it,
`padded` a chain that is padded before its first layer, `pool` an average pooling. A pattern is
data: it never touches a tensor and never decides what is exact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


class Expr:
    """Something that a block computes from its input."""

    def __add__(self, other: "Expr | str") -> "Expr":
        return _Sum((self, _expr(other)), (1.0, 1.0))

    def __sub__(self, other: "Expr | str") -> "Expr":
        return _Sum((self, _expr(other)), (1.0, -1.0))

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
        """The first layer that it names."""
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
    size: int | None = None
    dilation: int = 1
    depthwise: bool = False

    def __str__(self) -> str:
        told = [f"{self.size}x{self.size}"] if self.size is not None else []
        told += [f"dilation {self.dilation}"] if self.dilation > 1 else []
        told += ["depthwise"] if self.depthwise else []
        return f"{self.name} ({', '.join(told)})" if told else self.name

    def value(self, look: Lookup, start: Value) -> Any:
        found = self.layer(look)
        return start.then(self._as_told(found) if self.size is not None else found)

    def layer(self, look: Lookup) -> Any:
        found = look(self.name)
        if found is None:
            raise _Absent(self.name)
        return found

    def _as_told(self, found: Any) -> Any:
        """The layer with what the pattern says of it. Raises NotFusable for another kernel."""
        size = kernel_size_of(found)
        if any(n != self.size for n in size):
            why = f"{self.name} has a kernel of {size}, where its pattern has {self.size}"
            raise NotFusable(Reason.ASSUMPTION, why)
        if self.depthwise and isinstance(found, Conv) and found.weight.shape[1] != 1:
            why = f"{self.name} is not depthwise, and its pattern's is"
            raise NotFusable(Reason.ASSUMPTION, why)
        if self.dilation == 1:
            return found
        half = (size[0] - 1) * self.dilation // 2
        return placed(found, (half,) * len(size), (self.dilation,) * len(size))

    def names(self, look: Lookup) -> list[str]:
        self.layer(look)
        return [self.name]

    def first(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Seq(Expr):
    parts: tuple[Expr, ...]

    def __str__(self) -> str:
        return " > ".join(f"({p})" if isinstance(p, _Sum) else str(p) for p in self.parts)

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
        text = str(self.parts[0])
        for part, sign in zip(self.parts[1:], self.signs[1:], strict=True):
            text += f" {'+' if sign > 0 else '-'} {part}"
        return text

    def value(self, look: Lookup, start: Value) -> Any:
        total: Any = None
        for part, sign in zip(self.parts, self.signs, strict=True):
            value = part.value(look, start)
            if value is not None:
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


@dataclass(frozen=True)
class _Each(Expr):
    prefix: str
    parts: tuple[str, ...]

    def _arms(self, look: Lookup) -> list[Expr]:
        arms: list[Expr] = []
        while True:
            names = [f"{self.prefix}.{len(arms)}{part and '.' + part}" for part in self.parts]
            if look(names[0]) is None:
                return arms
            arms.append(seq(*names))

    def __str__(self) -> str:
        return " > ".join(".".join(filter(None, (self.prefix, "*", p))) for p in self.parts)

    def value(self, look: Lookup, start: Value) -> Any:
        arms = self._arms(look)
        return _Sum(tuple(arms), (1.0,) * len(arms)).value(look, start)

    def names(self, look: Lookup) -> list[str]:
        return [name for arm in self._arms(look) for name in arm.names(look)]

    def arms(self, look: Lookup) -> int:
        return len(self._arms(look))

    def first(self) -> str:
        return ".".join(filter(None, (self.prefix, "0", self.parts[0])))


@dataclass(frozen=True)
class _Scaled(Expr):
    name: str
    of: Expr

    def __str__(self) -> str:
        return f"{self.name} * ({self.of})"

    def value(self, look: Lookup, start: Value) -> Any:
        value = self.of.value(look, start)
        return None if value is None else value.then(_Layer(self.name).layer(look))

    def names(self, look: Lookup) -> list[str]:
        factor = [] if look(self.name) is None else [self.name]  # a bare parameter is no layer
        return [*self.of.names(look), *factor]

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
        return f"pad as {self.like} > {self.of}"

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
        return f"average pool as {self.like}"

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


def seq(*parts: Expr | str) -> Expr:
    """One after the other, each part reading what the one before gives. Parts may be `maybe`."""
    return _Seq(tuple(map(_expr, parts)))


def maybe(*parts: Expr | str) -> Expr:
    """A layer or an arm that may be absent."""
    return _Maybe(_expr(parts[0]) if len(parts) == 1 else seq(*parts))


def each(prefix: str, *parts: str) -> Expr:
    """As many arms as there are, counted from 0.

    each("rbr_conv", "conv", "bn") is seq("rbr_conv.0.conv", "rbr_conv.0.bn") + ...
    """
    return _Each(prefix, parts or ("",))


def layer(name: str, size: int, dilation: int = 1, *, depthwise: bool = False) -> Expr:
    """A layer with the shape of its kernel, and its dilation, which no state dict holds."""
    return _Layer(name, size, dilation, depthwise)


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
    `bn_eps` is what the family's BatchNorms are built with: a state dict does not hold it.
    `alone` says, if it is not so, why a state dict without its code does not decide the block.
    `witness` is a layer beside the block without which the same names may mean something else.
    `anchored` is a layer that is always there, where the first of the expression may be absent.
    """

    family: str
    block: Expr
    fused: str
    source: str
    dialect: str = "original"
    tail: tuple[str, ...] = ()
    bn_eps: float | None = 1e-5
    alone: str = ""
    anchored: str = ""
    witness: str = ""

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

    def arms(self, look: Lookup) -> int:
        """How many branches the block under this lookup adds; 0 where there is none."""
        try:
            return self.block.arms(look)
        except _Absent:
            return 0

    @property
    def factors(self) -> frozenset[str]:
        """The names that are factors per channel, and not layers."""
        return frozenset(e.name for e in self.block.everywhere() if isinstance(e, _Scaled))

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What its word alone says of the layers, beyond parallel, centred branches."""
        found = [e for e in self.block.everywhere() if isinstance(e, _Layer | _Padded | _Pool)]
        told = [f"{e.name} has dilation {e.dilation}" for e in found
                if isinstance(e, _Layer) and e.dilation > 1]  # fmt: skip
        told += [f"what leads to {e.like} is padded at its beginning" for e in found
                 if isinstance(e, _Padded)]  # fmt: skip
        told += [f"an average pooling has the window of {e.like}" for e in found
                 if isinstance(e, _Pool)]  # fmt: skip
        if any(isinstance(e, _Input) for e in self.block.everywhere()):
            told.append("the input itself is one of the branches")
        return tuple(dict.fromkeys(told))

    @property
    def anchor(self) -> str:
        """The layer by whose key the block is looked for among bare tensors."""
        return self.anchored or self.block.first()

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
