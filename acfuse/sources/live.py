"""A live model: its forward is the evidence, and it can be run and exported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import flop_registry

from acfuse.algebra import Value
from acfuse.errors import InputError, UsageError
from acfuse.files.cost_table import read_cost_table
from acfuse.files.read import read_tensors
from acfuse.files.records import Container, ReadOptions
from acfuse.files.user_code import assigned, fit_prefix, load_into
from acfuse.files.write import Write, writer
from acfuse.find import find_in_module
from acfuse.findings import Block, Findings, Run, Size
from acfuse.graph.calls import Call
from acfuse.graph.copies import copied, on_cpu
from acfuse.graph.fx_asserts import Rank
from acfuse.graph.fx_operators import convolutions_of
from acfuse.graph.fx_read import conv_of, is_norm
from acfuse.graph.fx_sites import replaced_layers
from acfuse.graph.fx_write import FusedForward
from acfuse.int8.evened import Evened
from acfuse.patterns import PATTERNS, Pattern
from acfuse.patterns.states import state_of
from acfuse.proof import Check, Inputs, Tolerance, diagnose
from acfuse.proof.evidence import evidence
from acfuse.proof.faults import NO_EPS
from acfuse.proof.live_program import (
    check_after_a_call,
    foreign_check,
    is_of_its_structure,
    program_check,
)
from acfuse.proof.original import Original, is_trained
from acfuse.proof.planted import Planted, planted_in_tensors
from acfuse.proof.running import floating_dtype, images, kinds_of, named_shapes, run
from acfuse.proof.same_bits import same_bits_in_torch
from acfuse.proof.whole import compare_models
from acfuse.proof.witness import Given
from acfuse.rewrite import fused_copy, fused_tensors, without_nonfinite
from acfuse.sources.bare import (
    beside_of,
    fitting,
    kept_of,
    named_tensors,
    parameters_of,
    untouched,
)
from acfuse.sources.base import (
    NEEDS_A_PROGRAM,
    FindOptions,
    Fused,
    Progress,
    Source,
    SourceFile,
    Weights,
    silent,
)
from acfuse.sources.scales import evened_tensors, same_scales, tensors_without_scales
from acfuse.system.devices import CPU, device_of
from acfuse.system.dispatch import DispatchMode
from acfuse.system.limits import LIMITS, Limits
from acfuse.system.memory import no_collection


@dataclass(frozen=True)
class LiveSource(Source):
    """A model in eval mode, and the tensors of the checkpoint that it was read from, if any."""

    model: nn.Module = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    container: Container = field(default_factory=lambda: Container("state_dict"))
    file: SourceFile = field(default_factory=SourceFile)
    example: Given | None = field(default=None, repr=False)
    ignores = dict.fromkeys(("bn_eps",), "the model's own code decides that") | dict.fromkeys(
        ("fix_initializers", "no_runtime"), "it is for ONNX files"
    )
    needs_inputs = True

    @classmethod
    def of(cls, model: nn.Module, example: Given | None = None) -> "LiveSource":
        """A model that was never in a file, and what it may be called with."""
        return cls(model, model.state_dict(), example=example)

    @property
    def network(self) -> nn.Module:
        return self.model

    @property
    def is_program(self) -> bool:
        return self.container.kind == "exported"

    def size(self, inputs: Inputs | None) -> Size:
        return size_of(self.model, self.tensors, inputs)

    def find(self, options: FindOptions) -> Findings:
        findings = find_in_module(
            self.model,
            options.patterns,
            folds=options.fold_bn,
            call=self._call(),
            costs=options.costs,
        )
        state = state_of(self.tensors, findings.found, options.patterns)
        notes = _taken_at_their_word(findings, options.patterns)
        findings = replace(findings, state=state, notes=notes)
        return without_nonfinite(findings) if options.allow_nonfinite else findings

    def _call(self) -> Call | None:
        """How the model is called with its example: what is given there are tensors."""
        if self.example is None:
            return None
        try:
            return Call.given(self.model, self.example.args, self.example.kwargs)
        except TypeError:
            return None

    def fuse(self, findings: Findings) -> "LiveFused":
        """A fused copy, without the blocks that do something else when they are run."""

        def exact(found: Sequence[Block]) -> nn.Module:
            return fused_copy(self.model, found, dtype=torch.float64).double()

        while True:
            with no_collection():
                fused = fused_copy(self.model, findings.found)
                shown = evidence(self.model, fused, findings, exact, self.example)
            if not shown.refused and not shown.batched:
                return LiveFused(findings, fused, self)
            places = {r.where for r in shown.refused}
            found = [
                _of_batches(b) if b.where in shown.batched else b
                for b in findings.found
                if b.where not in places
            ]
            refused = (*findings.refused, *shown.refused)
            findings = replace(findings, found=tuple(found), refused=refused)


def _of_batches(block: Block) -> Block:
    """A block that asserts that it is given batches of images."""
    ranks = {name: Rank(axes + 2) for name, (_, axes) in block.site.images.items() if axes}
    return replace(block, site=replace(block.site, fixed={**block.site.fixed, **ranks}))


@dataclass(frozen=True, repr=False)
class LiveFused(Fused):
    """A fused model in eval mode, what was found in the original, and what was refused and why."""

    model: nn.Module
    source: LiveSource = field(repr=False)
    read_back: Mapping[str, Tensor] | None = field(default=None, repr=False)  # from a fused file
    made: nn.Module | None = field(default=None, repr=False)  # by acfuse, if `model` is a user's

    @property
    def network(self) -> nn.Module:
        return on_cpu(self.model)

    def original(self, inputs: Inputs) -> Original:
        return self.source.original(inputs)

    @cached_property
    def exact(self) -> nn.Module:
        """The original in float64, fused without any rounding."""
        return fused_copy(self.source.model, self.found, dtype=torch.float64).double()

    def _exact_once(self) -> nn.Module:
        """The same for the last time: it takes twice the memory of the model that ships."""
        exact = self.exact
        del self.__dict__["exact"]
        return exact

    @cached_property
    def checkpoint(self) -> Mapping[str, Tensor]:
        """The fused checkpoint: what was not fused is the original's own tensor."""
        if self.read_back is not None:
            return self.read_back
        return fused_tensors(self.source.tensors, self.model.state_dict(), self.found)

    def size(self, inputs: Inputs | None) -> Size:
        return size_of(self.model, self.checkpoint, inputs)

    def stored(self, block: Block) -> list[Value | None]:
        return stored_in(self.model, block)

    def stored_and_claimed(
        self, block: Block
    ) -> tuple[Sequence[Value | None], Sequence[Value | None]]:
        return self.stored(block), stored_in(self.exact, block)

    def compare(
        self, inputs: Inputs | None, tolerance: Tolerance, progress: Progress = silent
    ) -> tuple[Check, ...]:
        checks = self._compared_as_written(inputs)
        if inputs is None:
            return checks

        again = self.findings.again or partial(find_in_module, patterns=PATTERNS)
        whole = compare_models(
            self.source.original(inputs),
            self.model if self.made is None else copied(self.model),  # a call may leave marks
            tolerance,
            self._exact_once,
            lambda model: fused_copy(model, again(model).found, dtype=torch.float64),
            progress,
        )
        return (*checks, *whole)

    def _compared_as_written(self, inputs: Inputs | None) -> tuple[Check, ...]:
        """What shows without running anything: the tensors, and the program around the blocks."""
        if self.read_back is None:
            return ()
        tensors = untouched(self.source.tensors, self.checkpoint, self.found)
        if self.made is None:
            return (tensors,)
        if not is_of_its_structure(self.made, self.model):
            has_keys = self.made.state_dict().keys() == self.checkpoint.keys()
            return (*(tensors,) * has_keys, foreign_check(has_inputs=inputs is not None))
        names = [f"{n}.{t}" for b in self.found for n in b.names for t in ("weight", "bias")]
        check = program_check(self.made, self.model, names)
        if not check.passed and inputs is not None:
            check = check_after_a_call(self.made, self.model, names, inputs, check)
        return tensors, check

    def with_file(self, path: Path, read: ReadOptions, *, unchanged: bool = False) -> "LiveFused":
        container = self.source.container
        if container.kind == "module":  # nothing but code could read it back: its hash has to do
            if unchanged:
                return replace(self, read_back=self.checkpoint)
            raise InputError(
                f"{path.name} is, as the original, a pickled module: only code could read it "
                "back. It is proved by its manifest: run `acfuse verify` in its folder."
            )
        read_in, tensors = read_tensors(path, read)
        given = fitting(tensors, container, self.checkpoint, path.name)
        model = copied(self.model)
        assigned(model, given)
        model.to(device_of(self.model))
        beside = beside_of(container, read_in, tensors)
        return replace(self, model=model, read_back=given, beside=beside)

    @property
    def weights(self) -> Mapping[str, Weights]:
        layers: dict[str, Any] = {
            n: self.model.get_submodule(n) for b in self.found for n in b.names
        }
        return {n: (w.weight.detach().cpu(), w.bias.detach().cpu()) for n, w in layers.items()}

    @property
    def kept(self) -> Mapping[str, Tensor]:
        return kept_of(self.checkpoint, self.found)

    def with_weights(self, given: Mapping[str, Weights]) -> "LiveFused":
        return self._with_tensors(named_tensors(given))

    def evened(
        self, inputs: Inputs | None, limits: Limits = LIMITS, *, everything: bool = False
    ) -> "tuple[LiveFused, Evened]":
        if inputs is None:
            raise UsageError(NEEDS_A_PROGRAM)
        network = self.network
        changed, made = evened_tensors(network, inputs, limits, everything=everything)
        if not made.is_taken:
            return self, made
        other = self._with_tensors(changed)
        compared = same_bits_in_torch(network, other.network, inputs)
        return other, replace(made, compared=made.compared + compared)

    def unscaled(
        self, own: "LiveFused", inputs: Inputs | None, limits: Limits = LIMITS
    ) -> "tuple[LiveFused, tuple[Check, ...]]":
        if inputs is None:
            return self, ()
        network = self.network
        changed = tensors_without_scales(network, own.network, inputs, limits)
        if not changed:
            return self, ()
        plain = self._with_tensors(changed)
        compare = partial(same_bits_in_torch, plain.network, network, inputs)
        return plain, (same_scales(compare),)

    def _with_tensors(self, given: Mapping[str, Tensor]) -> "LiveFused":
        """The same with other numbers in some of its tensors."""
        model, tensors = copied(self.model), {**self.checkpoint, **given}
        assigned(model, tensors)
        model.to(device_of(self.model))
        return replace(self, model=model, read_back=tensors)

    def planted(self, path: Path, read: ReadOptions, most: int) -> list[Planted]:
        return planted_in_tensors(self.source.tensors, read_tensors(path, read)[1], most)

    def contents(self) -> Mapping[str, bytes | Write]:
        container = self.source.container
        if self.source.is_program:
            return {}
        whole = self.network if container.kind == "module" else self.checkpoint
        return {"checkpoint": writer(container, whole)}

    def mistaken(self, block: Block, slack: Sequence[Tensor] | None) -> str:
        module = self.source.model.get_submodule(block.where)
        rerun = partial(replaced_layers, site=block.site)
        return diagnose(block, self.stored(block), module, rerun, slack)

    def anew(self, block: Block, eps: float) -> Run | None:
        module = copied(self.source.model.get_submodule(block.where))
        norms = [layer for layer in module.modules() if is_norm(layer)]
        for norm in norms:
            norm.eps = eps or NO_EPS  # type: ignore[assignment]
        return replaced_layers(module, block.site) if norms else None


