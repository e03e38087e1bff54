"""Which channels of an ONNX model may be scaled, and which of them only together.

If channel c of a value is times s, the rows of the convolution that gives it are times s, and the
columns of those that read it are divided by s: nothing else changes, as long as all between them is
homogeneous, f(s x) = s f(x) for s > 0. So each channel of each value has a class; channels that are
added, or go through such an operator, have the same one. A class that something else reads, or that
an input or output of the model belongs to, is pinned: its scale is 1, and there is a reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from acfuse.graph.onnx_values import constants_of, opset_of, reads_within, replaceable

Ids = NDArray[np.int64]
Shapes = Mapping[str, tuple[int, ...]]
# f(s x) = s f(x) for s > 0: of each number alone, or of the pixels of one channel.
HOMOGENEOUS = frozenset({"Abs", "Dropout", "Identity", "LeakyRelu", "Neg", "Relu"})
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
SIZES = frozenset({"Shape", "Size"})  # they ask for no number of what they read
REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})


@dataclass(frozen=True)
class Layer:
    """A layer with a matrix or kernel, seen as [out, in of a group, taps].

    `rows` are the classes of its outputs, [out]; `columns` those of what each row reads, [out, in].
    """

    name: str
    operator: str
    weight: str
    bias: str | None
    rows: Ids
    columns: Ids
    groups: int = 1
    is_turned: bool = False  # its first two axes are [in, out]: ConvTranspose, Gemm, MatMul

    @property
    def label(self) -> str:
        """What a reader calls it: by its weight, if that has a name of its author's."""
        name = self.weight.removesuffix(".weight")
        return name if name != self.weight else self.name

    def matrix(self, stored: NDArray[np.floating]) -> NDArray[np.floating]:
        """Its weight as [out, in of a group, taps]."""
        if not self.is_turned:
            return stored.reshape(*stored.shape[:2], -1)
        inside, out = stored.shape[0] // self.groups, stored.shape[1]
        parts = stored.reshape(self.groups, inside, out, -1)
        return parts.swapaxes(1, 2).reshape(self.groups * out, inside, -1)

    def stored(
        self, matrix: NDArray[np.floating], like: NDArray[np.floating]
    ) -> NDArray[np.floating]:
        """The way back to how the weight is stored."""
        if not self.is_turned:
            return matrix.reshape(like.shape)
        inside, out = like.shape[0] // self.groups, like.shape[1]
        parts = matrix.reshape(self.groups, out, inside, -1).swapaxes(1, 2)
        return np.ascontiguousarray(parts).reshape(like.shape)


@dataclass(frozen=True)
class Follower:
    """A constant that is added to channels, and has to be scaled as they are."""

    constant: str
    classes: Ids  # in the constant's own shape


