"""The little language in which a block is written, and what a `Pattern` is.

    seq("square_conv", "square_bn") + seq("ver_conv", "ver_bn") + maybe(seq("hor_conv", "hor_bn"))

A name is a layer, looked up on a module or among tensors; `seq` chains, `+` and `-` add, `maybe`
may be absent, `each` is as many as there are, `x` is the block's input, `scaled` multiplies by a
stored parameter. A pattern is data: it never touches a tensor and never decides what is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from acfuse.algebra import Affine, AvgPool, Conv, LinearConv, Pad, identity
from acfuse.errors import NotFusable, Reason

Layer = Conv | Affine | Pad | AvgPool
Lookup = Callable[[str], Any]  # a name to its layer; None: there is no such layer


class Value(Protocol):
    """What an expression is evaluated to: a convolution, or an image that layers are run on."""

    @property
    def is_input(self) -> bool: ...

    def then(self, layer: Any) -> Any: ...

    def __add__(self, other: Any) -> Any: ...


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

    def first(self) -> str:
        """The first layer that it names."""
        raise TypeError(type(self).__name__)


class _Absent(Exception):
    """A layer that the pattern needs is not there."""


@dataclass(frozen=True)
class _Linear:
    """A value of the language: a convolution, or a factor on the input, which fits any."""

    conv: LinearConv | None = None
    by: Affine | None = None

    def then(self, layer: Layer) -> "_Linear":
        if not isinstance(layer, Affine):
            before = self.solid(layer.geometry.in_channels, len(layer.geometry.axes))
            return _Linear(layer.linear() if self.is_input else before.then(layer.linear()))
        if self.conv is not None:
            return _Linear(layer.of(self.conv))
        if self.by is None:
            return _Linear(by=layer)
        shift = self.by.shift * layer.scale + layer.shift
        return _Linear(by=Affine(self.by.scale * layer.scale, shift))

    @property
    def is_input(self) -> bool:
        return self.conv is None and self.by is None

    def solid(self, channels: int, axes: int) -> LinearConv:
        """The same as a convolution, for an input of so many channels."""
        if self.conv is not None:
            return self.conv
        one = identity(channels, axes)
        return one if self.by is None else self.by.of(one)

    def __add__(self, other: "_Linear") -> "_Linear":
        known = self.conv or other.conv
        if known is None:
            raise NotFusable(Reason.ASSUMPTION, "no convolution stands in the block")
        width = known.geometry.in_channels, len(known.geometry.axes)
        return _Linear(self.solid(*width) + other.solid(*width))


@dataclass(frozen=True)
class _Image:
    """An image on which a block's layers are run, one after the other."""

    image: Tensor
    is_input: bool = True

    def then(self, layer: Callable[[Tensor], Tensor] | Affine) -> "_Image":
        if isinstance(layer, Affine):  # a sign of the expression
            return _Image(self.image * layer.scale, is_input=False)
        return _Image(layer(self.image), is_input=False)

    def __add__(self, other: "_Image") -> "_Image":
        return _Image(self.image + other.image, is_input=False)


@dataclass(frozen=True)
class _Input(Expr):
    def value(self, look: Lookup, start: Value) -> Any:
        return start

    def names(self, look: Lookup) -> list[str]:
        return []

    def first(self) -> str:
        return ""


x = _Input()


