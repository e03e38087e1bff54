"""ONNX files in: found by the same algebra, rewritten, proved against the nodes they replace."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from acfuse.algebra import LinearConv
from acfuse.errors import AcfuseError, InputError, Reason, UsageError
from acfuse.export import OnnxFile, check_proto, run_session, session_of
from acfuse.find import Findings, Found, Refused, Summand
from acfuse.graph.from_onnx import Constants, constants_of, steps_of, subgraphs
from acfuse.graph.into_onnx import Placed, put_back
from acfuse.graph.regions import Region, choose, kernels
from acfuse.graph.steps import Graph, Unit
from acfuse.job import Size
from acfuse.verify import Check, Inputs, Proofs, Tolerance
from acfuse.verify.certificate import compare
from acfuse.verify.whole import Difference, images, judge

DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
}


REFERENCE_OPSET = 15
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
          "Bernoulli", "Multinomial")  # fmt: skip


@dataclass(frozen=True)
class FusedOnnx:
    """A fused ONNX model, what was found in the original, and what was refused and why."""

    model: onnx.ModelProto
    findings: Findings
    layers: tuple[tuple[Placed | None, ...], ...]  # of each block found, in order

    @property
    def found(self) -> tuple[Found, ...]:
        return self.findings.found

    @property
    def refused(self) -> tuple[Refused, ...]:
        return self.findings.refused


def read_onnx(path: Path) -> onnx.ModelProto:
    """An ONNX file with its tensors. Raises InputError for a file that cannot be used."""
    try:
        model = onnx.load(str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected an ONNX file.") from error
    except Exception as error:
        text = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(f"{path.name} is no ONNX file that can be read: {text}.") from error
    if not model.graph.node:
        raise InputError(f"{path.name} holds no graph: it is empty, or no ONNX file.")
    return model


def fuse_onnx(model: onnx.ModelProto, *, fold_bn: bool = False) -> FusedOnnx:
    """Fuses every region of an ONNX model that is one convolution. The given one is untouched."""
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    found: list[Found] = []
    refused: list[Refused] = []
    layers: list[tuple[Placed | None, ...]] = []
    for graph, outer in _graphs(fused.graph, {}):
        steps = steps_of(graph, outer)
        regions, misses = choose(steps, folds=fold_bn)
        random = [n for n in graph.node if n.op_type in RANDOM]
        if random:
            why = f"{random[0].op_type} draws random numbers: nothing could be compared"
            refused.append(Refused(random[0].output[0], Reason.RANDOM, why))
            continue
        refused += [Refused(m.value, m.code, m.why) for m in misses]
        dtype = _dtype_of(graph)
        chosen = [(region, kernels(steps, region)) for region in reversed(regions)]
        blocks = [
            _found(graph, outer, steps, region, values, dtype, opset) for region, values in chosen
        ]
        stored = iter(put_back(graph, chosen, opset, dtype))
        found += blocks
        for block in blocks:
            layers.append(tuple(next(stored) if s.value else None for s in block.summands))
    check_proto(fused)
    return FusedOnnx(fused, Findings(tuple(found), tuple(refused)), tuple(layers))


def _graphs(
    graph: onnx.GraphProto, outer: Constants
) -> Iterator[tuple[onnx.GraphProto, Constants]]:
    """A graph and those inside its nodes, each with the constants that it sees from outside."""
    own = constants_of(graph, outer)
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _graphs(inner, own)
    yield graph, outer


def _dtype_of(graph: onnx.GraphProto) -> torch.dtype:
    kinds = [DTYPES[t.data_type] for t in graph.initializer if t.data_type in DTYPES]
    return kinds[0] if kinds else torch.float32


def _found(
    graph: onnx.GraphProto,
    outer: Constants,
    steps: Graph,
    region: Region,
    values: Mapping[str, LinearConv | Unit],
    dtype: torch.dtype,
    opset: int,
) -> Found:
    summands = tuple(
        Summand(s, None, None) if isinstance(v, Unit) else Summand(s, "conv", v)
        for s, v in values.items()
    )
    return Found(
        region.output,
        None,
        summands,
        dtype,
        region.convolutions,
        region.multiply_adds,
        tuple(sorted(region.steps)),
        region.is_block,
        region.output,
        rebuilt=_reference(graph, outer, region, opset),
    )


def _reference(
    graph: onnx.GraphProto, outer: Constants, region: Region, opset: int
) -> Callable[..., Tensor]:
    """The nodes of a region, run one by one by onnx's reference implementation in float64."""
    constants = constants_of(graph, outer)
    nodes = _nodes_between(graph, region, constants)
    reads = {name for node in nodes for name in node.input if name in constants}
    tensors = []
    for name in sorted(reads):
        value = numpy_helper.to_array(constants[name])
        if value.dtype in (np.float32, np.float16):
            value = value.astype(np.float64)
        tensors.append(numpy_helper.from_array(value, name))
    double = onnx.TensorProto.DOUBLE
    alone = onnx.helper.make_graph(
        nodes,
        "region",
        [onnx.helper.make_tensor_value_info(s, double, None) for s in region.sources],
        [onnx.helper.make_tensor_value_info(region.output, double, None)],
        tensors,
    )
    model = onnx.helper.make_model(alone, opset_imports=[onnx.helper.make_opsetid("", opset)])
    if opset < REFERENCE_OPSET:  # the reference takes older BatchNormalizations to be in training
        model = onnx.version_converter.convert_version(model, REFERENCE_OPSET)
    evaluator = ReferenceEvaluator(model)

    def run(*given: Tensor) -> Tensor:
        feeds = {name: t.numpy() for name, t in zip(region.sources, given, strict=True)}
        results: Any = evaluator.run(None, feeds)
        return torch.from_numpy(np.array(results[0], dtype=np.float64))

    return run


