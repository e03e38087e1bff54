"""Channels of even range, by scales that are powers of two: the float model keeps every bit.

A product by a power of two is exact, and so is everything that is homogeneous, as long as nothing
leaves the range of normal numbers. That is checked for each weight by its exponent; for what is
computed, by running both models and comparing with ==.

Scales are those of cross-layer equalization (Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction, ICCV 2019): s = sqrt(r1 / r2) makes the range r1 of a channel's
row as large as the range r2 of the columns that read it. Here it is rounded to a power of two.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from acfuse.errors import InputError
from acfuse.int8.channels import Channels, Follower, Layer, Shapes, channels_of
from acfuse.int8.ranges import ranges_of_array

SWEEPS = 64  # at most: each evens what is left by about half
LEVELS = 127  # of 8 bits on either side of zero
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Scales:
    """By which power of two each class of channels is scaled."""

    channels: Channels = field(repr=False)
    exponents: NDArray[np.int64] = field(repr=False)

    def rows(self, layer: Layer) -> NDArray[np.int64]:
        """The exponent of each channel that a layer gives, [out]."""
        return self.exponents[self.channels.roots(layer.rows)]

    def columns(self, layer: Layer) -> NDArray[np.int64]:
        """Those of the channels that each of its rows reads, [out, in of a group]."""
        return self.exponents[self.channels.roots(layer.columns)]

    def following(self, follower: Follower) -> NDArray[np.int64]:
        """Those of a constant that is added, in its own shape."""
        return self.exponents[self.channels.roots(follower.classes)]

    def turned(self) -> "Scales":
        """The way back."""
        return Scales(self.channels, -self.exponents)


@dataclass(frozen=True)
class Equalized:
    """A model with other scales, and what stayed."""

    model: onnx.ModelProto = field(repr=False)
    scales: Scales = field(repr=False)
    changed: tuple[str, ...] = ()  # tensors
    reasons: Mapping[str, str] = field(default_factory=dict)  # by layer: why its outputs stay
    lost_before: tuple[tuple[Layer, float], ...] = ()  # bits, per tensor
    lost_after: tuple[tuple[Layer, float], ...] = ()


Fixed = Callable[[Channels], Set[str]]  # of what may be scaled, the tensors that must not be


def none_fixed(_: Channels) -> Set[str]:
    """All that may be scaled."""
    return frozenset()


def equalized(
    model: onnx.ModelProto,
    shapes: Shapes,
    *,
    only_gains: bool = True,
    fixed: Fixed = none_fixed,
) -> Equalized:
    """A copy of a model whose channels have ranges as even as powers of two make them.

    `shapes` are those of its values. Channels between which nothing is gained stay as they are,
    unless it is asked for all, and so do those of which a weight would be no normal number, or is
    among those that `fixed` names.
    """
    channels = channels_of(model, shapes)
    layers = channels.layers
    kept = fixed(channels)
    for held in _tensors_of(Scales(channels, np.zeros(channels.count, np.int64))):
        for classes in held.classes if held.name in kept else ():
            channels.pin(classes, f"{held.name} is no tensor of its own")
    arrays = arrays_of(model, [layer.weight for layer in layers])
    parts = [_Part.of(channels, layer, arrays[layer.weight]) for layer in layers]
    exponents = _chosen(channels, parts)
    if only_gains:
        exponents = _where_it_gains(channels, parts, exponents)
    exponents = _where_it_is_exact(model, channels, exponents)
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    scales = Scales(channels, exponents)
    changed = scale(twin, scales)
    pinned = {root: why for root, why in channels.pinned.items() if channels.find(root) == root}
    rows = {layer.name: channels.roots(layer.rows) for layer in layers}
    reasons = {
        name: pinned[int(ids[0])]
        for name, ids in rows.items()
        if all(int(i) in pinned for i in ids)
    }
    lost = [
        tuple((layer, bits_lost(layer, numpy_helper.to_array(tensor_named(m, layer.weight))))
              for layer in layers)
        for m in (model, twin)
    ]  # fmt: skip
    return Equalized(twin, scales, tuple(changed), reasons, *lost)


def bits_lost(layer: Layer, weight: Array) -> float:
    """How many of 8 bits per tensor the median channel of a layer loses."""
    return ranges_of_array(layer.matrix(weight)).per_tensor


@dataclass(frozen=True)
class _Part:
    """A layer as its scales see it: classes, and the largest weight and the energy of each pair."""

    rows: NDArray[np.int64]  # [out]
    columns: NDArray[np.int64]  # [out, in of a group]
    largest: Array  # binary logarithms, [out, in of a group]
    energy: float
    taps: int

    @classmethod
    def of(cls, channels: Channels, layer: Layer, weight: Array) -> "_Part":
        """That of a layer with such a weight."""
        matrix = np.abs(layer.matrix(weight).astype(np.float64))
        with np.errstate(divide="ignore"):
            logarithms = np.log2(matrix.max(2))
        rows, columns = channels.roots(layer.rows), channels.roots(layer.columns)
        energy = float(np.square(matrix).sum()) or 1.0
        return cls(rows, columns, logarithms, energy, matrix.shape[2])

    def scaled(self, exponents: NDArray[np.int64]) -> Array:
        """The logarithms of the largest weights under other scales."""
        return self.largest + exponents[self.rows][:, None] - exponents[self.columns]

    def noise(self, exponents: NDArray[np.int64]) -> float:
        """What 8 bits per tensor do to its weights, of their energy, seen without the scales.

        A weight is off by up to half a step, evenly: step^2 / 12 on average. A channel that is
        scaled up is scaled down again behind it, and its noise with it.
        """
        step = 2.0 ** float(self.scaled(exponents).max()) / LEVELS
        back = np.exp2(2.0 * (exponents[self.columns] - exponents[self.rows][:, None]))
        return float(step**2 / 12 * back.sum() * self.taps / self.energy)


def _chosen(channels: Channels, parts: list[_Part]) -> NDArray[np.int64]:
    """The exponent of the scale of each class."""
    free = np.ones(channels.count, bool)
    free[[channels.find(n) for n in channels.pinned]] = False
    exponents = np.zeros(channels.count, np.int64)
    for _ in range(SWEEPS):
        given, read = (np.full(channels.count, -np.inf) for _ in range(2))
        for part in parts:
            now = part.scaled(exponents)
            np.maximum.at(given, part.rows, now.max(1))
            np.maximum.at(read, part.columns, now)
        known = free & np.isfinite(given) & np.isfinite(read)
        step = np.zeros(channels.count, np.int64)
        step[known] = np.rint((read[known] - given[known]) / 2).astype(np.int64)
        if not step.any():
            break
        exponents += step
    return exponents


def _where_it_gains(
    channels: Channels, parts: list[_Part], exponents: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The same without the scales of those layers whose neighbours lose more than they gain."""
    exponents = exponents.copy()
    together = Channels()
    groups = together.new(channels.count)
    for part in parts:  # the outputs of one layer are scaled together, or not at all
        together.tie(groups[part.rows[:1]], groups[part.rows])
    group_of = together.roots(groups)
    for group in np.unique(group_of[exponents != 0]):
        members = group_of == group
        near = [p for p in parts if members[p.rows].any() or members[p.columns].any()]
        without = np.where(members, 0, exponents)
        if sum(p.noise(without) for p in near) <= sum(p.noise(exponents) for p in near):
            exponents = without
    return exponents


