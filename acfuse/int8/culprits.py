"""Which layers lose most in 8 bits: each is rounded alone, and its noise is seen at the outputs.

A layer behind a bad one reads noise, and is not to blame for it. So all others stay in float here.
What is rounded of a layer is its weight and what it gives: a wide range is of the layer that gives
it, whoever reads it. Noises of single layers are small and independent of each other: they add up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from acfuse.graph.onnx_values import with_free_sizes
from acfuse.int8.figures import measured
from acfuse.int8.grids import Grid, Read, grids_of, reads_of
from acfuse.proof.leaves import Leaves
from acfuse.proof.onnx_runtime import leaves_in, session_of
from acfuse.proof.running import Image
from acfuse.system.limits import LIMITS, Limits

RUNS = 256  # of a model at most, unless it has more layers than that
# They put numbers elsewhere, or choose among them: what they give is of the layer before them.
MOVES = frozenset({
    "Clip", "Concat", "DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
On = dict[str, Any]  # inputs that have a default, and what rounds by them


@dataclass(frozen=True)
class Culprit:
    """A layer, and the signal over noise in dB of the worst output if it alone is in 8 bits.

    `share` is how much of the noise of all layers is its own, in percent. `readers` are the layers
    that read what it gives: in 8 bits as long as one of them is.
    """

    layer: str
    operator: str
    weight: str
    alone: float
    share: float
    readers: tuple[str, ...] = ()


def culprits(
    model: onnx.ModelProto,
    in_8_bits: onnx.ModelProto,
    data: Sequence[Image],
    limits: Limits = LIMITS,
) -> tuple[Culprit, ...]:
    """The layers of a float model by the noise that they bring in 8 bits, the worst first.

    Of very many layers it is measured on the first inputs alone.
    """
    nodes = {node.name: node for node in model.graph.node}
    reads = {name: own for name, own in reads_of(in_8_bits).items() if name in nodes}
    owners = _Owners(model)
    switched, switches = _with_switches(model, reads, dict(grids_of(in_8_bits)), owners)
    layers = [name for name in nodes if name in switches]  # in their order
    if not layers:
        return ()
    session = session_of(switched.SerializeToString(), optimised=False, limits=limits)
    answer = partial(leaves_in, session, limits)
    ways = [partial(_answer, answer, switches[name]) for name in layers]
    some = data[: max(1, RUNS // len(layers))]
    alone = [min(f.decibels for f in own) for own in measured(answer, ways, some)]
    noises = [10 ** (-max(db, -300.0) / 10) for db in alone]
    whole = sum(noises) or 1.0
    readers: dict[str, list[str]] = {}
    for name in reads:
        for value in nodes[name].input:
            for owner in owners.of(value):
                readers.setdefault(owner, []).append(name)
    found = [
        Culprit(
            name,
            nodes[name].op_type,
            _weight_of(nodes[name], reads.get(name, ())),
            db,
            100 * noise / whole,
            tuple(dict.fromkeys(n for n in readers.get(name, ()) if nodes[n].op_type not in MOVES)),
        )
        for name, db, noise in zip(layers, alone, noises, strict=True)
        if noise
    ]
    return tuple(sorted(found, key=lambda one: one.alone))


def _answer(answer: Any, on: On, image: Image) -> Leaves:
    leaves: Leaves = answer(image, beside=on)
    return leaves


def _weight_of(node: onnx.NodeProto, reads: Sequence[Read]) -> str:
    return next((node.input[r.place] for r in reads if r.numbers is not None), "")


class _Owners:
    """The layers whose numbers a value has: what only moves them is looked through."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.makers = {out: node for node in model.graph.node for out in node.output}
        self.known: dict[str, tuple[str, ...]] = {}
        for node in model.graph.node:  # in their order, so that none goes deep
            for out in node.output:
                self.of(out)

    def of(self, value: str) -> tuple[str, ...]:
        """Their names; none of what an input has."""
        if value not in self.known:
            node = self.makers.get(value)
            if node is None:
                self.known[value] = ()
            elif node.op_type in MOVES:
                before = [owner for name in node.input for owner in self.known.get(name, ())]
                self.known[value] = tuple(dict.fromkeys(before))
            else:
                self.known[value] = (node.name,)
        return self.known[value]