def _nodes_between(
    graph: onnx.GraphProto, region: Region, constants: Constants
) -> list[onnx.NodeProto]:
    """Copies of the nodes that make a region's output from its sources, in order."""
    maker = {output: node for node in graph.node for output in node.output}
    needed: set[str] = set()
    stack = [region.output]
    while stack:
        name = stack.pop()
        if name in needed or name in region.sources or name in constants or name not in maker:
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
    check = _compare_files(original, fused.model, inputs, tolerance)
    return Proofs(tuple(certificates), (check,))


def _compare_files(
    original: onnx.ModelProto,
    fused: onnx.ModelProto,
    inputs: Inputs | None,
    tolerance: Tolerance,
) -> Check:
    difference = Difference(tolerance=tolerance)
    seed = inputs.seed if inputs else 0
    samples = inputs.samples if inputs else 3
    for optimised in (False, True):
        before = session_of(original.SerializeToString(), optimised=optimised)
        after = session_of(fused.SerializeToString(), optimised=optimised)
        for sample in range(samples):
            given = images(_shapes(original, inputs), seed + sample)
            true = [torch.from_numpy(np.array(a)) for a in run_session(before, given)]
            difference.add(true, [torch.from_numpy(np.array(a)) for a in run_session(after, given)])
    return judge("onnx", difference, tolerance, _dtype_of(original.graph))


def _shapes(model: onnx.ModelProto, inputs: Inputs | None) -> dict[str, tuple[int, ...]]:
    """The shape of each input: as given, else as the file has it, with 1 for a free batch."""
    stored = {t.name for t in model.graph.initializer}
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
    tensors = {
        tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        for graph, _ in _graphs(file.graph, {})
        for tensor in graph.initializer
    }
    layers = [tuple(p and _restored(p, tensors) for p in block) for block in fused.layers]
    return FusedOnnx(file, fused.findings, tuple(layers))


def _restored(placed: Placed, tensors: Mapping[str, Tensor]) -> Placed:
    layer = replace(placed.layer, weight=tensors[placed.weight], bias=tensors[placed.bias])
    return replace(placed, layer=layer)


def count_nodes(model: onnx.ModelProto, kind: str) -> int:
    """How many nodes of a type a model has, those inside other nodes included."""
    return sum(n.op_type == kind for g, _ in _graphs(model.graph, {}) for n in g.node)


def size_of_onnx(model: onnx.ModelProto) -> Size:
    """How large an ONNX model is."""
    tensors = [t for graph, _ in _graphs(model.graph, {}) for t in graph.initializer]
    numbers = sum(int(np.prod(t.dims)) for t in tensors if t.data_type in DTYPES)
    return Size(count_nodes(model, "Conv"), numbers)


def as_file(model: onnx.ModelProto) -> OnnxFile:
    """A model with what a report says of it."""
    stored = {t.name for t in model.graph.initializer}
    inputs = tuple(v.name for v in model.graph.input if v.name not in stored)
    outputs = tuple(v.name for v in model.graph.output)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    return OnnxFile(model, opset, "as it was", inputs, outputs)
