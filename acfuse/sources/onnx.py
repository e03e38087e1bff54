"""ONNX files in: found by the same algebra, rewritten, proved against the nodes they replace."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor
from torch.nn import functional as F

from acfuse.algebra import LinearConv
from acfuse.errors import AcfuseError, InputError, NotFusable, Reason, UsageError
from acfuse.files import USUAL_EPS, Norm
from acfuse.files.onnx_cost import all_graphs, subgraphs
from acfuse.findings import Block, Findings, Refused, Size, Term
from acfuse.graph.onnx_read import (
    FLOATS,
    Axes,
    OnnxSteps,
    Surroundings,
    inverse,
    is_training_dropout,
    steps_of,
)
from acfuse.graph.onnx_values import (
    NOT_STORED_SINCE,
    Constants,
    constants_of,
    known_values,
    opset_of,
    replaceable,
)
from acfuse.graph.onnx_write import Layers, Placed, lowered, put_back, read_anywhere, sweep
from acfuse.graph.regions import choose, kernels
from acfuse.graph.steps import Identity, Region
from acfuse.proof import Check, Inputs, Proofs, Tolerance
from acfuse.proof.certificate import compare
from acfuse.proof.whole import (
    Difference,
    images,
    judge,
    largest_changes,
    moved_by_rounding,
)
from acfuse.system.escape import one_line
from acfuse.system.limits import LIMITS, Limits
from acfuse.targets.onnx_export import OnnxFile, run_session, session_of

REFERENCE_OPSET = 15
OLDEST_OPSET = 7  # onnxruntime runs nothing older: there would be no proof
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
LARGEST_IMAGE = 2**28  # numbers in an input that nobody asked for
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
          "Bernoulli", "Multinomial")  # fmt: skip


@dataclass(frozen=True)
class FusedOnnx:
    """A fused ONNX model, what was found in the original, and what was refused and why."""

    model: onnx.ModelProto
    findings: Findings
    layers: tuple[tuple[Placed | None, ...], ...]  # of each block found, in order

    @property
    def found(self) -> tuple[Block, ...]:
        return self.findings.found

    @property
    def refused(self) -> tuple[Refused, ...]:
        return self.findings.refused


def numbers_of(model: onnx.ModelProto) -> tuple[dict[str, Tensor], list[Norm]]:
    """The stored tensors of real numbers, and the BatchNorms that read them."""
    tensors: dict[str, Tensor] = {}
    norms: list[Norm] = []
    for graph in all_graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_type in FLOATS:
                tensors[tensor.name] = _tensor(tensor)
        for node in graph.node:
            if node.op_type == "BatchNormalization" and len(node.input) == 5:
                _, gamma, _, mean, variance = node.input
                eps = next((a.f for a in node.attribute if a.name == "epsilon"), USUAL_EPS)
                norms.append(Norm(gamma, mean, variance, eps))
    return tensors, [norm for norm in norms if norm.variance in tensors]


def _tensor(stored: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(np.array(_check_numbers(stored)))


def _check_numbers(stored: onnx.TensorProto) -> Any:
    """The array of a stored tensor. Raises InputError if its numbers do not fit its shape."""
    try:
        return numpy_helper.to_array(stored)
    except Exception as error:
        why = f"{stored.name} has not the numbers that its shape needs"
        raise InputError(f"the model is not valid ONNX: {why}.") from error


def fuse_onnx(model: onnx.ModelProto, *, fold_bn: bool = False) -> FusedOnnx:
    """Fuses every region of an ONNX model that is one convolution. The given one is untouched.

    Raises InputError for a model that is no valid ONNX.
    """
    fault = _fault_of(model)
    if fault:
        raise InputError(f"the model is not valid ONNX: {fault}.")
    for graph in all_graphs(model.graph):
        for tensor in graph.initializer:
            _check_numbers(tensor)
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    graphs = _graphs(fused)
    obstacle = _obstacle(model, graphs)
    if obstacle is not None:
        return FusedOnnx(fused, Findings((), (obstacle,)), ())
    before = read_anywhere(fused)
    found: list[Block] = []
    refused: list[Refused] = []
    layers: list[tuple[Placed | None, ...]] = []
    for graph, around in graphs:
        blocks, stored, left = _fuse_graph(fused, graph, around, fold_bn=fold_bn)
        found += blocks
        layers += stored
        refused += left
    if found:
        sweep(fused, before)
        fault = _fault_of(fused, full=not _fault_of(model, full=True))
        if fault:
            raise AcfuseError(f"the fused model is not valid ONNX: {fault}.")
    return FusedOnnx(fused, Findings(tuple(found), tuple(refused)), tuple(layers))


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


def _obstacle(
    model: onnx.ModelProto, graphs: Sequence[tuple[onnx.GraphProto, Surroundings]]
) -> Refused | None:
    """Why nothing of a model can be fused, whatever is in it."""
    where = model.graph.name
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        why = f"opset {opset} is older than what onnxruntime runs ({OLDEST_OPSET})"
        return Refused(where, Reason.UNKNOWN_LAYER, why)
    if model.training_info:
        return Refused(where, Reason.UNKNOWN_LAYER, "the file describes a training as well")
    for graph, around in graphs:
        for node in graph.node:
            if node.op_type in RANDOM:
                why = f"{node.op_type} draws random numbers: nothing could be compared"
                return Refused(node.output[0], Reason.RANDOM, why)
            if is_training_dropout(node, around.constants):
                why = "a Dropout is in training mode: nothing could be compared"
                return Refused(node.output[0], Reason.RANDOM, why)
    return None


def _graphs(model: onnx.ModelProto) -> list[tuple[onnx.GraphProto, Surroundings]]:
    """Every graph of a model, those inside nodes first, with what can be known of its values."""
    known, opset = known_values(model), opset_of(model)
    functions = frozenset((f.domain, f.name) for f in model.functions)

    def within(graph: onnx.GraphProto, outer: Constants) -> Iterator[Any]:
        defaults = replaceable(graph, model.ir_version)
        quantised = {a.tensor_name for a in graph.quantization_annotation}
        given = {n: f"{n} is an input, which a caller may give" for n in defaults}
        given |= {n: f"{n} is quantised" for n in quantised}
        made = {v.name: f"{v.name} is an input" for v in graph.input}
        made |= {o: f"{o} is computed by {n.op_type}" for n in graph.node for o in n.output}
        own = constants_of(graph, outer, opset, frozenset(given))
        for node in graph.node:
            for inner in subgraphs(node):
                yield from within(inner, own)
        yield graph, Surroundings(own, known, opset, {**made, **given}, functions)

    return list(within(model.graph, {}))


def _fuse_graph(
    model: onnx.ModelProto, graph: onnx.GraphProto, around: Surroundings, *, fold_bn: bool
) -> tuple[list[Block], list[tuple[Placed | None, ...]], list[Refused]]:
    """Fuses one graph of a model in place: what was found, where it went, and what was refused."""
    if graph is not model.graph and model.ir_version < NOT_STORED_SINCE:
        return [], [], []  # graphs inside nodes stored no tensors then
    steps = steps_of(graph, around)
    regions, misses = choose(steps.graph, folds=fold_bn)
    refused = [Refused(m.value, m.code, m.why) for m in misses]
    chosen: list[tuple[Region, Layers]] = []
    found: list[Block] = []
    for region in reversed(regions):
        try:
            dtype = _dtype_of(region, around)
            values = kernels(steps.graph, region)
            layers = lowered(values, dtype)
            reference = _reference(graph, around, steps, region.output, tuple(values))
        except NotFusable as refusal:
            refused.append(Refused(region.output, refusal.code, refusal.why))
            continue
        chosen.append((region, layers))
        found.append(_found(region, values, dtype, reference))
    placed = iter(put_back(graph, steps, chosen, model, around.opset) if chosen else ())
    stored = [tuple(next(placed) if term.name else None for term in block.terms) for block in found]
    return found, stored, refused


def _dtype_of(region: Region, around: Surroundings) -> torch.dtype:
    """The dtype of what a region makes; that of all its weights, or the file would be invalid."""
    known = around.known.get(region.output)
    if known is None or known.kind not in FLOATS:
        raise NotFusable(Reason.UNKNOWN_LAYER, f"nothing tells the type of {region.output}")
    return FLOATS[known.kind]


def _given(value: LinearConv) -> LinearConv:
    return value


def _found(
    region: Region,
    values: Mapping[str, LinearConv | Identity],
    dtype: torch.dtype,
    reference: Callable[..., Tensor],
) -> Block:
    terms = tuple(
        Term(s) if isinstance(v, Identity) else Term(s, "conv", partial(_given, v))
        for s, v in values.items()
    )
    return Block(
        region.output,
        None,
        terms,
        dtype,
        region.convolutions,
        region.multiply_adds,
        tuple(sorted(region.steps)),
        region.is_block,
        region.output,
        rebuilt=reference,
    )


def _reference(
    graph: onnx.GraphProto,
    around: Surroundings,
    steps: OnnxSteps,
    output: str,
    sources: tuple[str, ...],
) -> Callable[..., Tensor]:
    """The nodes of a region, run one by one by onnx's reference implementation in float64.

    Raises NotFusable for nodes of an older opset that it does not run.
    """
    views = {name: s for s in sources for name in steps.views[s]}
    nodes = _nodes_between(graph, output, {*views, *around.constants})
    reads = {name for node in nodes for name in node.input}
    given = sorted(reads.intersection(views))
    double = onnx.TensorProto.DOUBLE
    alone = onnx.helper.make_graph(
        nodes,
        "region",
        [onnx.helper.make_tensor_value_info(name, double, None) for name in given],
        [onnx.helper.make_tensor_value_info(output, double, None)],
        [_in_float64(around.constants[n], n) for n in sorted(reads.intersection(around.constants))],
    )
    opsets = [onnx.helper.make_opsetid("", around.opset)]
    model = onnx.helper.make_model(alone, opset_imports=opsets)
    if around.opset < REFERENCE_OPSET:  # it takes older BatchNormalizations to be in training
        try:
            model = onnx.version_converter.convert_version(model, REFERENCE_OPSET)
        except Exception as error:
            why = f"onnx cannot run its nodes of opset {around.opset} to prove it"
            raise NotFusable(Reason.UNKNOWN_LAYER, why) from error
    evaluator = ReferenceEvaluator(model, new_ops=[ConvTranspose])
    order = steps.views[output][output]

    def run(*images: Tensor) -> Tensor:
        values = dict(zip(sources, images, strict=True))
        feeds = {n: _turned(values[views[n]], steps.views[views[n]][n]).numpy() for n in given}
        try:
            results: Any = evaluator.run(None, feeds)
        except Exception as error:  # of any kind; as torch's layers say that an image is too small
            raise RuntimeError(one_line(error, 200)) from error
        answer = torch.from_numpy(np.array(results[0], dtype=np.float64))
        return _turned(answer, inverse(order))

    return run


class ConvTranspose(OpRun):
    """One of stride 1, by torch: that of onnx's reference implementation fails for groups."""

    op_domain = ""

    def _run(self, image: Any, weight: Any, bias: Any = None, **settings: Any) -> tuple[Any]:
        axes = weight.ndim - 2
        pads = settings.get("pads") or [0] * 2 * axes
        whole = TRANSPOSED[axes](
            torch.tensor(image),
            torch.tensor(weight),
            None if bias is None else torch.tensor(bias),
            groups=settings.get("group") or 1,
            dilation=tuple(settings.get("dilations") or [1] * axes),
        )
        for axis, (before, after) in enumerate(zip(pads[:axes], pads[axes:], strict=True), 2):
            whole = whole.narrow(axis, before, whole.shape[axis] - before - after)
        return (whole.numpy(),)