def _with_switches(
    model: onnx.ModelProto,
    reads: Mapping[str, Sequence[Read]],
    grids: Mapping[str, Grid],
    owners: _Owners,
) -> tuple[onnx.ModelProto, dict[str, On]]:
    """The float model with inputs that have a default, and for each layer those that round it.

    A weight is such an input itself; what rounds a value to its grid is switched on by one. Values
    of no layer's, as inputs are, are rounded with those that read them.
    """
    twin = with_free_sizes(model)
    twin.ir_version = max(twin.ir_version, 4)  # of the first in which a default is replaceable
    stored = {t.name: t for t in twin.graph.initializer}
    ends = {v.name for v in twin.graph.output} & {*grids}  # rounded for the caller as well
    switches: dict[str, On] = {}
    kept, nodes = [*twin.graph.node], []
    taken = {name for node in kept for name in (*node.input, *node.output)}
    mark = next(f"8_{n}" for n in range(len(taken) + 1) if not _begins(taken, f"8_{n}"))
    rounded: dict[str, str] = {}  # a value, and its name where it is rounded

    def round_if_asked(value: str, grid: Grid, layers: Sequence[str], made: str) -> None:
        switch = f"{mark}_v{len(rounded)}"
        _default(twin, switch, numpy_helper.from_array(np.array(False)))
        nodes.append(_rounded(switch, value, grid, made))
        for layer in layers:
            switches.setdefault(layer, {})[switch] = np.array(True)

    for number, node in enumerate(kept):
        own = onnx.NodeProto.FromString(node.SerializeToString())
        for read in reads.get(node.name, ()):
            value = node.input[read.place]
            if read.numbers is not None:
                name = f"{mark}_w{number}_{read.place}"
                tensor = onnx.TensorProto.FromString(stored[value].SerializeToString())
                own.input[read.place] = _default(twin, name, tensor)
                switches.setdefault(node.name, {})[name] = read.numbers
            elif read.grid is not None:
                layers = owners.of(value)
                key = value if layers else f"{value} {number}"
                if key not in rounded:
                    made = f"{mark}_r{len(rounded)}"
                    round_if_asked(value, read.grid, layers or (node.name,), made)
                    rounded[key] = made
                own.input[read.place] = rounded[key]
        nodes.append(own)
        for place, value in enumerate(node.output):
            if value in ends:
                inner = f"{mark}_o{len(rounded)}"
                own.output[place] = inner
                round_if_asked(inner, grids[value], owners.of(value), value)
                rounded[value] = value
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    return twin, switches


def _begins(names: set[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def _default(model: onnx.ModelProto, name: str, tensor: onnx.TensorProto) -> str:
    """Adds an input that has a default; its name."""
    tensor.name = name
    model.graph.initializer.append(tensor)
    model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return name


def _rounded(switch: str, value: str, grid: Grid, given: str) -> onnx.NodeProto:
    """A node that rounds a value to its grid if it is switched on, and passes it on else."""
    scale, zero, inside, made = (f"{switch}_{end}" for end in ("scale", "zero", "q", "made"))
    tensors = []
    for name, tensor in ((scale, grid.scale), (zero, grid.zero)):
        tensors.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
        tensors[-1].name = name
    rounding = [
        helper.make_node("QuantizeLinear", [value, scale, zero], [inside]),
        helper.make_node("DequantizeLinear", [inside, scale, zero], [made]),
    ]
    out = helper.make_tensor_value_info(made, grid.scale.data_type or TensorProto.FLOAT, None)
    then = helper.make_graph(rounding, "rounded", [], [out], tensors)
    same = helper.make_graph([helper.make_node("Identity", [value], [made])], "same", [], [out])
    return helper.make_node("If", [switch], [given], then_branch=then, else_branch=same)
