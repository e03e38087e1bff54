"""What a published block looks like, as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from acfuse.algebra import LinearConv
from acfuse.errors import NotFusable, Reason
from acfuse.patterns.expr import (
    MAYBE_INPUT,
    Absent,
    Each,
    Expr,
    Lookup,
    NamedLayer,
    Padded,
    Pool,
    Scaled,
    if_there,
    x,
)
from acfuse.patterns.values import Image, Linear
from acfuse.system.devices import CPU

Node = TypeVar("Node", bound=Expr)

OLD_NAMES = {"alone": "ambiguity", "claim": "assumption", "witness": "requires", "tail": "ignore"}
"""What four settings of a pattern were called before. Files and plug-ins may still say so."""


def by_present_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with old names replaced. Raises TypeError for one that has both of its names."""
    for old, new in OLD_NAMES.items():
        if old in settings and new in settings:
            raise TypeError(f"{old} is the old name of {new}: give one of them")
    return {OLD_NAMES.get(name, name): value for name, value in settings.items()}


@dataclass(frozen=True)
class Pattern:
    """What a published block looks like, and what its fused form is called.

    `block` is the expression, `fused` the name of the one convolution in the authors' deploy form,
    `ignore` the names that may stand beside and take no part (an activation, a squeeze-excite).
    `bn_eps` is what the family's BatchNorms are built with: a state dict does not hold it. Where
    it differs from one code to the other, it is None, and `usual_eps` says what it is in which.
    `ambiguity` says, if it is so, why a state dict without its code does not decide the block, and
    `assumption` what has to be so for the expression to hold; with `is_assumed` the user says that
    it is. `requires` is a layer or tensor without which the same names may mean something else.
    `owner` is who brought the pattern, and `file` the file that it was read from, if it was.

    The settings of `OLD_NAMES` may be given and read by their old names as well.
    """

    family: str
    block: Expr
    fused: str
    source: str
    dialect: str = "original"
    ignore: tuple[str, ...] = ()
    bn_eps: float | None = 1e-5
    usual_eps: str = ""
    ambiguity: str = ""
    assumption: str = ""
    requires: str = ""
    is_assumed: bool = field(default=False, compare=False)
    owner: str = field(default="acfuse", compare=False)
    file: Path | None = field(default=None, compare=False)

    if not TYPE_CHECKING:  # type checkers know the present names alone

        def __getattr__(self, name: str) -> Any:
            """What is asked for by its old name."""
            if name in OLD_NAMES:
                return getattr(self, OLD_NAMES[name])
            raise AttributeError(f"a Pattern has no attribute {name!r}")

    @property
    def name(self) -> str:
        """`family`, or `family/dialect` for attribute names that are not the original ones."""
        return self.family if self.dialect == "original" else f"{self.family}/{self.dialect}"

    def layers(self, look: Lookup) -> list[str]:
        """The names of the layers of a block, if there is one under this lookup (else empty)."""
        return if_there(lambda: list(dict.fromkeys(self.block.names(look))), [])

    def missing(self, look: Lookup) -> str:
        """The first layer that must be there and is not; "" if there is none."""
        try:
            self.block.names(look)
        except Absent as missing:
            return str(missing)
        return ""

    def arms(self, look: Lookup) -> int:
        """How many branches the block under this lookup adds; 0 where there is none."""
        return if_there(lambda: self.block.arms(look), 0)

    def least(self, look: Lookup) -> int:
        """Of how many convolutions the block under this lookup is worth a name at least.

        Where the authors say how many arms there are, one is as good a number as any: their deploy
        form replaces it as well, with its BatchNorm. Elsewhere a lone layer is an ordinary one.
        """
        return 1 if self._all(Each) and len(self.layers(look)) > 1 else 2

    def _all(self, kind: type[Node]) -> list[Node]:
        return [part for part in self.block.everywhere() if isinstance(part, kind)]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name in it, repeated layers with the number 0."""
        named = [e for e in self.block.everywhere() if isinstance(e, NamedLayer | Each | Scaled)]
        names = [e.numbered(0) if isinstance(e, Each) else [e.name] for e in named]
        return tuple(dict.fromkeys(name for several in names for name in several))

    @property
    def factors(self) -> frozenset[str]:
        """The names that are factors per channel, and not layers."""
        return frozenset(part.name for part in self._all(Scaled))

    @property
    def placed(self) -> frozenset[str]:
        """The layers of which it says where they stand: even kernels have no middle."""
        return frozenset(part.name for part in self._all(NamedLayer) if part.is_placed)

    @property
    def depthwise(self) -> frozenset[str]:
        """The layers that it says have one channel a group."""
        return frozenset(part.name for part in self._all(NamedLayer) if part.depthwise)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What it says of the layers that no file holds, beyond parallel, centred branches."""
        dilated = [part for part in self._all(NamedLayer) if part.dilation > 1]
        said = [
            *(f"{part.name} has dilation {part.dilation}" for part in dilated),
            *(f"what leads to {p.like} is padded at its beginning" for p in self._all(Padded)),
            *(f"an average pooling has the window of {p.like}" for p in self._all(Pool)),
        ]
        found = list(self.block.everywhere())
        if MAYBE_INPUT in found:
            said.append(
                "the input itself is a branch wherever it has as many channels as the output, and "
                "no layer is grouped"
            )
        elif x in found:
            said.append("the input itself is one of the branches")
        return tuple(dict.fromkeys(said))

    @property
    def anchor(self) -> str:
        """The layer by whose key the block is looked for among bare tensors."""
        return self.block.first()

    def run(self, look: Lookup, image: Tensor) -> Tensor:
        """What the block computes from an image, its layers run as modules."""
        result: Tensor = self.block.value(look, Image(image)).image
        return result

    def value(self, look: Lookup, device: torch.device = CPU) -> LinearConv:
        """The one convolution that the block is, whose layers are on a device.

        Raises NotFusable.
        """
        try:
            total = self.block.value(look, Linear(device=device))
        except Absent as missing:
            raise NotFusable(Reason.ASSUMPTION, f"{missing} is missing") from missing
        if total is None or total.conv is None:
            raise NotFusable(Reason.ASSUMPTION, "no convolution stands in the block")
        conv: LinearConv = total.conv
        return conv


def _with_old_names(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def renamed(self: Pattern, *args: Any, **settings: Any) -> None:
        init(self, *args, **by_present_names(settings))

    return renamed


Pattern.__init__ = _with_old_names(Pattern.__init__)  # type: ignore[method-assign]
