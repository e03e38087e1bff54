"""What was found in a model: the blocks that are one convolution each, and what was refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from acfuse.algebra import Value
from acfuse.errors import OUTERMOST, Reason
from acfuse.system.escape import html_table

Run = Callable[..., Tensor]  # images of the sources to the image that is made of them


@dataclass(frozen=True)
class Term:
    """One convolution of a fused block: of which value, under which name. No name: added as is.

    It is multiplied when it is asked for: the kernels of all blocks in float64 would take more
    memory than the whole model.
    """

    source: str
    name: str | None = None
    multiply: Callable[[], Value] | None = field(default=None, repr=False)

    @property
    def value(self) -> Value | None:
        """The convolution, in float64, to be compared: on the CPU. Computed at each call."""
        return None if self.multiply is None else self.multiply().on_cpu()


@dataclass(frozen=True)
class Arm:
    """One branch as it enters a sum: its layers in order, and the convolution that they are.

    Each layer has a name, what it is in words, and the bias of the first channel behind it, where
    that is known. A `value` of None is the source as it is.
    """

    source: str
    layers: tuple[tuple[str, str, float | None], ...]
    value: Value | None

    @property
    def bias(self) -> float | None:
        """What it adds to the bias of the first channel."""
        return None if self.value is None else float(self.value.bias[0])


@dataclass(frozen=True)
class Arms:
    """The branches of a block, and the layers behind their sum."""

    arms: tuple[Arm, ...]
    behind: tuple[tuple[str, str, float | None], ...] = ()


@dataclass(frozen=True)
class Cost:
    """Before and after: how many convolutions, and their multiply-adds per pixel (0: not known).

    `weights` are those of the kernels afterwards.
    """

    convolutions: tuple[int, int]
    multiply_adds: tuple[int, int]
    weights: int = 0


@dataclass(frozen=True)
class Block:
    """A part of a model that is one convolution (one of each of its sources, if there are several).

    `where` is the path of the module whose forward adds the branches, or the ONNX value that they
    make; `layers` are the names of what is replaced. `reference` gives the replaced layers as a
    function of the sources' images, in float64: it is what the block is proved against. `site` is
    for the source in which the block was found, and for nobody else. `arms` gives the branches, for
    a reader: no proof asks for them.
    """

    where: str
    pattern: str | None
    terms: tuple[Term, ...]
    dtype: torch.dtype
    cost: Cost
    layers: tuple[str, ...]
    reference: Callable[[], Run] = field(repr=False)
    site: Any = field(default=None, repr=False)
    is_block: bool = True  # False: a fold, which only takes up a BatchNorm or a factor
    assumed: bool = False  # True: by the user's word, because the forward cannot be read
    arms: Callable[[], Arms] | None = field(default=None, repr=False, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the fused convolutions."""
        prefix = f"{self.where}." if self.where else ""
        return tuple(f"{prefix}{term.name}" for term in self.terms if term.name)

    @property
    def label(self) -> str:
        """What a reader calls the block: the path of its module, or of its convolution."""
        return self.where or self.names[0]

    @property
    def convolutions(self) -> tuple[int, int]:
        """How many there are, before and after."""
        return self.cost.convolutions

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """What they cost per pixel, before and after."""
        return self.cost.multiply_adds

    # Former names.
    summands = property(lambda self: self.terms)
    alone = property(lambda self: getattr(self.site, "subgraph", None))
    output = property(lambda self: getattr(self.site, "output", self.where))


def place_of(where: str, value: str = "") -> str:
    """The path of a module in words: a place of the outermost forward is not the whole model."""
    return where or f"{OUTERMOST}{value and f' at {value}'}"


@dataclass(frozen=True)
class Refused:
    """A candidate that stays as it is, with the reason."""

    where: str
    code: Reason
    why: str
    pattern: str | None = None
    value: str = ""  # which of its forward's

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return place_of(self.where, self.value)


Branch = tuple[str, str, tuple[int, ...]]  # a convolution, its BatchNorm, the kernel's shape


@dataclass(frozen=True)
class Suspect:
    """Convolutions below one prefix that may be branches of one sum, with a BatchNorm each.

    `lone` are the BatchNorms besides, `stub` is a pattern of these names to start from, as TOML.
    """

    where: str
    branches: tuple[Branch, ...]
    lone: tuple[str, ...]
    stub: str

    def __str__(self) -> str:
        """Its convolutions with the shapes of their kernels."""
        return ", ".join(f"{name} {list(shape)}" for name, _, shape in self.branches)


@dataclass(frozen=True)
class Findings:
    """Everything that was looked at. `again` looks at another model of the same kind.

    `images` are the (channels, spatial axes) of what a live model is given, as far as it tells.
    """

    found: tuple[Block, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...] = ()  # what had to be assumed
    state: tuple[str, ...] = ()  # what had been fused before
    suspects: tuple[Suspect, ...] = ()  # what looks like branches, and matches no pattern
    again: Callable[[Any], "Findings"] | None = field(default=None, repr=False, compare=False)
    images: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        folds = len(self.found) - len(self.blocks)
        told = f"{len(self.blocks)} blocks, {folds} folds, {len(self.refused)} refused"
        return f"<Findings: {told}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: each block, and each refusal with its reason."""
        found = [
            (b.label, b.pattern or "", ", ".join(b.names), f"{b.convolutions[0]} to "
             f"{b.convolutions[1]}")
            for b in self.found
        ]  # fmt: skip
        refused = [(r.place, r.code, r.why) for r in self.refused]
        return html_table(("block", "pattern", "fused into", "convolutions"), found) + html_table(
            ("refused", "code", "reason"), refused
        )

    @property
    def messages(self) -> tuple[str, ...]:
        """Everything that a user has to know beside the blocks."""
        return (*self.state, *self.notes)

    told = messages  # its former name

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks: without folds."""
        return tuple(f for f in self.found if f.is_block)


@dataclass(frozen=True)
class Size:
    """How large a model is: convolutions, parameters, and multiply-adds of the given input."""

    convolutions: int
    parameters: int
    multiply_adds: int | None = None
