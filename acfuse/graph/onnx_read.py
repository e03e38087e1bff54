"""From an ONNX graph to steps: the same algebra on files whose code nobody has.

Values are read as convolutions read them, channels second. A file may hold them in another order
of axes and transpose them back and forth (images with their channels last): a Transpose is no step,
it is another name for the same value.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx
from torch import Tensor

from acfuse.algebra import Affine, Conv
from acfuse.errors import NotFusable, Reason
from acfuse.graph.images import not_linear
from acfuse.graph.layouts import IMAGE, ROWS, Operation, Reading, axes_of
from acfuse.graph.onnx_nodes import OPERATORS, Perm, Place, Surroundings, inverse
from acfuse.graph.onnx_quantised import FLOAT_FIRST, QUANTISING
from acfuse.graph.onnx_values import CONVOLUTIONS, Constants, Known, reads_within
from acfuse.graph.steps import ChannelSlice, ConvStep, Graph, Opaque, PerChannel, Rule, Step

CHANNELS_SECOND = (*CONVOLUTIONS, "AveragePool", "BatchNormalization")
PASSING = ("Identity", "Dropout")
# Linear as well, at least in part: a reader is not told that they are not.
UNREAD = frozenset({
    "Cast", "CumSum", "Einsum", "Expand", "Flatten", "Gather",
    "GlobalAveragePool", "ReduceMean", "ReduceSum", "Reshape", "Resize", "ScatterND",
    "SpaceToDepth", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample",
})  # fmt: skip
OF_SOME_AXES = ("DepthToSpace", "Gemm", "MatMul")
NO_RESULT = Opaque("a further output of a node is not linear")
# The same in every order of axes, but for Split, which gives several values.
ELEMENTWISE = frozenset(OPERATORS) - {*CHANNELS_SECOND, "Split", *OF_SOME_AXES}


@dataclass(frozen=True)
class OnnxSteps:
    """The steps of an ONNX graph, and under which names (in which order of axes) it has a value.

    `ranks` says of a name how many axes it has, where that is known.
    """

    graph: Graph
    views: Mapping[str, Mapping[str, Perm]]
    ranks: Mapping[str, int] = field(default_factory=dict)


def steps_of(graph: onnx.GraphProto, around: Surroundings) -> OnnxSteps:
    """The steps of an ONNX graph."""
    return _Builder(graph, around).build()


class _Builder:
    def __init__(self, graph: onnx.GraphProto, around: Surroundings) -> None:
        self.known = dict(around.known)
        self.graph, self.around = graph, replace(around, known=self.known)
        self.orders = _orders(graph)
        self.spatial_rank = _spatial_rank(graph, around.constants)
        axes = axes_of([*_operations(graph, around.constants)])
        self.rows = {name for name, count in axes.items() if count == ROWS}
        self.values: dict[str, tuple[str, Perm]] = {}  # name -> the value that it is, in what order
        self.steps: list[Step] = []
        self.casts: dict[tuple[object, ...], str] = {}  # what is cast, and how -> the first one
        self.needed = {o.name for o in graph.output}
        self.needed |= {name for node in graph.node for name in reads_within(node)}
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.read = self.needed | {name for node in graph.node for name in node.input}

    def build(self) -> OnnxSteps:
        for node in self.graph.node:
            if not all(o in self.around.constants for o in node.output if o):
                self._add(node)
        read = {v for step in self.steps for v in step.reads}
        outputs = frozenset(self._value(n)[0] for n in self.needed)
        views: dict[str, dict[str, Perm]] = {}
        for name, (value, perm) in self.values.items():
            views.setdefault(value, {})[name] = perm
        steps = Graph(
            tuple(self.steps),
            tuple(sorted(read - {s.value for s in self.steps})),
            outputs,
            spatial_rank=self.spatial_rank,
            axes=dict.fromkeys(self.rows, ROWS),
        )
        sizes = {name: known.sizes for name, known in self.known.items()}
        ranks = {name: len(own) for name, own in sizes.items() if own is not None}
        return OnnxSteps(steps, views, ranks)

    def _value(self, name: str) -> tuple[str, Perm]:
        """What a name stands for; a new one is a value, in the order in which it is transposed."""
        return self.values.setdefault(name, (name, self.orders.get(name, ())))

    def _add(self, node: onnx.NodeProto) -> None:
        reads = tuple(n for n in node.input if n and n not in self.around.constants)
        values = [self._value(n) for n in reads]
        twin = self._twin(node)
        if twin:
            self.values[node.output[0]] = self._value(twin)
            return
        if self._is_transposed(node, reads):
            value, perm = values[0]
            self.values[node.output[0]] = value, then(perm, _perm(node))
            return
        made: Sequence[Rule | None]
        order: Perm = ()
        try:
            order = _common_order([perm for _, perm in values])
            if order:  # images all the same, with their channels last
                self.rows -= {*reads, *node.output}
            made, reads = self._rules(Place(node, self.around, order, self.spatial_rank, self.rows))
        except NotFusable as refusal:
            made, order = [Opaque(refusal.why, refusal.code)], ()
        # A factor of 1 is a step all the same: the node is there, and a region takes it up.
        passes = made[0] is None and node.op_type in PASSING
        if passes and node.output[0] not in self.needed:
            self.values[node.output[0]] = self._value(reads[0])
            return
        made, reads = self._with_bias(node, made, reads)
        other = made[0] if isinstance(made[0], Opaque) else NO_RESULT
        for i, output in enumerate(node.output):
            rule = made[i] if i < len(made) else other
            if not output:
                continue
            if isinstance(rule, Opaque):
                self._value(output)
            else:
                self.values[output] = output, order
            own = rule or PerChannel(Affine(), like_image=True)
            if isinstance(own, ChannelSlice):
                self._learn_sizes(output, reads[0], own, order)
            self.steps.append(Step(output, tuple(self._value(n)[0] for n in reads), own))

    def _with_bias(
        self, node: onnx.NodeProto, made: Sequence[Rule | None], reads: tuple[str, ...]
    ) -> tuple[Sequence[Rule | None], tuple[str, ...]]:
        """A sum with a constant as the bias of the MatMul before it: one layer is both nodes."""
        rows = bool(reads) and reads[0] in self.rows
        matrix = next((s for s in self.steps if rows and s.value == reads[0]), None)
        alone = reads and self.readers[reads[0]] == 1 and reads[0] not in self.needed
        match matrix, made[0]:
            case Step(_, images, ConvStep(Conv(bias=None) as layer) as product), PerChannel(by) if (
                alone and not layer.stride and node.op_type == "Add" and by.channels
            ):
                assert isinstance(by.shift, Tensor)
                self.steps.remove(matrix)
                return [replace(product, layer=replace(layer, bias=by.shift))], images
        return made, reads

    def _twin(self, node: onnx.NodeProto) -> str:
        """The output of an earlier Cast of the same value to the same type; "" if there is none."""
        own = (node.domain, node.op_type) in self.around.functions
        constant = any(n in self.around.constants for n in node.input)
        if node.op_type != "Cast" or node.domain not in ("", "ai.onnx") or own or constant:
            return ""
        settings = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        key = (self._value(node.input[0]), *settings)
        first = self.casts.setdefault(key, node.output[0])
        return "" if first == node.output[0] else first

    def _learn_sizes(self, name: str, read: str, taken: ChannelSlice, order: Perm) -> None:
        """What some of the channels are, where ONNX's inference cannot tell from which to which."""
        known = self.known.get(read)
        if known is None or known.sizes is None:
            return
        sizes, channel = list(known.sizes), order.index(1) if order else 1
        width = sizes[channel]
        sizes[channel] = None if width is None else len(taken.channels(width))
        self.known[name] = Known(known.kind, tuple(sizes))

    def _is_transposed(self, node: onnx.NodeProto, reads: tuple[str, ...]) -> bool:
        """Whether a node is a Transpose that says how, of something that is a value."""
        perm = _perm(node)
        own = (node.domain, node.op_type) not in self.around.functions
        return (
            node.op_type == "Transpose"
            and node.domain in ("", "ai.onnx")
            and own
            and bool(perm)
            and len(reads) == 1
            and len(self._value(reads[0])[1]) in (0, len(perm))
        )

    def _rules(self, place: Place) -> tuple[Sequence[Rule | None], tuple[str, ...]]:
        """The rule of each output of a node, and the names of the images that they take.

        Raises NotFusable.
        """
        node = place.node
        if node.domain not in ("", "ai.onnx"):
            why = f"no rule describes {node.domain}.{node.op_type}"
            raise NotFusable(Reason.UNKNOWN_LAYER, why)
        if (node.domain, node.op_type) in self.around.functions:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"the file defines its own {node.op_type}")
        if node.op_type.startswith("Random"):
            raise NotFusable(Reason.RANDOM, f"{node.op_type} draws random numbers")
        if node.op_type in (*QUANTISING, "DequantizeLinear"):
            why = f"{node.op_type} works on quantised images: {FLOAT_FIRST}"
            raise NotFusable(Reason.ACTIVATION, why)
        if node.op_type in UNREAD:
            raise NotFusable(Reason.ACTIVATION, f"no rule describes {node.op_type}")
        if node.op_type not in OPERATORS:
            raise not_linear(node.op_type)
        if node.op_type in CHANNELS_SECOND and place.perm:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"{node.op_type} takes other axes for channels")
        made, images = OPERATORS[node.op_type](place)
        parts = [*map(made, range(len(node.output)))] if callable(made) else [made]
        if self.read.intersection(filter(None, node.output[len(parts) :])):
            raise NotFusable(Reason.SHARED, f"a further output of {node.op_type} is used")
        return parts, tuple(image.value for image in images)


