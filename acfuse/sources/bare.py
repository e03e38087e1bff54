"""Bare tensors: a state dict without its code. A pattern's word is all there is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from acfuse.algebra import Value, lower
from acfuse.errors import InputError, UsageError
from acfuse.files.nesting import beside
from acfuse.files.read import read_tensors
from acfuse.files.records import Container, ReadOptions
from acfuse.files.safetensors import PLAIN
from acfuse.files.write import Write, writer
from acfuse.findings import Block, Findings, Run, Size
from acfuse.patterns.match import find_in_tensors
from acfuse.proof import Check, Inputs, Tolerance
from acfuse.proof.live_program import unlike_values
from acfuse.proof.planted import Planted, planted_in_tensors
from acfuse.rewrite import fused_bare, without_nonfinite
from acfuse.sources.base import (
    Beside,
    FindOptions,
    Fused,
    Progress,
    Source,
    SourceFile,
    Weights,
    silent,
)
from acfuse.system.devices import CPU
from acfuse.system.memory import trim_heap


@dataclass(frozen=True)
class BareSource(Source):
    """The tensors of a checkpoint, with its keys."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    container: Container = field(default_factory=lambda: Container("state_dict"))
    file: SourceFile = field(default_factory=SourceFile)
    device: torch.device | None = None  # where its blocks are multiplied and proved
    ignores = dict.fromkeys(("prefix",), "it is for --model") | dict.fromkeys(
        ("fix_initializers", "no_runtime"), "it is for ONNX files"
    )
    hint = "Give --model with the network's code to look by algebra as well."

    def size(self, inputs: Inputs | None) -> Size:
        return size_of(self.tensors)

    def find(self, options: FindOptions) -> Findings:
        needless = [p.name for p in options.patterns if p.is_assumed and not p.ambiguity]
        if needless:
            raise UsageError(f"--assume: {needless[0]} is found without it: its tensors decide.")
        how = options.patterns, options.bn_eps, options.costs, self.device
        findings = find_in_tensors(self.tensors, *how)
        return without_nonfinite(findings) if options.allow_nonfinite else findings

    def fuse(self, findings: Findings) -> "BareFused":
        return BareFused(findings, fused_bare(self.tensors, findings.found), self)


