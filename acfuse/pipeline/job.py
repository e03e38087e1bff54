"""What a conversion is asked to do, and what it gives: plain records."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from acfuse.errors import Exit
from acfuse.files.cost_table import CostTable
from acfuse.files.opened_file import FileState
from acfuse.files.records import ReadOptions
from acfuse.findings import Findings, Size
from acfuse.int8.evened import Evened
from acfuse.patterns import Pattern, known_patterns
from acfuse.pipeline.paths import Paths, fused_path
from acfuse.pipeline.ranges import BlockRanges, Caution, cautions_of
from acfuse.proof import Check, Inputs, Proofs, Tolerance
from acfuse.sources.base import FindOptions, Fused, OpenOptions
from acfuse.system.limits import LIMITS, Limits
from acfuse.targets.onnx_export import DEFAULT_OPSET, OnnxFile
from acfuse.targets.pt2_export import Program


@dataclass(frozen=True)
class Job:
    """Everything that a conversion is asked to do."""

    source: Path
    model: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    prefix: str | None = None
    allow_classes: tuple[str, ...] = ()
    limits: Limits = LIMITS
    sha256: str | None = None
    output: Path | None = None
    inputs: Inputs | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    onnx: bool = True
    pt2: bool = False
    opset: int | None = None  # DEFAULT_OPSET for what is exported; an ONNX file's own
    dynamic: str = "batch"
    bn_eps: float | None = None
    fold_bn: bool = False
    patterns: tuple[Pattern, ...] = field(default_factory=known_patterns)
    costs: CostTable | None = None
    force: bool = False
    allow_empty: bool = False
    strict: bool = False
    allow_nonfinite: bool = False
    fix_initializers: bool = False
    no_runtime: bool = False
    exhaustive: bool = False
    equalize: str | None = None  # "gain" where 8 bits gain by it, "force" wherever it is exact
    device: str | None = None  # the CPU
    dry_run: bool = False

    @property
    def reading(self) -> ReadOptions:
        """How its files are read."""
        return ReadOptions(self.key, self.allow_classes, self.limits, self.sha256)

    @property
    def reading_fused(self) -> ReadOptions:
        """How a fused file of its source is read: it holds what the original did."""
        return replace(self.reading, sha256=None)

    @property
    def open_options(self) -> OpenOptions:
        """How its source is opened, with those settings that not every source can use."""
        given = {
            "model": self.model is not None,
            "model_args": bool(self.model_args),
            "key": self.key is not None,
            "prefix": self.prefix is not None,
            "fix_initializers": self.fix_initializers,
            "no_runtime": self.no_runtime,
            "allow_class": bool(self.allow_classes),
            "bn_eps": self.bn_eps is not None,
            "device": self.device not in (None, "cpu"),
            "patterns": any(pattern.file is not None for pattern in self.patterns),
            "assume": any(pattern.is_assumed for pattern in self.patterns),
        }
        return OpenOptions(
            self.model,
            self.model_args,
            self.reading,
            self.bn_eps,
            self.allow_nonfinite,
            self.fix_initializers,
            self.no_runtime,
            self.opset,
            frozenset(name for name, is_given in given.items() if is_given),
            self.prefix,
            self.inputs,
            self.device,
        )

    @property
    def export_opset(self) -> int:
        """The opset of a file that is exported."""
        return DEFAULT_OPSET if self.opset is None else self.opset

    @property
    def find_options(self) -> FindOptions:
        """What is looked for."""
        own = self.patterns, self.fold_bn, self.bn_eps, self.allow_nonfinite
        return FindOptions(*own, self.costs)

    @property
    def paths(self) -> Paths:
        """Where the results go."""
        return Paths.beside(fused_path(self.source, self.output))

    @property
    def wanted(self) -> list[Path]:
        """The files that it will write."""
        return self.paths.wanted(onnx=self.onnx, pt2=self.pt2)


@dataclass(frozen=True)
class Exports:
    """The files besides the fused one, how each was checked, and why there is not one."""

    onnx: OnnxFile | None = None
    pt2: Program | None = None
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversion:
    """What a conversion found, proved and wrote."""

    job: Job
    findings: Findings
    proofs: Proofs
    sizes: tuple[Size, Size]
    notes: tuple[str, ...] = ()
    onnx: OnnxFile | None = None
    pt2: Program | None = None
    written: tuple[Path, ...] = ()
    files: Mapping[Path, FileState] = field(default_factory=dict)  # that were read
    fused: Fused | None = field(default=None, repr=False, compare=False)  # what was proved
    evened: Evened | None = field(default=None, repr=False)  # if that was asked for
    ranges: tuple[BlockRanges, ...] = ()  # of each block that was found

    @property
    def diagnosis(self) -> str:
        """What a difference looks like, in words; empty where nothing is known."""
        return self.proofs.looks_like

    @property
    def cautions(self) -> tuple[Caution, ...]:
        """What a reader should know of a result that is right."""
        is_evened = self.evened is not None
        return cautions_of(self.findings.found, self.ranges, is_evened=is_evened)

    @property
    def exit_code(self) -> Exit:
        return Exit.DONE if self.proofs.passed else Exit.NOT_EQUAL
