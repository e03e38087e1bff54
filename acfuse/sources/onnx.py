"""ONNX files: they hold their graph and need no code; found by the same algebra."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from acfuse.algebra import Value
from acfuse.errors import AcfuseError, InputError
from acfuse.files.cost_table import read_cost_table
from acfuse.files.onnx_cost import all_graphs
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.records import ReadOptions
from acfuse.files.tensor_check import USUAL_EPS, Norm
from acfuse.files.write import Write, copied
from acfuse.findings import Block, Findings, Run, Size
from acfuse.graph.onnx_nodes import FLOATS
from acfuse.graph.onnx_opset import in_opset
from acfuse.graph.onnx_plain import plain
from acfuse.graph.onnx_values import (
    CONVOLUTIONS,
    inputs_without_default,
    opset_of,
    reads_within,
    stored_tensors,
)
from acfuse.graph.onnx_write import Placed, put_back, read_anywhere, sweep
from acfuse.int8.evened import Evened, evened
from acfuse.int8.unscaled import unscaled
from acfuse.proof import Check, Inputs, Tolerance
from acfuse.proof.onnx_plugins import cut, ends_before_plugins, plugins_of
from acfuse.proof.onnx_program import compare_programs
from acfuse.proof.onnx_rewriting import Rewritten, compare_rewriting
from acfuse.proof.onnx_runtime import compare_files, image_of
from acfuse.proof.planted import Planted, planted_in_onnx
from acfuse.proof.same_bits import same_bits_in_onnx
from acfuse.proof.trace_onnx import shapes_in
from acfuse.sources.base import FindOptions, Fused, Progress, Source, SourceFile, Weights, silent
from acfuse.sources.onnx_find import Wanted, find_in_model
from acfuse.sources.scales import is_far, same_scales
from acfuse.system.escape import one_line
from acfuse.system.limits import LIMITS, Limits
from acfuse.targets.onnx_export import OnnxFile, count_nodes

WITHOUT = "Give --no-runtime to prove it without running it."
NOT_RUN = Check(
    "onnx", True, 0.0, 0.0, compared=0,
    note="the file was not run (--no-runtime): each block is proved for all inputs by its "
    "certificate, and all else is the original's, node by node. That a runtime takes the file is "
    "not shown",
)  # fmt: skip
EIGHT_BITS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
# Where operators read what may be infinite: Max and Min, as far as they are called in practice.
BOUNDS = {"Clip": (1, 2), "Max": (0, 1), "Min": (0, 1), "Where": (1, 2), "Pad": (2,)}


@dataclass(frozen=True)
class OnnxSource(Source):
    """An ONNX model. The given one is untouched.

    `given` is the model as its file has it, where `model` is that in another opset; `path` is that
    file, where it holds just this model. Raises InputError for one that is no valid ONNX.
    """

    model: onnx.ModelProto = field(repr=False)
    file: SourceFile = field(default_factory=SourceFile)
    limits: Limits = LIMITS
    given: onnx.ModelProto | None = field(default=None, repr=False)
    path: Path | None = None
    is_run: bool = True
    ignores = dict.fromkeys(
        ("model", "model_args", "key", "prefix", "allow_class", "bn_eps", "patterns", "assume"),
        "an ONNX file needs none",
    ) | {"device": "onnxruntime runs it on the CPU"}

    def __post_init__(self) -> None:
        fault = _fault_of(self.program)
        if fault:
            raise InputError(f"the model is not valid ONNX: {fault}.")
        for graph in all_graphs(self.program.graph):
            for tensor in stored_tensors(graph):
                _array(tensor)

    def in_opset(self, opset: int) -> "OnnxSource":
        """The same in another opset. Raises InputError where onnx's converter cannot make it."""
        model = in_opset(self.original, opset, self.file.name)
        if model is self.original:
            return self
        told = f"converted from opset {opset_of(self.original)} to {opset} by onnx's converter"
        file = replace(self.file, notes=(*self.file.notes, told))
        return replace(self, model=model, file=file, given=self.original, path=None)

    @cached_property
    def program(self) -> onnx.ModelProto:
        """The model in the form that is read and rewritten; it is run as it was given."""
        return plain(self.model)

    @property
    def original(self) -> onnx.ModelProto:
        """What the result is compared with."""
        return self.model if self.given is None else self.given

    @property
    def without_network(self) -> str:
        return f"{self.file.name} is an ONNX file; its fused form is one as well."

    def size(self, inputs: Inputs | None) -> Size:
        return size_of(self.program)

    def find(self, options: FindOptions) -> Findings:
        return find_in_model(self.program, Wanted(options.fold_bn, options.costs))

    def fuse(self, findings: Findings) -> "OnnxFused":
        fused = onnx.ModelProto()
        if not findings.found:  # as it was given, byte for byte
            fused.CopyFrom(self.model)
            return OnnxFused(findings, fused, (), self)
        fused.CopyFrom(self.program)
        before = read_anywhere(fused)
        layers: dict[int, tuple[Placed | None, ...]] = {}
        for index, graph in enumerate(all_graphs(fused.graph)):
            blocks = [b for b in findings.found if b.site.graph == index]
            if not blocks:
                continue
            regions = [(b.site.region, b.site.layers, b.site.moves) for b in blocks]
            steps, opset = blocks[0].site.steps, opset_of(fused)
            placed = iter(put_back(graph, steps, regions, fused, opset))
            for b in blocks:
                layers[id(b)] = tuple(next(placed) if term.name else None for term in b.terms)
        sweep(fused, before)
        fault = _fault_of(fused, full=not _fault_of(self.program, full=True))
        if fault:
            raise AcfuseError(f"the fused model is not valid ONNX: {fault}.")
        return OnnxFused(findings, fused, tuple(layers[id(b)] for b in findings.found), self)