@dataclass(frozen=True, repr=False)
class BareFused(Fused):
    """A fused state dict, what was found and refused, and what had to be assumed."""

    tensors: dict[str, Tensor]
    source: BareSource = field(repr=False)
    is_read_back: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything that a user has to know beside the blocks: what had to be assumed."""
        return self.findings.messages

    def size(self, inputs: Inputs | None) -> Size:
        return size_of(self.tensors)

    def stored(self, block: Block) -> list[Value | None]:
        return self.stored_and_claimed(block)[0]

    def stored_and_claimed(self, block: Block) -> tuple[list[Value | None], list[Value | None]]:
        trim_heap(sum(self.tensors[f"{name}.weight"].numel() for name in block.names))
        stored: list[Value | None] = []
        claimed: list[Value | None] = []
        for name, term in zip(block.names, block.terms, strict=True):
            value = term.value
            assert value is not None
            weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
            layer = lower(value, block.dtype)  # for its settings alone
            stored.append(replace(layer, weight=weight, bias=bias).linear(CPU))
            claimed.append(value)
        return stored, claimed

    def compare(
        self, inputs: Inputs | None, tolerance: Tolerance, progress: Progress = silent
    ) -> tuple[Check, ...]:
        return (untouched(self.source.tensors, self.tensors, self.found),) * self.is_read_back

    def with_file(self, path: Path, read: ReadOptions, *, unchanged: bool = False) -> "BareFused":
        container, tensors = read_tensors(path, read)
        given = fitting(tensors, self.source.container, self.tensors, path.name)
        others = beside_of(self.source.container, container, tensors)
        return replace(self, tensors=given, is_read_back=True, beside=others)

    @property
    def weights(self) -> Mapping[str, Weights]:
        names = [name for block in self.found for name in block.names]
        return {n: (self.tensors[f"{n}.weight"], self.tensors[f"{n}.bias"]) for n in names}

    @property
    def kept(self) -> Mapping[str, Tensor]:
        return kept_of(self.tensors, self.found)

    def with_weights(self, given: Mapping[str, Weights]) -> "BareFused":
        return replace(self, tensors={**self.tensors, **named_tensors(given)})

    def anew(self, block: Block, eps: float) -> Run | None:
        others = self.source.find(FindOptions(bn_eps=eps)).found if block.pattern else ()
        return next((b.reference() for b in others if b.where == block.where), None)

    def planted(self, path: Path, read: ReadOptions, most: int) -> list[Planted]:
        return planted_in_tensors(self.source.tensors, read_tensors(path, read)[1], most)

    def contents(self) -> Mapping[str, bytes | Write]:
        return {"checkpoint": writer(self.source.container, self.tensors)}


def size_of(tensors: Mapping[str, Tensor]) -> Size:
    """How large a model is, as far as its tensors tell."""
    weights = sum(t.ndim > 2 and k.endswith("weight") for k, t in tensors.items())
    return Size(weights, parameters_of(tensors))


def parameters_of(tensors: Mapping[str, Tensor]) -> int:
    """How many numbers of a checkpoint are weights."""
    return sum(
        t.numel()
        for k, t in tensors.items()
        if t.is_floating_point() and not k.endswith(("running_mean", "running_var"))
    )


def fitting(
    tensors: Mapping[str, Tensor], original: Container, wanted: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """A fused file's tensors under the keys that are wanted. Raises InputError for others.

    What is none of the model's is beside the weights, and may have changed there.
    """
    prefix, rest = original.prefix, original.rest
    given = {k.removeprefix(prefix): t for k, t in tensors.items() if k not in rest}
    missing, unknown = (sorted(set(a) - set(b)) for a, b in ((wanted, given), (given, wanted)))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which is none of its keys"
        raise InputError(f"{name} is not a fused form of this checkpoint: it {what}.")
    for key, tensor in wanted.items():
        if given[key].shape != tensor.shape or given[key].dtype != tensor.dtype:
            kinds = [f"{tuple(t.shape)} of {t.dtype}" for t in (given[key], tensor)]
            raise InputError(f"{name}: {key} is {kinds[0]}, expected {kinds[1]}.")
    return given


def untouched(
    original: Mapping[str, Tensor], fused: Mapping[str, Tensor], found: Sequence[Block]
) -> Check:
    """Whether every tensor that was not fused is the original's, bit for bit."""
    made = {f"{name}.{n}" for b in found for name in b.names for n in ("weight", "bias")}
    kept = {key: tensor for key, tensor in fused.items() if key in original and key not in made}
    altered = [key for key, tensor in kept.items() if not same_bits(tensor, original[key])]
    detail = f"{altered[0]} is not the original's ({len(altered)} in all)" if altered else ""
    count = sum(tensor.numel() for tensor in kept.values())
    return Check("untouched", not altered, float(len(altered)), 0.0, detail=detail, compared=count)


def beside_of(original: Container, fused: Container, tensors: Mapping[str, Tensor]) -> Beside:
    """What a fused file holds beside its weights, and the original does not, or otherwise."""
    if original.kind != fused.kind:
        return Beside(is_alike=False)
    if original.path != fused.path:
        where, expected = (
            f"under {c.key}" if c.path else "the whole file" for c in (fused, original)
        )
        return Beside(f"its weights are {where}, expected {expected}", is_alike=False)
    if original.kind != "state_dict" or not isinstance(original.whole, Mapping):
        own, given = (dict(c.metadata or {}) for c in (original, fused))
        if not own and given == PLAIN:  # that says nothing, and is written where nothing was
            own = given
        unlike = unlike_values(own, given)
    else:
        unlike = unlike_values(*(beside(c.whole, c.path) for c in (original, fused)))
    rest = {key: tensors[key] for key in original.rest if key in tensors}
    return Beside(unlike or unlike_values(dict(original.rest), rest))


def kept_of(fused: Mapping[str, Tensor], found: Sequence[Block]) -> dict[str, Tensor]:
    """The tensors of real numbers of a fused checkpoint that belong to no block."""
    made = {f"{name}.{n}" for b in found for name in b.names for n in ("weight", "bias")}
    return {k: t for k, t in fused.items() if k not in made and t.is_floating_point()}


def named_tensors(given: Mapping[str, Weights]) -> dict[str, Tensor]:
    return {
        f"{name}.{what}": tensor
        for name, pair in given.items()
        for what, tensor in zip(("weight", "bias"), pair, strict=True)
    }


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, number for number; NaN is what it was."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    b = b.to(a.device)
    return bool(((a == b) | (a != a) & (b != b)).all())
