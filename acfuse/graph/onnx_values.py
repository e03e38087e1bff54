"""What an ONNX file tells of its values: the constants, and the types and sizes of the others."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from acfuse.files.onnx_cost import all_graphs, subgraphs
from acfuse.graph.onnx_quantised import dequantised

Constants = Mapping[str, onnx.TensorProto]

LARGEST_FOLDS = 2**26  # numbers in all results together, beside those that the file holds
LARGEST_FOLD = 2**24  # numbers in the constants that one node is evaluated on
NOT_STORED_SINCE = 4  # from this IR version on, an initializer that is an input is but a default
CONVOLUTIONS = ("Conv", "ConvTranspose")
# Operators that mean the same in every opset from 7 on (or differ in where their settings stand).
EVALUATED = frozenset({
    "Abs", "Add", "Cast", "CastLike", "Ceil",
    "Concat", "Constant", "ConstantOfShape", "Div", "Einsum", "Equal", "Exp",
    "Expand", "Flatten", "Floor", "Gather", "Identity", "MatMul", "Mul", "Neg", "Pow", "Range",
    "Reciprocal", "ReduceL2", "ReduceMean", "ReduceSum", "Reshape", "Shape", "Size", "Slice",
    "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What is known of a value: its element type, and its sizes (None: any)."""

    kind: int
    sizes: tuple[int | None, ...] | None = None