def _common_order(orders: Sequence[Perm]) -> Perm:
    if len(set(orders)) > 1:
        raise NotFusable(Reason.UNKNOWN_LAYER, "it reads images in different orders of axes")
    return orders[0] if orders else ()


def _operations(graph: onnx.GraphProto, constants: Constants) -> Iterator[Operation]:
    """How each node reads what is no constant: which of its axes are the channels."""
    for node in graph.node:
        reads = [name for name in node.input if name and name not in constants]
        is_matrix = node.op_type == "MatMul" and {*node.input[1:]} <= constants.keys()
        if node.domain not in ("", "ai.onnx") or not reads:
            continue
        if node.op_type == "Gemm" or is_matrix:
            reading = Reading(ROWS)
        elif node.op_type == "BatchNormalization":
            reading, reads = Reading(alike=True, norm=True), reads[:1]
        elif node.op_type in (*CHANNELS_SECOND, "Pad", "DepthToSpace"):
            reading = Reading(IMAGE)
        elif node.op_type in OPERATORS and node.op_type != "MatMul":
            reading = Reading(alike=True)
        else:
            continue
        for output in filter(None, node.output):
            yield Operation(output, reads, reading)


def _orders(graph: onnx.GraphProto) -> dict[str, Perm]:
    """The order of axes of what is transposed for a convolution, and of what that is made from."""
    channels_second = {n.input[0] for n in graph.node if n.op_type in CHANNELS_SECOND}
    orders: dict[str, Perm] = {}
    for node in reversed(graph.node):
        if not node.output:
            continue
        perm = _perm(node)
        if node.op_type == "Transpose" and perm and node.output[0] in channels_second:
            orders.setdefault(node.input[0], inverse(perm))
        elif node.op_type in ELEMENTWISE and node.output[0] in orders:
            for name in node.input:
                orders.setdefault(name, orders[node.output[0]])
    return orders


def _perm(node: onnx.NodeProto) -> Perm:
    """The order of axes that a Transpose says; () if it says none, or what is no order."""
    perm = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
    return perm if sorted(perm) == list(range(len(perm))) else ()


def then(first: Perm, second: Perm) -> Perm:
    """The order of what is transposed twice; () for the value's own."""
    both = tuple(first[i] for i in second) if first else second
    return () if both == tuple(sorted(both)) else both


def _spatial_rank(graph: onnx.GraphProto, constants: Constants) -> int | None:
    ranks = {
        len(constants[node.input[1]].dims) - 2
        for node in graph.node
        if node.op_type in CONVOLUTIONS and node.input[1] in constants
    }
    return ranks.pop() if len(ranks) == 1 else None