def _turned(image: Tensor, axes: Axes) -> Tensor:
    return image.permute(*axes).contiguous() if axes else image


def _in_float64(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    value = numpy_helper.to_array(tensor)
    if value.dtype in (np.float32, np.float16):
        value = value.astype(np.float64)
    return numpy_helper.from_array(value, name)


def _nodes_between(graph: onnx.GraphProto, output: str, known: Set[str]) -> list[onnx.NodeProto]:
    """Copies of the nodes that make a value from known ones, in order."""
    maker = {output: node for node in graph.node for output in node.output}
    needed: set[str] = set()
    stack = [output]
    while stack:
        name = stack.pop()
        if name in needed or name in known or name not in maker:
            continue
        needed.add(name)
        stack.extend(maker[name].input)
    return [
        onnx.NodeProto.FromString(node.SerializeToString())
        for node in graph.node
        if needed.intersection(node.output)
    ]


def verify_onnx(
    original: onnx.ModelProto,
    fused: FusedOnnx,
    inputs: Inputs | None,
    tolerance: Tolerance,
    progress: Callable[[str], None] = lambda _: None,
    *,
    limits: Limits = LIMITS,
) -> Proofs:
    """Certificates against the replaced nodes in float64, then both files in onnxruntime."""
    certificates = []
    for block, layers in zip(fused.found, fused.layers, strict=True):
        if block.rebuilt is None:
            raise AcfuseError(f"{block.where} cannot be run alone.")
        progress(f"certificate of {block.where}")
        stored = [p.layer.linear() if p is not None else None for p in layers]
        certificates.append(compare(block.rebuilt, stored, block))
    proofs = Proofs(tuple(certificates))
    if not proofs.passed:
        return proofs
    progress("both files in onnxruntime")
    check = _compare_files(original, fused.model, inputs, tolerance, limits)
    return Proofs(tuple(certificates), (check,))


def _compare_files(
    original: onnx.ModelProto,
    fused: onnx.ModelProto,
    inputs: Inputs | None,
    tolerance: Tolerance,
    limits: Limits,
) -> Check:
    difference = Difference(tolerance=tolerance)
    seed, samples = (inputs.seed, inputs.samples) if inputs else (0, 3)
    given = [images(_shapes(original, inputs), seed + sample) for sample in range(samples)]
    dtype = _coarsest(original)
    near = [_moved(image, dtype) for image in given]

    def answers(
        model: onnx.ModelProto, images: Sequence[dict[str, Tensor]], *, optimised: bool
    ) -> list[list[Tensor]]:
        session = session_of(model.SerializeToString(), optimised=optimised, limits=limits)
        found = [run_session(session, image, limits) for image in images]
        return [[torch.from_numpy(np.array(array)) for array in arrays] for arrays in found]

    for optimised in (False, True):  # one file after the other: each may take much memory
        before = answers(original, [*given, *near], optimised=optimised)
        true, moved = before[: len(given)], before[len(given) :]
        after = answers(fused, given, optimised=optimised)
        for expected, other, found in zip(true, moved, after, strict=True):
            difference.add(expected, found, largest_changes(expected, other))
    return judge("onnx", difference, tolerance, dtype)


def _moved(given: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same images, every pixel a unit of rounding away: what a model makes of that is noise."""
    generator = torch.Generator().manual_seed(0)
    return {name: moved_by_rounding(image, dtype, generator) for name, image in given.items()}


def _coarsest(model: onnx.ModelProto) -> torch.dtype:
    """The coarsest dtype that a model computes in, as far as its tensors and ends tell."""
    kinds = {t.data_type for graph in all_graphs(model.graph) for t in graph.initializer}
    kinds |= {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    return torch.float16 if onnx.TensorProto.FLOAT16 in kinds else torch.float32


def _shapes(model: onnx.ModelProto, inputs: Inputs | None) -> dict[str, tuple[int, ...]]:
    """The shape of each input: as given, else as the file has it, with 1 for a free batch."""
    stored = {t.name for t in model.graph.initializer}  # what has a default is not given
    free = [shape for name, shape in (inputs.shapes if inputs else ()) if name is None]
    named = {name: shape for name, shape in (inputs.shapes if inputs else ()) if name}
    shapes: dict[str, tuple[int, ...]] = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.name in named:
            shapes[value.name] = named[value.name]
        elif free:
            shapes[value.name] = free.pop(0)
        elif all(dims[1:]) and dims:
            shapes[value.name] = (dims[0] or 1, *dims[1:])
            if math.prod(shapes[value.name]) > LARGEST_IMAGE:
                raise UsageError(
                    f"the input {value.name} is of {tuple(dims)}, which is too much to be tried: "
                    f"give a smaller --input-shape {value.name}:1,3,224,224."
                )
        else:
            raise UsageError(
                f"the input {value.name} has free sizes: give --input-shape "
                f"{value.name}:1,3,224,224."
            )
    return shapes


def with_tensors(fused: FusedOnnx, file: onnx.ModelProto, name: str) -> FusedOnnx:
    """The fused structure with a file's tensors in it. Raises InputError if they do not fit."""
    wanted = [(n.op_type, list(n.input), list(n.output)) for n in fused.model.graph.node]
    given = [(n.op_type, list(n.input), list(n.output)) for n in file.graph.node]
    if wanted != given:
        raise InputError(f"{name} is not the fused form of this model: its nodes are others.")
    placed = [p for block in fused.layers for p in block if p is not None]
    needed = {name for p in placed for name in (p.weight, p.bias)}
    tensors = {
        tensor.name: _tensor(tensor)
        for graph in all_graphs(file.graph)
        for tensor in graph.initializer
        if tensor.name in needed
    }
    layers = [tuple(p and _restored(p, tensors) for p in block) for block in fused.layers]
    return FusedOnnx(file, fused.findings, tuple(layers))


def _restored(placed: Placed, tensors: Mapping[str, Tensor]) -> Placed:
    layer = replace(placed.layer, weight=tensors[placed.weight], bias=tensors[placed.bias])
    return replace(placed, layer=layer)


def count_nodes(model: onnx.ModelProto, kind: str) -> int:
    """How many nodes of a type a model has, those inside other nodes included."""
    return sum(n.op_type == kind for g in all_graphs(model.graph) for n in g.node)


def size_of_onnx(model: onnx.ModelProto) -> Size:
    """How large an ONNX model is."""
    tensors = [t for graph in all_graphs(model.graph) for t in graph.initializer]
    numbers = sum(int(np.prod(t.dims)) for t in tensors if t.data_type in FLOATS)
    return Size(count_nodes(model, "Conv"), numbers)


def as_file(model: onnx.ModelProto) -> OnnxFile:
    """A model with what a report says of it."""
    stored = {t.name for t in model.graph.initializer}
    inputs = tuple(v.name for v in model.graph.input if v.name not in stored)
    outputs = tuple(v.name for v in model.graph.output)
    return OnnxFile(model, opset_of(model), "as it was", inputs, outputs)
