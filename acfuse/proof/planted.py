"""Faults that are planted in a right fused file, to see that each is found: one in each copy.

Of every kind of fault there is one before any kind comes twice, each time at another place.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from acfuse.files.onnx_cost import all_graphs

Tensors = Mapping[str, Tensor]
Change = Callable[[Tensor], Tensor | None]  # None: there, it would change nothing


@dataclass(frozen=True)
class Planted:
    """A file with one fault: what was done, where, and what the file then holds."""

    what: str
    place: str
    held: Tensors | onnx.ModelProto


def planted_in_tensors(original: Tensors, fused: Tensors, most: int) -> list[Planted]:
    """Faults in the tensors of a fused checkpoint."""
    made = {key for key, tensor in fused.items() if not _is_kept(original.get(key), tensor)}
    kinds = [_in_one(what, change, made if fuses else fused.keys() - made, fused)
             for what, (fuses, change) in TENSOR_FAULTS.items()]  # fmt: skip
    return _in_turn([*kinds, *(kind(fused) for kind in LIST_FAULTS)], most)


def planted_in_onnx(original: onnx.ModelProto, fused: onnx.ModelProto, most: int) -> list[Planted]:
    """Faults in the nodes, attributes, tensors, types and metadata of a fused ONNX file."""
    before, after = _stored(original), _stored(fused)
    made = {key for key, tensor in after.items() if not _is_kept(before.get(key), tensor)}
    kinds: list[Iterator[Planted]] = [kind(fused) for kind in NODE_FAULTS]
    for what, (fuses, change) in TENSOR_FAULTS.items():
        places = made if fuses else after.keys() - made
        kinds.append(_with_tensors(_in_one(what, change, places, after), fused))
    halves = len(NODE_FAULTS)
    mixed = [k for pair in zip(kinds, kinds[halves:], strict=False) for k in pair]
    return _in_turn([*mixed, *kinds[2 * halves :]], most)


def _in_turn(kinds: Sequence[Iterator[Planted]], most: int) -> list[Planted]:
    def turns() -> Iterator[Planted]:
        left = list(kinds)
        while left:
            for kind in list(left):
                planted = next(kind, None)
                if planted is None:
                    left.remove(kind)
                else:
                    yield planted

    return list(islice(turns(), most))


def _is_kept(one: Tensor | None, other: Tensor) -> bool:
    same = one is not None and one.shape == other.shape and one.dtype == other.dtype
    return same and torch.equal(one, other)  # type: ignore[arg-type]


def _in_one(
    what: str, change: Change, places: Sequence[str] | set[str], tensors: Tensors
) -> Iterator[Planted]:
    """One kind of fault at each place in turn, the first at another one for each kind."""
    inside = [key for key in tensors if key in places]
    start = sum(map(ord, what)) % len(inside) if inside else 0
    for key in inside[start:] + inside[:start]:
        changed = change(tensors[key].detach().clone()) if tensors[key].numel() else None
        if changed is not None:
            yield Planted(what, key, {**tensors, key: changed})


# Changes of one tensor.


def _is_weight(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2


def _at_largest(change: Callable[[Tensor], Tensor], *, of: Callable[[Tensor], bool]) -> Change:
    """A change of the number that is largest."""

    def made(tensor: Tensor) -> Tensor | None:
        if not of(tensor) or not tensor.is_floating_point():
            return None
        flat = tensor.reshape(-1)
        place = int(flat.abs().nan_to_num(posinf=0.0).argmax())
        before = flat[place].clone()
        flat[place] = change(before)
        return None if bool(flat[place] == before) else flat.reshape(tensor.shape)

    return made


def _units(steps: int) -> Callable[[Tensor], Tensor]:
    def moved(number: Tensor) -> Tensor:
        for _ in range(steps):
            number = torch.nextafter(number, torch.full_like(number, math.inf).copysign(number))
        return number

    return moved


def _other(change: Callable[[Tensor], Tensor], *, of: Callable[[Tensor], bool]) -> Change:
    """A change of a whole tensor, where it makes another one of it."""

    def made(tensor: Tensor) -> Tensor | None:
        if not of(tensor):
            return None
        changed = change(tensor).contiguous()
        return None if _is_kept(tensor, changed) else changed

    return made


def _is_bias(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim == 1


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 0


def _is_count(tensor: Tensor) -> bool:
    return tensor.dtype == torch.int64


def _is_square(tensor: Tensor) -> bool:
    return _is_weight(tensor) and tensor.ndim >= 4 and tensor.shape[-1] == tensor.shape[-2]


# What is done, whether to what fusing made (or to what it left), and how.
TENSOR_FAULTS: Mapping[str, tuple[bool, Change]] = {
    "a weight times 1 + 1e-5": (True, _at_largest(lambda n: n * (1 + 1e-5), of=_is_weight)),
    "two units in the last place of a bias": (True, _at_largest(_units(2), of=_is_bias)),
    "a number two units in the last place off": (False, _at_largest(_units(2), of=_is_real)),
    "a kernel turned": (True, _other(lambda t: t.transpose(-1, -2), of=_is_square)),
    "two units in the last place of a weight": (True, _at_largest(_units(2), of=_is_weight)),
    "a whole tensor times 1 + 4e-5": (False, _other(lambda t: t * (1 + 4e-5), of=_is_real)),
    "output channels in another order": (True, _other(lambda t: t.roll(1, 0), of=_is_weight)),
    "a bias that is dropped": (True, _other(torch.zeros_like, of=_is_bias)),
    "a kernel mirrored": (True, _other(lambda t: t.flip(-1), of=_is_weight)),
    "a count that is one more": (False, _other(lambda t: t + 1, of=_is_count)),
    "input channels in another order": (True, _other(lambda t: t.roll(1, 1), of=_is_weight)),
    "a weight that is zero": (True, _at_largest(torch.zeros_like, of=_is_weight)),
    "NaN": (False, _at_largest(lambda n: n * math.nan, of=_is_real)),
    "a weight of the other sign": (True, _at_largest(torch.neg, of=_is_weight)),
    "a round trip through float16": (True, _other(lambda t: t.half().to(t.dtype), of=_is_weight)),
    "another order": (False, _other(lambda t: t.roll(1, 0), of=_is_real)),
}  # fmt: skip


# Changes of what a checkpoint holds.


def _missing(tensors: Tensors) -> Iterator[Planted]:
    for key in reversed(list(tensors)):
        yield Planted(
            "a tensor that is missing", key, {k: t for k, t in tensors.items() if k != key}
        )


def _more(tensors: Tensors) -> Iterator[Planted]:
    for key in list(tensors):
        name = f"{key}_more"
        if name not in tensors:
            yield Planted("a tensor too many", name, {**tensors, name: tensors[key].clone()})


def _of_another_shape(tensors: Tensors) -> Iterator[Planted]:
    for key, tensor in tensors.items():
        if tensor.ndim > 1:
            yield Planted("a tensor of another shape", key, {**tensors, key: tensor.flatten()})


def _of_another_dtype(tensors: Tensors) -> Iterator[Planted]:
    for key, tensor in tensors.items():
        if tensor.dtype == torch.float32 and tensor.ndim:
            other = {**tensors, key: tensor.half()}
            yield Planted("a tensor of another dtype", key, other)


def _exchanged(tensors: Tensors) -> Iterator[Planted]:
    shapes: dict[tuple[object, ...], str] = {}
    for key, tensor in tensors.items():
        kind = (tensor.dtype, tuple(tensor.shape))
        first = shapes.setdefault(kind, key)
        if tensor.ndim > 1 and not torch.equal(tensors[first], tensor):
            both = {first: tensors[key], key: tensors[first]}
            yield Planted("two tensors exchanged", first, {**tensors, **both})


LIST_FAULTS = (_missing, _of_another_shape, _exchanged, _more, _of_another_dtype)


# Changes of a program.


def _stored(model: onnx.ModelProto) -> dict[str, Tensor]:
    """The tensors that a model's graphs hold by name, those alone that torch knows the dtype of."""
    known = {}
    for graph in all_graphs(model.graph):
        for tensor in graph.initializer:
            array = np.array(numpy_helper.to_array(tensor))
            if array.dtype.kind in "fib":
                known[tensor.name] = torch.from_numpy(array)
    return known