@dataclass(frozen=True, repr=False)
class OnnxFused(Fused):
    """A fused ONNX model, what was found in the original, and what was refused and why."""

    model: onnx.ModelProto
    layers: tuple[tuple[Placed | None, ...], ...]  # of each block found, in order
    source: OnnxSource = field(repr=False)
    program: Check | None = None  # of a file that was read back, beside what is written here

    @cached_property
    def onnx_file(self) -> OnnxFile:
        inputs = tuple(v.name for v in inputs_without_default(self.model))
        outputs = tuple(v.name for v in self.model.graph.output)
        return OnnxFile(self.model, opset_of(self.model), "as it was", inputs, outputs)

    def size(self, inputs: Inputs | None) -> Size:
        return size_of(self.model)

    def stored(self, block: Block) -> list[Value | None]:
        index = next(i for i, found in enumerate(self.found) if found is block)
        return [p.layer.linear() if p is not None else None for p in self.layers[index]]

    def compare(
        self, inputs: Inputs | None, tolerance: Tolerance, progress: Progress = silent
    ) -> tuple[Check, ...]:
        checks: tuple[Check, ...] = (self.program,) if self.program is not None else ()
        blocks = [*map(rewritten, self.found, self.layers)]
        before = self.source.program if blocks else self.source.model
        checks += (compare_rewriting(before, self.model, blocks),)
        failed = [check for check in checks if not check.passed]
        if failed:
            return (failed[0],)  # another program is not run: it may not even be a valid one
        if self.is_unchanged:
            return checks  # the same file: there is nothing to run
        if not self.source.is_run:
            return (*checks, NOT_RUN)
        progress("both files in onnxruntime")
        limits, files = self.source.limits, (self.source.original, self.model)
        missing = plugins_of(self.source.model)
        if missing:  # what comes after them is the same, node by node
            ends = ends_before_plugins(self.source.program)
            if not ends:
                raise InputError(
                    f"{self.source.file.name}: onnxruntime has no {', '.join(missing)}, and "
                    f"nothing that could be run stands before it. {WITHOUT}"
                )
            files = cut(self.source.program, ends), cut(self.model, ends)
        return (*checks, compare_files(*files, inputs, tolerance, limits, WITHOUT))

    @property
    def is_unchanged(self) -> bool:
        """Whether it is the file that was given."""
        return not self.found and self.model == self.source.original

    def with_file(self, path: Path, read: ReadOptions, *, unchanged: bool = False) -> "OnnxFused":
        file, _ = read_onnx(path, ReadOptions(limits=read.limits))
        stored = with_tensors(self, file, path.name)
        if stored.program is not None and not stored.program.passed:
            self._check_settings(file, path.name)
        return stored

    @property
    def onnx_original(self) -> onnx.ModelProto:
        return self.source.original

    @property
    def weights(self) -> Mapping[str, Weights]:
        return {n: (p.layer.weight, p.layer.bias) for n, p in self._placed().items()}

    @property
    def names(self) -> frozenset[str]:
        return self.certified

    def _placed(self) -> dict[str, Placed]:
        placed = [p for block in self.layers for p in block if p is not None]
        return dict(zip([n for b in self.found for n in b.names], placed, strict=True))

    @property
    def kept(self) -> Mapping[str, Tensor]:
        held = numbers_of(self.model)[0]
        return {n: t for n, t in held.items() if n not in self.certified and t.ndim > 1}

    def with_weights(self, given: Mapping[str, Weights]) -> "OnnxFused":
        model, placed = onnx.ModelProto(), self._placed()
        model.CopyFrom(self.model)
        stored = {t.name: t for graph in all_graphs(model.graph) for t in graph.initializer}
        tensors = {}
        for name, pair in given.items():
            own = placed[name]
            numbers = own.stored(pair[0]), pair[1]
            for key, tensor in zip((own.weight, own.bias), numbers, strict=True):
                stored[key].CopyFrom(numpy_helper.from_array(tensor.numpy(), key))
                tensors[key] = stored[key]
        layers = [tuple(p and _restored(p, tensors) for p in block) for block in self.layers]
        return replace(self, model=model, layers=tuple(layers))

    def evened(
        self, inputs: Inputs | None, limits: Limits = LIMITS, *, everything: bool = False
    ) -> "tuple[OnnxFused, Evened]":
        made = evened(self.model, inputs, limits, everything=everything)
        return (with_tensors(self, made.model, "it") if made.is_taken else self), made

    def unscaled(
        self, own: "OnnxFused", inputs: Inputs | None, limits: Limits = LIMITS
    ) -> "tuple[OnnxFused, tuple[Check, ...]]":
        before, after = (numbers_of(form.model)[0] for form in (own, self))
        if not is_far((after[n], t) for n, t in before.items() if n in after):
            return self, ()
        try:
            shapes = shapes_in(own.model, image_of(own.model, inputs), limits)
        except InputError:  # it cannot be run
            return self, ()
        found = unscaled(self.model, own.model, shapes)
        if found is None:
            return self, ()
        plain = with_tensors(own, found, "it")
        compare = partial(same_bits_in_onnx, plain.model, self.model, inputs, limits)
        return plain, (same_scales(compare),)

    def planted(self, path: Path, read: ReadOptions, most: int) -> list[Planted]:
        file, _ = read_onnx(path, ReadOptions(limits=read.limits))
        return planted_in_onnx(self.source.program, file, most)

    def _check_settings(self, file: onnx.ModelProto, name: str) -> None:
        """Raises InputError for a file that is right with other settings, which it names."""
        opset, source = opset_of(file), self.source
        if opset != opset_of(self.model):
            try:
                source = self.source.in_opset(opset)
            except InputError:  # it is not what the converter makes
                return
        for folds in (False, True):
            findings = source.find(FindOptions(fold_bn=folds))
            if source is self.source and len(findings.found) == len(self.found):
                continue
            other = source.fuse(findings)
            if compare_programs(other.model, file, other.certified).passed:
                if source is not self.source:
                    raise InputError(f"{name} is of opset {opset}. Give --opset {opset}.")
                state, advice = ("with", "Give it") if folds else ("without", "Leave it out")
                raise InputError(f"{name} was fused {state} --fold-bn. {advice}.")

    def anew(self, block: Block, eps: float) -> Run | None:
        model = onnx.ModelProto()
        model.CopyFrom(self.source.model)
        for graph in all_graphs(model.graph):
            for node in graph.node:
                if node.op_type == "BatchNormalization":
                    kept = [a for a in node.attribute if a.name != "epsilon"]
                    del node.attribute[:]
                    node.attribute.extend([*kept, onnx.helper.make_attribute("epsilon", eps)])
        others = OnnxSource(model).find(FindOptions(fold_bn=not block.is_block)).found
        return next((b.reference() for b in others if b.where == block.where), None)

    @property
    def certified(self) -> frozenset[str]:
        """The tensors of the new layers, whose numbers are their certificates'."""
        placed = [p for block in self.layers for p in block if p is not None]
        return frozenset(name for p in placed for name in (p.weight, p.bias))

    def contents(self) -> Mapping[str, bytes | Write]:
        path = self.source.path
        if path is None or not self.is_unchanged:
            return {"onnx": self.model.SerializeToString()}
        return {"onnx": copied(path, self.source.file.files[path].sha256, self.source.limits)}