@dataclass
class Channels:
    """What may be scaled in a model: layers, constants that follow, and pinned classes with why."""

    layers: list[Layer] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)
    pinned: dict[int, str] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many classes there are, those that were tied counted each."""
        return len(self._parents)

    def new(self, count: int) -> Ids:
        """So many classes of their own."""
        start = len(self._parents)
        self._parents += range(start, start + count)
        return np.arange(start, start + count)

    def find(self, number: int) -> int:
        """The one that stands for all with which a class was tied."""
        root = number
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[number] != root:
            self._parents[number], number = root, self._parents[number]
        return root

    def tie(self, one: Ids, other: Ids) -> None:
        """Channels that must have the same scale."""
        for a, b in zip(*(map(int, x.reshape(-1)) for x in np.broadcast_arrays(one, other)),
                        strict=True):  # fmt: skip
            left, right = self.find(a), self.find(b)
            if left != right:
                self._parents[right] = left
                if right in self.pinned:
                    self.pinned.setdefault(left, self.pinned.pop(right))

    def pin(self, ids: Ids, why: str) -> None:
        """Channels whose scale must stay 1."""
        for number in map(int, ids.reshape(-1)):
            self.pinned.setdefault(self.find(number), why)

    def roots(self, ids: Ids) -> Ids:
        """The class of each channel."""
        unique, back = np.unique(ids, return_inverse=True)
        return np.array([self.find(int(n)) for n in unique], np.int64)[back].reshape(ids.shape)


def channels_of(model: onnx.ModelProto, shapes: Shapes) -> Channels:
    """What may be scaled in a model whose values have these shapes, for one input at least.

    A value's channels are on axis 1. What is not known to be homogeneous pins what it reads.
    """
    return _Reader(model, shapes).read()


class _Reader:
    def __init__(self, model: onnx.ModelProto, shapes: Shapes) -> None:
        self.graph, self.shapes, self.channels = model.graph, shapes, Channels()
        given = replaceable(model.graph, model.ir_version)
        self.constants = {t.name: t for t in model.graph.initializer if t.name not in given}
        # With what follows from them, which is read and never scaled.
        self.known = constants_of(model.graph, {}, opset_of(model), frozenset(given))
        self.ids: dict[str, Ids] = {}  # [channels], or [groups, channels of one] while shuffled
        self.readers: dict[str, int] = {}
        reads = [{*node.input, *reads_within(node)} for node in model.graph.node]
        for name in chain(*reads, (value.name for value in model.graph.output)):
            self.readers[name] = self.readers.get(name, 0) + 1

    def read(self) -> Channels:
        for value in self.graph.input:
            if value.name not in self.constants:
                self._fresh(value.name, "it is an input of the model")
        for node in self.graph.node:
            if node.op_type == "Constant":
                self._constant(node)
            if node.output[0] not in self.known and node.op_type not in SIZES:
                self._node(node)
        for value in self.graph.output:
            self._pin(value.name, "it is an output of the model")
        return self.channels

    def _constant(self, node: onnx.NodeProto) -> None:
        for attribute in node.attribute:
            if attribute.name == "value":
                self.constants[node.output[0]] = attribute.t

    def _array(self, name: str) -> NDArray | None:  # type: ignore[type-arg]
        tensor = self.known.get(name)
        return None if tensor is None else np.array(numpy_helper.to_array(tensor))

    def _fresh(self, name: str, why: str = "") -> None:
        """A value whose channels have nothing to do with any other's."""
        shape = self.shapes.get(name, ())
        if len(shape) < 2:  # sizes and the like: they have no channels
            return
        self.ids[name] = self.channels.new(shape[1])
        if why:
            self.channels.pin(self.ids[name], why)

    def _pin(self, name: str, why: str) -> None:
        if name in self.ids:
            self.channels.pin(self.ids[name], why)

    def _node(self, node: onnx.NodeProto) -> None:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        made = None if rule is None else rule(self, node)
        if made is None:
            why = f"{node.op_type} reads it"
            for name in (*node.input, *reads_within(node)):
                self._pin(name, why)
            for name in filter(None, node.output):
                self._fresh(name, f"{node.op_type} gives it")
            return
        self.ids[node.output[0]] = made
        for name in filter(None, node.output[1:]):
            if name not in self.ids:  # places of a maximum, a mask; not the parts of a Split
                self._fresh(name, f"{node.op_type} gives it")

    # What each operator does to the classes of what it reads; None where it is not known.

    def homogeneous(self, node: onnx.NodeProto) -> Ids | None:
        return self.ids.get(node.input[0])

    def pool(self, node: onnx.NodeProto) -> Ids | None:
        """Of pixels: behind two axes of channels, the second one would be an axis of them."""
        ids = self.ids.get(node.input[0])
        return None if ids is None or ids.ndim > 1 else ids

    def prelu(self, node: onnx.NodeProto) -> Ids | None:
        return self.ids.get(node.input[0]) if node.input[1] in self.known else None

    def pad(self, node: onnx.NodeProto) -> Ids | None:
        """With zeros, or with what is there; never of channels."""
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        value = self._array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        filled = next((a.f for a in node.attribute if a.name == "value"), 0.0)
        has_zeros = filled == 0 and (value is None or not value.any())
        made = self._of_same_channels(node) if mode != b"constant" or has_zeros else None
        return made if made is not None and self._pads_pixels(node) else None

    def _pads_pixels(self, node: onnx.NodeProto) -> bool:
        """Whether nothing is put before or behind images and channels, nor taken from them."""
        pads = helper_ints(node, "pads")
        if pads is None and len(node.input) > 1:
            array = self._array(node.input[1])
            pads = None if array is None else [int(n) for n in array.reshape(-1)]
        if pads is None:
            return False
        named = np.arange(len(pads) // 2)
        if len(node.input) > 3 and node.input[3]:
            axes = self._array(node.input[3])
            if axes is None:
                return False
            named = axes.reshape(-1) % len(self.shapes[node.input[0]])
        return not np.array(pads).reshape(2, -1)[:, named < 2].any()

    def resize(self, node: onnx.NodeProto) -> Ids | None:
        given = {a.name: a.s for a in node.attribute}
        is_linear = given.get("mode", b"nearest") in (b"nearest", b"linear", b"cubic")
        # That alone fills what is outside of the image with a constant.
        crops = given.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
        return self._of_same_channels(node) if is_linear and not crops else None

    def reduction(self, node: onnx.NodeProto) -> Ids | None:
        """Over pixels, never over channels or images."""
        rank = len(self.shapes.get(node.input[0], ()))
        axes = helper_ints(node, "axes")
        if axes is None and len(node.input) > 1:
            array = self._array(node.input[1])
            axes = None if array is None else [int(n) for n in array.reshape(-1)]
        if not axes or not rank or {n % rank for n in axes} & {0, 1}:  # no axes mean all of them
            return None
        return self.pool(node)

    def _of_same_channels(self, node: onnx.NodeProto) -> Ids | None:
        before, after = (self.shapes.get(n, ()) for n in (node.input[0], node.output[0]))
        is_kept = before[:2] == after[:2] and len(before) == len(after) > 1
        return self.pool(node) if is_kept else None

    def sum(self, node: onnx.NodeProto) -> Ids | None:
        """A sum of values ties their channels; a constant follows the channels to which it goes."""
        read = [name for name in node.input if name in self.ids]
        if not read or (node.op_type == "Sub" and node.input[0] not in self.ids):
            return None
        shape = self.shapes[node.output[0]]
        shapes = [self.shapes[name] for name in read]
        if any(len(s) != len(shape) or s[:2] != shape[:2] for s in shapes):
            return None  # axes are told from behind: channels of one are pixels of another
        if any(self.ids[name].ndim > 1 for name in read):
            return None
        first = self.ids[read[0]]
        for name in read[1:]:
            self.channels.tie(first, self.ids[name])
        for name in node.input:
            if name not in self.ids and not self._follows(name, first, len(shape)):
                self.channels.pin(first, f"{node.op_type} adds a constant of all channels")
        return first

    def _follows(self, name: str, ids: Ids, rank: int) -> bool:
        """Whether a constant has its own number for each channel, and nobody else reads it."""
        array = self._array(name)
        if array is None or self.readers.get(name, 0) != 1 or name not in self.constants:
            return False
        shape = (1,) * (rank - array.ndim) + array.shape
        if len(shape) != rank or shape[1] != len(ids) or array.dtype.kind != "f":
            return not bool(array.any())
        classes = np.broadcast_to(ids.reshape(1, -1, *(1,) * (rank - 2)), shape)
        self.channels.followers.append(Follower(name, classes.reshape(array.shape)))
        return True

    def product(self, node: onnx.NodeProto) -> Ids | None:
        """Times a constant, or times what has the scale 1 itself, as a gate has."""
        read = [name for name in node.input if name in self.ids]
        if len(read) == 1 and node.input[0] == read[0]:
            return self._times_constant(node, read[0], node.input[1])
        if len(read) == 1 and node.op_type == "Mul":
            return self._times_constant(node, read[0], node.input[0])
        if len(read) != 2 or node.op_type != "Mul" or read[0] == read[1]:
            return None
        shapes = [self.shapes[name] for name in read]
        whole, gate = read if prod(shapes[0]) >= prod(shapes[1]) else reversed(read)
        if self.ids[whole].ndim > 1 or self.shapes[whole] != self.shapes[node.output[0]]:
            return None
        self._pin(gate, "it is a factor of another value")
        return self.ids[whole]

    def _times_constant(self, node: onnx.NodeProto, name: str, constant: str) -> Ids | None:
        before, after = (self.shapes.get(n, ()) for n in (name, node.output[0]))
        is_kept = len(before) == len(after) and before[:2] == after[:2] and self.ids[name].ndim == 1
        return self.ids[name] if constant in self.known and is_kept else None

    def concat(self, node: onnx.NodeProto) -> Ids | None:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        parts = [self.ids.get(name) for name in node.input]
        known = [part for part in parts if part is not None and part.ndim == 1]
        if len(known) != len(parts):
            return None
        rank = len(self.shapes[node.output[0]])
        if axis % rank == 1:
            return np.concatenate(known)
        if axis % rank == 0:
            return None
        for other in known[1:]:
            self.channels.tie(known[0], other)
        return known[0]

    def split(self, node: onnx.NodeProto) -> Ids | None:
        """By channels. All outputs but the first are taken down here."""
        ids, axis = self.ids.get(node.input[0]), helper_int(node, "axis", 0)
        if ids is None or ids.ndim > 1 or axis % len(self.shapes[node.input[0]]) != 1:
            return None
        if not all(node.output):  # one that nobody reads has no name, and so no size
            return None
        sizes = [self.shapes[name][1] for name in node.output]
        parts = np.split(ids, np.cumsum(sizes)[:-1])
        for name, part in zip(node.output[1:], parts[1:], strict=True):
            self.ids[name] = part
        return parts[0]

    def slice(self, node: onnx.NodeProto) -> Ids | None:
        arrays = [self._array(name) if name else None for name in node.input[1:]]
        ids, shape = self.ids.get(node.input[0]), self.shapes.get(node.input[0], ())
        if ids is None or ids.ndim > 1 or len(arrays) < 2 or any(a is None for a in arrays[:2]):
            return None
        starts, ends = (a.reshape(-1) for a in arrays[:2] if a is not None)
        axes = arrays[2] if len(arrays) > 2 and arrays[2] is not None else np.arange(len(starts))
        steps = arrays[3] if len(arrays) > 3 and arrays[3] is not None else np.ones_like(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if int(axis) % len(shape) == 1:
                ids = ids[slice(int(start), None if abs(int(end)) > 2**31 else int(end), int(step))]
            elif int(axis) % len(shape) == 0:
                return None
        return ids if len(ids) == self.shapes[node.output[0]][1] else None

    def gather(self, node: onnx.NodeProto) -> Ids | None:
        ids, axis = self.ids.get(node.input[0]), helper_int(node, "axis", 0)
        wanted = self._array(node.input[1])
        if ids is None or wanted is None or wanted.ndim != 1 or ids.ndim > 1:
            return None
        if axis % len(self.shapes[node.input[0]]) != 1:
            return None
        chosen: Ids = ids[wanted]
        return chosen

    def reshape(self, node: onnx.NodeProto) -> Ids | None:
        """To groups of channels and back, or to rows: each channel then gives as many as pixels."""
        ids = self.ids.get(node.input[0])
        before, after = (self.shapes.get(n, ()) for n in (node.input[0], node.output[0]))
        if ids is None or not before or not after or before[0] != after[0]:
            return None
        inner, outer = before[1 + ids.ndim :], after[2:]
        if before[1 : 1 + ids.ndim] != ids.shape:
            return None
        if inner == outer and after[1] == ids.size:  # back to one axis of channels
            return ids.reshape(-1)
        if len(after) == len(before) + 1 and inner == after[3:] and ids.ndim == 1:
            return ids.reshape(after[1:3]) if after[1] * after[2] == ids.size else None
        if ids.ndim == 1 and len(after) == 2 and after[1] == ids.size * prod(inner):
            return np.repeat(ids, prod(inner))
        if ids.ndim == 1 and after[1] == ids.size:  # of pixels alone
            return ids
        return None

    def transpose(self, node: onnx.NodeProto) -> Ids | None:
        """Of the two axes of channels that a reshape made; of pixels alone."""
        ids, order = self.ids.get(node.input[0]), helper_ints(node, "perm")
        if ids is None or order is None or order[0] != 0:
            return None
        axes = list(range(1, 1 + ids.ndim))
        if sorted(order[1 : 1 + ids.ndim]) != axes:
            return None
        return ids.transpose([n - 1 for n in order[1 : 1 + ids.ndim]])

    def layer(self, node: onnx.NodeProto) -> Ids | None:
        """A convolution or matrix: its outputs have classes of their own."""
        given, weight = self.ids.get(node.input[0]), self._array(node.input[1])
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if given is None or weight is None or given.ndim > 1 or weight.dtype.kind != "f":
            return None
        named = [n for n in (node.input[1], bias) if n is not None]
        if any(self.readers[n] != 1 or n not in self.constants for n in named):
            return None
        is_matrix = node.op_type in ("Gemm", "MatMul")
        if is_matrix and (weight.ndim != 2 or len(self.shapes[node.input[0]]) != 2):
            return None
        if node.op_type == "Gemm" and not _is_plain(node):
            return None
        groups = helper_int(node, "group", 1)
        is_turned = node.op_type in ("ConvTranspose", "MatMul") or (
            node.op_type == "Gemm" and not helper_int(node, "transB", 0)
        )
        shape = weight.shape[1::-1] if is_turned else weight.shape[:2]
        out, inside = (shape[0] * groups, shape[1] // groups) if is_turned else shape
        if bias is not None and self._array(bias).shape != (out,):  # type: ignore[union-attr]
            return None
        rows = self.channels.new(out)
        columns = np.repeat(given.reshape(groups, inside), out // groups, 0)
        name = node.name or node.output[0]
        self.channels.layers.append(
            Layer(name, node.op_type, node.input[1], bias, rows, columns, groups, is_turned)
        )
        return rows


def _is_plain(node: onnx.NodeProto) -> bool:
    factors = [a.f for a in node.attribute if a.name in ("alpha", "beta")]
    return all(f == 1 for f in factors) and not helper_int(node, "transA", 0)


def helper_int(node: onnx.NodeProto, name: str, default: int) -> int:
    """An attribute that is one integer."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def helper_ints(node: onnx.NodeProto, name: str) -> list[int] | None:
    """An attribute that is a list of integers; None where it is not there."""
    return next((list(helper.get_attribute_value(a)) for a in node.attribute if a.name == name),
                None)  # fmt: skip


Rule = Callable[[_Reader, onnx.NodeProto], Ids | None]
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(HOMOGENEOUS, _Reader.homogeneous),
    **dict.fromkeys(POOLS, _Reader.pool),
    **dict.fromkeys(REDUCTIONS, _Reader.reduction),
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _Reader.layer),
    **dict.fromkeys(("Add", "Sub", "Sum"), _Reader.sum),
    **dict.fromkeys(("Mul", "Div"), _Reader.product),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _Reader.reshape),
    "Concat": _Reader.concat,
    "Gather": _Reader.gather,
    "PRelu": _Reader.prelu,
    "Pad": _Reader.pad,
    "Resize": _Reader.resize,
    "Slice": _Reader.slice,
    "Split": _Reader.split,
    "Transpose": _Reader.transpose,
}