def reads_within(node: onnx.NodeProto) -> Iterator[str]:
    """The values that the graphs inside a node read or give out, at any depth."""
    for inner in subgraphs(node):
        for other in inner.node:
            yield from other.input
            yield from reads_within(other)
        yield from (o.name for o in inner.output)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def constants_of(
    graph: onnx.GraphProto,
    outer: Constants,
    opset: int,
    replaced: frozenset[str] = frozenset(),
    facts: Mapping[str, Known] = MappingProxyType({}),
    *,
    dequantise: bool = False,
) -> Constants:
    """The tensors that a graph holds or sees: initializers, and what follows from them.

    Small computations on constants (amounts of pads, a cast or transposed weight) are carried out.
    `replaced` names the initializers that are none: a caller may give others. Of a value that is
    only asked for its type or for some of its sizes, the `facts` are enough. With `dequantise`,
    weights that are stored as integers are what a runtime makes of them.
    """
    own = {v.name for v in graph.input} | {o for node in graph.node for o in node.output}
    found = {name: tensor for name, tensor in outer.items() if name not in own}
    found |= {t.name: t for t in graph.initializer if t.name not in replaced}
    room = LARGEST_FOLDS + sum(_numbers(tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or room <= 0:
            continue
        if node.op_type in EVALUATED or (dequantise and node.op_type == "DequantizeLinear"):
            made = _evaluated(_told(node, found, facts), found, opset)
            room -= sum(map(_numbers, made.values()))
            found.update(made)
    return found


def _told(node: onnx.NodeProto, found: Constants, facts: Mapping[str, Known]) -> onnx.NodeProto:
    """A node that asks an image for its type or its sizes alone, as one that does not.

    A CastLike becomes a Cast, a Shape of sizes that are known a Constant; others are as they are.
    """
    asked = node.input[-1] if node.op_type in ("CastLike", "Shape") and node.input else ""
    fact = facts.get(asked)
    if not asked or asked in found or fact is None:
        return node
    if node.op_type == "CastLike" and len(node.input) == 2 and fact.kind:
        return helper.make_node("Cast", [node.input[0]], [*node.output], to=fact.kind)
    if node.op_type == "Shape" and fact.sizes is not None:
        ends = {a.name: a.i for a in node.attribute}
        sizes = fact.sizes[ends.get("start", 0) : ends.get("end", len(fact.sizes))]
        if None not in sizes:
            value = numpy_helper.from_array(np.array(sizes, dtype=np.int64))
            return helper.make_node("Constant", [], [*node.output], value=value)
    return node


def _evaluated(
    node: onnx.NodeProto, found: Constants, opset: int
) -> Mapping[str, onnx.TensorProto]:
    """The outputs of a node whose inputs are constants; none if it cannot be carried out here."""
    names = [n for n in node.input if n]
    external = onnx.TensorProto.EXTERNAL
    if (not names and node.op_type != "Constant") or any(
        n not in found or found[n].data_location == external for n in names
    ):
        return {}
    if sum(_numbers(found[n]) for n in names) > LARGEST_FOLD:
        return {}
    if node.op_type == "DequantizeLinear":
        return dequantised(node, found)
    try:
        values = {n: numpy_helper.to_array(found[n]) for n in names}
        if _made(node, [values[n] for n in names]) > LARGEST_FOLD:
            return {}
        graph = onnx.helper.make_graph(
            [node],
            node.op_type,
            [onnx.helper.make_tensor_value_info(n, found[n].data_type, None) for n in values],
            [onnx.helper.make_empty_tensor_value_info(n) for n in node.output if n],
        )
        results: Any = ReferenceEvaluator(graph, opsets={"": opset}).run(None, values)
        arrays = [np.asarray(value) for value in results]
        if any(a.size > LARGEST_FOLD for a in arrays):
            return {}
        outputs = filter(None, node.output)
        return {n: numpy_helper.from_array(a, n) for n, a in zip(outputs, arrays, strict=True)}
    except Exception:  # it stays a node of the graph
        return {}


def _made(node: onnx.NodeProto, inputs: list[Any]) -> int:
    """How many numbers a node makes of its inputs, where that can be more than they have."""
    kind = node.op_type
    if kind == "Einsum":
        return _summed(node, inputs)
    if kind == "ConstantOfShape":
        return math.prod(map(int, inputs[0]))
    if kind == "Tile":
        return int(inputs[0].size) * math.prod(map(int, inputs[1]))
    if kind == "Range":
        start, limit, step = (float(value) for value in inputs)
        return math.ceil(abs((limit - start) / step))
    shapes = [value.shape for value in inputs]
    if kind == "Expand":
        shapes = [shapes[0], tuple(map(int, inputs[1]))]
    if kind == "MatMul" and all(len(shape) > 1 for shape in shapes):
        (*first, rows, _), (*second, _, columns) = shapes
        many = math.prod(np.broadcast_shapes(tuple(first), tuple(second)))
        return int(many * rows * columns)
    if kind == "Gather":
        return math.prod(map(math.prod, shapes))
    try:
        return math.prod(np.broadcast_shapes(*shapes))
    except ValueError:  # not of the nodes that stretch their inputs
        return sum(map(math.prod, shapes))


def _summed(node: onnx.NodeProto, inputs: list[Any]) -> int:
    """How many products an Einsum adds up: one for each choice of all its letters."""
    equation = next(a.s for a in node.attribute if a.name == "equation").decode()
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes = {
        letter: size
        for term, value in zip(terms, inputs, strict=True)
        for letter, size in zip(term, value.shape, strict=True)  # dots stand for no one axis
    }
    return math.prod(sizes.values())


def _numbers(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def replaceable(graph: onnx.GraphProto, ir_version: int) -> frozenset[str]:
    """The initializers that are defaults of inputs: a caller may give other values.

    Before IR version 4 every initializer had to be listed as an input, and was a constant.
    """
    if ir_version < NOT_STORED_SINCE:
        return frozenset()
    return frozenset({t.name for t in graph.initializer} & {v.name for v in graph.input})


def inputs_without_default(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs of a model that its caller has to give, in their order."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def with_free_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that leaves open what the file calls a size of -1 or 0: exporters mean any size."""
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    for graph in all_graphs(freed.graph):
        for value in (*graph.input, *graph.value_info, *graph.output):
            for dim in value.type.tensor_type.shape.dim if is_tensor(value) else ():
                if dim.HasField("dim_value") and dim.dim_value <= 0:
                    dim.ClearField("dim_value")
    return freed


def is_tensor(value: onnx.ValueInfoProto) -> bool:
    """Whether a value is one tensor, and no sequence, map or optional."""
    return bool(value.type.HasField("tensor_type"))


def with_fixed_inputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model without the inputs that have a default, which stays as a constant; their names."""
    names = sorted(replaceable(model.graph, model.ir_version))
    if not names:
        return model, names
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    left = [v for v in fixed.graph.input if v.name not in names]
    del fixed.graph.input[:]
    fixed.graph.input.extend(left)
    return fixed, names


def stored_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The tensors that a graph holds: initializers, and those that Constant nodes give."""
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensor = onnx.TensorProto()
                    tensor.CopyFrom(attribute.t)
                    tensor.name = node.output[0]
                    yield tensor


def known_values(model: onnx.ModelProto) -> dict[str, Known]:
    """The type and sizes of every value, as far as ONNX's own inference tells.

    Inference ends at a node whose result it cannot tell (a Reshape to a computed shape). The weight
    of a convolution says how many channels it reads and makes: from there it goes on.
    """
    seeded = with_free_sizes(model)
    for graph in all_graphs(seeded.graph):
        _seed(graph)
    try:
        seeded = onnx.shape_inference.infer_shapes(seeded, data_prop=True)
    except Exception:  # what the file says itself is left
        seeded = with_free_sizes(model)
    found: dict[str, Known] = {}
    for graph in all_graphs(seeded.graph):
        for name, known in _own(graph).items():  # two graphs may give one name to two values
            found[name] = known if found.get(name, known) == known else Known(0)
    return found


def _own(graph: onnx.GraphProto) -> dict[str, Known]:
    """What one graph tells of its values."""
    own: dict[str, Known] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        known = _known(value)
        if known is not None and (known.sizes is not None or value.name not in own):
            own[value.name] = known
    return own | {t.name: Known(t.data_type, tuple(t.dims)) for t in graph.initializer}


def facts_of(model: onnx.ModelProto) -> dict[str, Known]:
    """The same without what the file states of values between its inputs and outputs.

    A runtime holds its caller to the inputs; what else is stated, nothing has to be true.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for graph in all_graphs(bare.graph):
        del graph.value_info[:]
        given = () if graph is bare.graph else graph.input
        for value in (*given, *graph.output):
            if is_tensor(value):
                value.type.tensor_type.ClearField("shape")
    return known_values(bare)


def _seed(graph: onnx.GraphProto) -> None:
    """Writes down the channels of what convolutions read and make, where the file does not."""
    stored = {t.name: t for t in stored_tensors(graph)}
    stated = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
    for node in graph.node:
        if node.op_type not in CONVOLUTIONS or not stored.keys() & {*node.input[1:2]}:
            continue
        weight = stored[node.input[1]]
        if len(weight.dims) < 3:
            continue  # the kernel of no convolution
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        first, second = weight.dims[0], weight.dims[1] * groups
        reads, makes = (second, first) if node.op_type == "Conv" else (first, second)
        for name, channels in ((node.input[0], reads), (node.output[0], makes)):
            if name not in stated:
                stated[name] = graph.value_info.add(name=name)
            tensor = stated[name].type.tensor_type
            if not tensor.HasField("shape"):
                tensor.elem_type = weight.data_type
                for size in (None, channels, *[None] * (len(weight.dims) - 2)):
                    dim = tensor.shape.dim.add()
                    if size is not None:
                        dim.dim_value = size


def _known(value: onnx.ValueInfoProto) -> Known | None:
    if not is_tensor(value):
        return None
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Known(tensor.elem_type)
    sizes = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    return Known(tensor.elem_type, sizes)