def _where_it_is_exact(
    model: onnx.ModelProto, channels: Channels, exponents: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The same without the scales of channels that would take a number out of its range.

    These are pinned. Mostly they are channels whose weights are as good as zero.
    """
    exponents, constants = exponents.copy(), constants_named(model)
    while True:
        inexact = [np.empty(0, np.int64)]
        for held in _tensors_of(Scales(channels, exponents)):
            array = held.seen(numpy_helper.to_array(constants[held.name]))
            broken = ~_powered(array, held.steps)[1]
            inexact += [np.broadcast_to(ids, broken.shape)[broken] for ids in held.classes]
        roots = channels.roots(np.unique(np.concatenate(inexact)))
        scaled = roots[exponents[roots] != 0]
        if not len(scaled):
            return exponents
        channels.pin(scaled, "a weight would leave its range")
        exponents[scaled] = 0


def scale(model: onnx.ModelProto, scales: Scales) -> list[str]:
    """Scales every weight, bias and constant of a model; the names of those that changed."""
    changed, constants = [], constants_named(model)
    for held in _tensors_of(scales):
        if held.steps.any():
            tensor = constants[held.name]
            array = numpy_helper.to_array(tensor)
            made = times_power(held.seen(array), held.steps, held.name)
            put(tensor, made if held.layer is None else held.layer.stored(made, array))
            changed.append(held.name)
    return changed


@dataclass(frozen=True)
class _Tensor:
    """A tensor that scales change: by which powers of two, and by those of which classes."""

    name: str
    steps: NDArray[np.int64]
    classes: tuple[NDArray[np.int64], ...]
    layer: Layer | None = None  # whose weight it is

    def seen(self, array: Array) -> Array:
        """Its numbers, as they are scaled."""
        return array if self.layer is None else self.layer.matrix(array)


def _tensors_of(scales: Scales) -> Iterator[_Tensor]:
    for layer in scales.channels.layers:
        rows = scales.rows(layer)
        steps = (rows[:, None] - scales.columns(layer))[:, :, None]
        classes = layer.rows[:, None, None], layer.columns[:, :, None]
        yield _Tensor(layer.weight, steps, classes, layer)
        if layer.bias is not None:
            yield _Tensor(layer.bias, rows, (layer.rows,))
    for follower in scales.channels.followers:
        yield _Tensor(follower.constant, scales.following(follower), (follower.classes,))


def times_power(values: Array, exponents: NDArray[np.int64], name: str) -> Array:
    """Values times powers of two, exactly. Raises InputError where one would lose a digit."""
    made, is_exact = _powered(values, exponents)
    if not is_exact.all():
        raise InputError(
            f"{name}: a weight times a power of two is no normal {values.dtype} any more; the "
            "model is left as it is."
        )
    return made


def _powered(values: Array, exponents: NDArray[np.int64]) -> tuple[Array, NDArray[np.bool_]]:
    """Values times powers of two, and which of them keep all their digits.

    A number does as long as it is normal before and after: its exponent is what changes.
    """
    with np.errstate(over="ignore", under="ignore"):  # that is what is looked for
        made: Array = np.ldexp(values, exponents).astype(values.dtype)
    tiny = np.finfo(values.dtype).tiny
    is_normal = np.isfinite(made) & (np.abs(made) >= tiny) & (np.abs(values) >= tiny)
    return made, is_normal | (values == 0) | (exponents == 0)


def constants_named(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The constants of a model, whether they are stored or a node gives them."""
    nodes = (node for node in model.graph.node if node.op_type == "Constant")
    given = {node.output[0]: a.t for node in nodes for a in node.attribute if a.name == "value"}
    return given | {stored.name: stored for stored in model.graph.initializer}


def tensor_named(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """One of these."""
    return constants_named(model)[name]


def arrays_of(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, Array]:
    """The numbers of those constants that have one of these names."""
    known = constants_named(model)
    return {n: np.array(numpy_helper.to_array(known[n])) for n in names if n in known}


def put(tensor: onnx.TensorProto, array: Array) -> None:
    """Gives a constant other numbers."""
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
