"""Convolutions that a file writes with an axis more than their images have.

Some exporters know no Conv of one axis: Unsqueeze, Conv and Squeeze stand for it. Along an axis of
one place, a kernel of one tap without padding is a factor, whatever its stride and dilation.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import onnx
from onnx import numpy_helper

from acfuse.files.onnx_cost import all_graphs
from acfuse.graph.onnx_values import reads_within, replaceable, stored_tensors

SETTINGS = ("kernel_shape", "strides", "dilations")  # with a number for each spatial axis
Tensors = Mapping[str, onnx.TensorProto]


@dataclass(frozen=True)
class _Flat:
    """A Conv between an Unsqueeze and the Squeeze that undoes it; `last` makes what that reads."""

    unsqueeze: onnx.NodeProto
    conv: onnx.NodeProto
    last: onnx.NodeProto
    squeeze: onnx.NodeProto
    axis: int
    between: Sequence[str]


def drop_axes(model: onnx.ModelProto) -> bool:
    """Writes such convolutions in place, as of an axis less, and says whether there were any.

    A Squeeze then makes their weight, which may stand behind them.
    """
    taken = {n for g in all_graphs(model.graph) for node in g.node for n in node.output}
    taken |= {t.name for g in all_graphs(model.graph) for t in (*g.initializer, *g.input)}
    changed = False
    for graph in all_graphs(model.graph):
        for flat in [*_flats(graph, replaceable(graph, model.ir_version))]:
            weight = f"{flat.squeeze.output[0]}_weight"
            while weight in taken:
                weight += "_"
            taken.add(weight)
            _write(flat, weight)
            for value in [v for v in graph.value_info if v.name in flat.between]:
                graph.value_info.remove(value)
            if flat.unsqueeze.output[0] not in _reads(graph):
                graph.node.remove(flat.unsqueeze)
            changed = True
    return changed


def _reads(graph: onnx.GraphProto) -> Counter[str]:
    """How often each name is read."""
    counts: Counter[str] = Counter(o.name for o in graph.output)
    for node in graph.node:
        counts.update(node.input)
        counts.update(reads_within(node))
    return counts


def _flats(graph: onnx.GraphProto, given: frozenset[str]) -> Iterator[_Flat]:
    """The convolutions of a graph that are flat; `given` are no constants."""
    stored = {t.name: t for t in stored_tensors(graph) if t.name not in given}
    makers = {o: node for node in graph.node for o in node.output if o}
    reads = _reads(graph)
    for squeeze in graph.node:
        if not _is(squeeze, "Squeeze"):
            continue
        last = conv = makers.get(squeeze.input[0])
        between: list[str] = []
        while _is(conv, "BatchNormalization", "Conv") and reads[conv.output[0]] == 1:
            between.append(conv.output[0])
            if conv.op_type == "Conv" or any(conv.output[1:]):
                break
            conv = makers.get(conv.input[0])
        if last is None or not _is(conv, "Conv") or between[-1:] != [*conv.output]:
            continue
        unsqueeze = makers.get(conv.input[0])
        weight = stored.get(conv.input[1]) if len(conv.input) > 1 else None
        if not _is(unsqueeze, "Unsqueeze") or unsqueeze.input[0] in stored or weight is None:
            continue
        count = len(weight.dims)
        axes = {_axis(node, stored, count) for node in (squeeze, unsqueeze)}
        axis = axes.pop()
        if axes or axis is None or axis < 2 or count < 4 or weight.dims[axis] != 1:
            continue
        if _is_unpadded(conv, axis - 2, count - 2):
            yield _Flat(unsqueeze, conv, last, squeeze, axis, between)


def _is(node: onnx.NodeProto | None, *kinds: str) -> TypeGuard[onnx.NodeProto]:
    """Whether a node is one of ONNX's own, of some kinds, that reads and makes something."""
    if node is None or node.op_type not in kinds or node.domain not in ("", "ai.onnx"):
        return False
    return bool(node.input) and bool(node.output)


def _axis(node: onnx.NodeProto, stored: Tensors, count: int) -> int | None:
    """The one axis, of so many, that a Squeeze or Unsqueeze is about; None where it is not one."""
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), [])
    if len(node.input) > 1:
        try:
            axes = numpy_helper.to_array(stored[node.input[1]]).reshape(-1).tolist()
        except Exception:  # no constant, or one of other sizes: the checker has a word for it
            return None
    fits = len(axes) == 1 and -count <= axes[0] < count
    return int(axes[0]) % count if fits else None


def _is_unpadded(conv: onnx.NodeProto, place: int, count: int) -> bool:
    """Whether nothing is put around one of so many axes, and the settings are of so many."""
    given = {a.name: list(a.ints) for a in conv.attribute}
    pads = given.get("pads", [0] * 2 * count)
    fits = all(len(given.get(key, [1] * count)) == count for key in SETTINGS)
    return fits and len(pads) == 2 * count and pads[place] == pads[count + place] == 0


def _write(flat: _Flat, weight: str) -> None:
    """One convolution as of an axis less, in place."""
    conv, place = flat.conv, flat.axis - 2
    result = flat.squeeze.output[0]
    flat.squeeze.input[0], flat.squeeze.output[0] = conv.input[1], weight
    conv.input[0], conv.input[1] = flat.unsqueeze.input[0], weight
    flat.last.output[0] = result
    for attribute in conv.attribute:
        if attribute.name in (*SETTINGS, "pads"):
            numbers = list(attribute.ints)
            kept = len(numbers) // 2 if attribute.name == "pads" else len(numbers)
            attribute.ints[:] = [n for i, n in enumerate(numbers) if i % kept != place]
