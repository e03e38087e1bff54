"""What every kind of source can do: be searched, be fused, and say what it is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from onnx import ModelProto
from torch import Tensor, nn

from acfuse.algebra import Value
from acfuse.errors import UsageError
from acfuse.files.cost_table import CostTable
from acfuse.files.opened_file import FileState
from acfuse.files.records import DEFAULTS, ReadOptions
from acfuse.files.write import Write
from acfuse.findings import Block, Findings, Refused, Run, Size
from acfuse.int8.evened import Evened
from acfuse.patterns import PATTERNS, Pattern
from acfuse.proof import Check, Inputs, Tolerance
from acfuse.proof.faults import diagnose_numbers
from acfuse.proof.folded import other_eps, slack_of
from acfuse.proof.original import Original
from acfuse.proof.planted import Planted
from acfuse.system.limits import LIMITS, Limits
from acfuse.targets.onnx_export import OnnxFile

Progress = Callable[[str], None]
Weights = tuple[Tensor, Tensor]  # the weight and bias of a convolution, as stored
NEEDS_CODE = "an ONNX file needs the model's code: give --model package.module:factory."
NEEDS_A_PROGRAM = (
    "evening out ranges needs what stands between the layers: give --model package.module:factory "
    "and --input-shape, or an ONNX file."
)


def silent(_: str) -> None:
    """Progress that nobody is told of."""


@dataclass(frozen=True)
class OpenOptions:
    """What a user says of a file beside its name.

    `asked` are the settings that not every kind of source can use and that were given, `inputs`
    are what a network may be run on, and `device` is where (None: on the CPU).
    """

    model: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    read: ReadOptions = DEFAULTS
    bn_eps: float | None = None
    allow_nonfinite: bool = False
    fix_initializers: bool = False
    no_runtime: bool = False
    opset: int | None = None
    asked: frozenset[str] = frozenset()
    prefix: str | None = None
    inputs: Inputs | None = None
    device: str | None = None


@dataclass(frozen=True)
class FindOptions:
    """What is looked for. Without `bn_eps`, each pattern's own eps holds for bare tensors.

    By a table of `costs`, no block that is slower than its layers.
    """

    patterns: Sequence[Pattern] = PATTERNS
    fold_bn: bool = False
    bn_eps: float | None = None
    allow_nonfinite: bool = False
    costs: CostTable | None = None


@dataclass(frozen=True)
class SourceFile:
    """The file that a source was read from: each part as it was, and what is odd about it."""

    name: str = "the model"
    files: Mapping[Path, FileState] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Beside:
    """What tells all that stands in a file beside its weights from the original's, in words.

    `is_alike` says that the weights stand where acfuse puts them, in a file of the same format.
    """

    unlike: str = ""
    is_alike: bool = True


@dataclass(frozen=True)
class Fused(ABC):
    """A fused model: what was found in the original, what was refused and why.

    `LiveFused` and `OnnxFused` have `model`, `BareFused` has `tensors` and `notes`.
    """

    findings: Findings
    beside: Beside = field(default_factory=Beside, kw_only=True)  # of a file that was read back

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.findings!r}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: what was found."""
        return self.findings._repr_html_()

    @property
    def found(self) -> tuple[Block, ...]:
        """The blocks, each of which is one convolution now."""
        return self.findings.found

    @property
    def refused(self) -> tuple[Refused, ...]:
        """The candidates that stay as they are."""
        return self.findings.refused

    @property
    def network(self) -> nn.Module | None:
        """The fused model as exporters take it, on the CPU; None where there is only a file."""
        return None

    @property
    def onnx_file(self) -> OnnxFile | None:
        """The fused model, where it is an ONNX file itself."""
        return None

    @abstractmethod
    def size(self, inputs: Inputs | None) -> Size:
        """How large it is."""

    @abstractmethod
    def stored(self, block: Block) -> Sequence[Value | None]:
        """The convolutions of a block as they are stored, in float64 (None: added as it is)."""

    def stored_and_claimed(
        self, block: Block
    ) -> tuple[Sequence[Value | None], Sequence[Value | None]]:
        """The same, and what they should be before any rounding (nothing where it is computed)."""
        return self.stored(block), ()

    @abstractmethod
    def compare(
        self, inputs: Inputs | None, tolerance: Tolerance, progress: Progress = silent
    ) -> tuple[Check, ...]:
        """The whole of it beside the original, on inputs where it needs any."""

    @abstractmethod
    def with_file(self, path: Path, read: ReadOptions, *, unchanged: bool = False) -> "Fused":
        """The same structure with the tensors of a fused file in it.

        `unchanged` says that the file is known by its hash. Raises InputError if it does not fit.
        """

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, Weights]:
        """The new convolutions, by the names that the blocks give them."""

    @property
    def names(self) -> frozenset[str]:
        """The names of the tensors that are new in a fused file."""
        return frozenset(f"{n}.{what}" for n in self.weights for what in ("weight", "bias"))

    @property
    @abstractmethod
    def kept(self) -> Mapping[str, Tensor]:
        """The tensors of real numbers that are the original's own."""

    @abstractmethod
    def with_weights(self, given: Mapping[str, Weights]) -> Self:
        """The same with other numbers in some of the new convolutions."""

    def evened(
        self, inputs: Inputs | None, limits: Limits = LIMITS, *, everything: bool = False
    ) -> "tuple[Self, Evened]":
        """The same with channels of even range, where 8 bits gain by that, or with `everything`.

        What it gives is proved to be the same, bit by bit. Raises UsageError where nobody knows
        what stands between its layers.
        """
        raise UsageError(NEEDS_A_PROGRAM)

    def unscaled(
        self, own: Self, inputs: Inputs | None, limits: Limits = LIMITS
    ) -> tuple[Self, tuple[Check, ...]]:
        """A file's form with the scales of acfuse's `own`, and a check that all else is the same.

        Where its channels have no other scales, or nobody knows, it is the form itself.
        """
        return self, ()

    def original(self, inputs: Inputs) -> Original | None:
        """The original as it is run; None where there is no network."""
        return None

    @property
    def onnx_original(self) -> ModelProto | None:
        """The original, where it is an ONNX file."""
        return None

    @abstractmethod
    def planted(self, path: Path, read: ReadOptions, most: int) -> list[Planted]:
        """At most so many faults, each in what a fused file of it holds."""

    @abstractmethod
    def contents(self) -> Mapping[str, bytes | Write]:
        """What has to be written, by the field of `Paths` that says where."""

    def diagnose(self, block: Block, *, folded: bool = False) -> str:
        """What a wrong block looks like, in words; empty where nothing is known.

        `folded` says that it was folded in its own dtype, so that its weights may be off by that.
        """
        stored = self.stored(block)
        slack = slack_of(block, stored) if folded else None
        told = diagnose_numbers(block, stored, slack)
        if told:
            return told
        eps = other_eps(block, stored, self.anew)
        if eps is None:
            return self.mistaken(block, slack)
        return f"BatchNorm eps {eps:g}: take the eps of each BatchNorm"

    def mistaken(self, block: Block, slack: Sequence[Tensor] | None) -> str:
        """The known mistake whose weights are those of a block; "" where none is known."""
        return ""

    def anew(self, block: Block, eps: float) -> Run | None:
        """The layers of a block as if their BatchNorms had another eps; None if there are none."""
        return None