def fuse_onnx(
    model: onnx.ModelProto, *, fold_bn: bool = False, cost: str | Path | None = None
) -> OnnxFused:
    """Fuses every region of an ONNX model that is one convolution. The given one is untouched.

    With the table of a file `cost`, none that is slower than its layers. Raises InputError for a
    model that is no valid ONNX.
    """
    source, costs = OnnxSource(model), None if cost is None else read_cost_table(Path(cost))
    return source.fuse(source.find(FindOptions(fold_bn=fold_bn, costs=costs)))


def numbers_of(model: onnx.ModelProto) -> tuple[dict[str, Tensor], list[Norm]]:
    """The stored tensors of real numbers, and the BatchNorms that read them."""
    tensors: dict[str, Tensor] = {}
    norms: list[Norm] = []
    for graph in all_graphs(model.graph):
        bounds = _bounds(graph)
        for tensor in stored_tensors(graph):
            if tensor.data_type not in FLOATS:
                continue
            if tensor.name not in bounds or np.isnan(_array(tensor)).any():
                tensors[tensor.name] = torch.from_numpy(np.array(_array(tensor)))
        for node in graph.node:
            if node.op_type == "BatchNormalization" and len(node.input) == 5:
                _, gamma, _, mean, variance = node.input
                eps = next((a.f for a in node.attribute if a.name == "epsilon"), USUAL_EPS)
                norms.append(Norm(gamma, mean, variance, eps))
    return tensors, [norm for norm in norms if norm.variance in tensors]