def _taken_at_their_word(findings: Findings, patterns: Sequence[Pattern]) -> tuple[str, ...]:
    """What --assume was needed for. Raises UsageError where it was not."""
    assumed = {block.pattern: block.where for block in findings.found if block.assumed}
    needless = [p.name for p in patterns if p.is_assumed and p.name not in assumed]
    if needless:
        raise UsageError(
            f"--assume {needless[0]} has no effect: the model has no such block whose forward "
            "cannot be read. Remove it."
        )
    return tuple(
        f"{name}: {where or 'the model'} cannot be read, and is what the pattern says, as "
        "--assume says"
        for name, where in assumed.items()
    )


def stored_in(model: nn.Module, block: Block) -> list[Value | None]:
    """The convolutions of a block as they lie in a fused model, in float64, on the CPU."""
    prefix = f"{block.where}." if block.where else ""
    return [
        conv_of(model.get_submodule(prefix + term.name)).linear(CPU) if term.name else None
        for term in block.terms
    ]


def size_of(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Inputs | None) -> Size:
    """How large a model is, with what its checkpoint holds."""
    convolutions = sum(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    graphs = [
        m.acfuse_graph if isinstance(m, FusedForward) else m.graph
        for m in model.modules()
        if isinstance(m, FusedForward | fx.GraphModule)
    ]
    convolutions += sum(len(convolutions_of(graph)) for graph in graphs)
    return Size(convolutions, parameters_of(tensors), multiply_adds(model, inputs))


def multiply_adds(model: nn.Module, inputs: Inputs | None) -> int | None:
    """What one forward on the given input multiplies and adds; None where it cannot be run.

    It is run: a run without numbers would import torch's compiler, which takes longer.
    """
    if inputs is None:
        return None
    shapes = named_shapes(model, inputs)
    image = images(shapes, inputs.seed, kinds_of(shapes, inputs, model))
    tensors = (*model.parameters(), *model.buffers())
    # A run changes what is in training mode; else only attributes may be changed.
    own = copied(model, {} if is_trained(model) else {id(tensor): tensor for tensor in tensors})
    try:
        counter = _Counter()
        with counter, sdpa_kernel(SDPBackend.MATH):  # whose products are counted
            run(own, image, floating_dtype(model))
    except Exception:
        return None
    return counter.operations // 2


class _Counter(DispatchMode):
    """Counts multiplications and additions, as torch's FlopCounterMode does."""

    operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.operations += int(count(*args, **(kwargs or {}), out_val=made))
        return made


def load_fused(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    patterns: Sequence[Pattern] = PATTERNS,
    cost: str | Path | None = None,
) -> nn.Module:
    """A fused model, from a training-form network and a fused checkpoint.

    It is the way back into code whose authors wrote no deploy form. The network's own weights do
    not matter; where they are, the fused ones will be. What was fused by the cost table of a file
    is read by the same one. Raises InputError if the tensors do not fit.
    """
    costs = None if cost is None else read_cost_table(Path(cost))
    name, tensors = "the state dict", source
    if not isinstance(tensors, Mapping):
        name, tensors = Path(tensors).name, read_tensors(Path(tensors))[1]
    generator = torch.Generator().manual_seed(0)
    trained = copied(model).eval()
    with torch.no_grad():  # weights that happen to be zero must not decide what can be fused
        for tensor in (*trained.parameters(), *trained.buffers()):
            if tensor.is_floating_point():
                drawn = torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU)
                tensor.copy_(drawn.uniform_(0.5, 1.5, generator=generator))
    fused, folded = (
        LiveSource.of(trained)
        .fuse(find_in_module(trained, patterns, folds=folds, costs=costs))
        .model
        for folds in (False, True)
    )
    # Were lone BatchNorms folded as well? Then only the folded network has these keys.
    network = folded if _has_keys(folded, tensors) and not _has_keys(fused, tensors) else fused
    load_into(network, fit_prefix(tensors, network)[1], name)
    return network.to(device_of(model))


def _has_keys(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    keys = set(fit_prefix(tensors, network)[1])
    return keys == {k for k in network.state_dict() if k in keys or "num_batches" not in k}
