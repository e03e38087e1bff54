"""A fused ONNX file beside the one that acfuse makes itself: the whole program, field by field.

Every field of every message is compared, those that acfuse knows nothing of as well. What differs
is a fault unless it is known to change nothing; there is no list of what would be dangerous.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import numpy_helper

from acfuse.proof.outputs import Check

# Fields that no runtime reads: any text may be in them.
HARMLESS = frozenset({"ModelProto.producer_name", "ModelProto.producer_version", "NodeProto.name"})
COMMENT = "doc_string"  # whatever message it is in
# Lists whose order says nothing, with what tells their items apart.
KEYS: Mapping[str, Callable[[Any], Any]] = {
    "AttributeProto": lambda item: item.name,
    "FunctionProto": lambda item: (item.domain, item.name, item.overload),
    "NodeProto": lambda item: tuple(item.output),  # each value is made once
    "OperatorSetIdProto": lambda item: item.domain,
    "SparseTensorProto": lambda item: item.values.name,
    "StringStringEntryProto": lambda item: item.key,
    "TensorAnnotation": lambda item: item.tensor_name,
    "TensorProto": lambda item: item.name,
}
IN_ORDER = frozenset({"AttributeProto.tensors", "AttributeProto.sparse_tensors"})
NAMED = frozenset({"GraphProto.value_info", "FunctionProto.value_info"})  # by name as well
DATA = ("float_data", "int32_data", "string_data", "int64_data", "raw_data", "double_data",
        "uint64_data")  # fmt: skip
Types = Mapping[str, Sequence[onnx.TypeProto]]


def compare_programs(
    expected: onnx.ModelProto, found: onnx.ModelProto, certified: Set[str] = frozenset()
) -> Check:
    """Whether a file is the expected program; the first place where it is not, in words.

    The numbers of the tensors in `certified` are left to the certificates of their blocks.
    """
    faults = [*differences(expected, found, certified)]
    return Check("program", not faults, float(len(faults)), 0.0, detail=found_in_words(faults))


def found_in_words(faults: Sequence[str]) -> str:
    """The first fault and how many more there are, in one line."""
    if not faults:
        return "every node, attribute, tensor and type is the expected one"
    more = f"; {len(faults) - 1} more differ" if len(faults) > 1 else ""
    return f"{_short(faults[0], 400)}{more}"


def differences(
    expected: onnx.ModelProto, found: onnx.ModelProto, certified: Set[str] = frozenset()
) -> Iterator[str]:
    """Every place where a file is not the expected program: where, what is there, what should be.

    Harmless are comments, the names of nodes, the producer, the order of what has a name, how
    numbers are encoded, and types of values that are left out or follow from the others.
    """
    yield from Walk(expected, certified).messages(expected, found, "")


class Walk:
    """Two messages side by side, field by field, at any depth."""

    def __init__(self, whole: onnx.ModelProto, certified: Set[str] = frozenset()) -> None:
        self.whole, self.certified = whole, certified

    def messages(
        self, expected: Any, found: Any, where: str, *, numbers: bool = True
    ) -> Iterator[str]:
        kind = expected.DESCRIPTOR.name
        if kind == "TensorProto":
            yield from _numbers(expected, found, where, compared=numbers)
        if kind == "TypeProto" and type_text(expected) != type_text(found):
            yield fault(where, type_text(found), type_text(expected))
            return
        if _unknown(expected) != _unknown(found):
            yield f"{where or 'the model'} has fields that this version of onnx does not know"
        fields = {f.name: f for m in (expected, found) for f, _ in m.ListFields()}
        for name, field in sorted(fields.items(), key=lambda item: item[1].number):
            full = f"{kind}.{name}"
            if name == COMMENT or full in HARMLESS or (kind == "TensorProto" and name in DATA):
                continue
            values = getattr(expected, name), getattr(found, name)
            if isinstance(values[0], Message):
                yield from self._message(name, expected, found, where)
            elif isinstance(values[0], (str, bytes, int, float)):
                same = _bits(values[0]) == _bits(values[1])
                if field.containing_oneof is not None:  # what is not said is not 0
                    same &= expected.HasField(name) == found.HasField(name)
                if not same:
                    at = _at(where, _plain(kind, name))
                    yield fault(at, *(_scalar(field, value) for value in reversed(values)))
            elif field.message_type is None:
                if [*map(_bits, values[0])] != [*map(_bits, values[1])]:
                    texts = [", ".join(_scalar(field, v) for v in each) for each in values]
                    shown = [_short(f"[{text}]", 80) for text in reversed(texts)]
                    yield fault(_at(where, _plain(kind, name)), *shown)
            else:
                yield from self.items(full, *values, where)

    def _message(self, name: str, expected: Any, found: Any, where: str) -> Iterator[str]:
        at = _at(where, _plain(expected.DESCRIPTOR.name, name))
        there = [message.HasField(name) for message in (expected, found)]
        if there == [True, True]:
            yield from self.messages(getattr(expected, name), getattr(found, name), at)
        else:
            yield f"{at} is {'not there' if there[0] else 'there, and should not be'}"

    def items(self, full: str, expected: Any, found: Any, where: str) -> Iterator[str]:
        """The messages of two lists: by name where they have any, else by their places."""
        if not (expected or found):
            return
        key = self._key(full, next(iter((*expected, *found))))
        keys = [[*map(key, items)] for items in (expected, found)] if key else []
        if key is None or any(len(set(each)) < len(each) for each in keys):
            yield from self._in_order(full, expected, found, where)
            return
        wanted, given = (dict(zip(k, i, strict=True)) for k, i in zip(keys, (expected, found),
                                                                       strict=True))  # fmt: skip
        for item in wanted:
            at = _at(where, _label(full, wanted[item]))
            if item in given:
                yield from self._item(full, wanted[item], given[item], at, where)
            elif full not in NAMED:
                yield f"{at} is missing"
        for item in [key for key in given if key not in wanted]:
            at = _at(where, _label(full, given[item]))
            if full != "GraphProto.value_info":
                yield f"{at} should not be there"
            elif not self._follows(given[item], None, where):
                yield f"{at} is {type_text(given[item].type)}, which does not follow from the rest"

    def _key(self, full: str, item: Any) -> Callable[[Any], Any] | None:
        """What tells the items of a list apart; None where their order counts."""
        if full in NAMED:
            return KEYS["TensorProto"]
        return None if full in IN_ORDER else KEYS.get(item.DESCRIPTOR.name)

    def key_of(self, full: str, item: Any) -> Any:
        """What an item of a list is known by."""
        key = self._key(full, item)
        return key(item) if key is not None else None

    def _in_order(self, full: str, expected: Any, found: Any, where: str) -> Iterator[str]:
        for one, other in zip(expected, found, strict=False):
            yield from self._item(full, one, other, _at(where, _label(full, one)), where)
        if len(expected) != len(found):
            at = _at(where, full.rpartition(".")[2])
            shown = [_shown([_label(full, item) for item in items]) for items in (found, expected)]
            yield fault(at, *shown)

    def _item(self, full: str, one: Any, other: Any, at: str, where: str) -> Iterator[str]:
        certified = full == "GraphProto.initializer" and one.name in self.certified
        faults = [*self.messages(one, other, at, numbers=not certified)]
        if full in ("GraphProto.value_info", "GraphProto.output") and faults:
            bare = onnx.ValueInfoProto()
            bare.CopyFrom(other)
            bare.type.CopyFrom(one.type)
            if self._follows(other, one, where) and not [*self.messages(one, bare, at)]:
                return
        yield from faults

    def _follows(self, found: Any, expected: Any | None, where: str) -> bool:
        """Whether the type of a value says nothing but what ONNX's own inference does."""
        own = expected.type if expected is not None else None
        inferred = [types.get(where, {}) for types in self._inferred]
        known = [types[found.name] for types in inferred if found.name in types]
        return any(_says_no_more(found.type, own, type_, self._symbols) for type_ in known)

    @cached_property
    def _inferred(self) -> list[dict[str, dict[str, onnx.TypeProto]]]:
        """The types of all values, by the graph that they are in, as inference tells them."""
        results = []
        for data_prop in (False, True):
            try:
                model = onnx.shape_inference.infer_shapes(self.whole, data_prop=data_prop)
            except Exception:  # then nothing follows
                continue
            results.append(dict(_types(model.graph, "")))
        return results

    @cached_property
    def _symbols(self) -> frozenset[str]:
        """The names of sizes in the expected model."""
        return frozenset(
            d.dim_param
            for graph in _graphs(self.whole.graph, "")
            for value in (*graph[1].input, *graph[1].output, *graph[1].value_info)
            for d in value.type.tensor_type.shape.dim
        )