@dataclass(frozen=True)
class _Layer(Expr):
    name: str

    def value(self, look: Lookup, start: Value) -> Any:
        return start.then(self.layer(look))

    def layer(self, look: Lookup) -> Any:
        found = look(self.name)
        if found is None:
            raise _Absent(self.name)
        return found

    def names(self, look: Lookup) -> list[str]:
        self.layer(look)
        return [self.name]

    def first(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Seq(Expr):
    parts: tuple[Expr, ...]

    def value(self, look: Lookup, start: Value) -> Any:
        value: Any = start
        for part in self.parts:
            inner = part.of if isinstance(part, _Maybe) else part
            if isinstance(inner, _Layer):
                if isinstance(part, _Maybe) and look(inner.name) is None:
                    continue
                value = value.then(inner.layer(look))
                continue
            result = part.value(look, start)
            if result is None:
                continue
            if not value.is_input:
                raise TypeError("only the first part of seq may be a sum")
            value = result
        return value

    def names(self, look: Lookup) -> list[str]:
        return [name for part in self.parts for name in part.names(look)]

    def first(self) -> str:
        return next(filter(None, (part.first() for part in self.parts)), "")


@dataclass(frozen=True)
class _Sum(Expr):
    parts: tuple[Expr, ...]
    signs: tuple[float, ...]

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

    def first(self) -> str:
        return next(filter(None, (part.first() for part in self.parts)), "")


@dataclass(frozen=True)
class _Maybe(Expr):
    of: Expr

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

    def first(self) -> str:
        return self.of.first()


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

    def value(self, look: Lookup, start: Value) -> Any:
        arms = self._arms(look)
        return _Sum(tuple(arms), (1.0,) * len(arms)).value(look, start)

    def names(self, look: Lookup) -> list[str]:
        return [name for arm in self._arms(look) for name in arm.names(look)]

    def first(self) -> str:
        return ".".join(filter(None, (self.prefix, "0", self.parts[0])))


@dataclass(frozen=True)
class _Scaled(Expr):
    name: str
    of: Expr

    def value(self, look: Lookup, start: Value) -> Any:
        value = self.of.value(look, start)
        return None if value is None else value.then(_Layer(self.name).layer(look))

    def names(self, look: Lookup) -> list[str]:
        return [*self.of.names(look), *_Layer(self.name).names(look)]

    def first(self) -> str:
        return self.of.first() or self.name


def _expr(part: Expr | str) -> Expr:
    return _Layer(part) if isinstance(part, str) else part


def seq(*parts: Expr | str) -> Expr:
    """Layers one after the other. The first part may be a sum; a layer may be `maybe` there."""
    return _Seq(tuple(map(_expr, parts)))


def maybe(*parts: Expr | str) -> Expr:
    """A layer or an arm that may be absent."""
    return _Maybe(_expr(parts[0]) if len(parts) == 1 else seq(*parts))


def each(prefix: str, *parts: str) -> Expr:
    """As many arms as there are, counted from 0.

    each("rbr_conv", "conv", "bn") is seq("rbr_conv.0.conv", "rbr_conv.0.bn") + ...
    """
    return _Each(prefix, parts or ("",))


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
    """

    family: str
    block: Expr
    fused: str
    source: str
    dialect: str = "original"
    tail: tuple[str, ...] = ()
    bn_eps: float | None = 1e-5
    alone: str = ""

    @property
    def name(self) -> str:
        """`family`, or `family/dialect` for attribute names that are not the original ones."""
        return self.family if self.dialect == "original" else f"{self.family}/{self.dialect}"

    def layers(self, look: Lookup) -> list[str]:
        """The names of the layers of a block, if there is one under this lookup (else empty)."""
        try:
            return self.block.names(look)
        except _Absent:
            return []

    @property
    def anchor(self) -> str:
        """The layer by whose key the block is looked for among bare tensors."""
        return self.block.first()

    def run(self, look: Lookup, image: Tensor) -> Tensor:
        """What the block computes from an image, its layers run as modules."""
        result: Tensor = self.block.value(look, _Image(image)).image
        return result

    def value(self, look: Lookup) -> LinearConv:
        """The one convolution that the block is. Raises NotFusable."""
        try:
            total = self.block.value(look, _Linear())
        except _Absent as missing:
            raise NotFusable(Reason.ASSUMPTION, f"{missing} is missing") from missing
        if total is None or total.conv is None:
            raise NotFusable(Reason.ASSUMPTION, "no convolution stands in the block")
        conv: LinearConv = total.conv
        return conv