class Source(ABC):
    """Something that can be fused, and where it was read from."""

    file: SourceFile
    ignores: Mapping[str, str] = {}  # the settings that have no effect on it, with the reason
    is_run = True  # whether what it computes may be compared by running it
    needs_inputs = False  # whether nothing can be proved without the shape of an input
    hint = ""  # what a user may do where nothing is found

    @property
    def network(self) -> nn.Module | None:
        """The original, on the device where it runs; None where there is only a file."""
        return None

    def original(self, inputs: Inputs) -> Original:
        """What is run beside all that is made of it. Raises UsageError where there is no network.

        For the same inputs as last time it is the same object, so that nothing is run twice.
        """
        if self.network is None:
            raise UsageError(self.without_network)
        if not self._last or self._last[0].inputs is not inputs:
            self._last[:] = [Original(self.network, inputs)]
        return self._last[0]

    @cached_property
    def _last(self) -> list[Original]:
        """The original that was asked for last, if any: a source is frozen."""
        return []

    @property
    def is_program(self) -> bool:
        """Whether it is a program of torch.export, which has to become one again."""
        return False

    @property
    def without_network(self) -> str:
        """What to say where it should be exported, and there is no network."""
        return NEEDS_CODE

    @abstractmethod
    def size(self, inputs: Inputs | None) -> Size:
        """How large it is."""

    @abstractmethod
    def find(self, options: FindOptions) -> Findings:
        """Its blocks, and what was refused."""

    @abstractmethod
    def fuse(self, findings: Findings) -> Fused:
        """A fused copy. The original is untouched."""