def _graphs(graph: onnx.GraphProto, where: str) -> Iterator[tuple[str, onnx.GraphProto]]:
    """A graph and those inside it, by the words that name each."""
    yield where, graph
    for node in graph.node:
        at = _at(where, _label("GraphProto.node", node))
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                inner = _at(at, _label("NodeProto.attribute", attribute))
                yield from _graphs(attribute.g, inner)


def _types(graph: onnx.GraphProto, where: str) -> Iterator[tuple[str, dict[str, onnx.TypeProto]]]:
    for at, each in _graphs(graph, where):
        yield at, {v.name: v.type for v in (*each.value_info, *each.output)}


def _says_no_more(
    found: onnx.TypeProto,
    expected: onnx.TypeProto | None,
    inferred: onnx.TypeProto,
    symbols: Set[str],
) -> bool:
    """Whether a type keeps what was expected of it, and adds only what is inferred.

    A size may have a name of its own where nothing is known of it.
    """
    if not (found.HasField("tensor_type") and inferred.HasField("tensor_type")):
        return found == inferred
    given, known = found.tensor_type, inferred.tensor_type
    stated = expected.tensor_type if expected is not None else onnx.TypeProto.Tensor()
    if given.elem_type != known.elem_type or found.denotation:
        return False
    if not given.HasField("shape") or not known.HasField("shape"):
        return not (given.HasField("shape") or stated.HasField("shape"))
    dims = [*given.shape.dim], [*known.shape.dim]
    if len(dims[0]) != len(dims[1]):
        return False
    own = [*stated.shape.dim] if stated.HasField("shape") else [None] * len(dims[0])
    if len(own) != len(dims[0]):
        return False
    for one, other, said in zip(*dims, own, strict=True):
        if said is not None and said.WhichOneof("value") and one != said:
            return False
        fresh = bool(one.dim_param) and one.dim_param not in symbols
        if one.WhichOneof("value") and one != other and not (fresh and not other.dim_value):
            return False
    return True


