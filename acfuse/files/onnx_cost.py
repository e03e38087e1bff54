"""What an ONNX file would cost, counted on its bytes before it is parsed, and on its functions.

A message of two bytes takes a hundred in memory, a number of one byte eight; functions that call
each other twice are as many nodes as one likes when they are written out.
"""

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx

from acfuse.errors import UnsafeError
from acfuse.system.limits import Limits

MOST_BEYOND = 2**28  # bytes that numbers may take beyond those that they have in the file
VARIABLE, FIXED_8, SIZED, FIXED_4 = 0, 1, 2, 5  # wire types


# What a number takes in memory, by its type in a descriptor: int32, uint32, enum; int64, uint64.
WIDTHS = {5: 4, 13: 4, 14: 4, 3: 8, 4: 8}


@cache
def _fields(kind: Any) -> dict[int, tuple[Any, int]]:
    """The fields of a message, by number: the message that one holds, or the width of its numbers.

    Plain bytes have neither.
    """
    return {field.number: (field.message_type, WIDTHS.get(field.type, 0)) for field in kind.fields}


def check_bytes(data: bytes, name: str, limits: Limits) -> None:
    """Raises UnsafeError for a file with more messages or numbers than a network has.

    Bytes that are no protobuf are left to the library, which has a word for them.
    Source: protobuf.dev, "Encoding".
    """
    view, waiting = memoryview(data), [(0, len(data), onnx.ModelProto.DESCRIPTOR)]
    count, beyond = 0, 0
    with contextlib.suppress(IndexError):
        while waiting:
            place, end, kind = waiting.pop()
            fields = _fields(kind)
            while place < end:
                tag, place = (data[place], place + 1) if data[place] < 128 else _varint(data, place)
                count += 1
                if count > limits.values:
                    limits.check("values", count, name)
                wire = tag & 7
                if wire == SIZED:
                    byte = data[place]
                    size, place = (byte, place + 1) if byte < 128 else _varint(data, place)
                    message, width = fields.get(tag >> 3, (None, 0)) if size else (None, 0)
                    if message is not None:
                        waiting.append((place, min(place + size, end), message))
                    elif width:
                        beyond += _beyond(view[place : place + size], width)
                    place += size
                elif wire == VARIABLE:
                    _, place = _varint(data, place)
                else:
                    place += {FIXED_8: 8, FIXED_4: 4}.get(wire, 0)
    if beyond > max(MOST_BEYOND, len(data) // 2):
        raise UnsafeError(
            f"{name}: its numbers would take {beyond:,} bytes more than the file has. Export it "
            "again, so that its tensors are raw data."
        )


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next thing begins."""
    byte = data[place]
    if byte < 128:
        return byte, place + 1
    number = shift = 0
    while byte >= 128 and shift < 63:
        number |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
        byte = data[place]
    return number | byte << shift, place + 1


def _beyond(numbers: memoryview, width: int) -> int:
    """How much more numbers take in memory than in a file."""
    last = int(np.count_nonzero(np.frombuffer(numbers, np.uint8) < 128))  # of each number
    return last * width - len(numbers)


def check_functions(model: onnx.ModelProto, name: str, limits: Limits) -> None:
    """Raises UnsafeError if the functions of a model, written out, are more than a network has.

    Or if one calls itself: whoever writes them out would never end.
    """
    called = {(f.domain, f.name): [*_calls(f.node)] for f in model.functions}
    sizes: dict[Any, int] = {}
    open_: set[Any] = set()

    def size(key: Any) -> int:
        if key not in called:
            return 1
        if key in open_:
            raise UnsafeError(f"{name}: its function {key[1]!r} calls itself. Export it again.")
        if key not in sizes:
            open_.add(key)
            sizes[key] = min(sum(map(size, called[key])), limits.values + 1)
            open_.discard(key)
        return sizes[key]

    try:
        whole = sum(map(size, _calls(model.graph.node)))
    except RecursionError:
        raise UnsafeError(f"{name}: its functions call each other too deeply.") from None
    limits.check("values", whole, name)


def _calls(nodes: Any) -> Iterator[tuple[str, str]]:
    for node in nodes:
        yield node.domain, node.op_type
        for inner in subgraphs(node):
            yield from _calls(inner.node)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node: branches of If, bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, those inside its nodes first."""
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)
    yield graph
