"""What was found in a model: the blocks that are one convolution each, and what was refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from acfuse.algebra import LinearConv
from acfuse.errors import Reason


@dataclass(frozen=True)
class Term:
    """One convolution of a fused block: of which value, under which name. No name: added as is.

    It is multiplied when it is asked for: the kernels of all blocks in float64 would take more
    memory than the whole model.
    """

    source: str
    name: str | None = None
    multiply: Callable[[], LinearConv] | None = field(default=None, repr=False)

    @property
    def value(self) -> LinearConv | None:
        """The convolution, in float64. Computed at each call."""
        return None if self.multiply is None else self.multiply()


@dataclass(frozen=True)
class Block:
    """A block that is one convolution (one of each of its sources, if there are several).

    `where` is the path of the module whose forward adds the branches, `alone` the replaced part of
    that forward as a graph of its own, `forward` the whole of it. Where the forward could not be
    read, both are None, and `tail` names the layers behind the sum. For bare tensors `rebuilt` runs
    the layers as they are assumed to be.
    """

    where: str
    pattern: str | None
    terms: tuple[Term, ...]
    dtype: torch.dtype
    convolutions: tuple[int, int]
    multiply_adds: tuple[int, int]
    layers: tuple[str, ...] = ()
    is_block: bool = True
    output: str = ""
    alone: fx.Graph | None = field(default=None, repr=False)
    forward: fx.Graph | None = field(default=None, repr=False)
    fixed: Mapping[str, object] = field(default_factory=dict, repr=False)
    keep: frozenset[str] = frozenset()  # layers and tensors that are used elsewhere as well
    tail: tuple[str, ...] = ()
    rebuilt: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the fused convolutions."""
        prefix = f"{self.where}." if self.where else ""
        return tuple(f"{prefix}{s.name}" for s in self.terms if s.name)

    @property
    def label(self) -> str:
        """What a reader calls the block: the path of its module, or of its convolution."""
        return self.where or self.names[0]


@dataclass(frozen=True)
class Refused:
    """A candidate that stays as it is, with the reason."""

    where: str
    code: Reason
    why: str
    pattern: str | None = None


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
    """Everything that was looked at."""

    found: tuple[Block, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...] = ()  # what had to be assumed
    state: tuple[str, ...] = ()  # what had been fused before
    suspects: tuple[Suspect, ...] = ()  # what looks like branches, and matches no pattern

    @property
    def messages(self) -> tuple[str, ...]:
        """Everything that a user has to know beside the blocks."""
        return (*self.state, *self.notes)

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