def _with_tensors(faults: Iterator[Planted], fused: onnx.ModelProto) -> Iterator[Planted]:
    """The same faults of tensors in an ONNX file."""
    for planted in faults:
        assert isinstance(planted.held, Mapping)
        model = _copy(fused)
        for graph in all_graphs(model.graph):
            for tensor in graph.initializer:
                if tensor.name == planted.place:
                    array = planted.held[planted.place].numpy()
                    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        yield Planted(planted.what, planted.place, model)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def _at_nodes(
    what: str, change: Callable[[onnx.NodeProto], bool]
) -> Callable[[onnx.ModelProto], Iterator[Planted]]:
    """A fault in one node, at one of each operator first."""

    def kind(model: onnx.ModelProto) -> Iterator[Planted]:
        seen: dict[str, int] = {}
        order = []
        for index, node in enumerate(model.graph.node):
            seen[node.op_type] = seen.get(node.op_type, 0) + 1
            order.append((seen[node.op_type], index))
        for _, index in sorted(order):
            twin = _copy(model)
            node = twin.graph.node[index]
            name = node.output[0]
            if change(node):
                yield Planted(what, name, twin)

    return kind


def _number(node: onnx.NodeProto) -> bool:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.FLOAT:
            attribute.f = attribute.f * 1.01 + 0.001
            return True
        if attribute.type == onnx.AttributeProto.INT:
            attribute.i = attribute.i + 1
            return True
    return False