def _numbers(expected: Any, found: Any, where: str, *, compared: bool) -> Iterator[str]:
    """The numbers of a tensor, bit by bit, however they are encoded."""
    if (expected.data_type, [*expected.dims]) != (found.data_type, [*found.dims]):
        return  # which is told field by field
    fields = [[n for n in DATA if len(getattr(t, n))] for t in (expected, found)]
    if fields[0] == fields[1] and all(_same_data(expected, found, n) for n in fields[0]):
        return
    if len(fields[1]) > 1:
        yield f"{where} holds its numbers more than once: in {' and '.join(fields[1])}"
        return
    try:
        true, given = (np.asarray(numpy_helper.to_array(t)) for t in (expected, found))
        apart = _apart(true.reshape(-1), given.reshape(-1))
    except Exception as error:  # of a file: it may be anything
        yield f"{where} cannot be read ({_short(str(error), 80)})"
        return
    if compared and apart.any():
        flat = int(apart.argmax())
        values = [_short(str(a.reshape(-1)[flat]), 80) for a in (given, true)]
        at = f"{[int(i) for i in np.unravel_index(flat, true.shape)]} " if true.ndim else ""
        count = f" ({int(apart.sum())} of {true.size} numbers differ)" if true.size > 1 else ""
        yield fault(f"{where} {at}".strip(), values[0], values[1] + count)


def _same_data(one: Any, other: Any, name: str) -> bool:
    values = getattr(one, name), getattr(other, name)
    if isinstance(values[0], bytes):
        return bool(values[0] == values[1])
    return [*map(_bits, values[0])] == [*map(_bits, values[1])]


def _apart(one: Any, other: Any) -> Any:
    """Which numbers of two arrays are not the same, bit by bit."""
    if one.dtype == object or one.dtype != other.dtype:
        return np.array([a != b for a, b in zip(one, other, strict=True)], bool)
    width = one.dtype.itemsize
    one, other = (a.view(np.uint8).reshape(-1, width) for a in (one, other))
    return (one != other).any(axis=1)


def _unknown(message: Any) -> list[tuple[Any, ...]]:
    """The fields that are not in the library's description of a message."""
    return [(f.field_number, f.wire_type, repr(f.data)) for f in UnknownFieldSet(message)]


def _bits(value: Any) -> Any:
    """What is equal for the same value alone: not for 0.0 and -0.0, and for NaN and itself."""
    return struct.pack("<d", value) if isinstance(value, float) else value


def _at(where: str, label: str) -> str:
    return ", ".join(filter(None, (where, label)))


def _plain(kind: str, name: str) -> str:
    """How a field is called: that of an attribute's value is the attribute itself."""
    if kind == "AttributeProto" and name not in ("name", "type", "ref_attr_name"):
        return ""
    return "" if (kind, name) in {("ModelProto", "graph"), ("ValueInfoProto", "type")} else name


def _label(full: str, item: Any) -> str:
    """What an item of a list is called."""
    field = full.rpartition(".")[2]
    kind = item.DESCRIPTOR.name
    if kind == "NodeProto":
        return f"node {', '.join(item.output)} ({item.op_type})"
    if kind == "SparseTensorProto":
        return f"{field} {item.values.name}"
    words = [getattr(item, n, "") for n in ("name", "domain", "key", "tensor_name")]
    name = next(filter(None, words), "")
    return f"{field} {name}".strip()


def type_text(type_: onnx.TypeProto) -> str:
    """A type in short: float[n,3,224,?]."""
    kind = type_.WhichOneof("value")
    if kind != "tensor_type":
        return " ".join(str(type_).split()) or "of any type"
    tensor = type_.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{name}[...]"
    dims = [str(getattr(d, d.WhichOneof("value") or "", "?")) for d in tensor.shape.dim]
    return f"{name}[{','.join(dims)}]"


def _scalar(field: Any, value: Any) -> str:
    """A value in as few digits as its type needs."""
    if field.enum_type is not None and value in field.enum_type.values_by_number:
        return str(field.enum_type.values_by_number[value].name)
    single = isinstance(value, float) and field.type == field.TYPE_FLOAT
    return str(np.float32(value)) if single else _shown(value)


def _shown(value: Any) -> str:
    return _short(repr(value), 80)


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def fault(where: str, found: str, expected: str) -> str:
    """What is there and what should be, in words."""
    return f"{where or 'the model'} is {found}, expected {expected}"
