"""Which layers lose most in 8 bits: each is rounded alone, and its noise is seen at the outputs.

A layer behind a bad one reads noise, and is not to blame for it. So all others stay in float here.
Noises of single layers are small and independent of each other: they add up.
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
from acfuse.int8.grids import Grid, Read, reads_of
from acfuse.proof.leaves import Leaves
from acfuse.proof.onnx_runtime import leaves_in, session_of
from acfuse.proof.running import Image
from acfuse.system.limits import LIMITS, Limits

RUNS = 256  # of a model at most, unless it has more layers than that
# They put numbers elsewhere, or choose among them, and round nothing that was not rounded.
MOVES = frozenset({
    "Concat", "DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip


@dataclass(frozen=True)
class Culprit:
    """A layer, and the signal over noise in dB of the worst output if it alone is in 8 bits.

    `share` is how much of the noise of all layers is its own, in percent.
    """

    layer: str
    operator: str
    weight: str
    alone: float
    share: float


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
    reads = {
        name: reads
        for name, reads in reads_of(in_8_bits).items()
        if name in nodes and nodes[name].op_type not in MOVES
    }
    if not reads:
        return ()
    switched, switches = _with_switches(model, reads)
    session = session_of(switched.SerializeToString(), optimised=False, limits=limits)
    answer = partial(leaves_in, session, limits)
    ways = [partial(_answer, answer, switches[name]) for name in reads]
    some = data[: max(1, RUNS // len(reads))]
    alone = [min(f.decibels for f in own) for own in measured(answer, ways, some)]
    noises = [10 ** (-max(db, -300.0) / 10) for db in alone]
    whole = sum(noises) or 1.0
    found = [
        Culprit(name, nodes[name].op_type, _weight_of(nodes[name], own), db, 100 * noise / whole)
        for (name, own), db, noise in zip(reads.items(), alone, noises, strict=True)
    ]
    return tuple(sorted(found, key=lambda one: one.alone))


def _answer(answer: Any, on: Mapping[str, Any], image: Image) -> Leaves:
    leaves: Leaves = answer(image, beside=on)
    return leaves


def _weight_of(node: onnx.NodeProto, reads: Sequence[Read]) -> str:
    return next((node.input[r.place] for r in reads if r.numbers is not None), "")


def _with_switches(
    model: onnx.ModelProto, reads: Mapping[str, Sequence[Read]]
) -> tuple[onnx.ModelProto, dict[str, dict[str, Any]]]:
    """The float model with inputs that have a default, and for each layer those that round it.

    A weight is such an input itself; what rounds a value to its grid is switched on by one.
    """
    twin = with_free_sizes(model)
    twin.ir_version = max(twin.ir_version, 4)  # of the first in which a default is replaceable
    stored = {t.name: t for t in twin.graph.initializer}
    switches: dict[str, dict[str, Any]] = {}
    nodes, kept = [], [*twin.graph.node]
    taken = {name for node in kept for name in (*node.input, *node.output)}
    mark = next(f"8_{n}" for n in range(len(taken) + 1) if not _begins(taken, f"8_{n}"))
    for number, node in enumerate(kept):
        own = onnx.NodeProto.FromString(node.SerializeToString())
        for read in reads.get(node.name, ()):
            name, on = f"{mark}_{number}_{read.place}", switches.setdefault(node.name, {})
            value = own.input[read.place]
            if read.numbers is not None:
                tensor = onnx.TensorProto.FromString(stored[value].SerializeToString())
                on[name] = read.numbers
                own.input[read.place] = _default(twin, name, tensor)
            elif read.grid is not None:
                on[name] = np.array(True)
                switch = _default(twin, name, numpy_helper.from_array(np.array(False)))
                nodes.append(_rounded(switch, value, read.grid))
                own.input[read.place] = nodes[-1].output[0]
        nodes.append(own)
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


def _rounded(switch: str, value: str, grid: Grid) -> onnx.NodeProto:
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
    return helper.make_node("If", [switch], [f"{switch}_x"], then_branch=then, else_branch=same)