def _numbers(node: onnx.NodeProto) -> bool:
    for attribute in reversed(node.attribute):
        if attribute.type == onnx.AttributeProto.INTS and attribute.ints:
            attribute.ints[-1] += 1
            return True
    return False


def _operator(node: onnx.NodeProto) -> bool:
    if len(node.input) != 1 or node.op_type in ("Identity", "Constant"):
        return False
    node.op_type = "Identity"
    del node.attribute[:]
    return True


def _operands(node: onnx.NodeProto) -> bool:
    """The operands of what they cannot be exchanged for."""
    if node.op_type not in ("Concat", "Sub", "Div", "Pow", "MatMul") or len(node.input) < 2:
        return False
    if node.input[0] == node.input[1]:
        return False
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return True


def _axis(field: str, axis: int) -> Callable[[onnx.ModelProto], Iterator[Planted]]:
    """A false size of an input or output."""

    def kind(model: onnx.ModelProto) -> Iterator[Planted]:
        for index, value in enumerate(getattr(model.graph, field)):
            if len(value.type.tensor_type.shape.dim) > abs(axis):
                twin = _copy(model)
                shape = getattr(twin.graph, field)[index].type.tensor_type.shape
                shape.dim[axis].dim_value += 3
                yield Planted(f"a false size of an {field}", value.name, twin)

    return kind


def _metadata(model: onnx.ModelProto) -> Iterator[Planted]:
    for number in count():
        twin, key = _copy(model), f"note{number}"
        twin.metadata_props.add(key=key, value="1")
        yield Planted("metadata that nobody wrote", key, twin)


def _version(model: onnx.ModelProto) -> Iterator[Planted]:
    for index, opset in enumerate(model.opset_import):
        twin = _copy(model)
        twin.opset_import[index].version = opset.version - 1
        yield Planted("another opset", "opset_import", twin)


NODE_FAULTS = (
    _at_nodes("a number of an attribute", _number),
    _at_nodes("an entry of an attribute", _numbers),
    _axis("input", 0),
    _at_nodes("an operator that is left out", _operator),
    _axis("output", -1),
    _at_nodes("operands exchanged", _operands),
    _metadata,
    _version,
)