def _bounds(graph: onnx.GraphProto) -> set[str]:
    """What is read as a bound alone, or chosen or filled in: it may be infinite."""
    bounds: set[str] = set()
    others = {o.name for o in graph.output}
    for node in graph.node:
        places = BOUNDS.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ()
        for i, name in enumerate(node.input):
            (bounds if i in places else others).add(name)
        others.update(reads_within(node))
    return bounds - others


def _array(stored: onnx.TensorProto) -> Any:
    """The array of a stored tensor. Raises InputError if its numbers do not fit its shape."""
    try:
        return numpy_helper.to_array(stored)
    except Exception as error:
        why = f"{stored.name} has fewer or more values than its shape requires"
        raise InputError(f"the model is not valid ONNX: {why}.") from error


def _fault_of(model: onnx.ModelProto, *, full: bool = False) -> str:
    """What onnx's checker (with `full`, its inference of types too) says against a model.

    That an input or output may be of any shape is nothing against it: onnxruntime runs it.
    """
    ends = (*model.graph.input, *model.graph.output)
    if not full and any(_is_shapeless(v) for v in ends):
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        for value in (*whole.graph.input, *whole.graph.output):
            if _is_shapeless(value):
                value.type.tensor_type.shape.SetInParent()
        model = whole
    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return one_line(error, 200)
    return ""


def _is_shapeless(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return value.type.HasField("tensor_type") and not tensor.HasField("shape")


def with_tensors(fused: OnnxFused, file: onnx.ModelProto, name: str) -> OnnxFused:
    """A file in place of the fused model, with the tensors that it has for the new layers.

    Raises InputError for a file that has none of those layers: it is no fused form at all.
    """
    placed = [p for block in fused.layers for p in block if p is not None]
    certified = fused.certified
    tensors = {
        tensor.name: tensor
        for graph in all_graphs(file.graph)
        for tensor in graph.initializer
        if tensor.name in certified
    }
    if placed and not tensors:
        raise InputError(
            f"{name} is not the fused form of this model: it has no tensor {placed[0].weight}, "
            f"nor any other of the {len(placed)} new convolutions."
        )
    layers = [tuple(p and _restored(p, tensors) for p in block) for block in fused.layers]
    check = compare_programs(fused.model, file, certified)
    return replace(fused, model=file, layers=tuple(layers), program=check)


def rewritten(block: Block, layers: Sequence[Placed | None]) -> Rewritten:
    """What a block has to be in the fused file."""
    views, output = block.site.steps.views, block.site.region.output
    terms = zip((views[term.source] for term in block.terms), layers, strict=True)
    return Rewritten(output, views[output][output], [*terms], block.site.moves)


def _restored(placed: Placed, tensors: Mapping[str, onnx.TensorProto]) -> Placed:
    """A layer with the tensors of a file; its own where they do not fit, which is another fault."""
    own = {placed.weight: placed.stored(placed.layer.weight), placed.bias: placed.layer.bias}
    read = {n: torch.from_numpy(np.array(_array(tensors[n]))) for n in own if n in tensors}
    fits = {n: t for n, t in read.items() if (t.shape, t.dtype) == (own[n].shape, own[n].dtype)}
    weight, bias = (fits.get(name, tensor) for name, tensor in own.items())
    return replace(placed, layer=replace(placed.layer, weight=placed.stored(weight), bias=bias))


def size_of(model: onnx.ModelProto) -> Size:
    """How large an ONNX model is; numbers that are stored in eight bits count as well."""
    tensors = [t for graph in all_graphs(model.graph) for t in stored_tensors(graph)]
    numbers = sum(int(np.prod(t.dims)) for t in tensors if t.data_type in (*FLOATS, *EIGHT_BITS))
    return Size(sum(count_nodes(model, kind) for kind in CONVOLUTIONS), numbers)
