"""safetensors: a header in JSON, then the bytes of all tensors. Read lazily, written in pieces.

Source: github.com/huggingface/safetensors, "Format".
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from acfuse.errors import InputError, UnsafeError
from acfuse.files.opened_file import Opened
from acfuse.system.escape import one_line
from acfuse.system.limits import Limits, parsed_json
from acfuse.system.memory import pieces

LARGEST_HEADER = 2**25  # bytes
MOST_AXES = 64  # of a tensor in torch
PLAIN = {"format": "pt"}  # the metadata of a file that has nothing to say

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
SIZES = {name: dtype.itemsize for dtype, name in NAMES.items()}  # bytes


def read_safetensors(
    source: Opened, limits: Limits
) -> tuple[dict[str, str] | None, dict[str, Tensor]]:
    """The metadata and the tensors of a file. Their numbers are read when they are looked at.

    Raises InputError for a damaged file, UnsafeError for one that can be read in two ways.
    """
    with source.open() as raw:
        length = int.from_bytes(raw.read(8), "little")
        if length > LARGEST_HEADER:
            text = f"{source.name} has a header of {length:,} bytes: none needs so many."
            raise UnsafeError(text)
        header = _parsed(raw.read(length), source.name, limits)
    limits.check("tensors", len(header), source.name)
    names = [name for name in header if name != "__metadata__"]
    end = 0
    for begin, end_of_one, name in sorted((*_place(header[n], n, source.name), n) for n in names):
        if begin != end:
            raise _damaged(source.name, f"{name!r} does not begin where another one ends")
        end = end_of_one
    if end != source.size - 8 - length:
        raise _damaged(source.name, "there are bytes that no tensor names, or too few")
    try:
        with safe_open(source.place, framework="pt") as file:
            return file.metadata(), {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise _damaged(source.name, one_line(error)) from error


def _parsed(text: bytes, source: str, limits: Limits) -> dict[str, Any]:
    """The header, in its own order. Readers differ in which of two tensors of one name they see."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
            raise UnsafeError(f"{source}: {name!r} stands twice in its header.")
        return found

    try:
        header = parsed_json(text, source, limits, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _damaged(source, f"its header is no JSON ({one_line(error)})") from error
    if not isinstance(header, dict):
        raise _damaged(source, "its header is no object")
    return header


def _place(entry: Any, name: str, source: str) -> tuple[int, int]:
    """Where a tensor begins and ends. Raises InputError if it is not just what its shape needs."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(source, f"{name!r} has not just a type, a shape and a place")
    kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (_are_sizes(shape) and _are_sizes(span) and len(span) == 2):
        raise _damaged(source, f"{name!r} has a size or a place that can be none")
    if not isinstance(kind, str) or kind not in SIZES:
        kinds = ", ".join(SIZES)
        raise _damaged(source, f"{name} is of {str(kind)[:40]!r}; expected one of {kinds}")
    size = math.prod(shape) * SIZES[kind]
    if span[0] + size != span[1]:
        than = "fewer" if span[0] + size > span[1] else "more"
        raise _damaged(source, f"{name!r} has {than} values than its shape requires")
    return span[0], span[1]


def _are_sizes(found: Any) -> bool:
    """Whether this is a list of numbers that can be sizes or places in a file."""
    return (
        isinstance(found, list)
        and len(found) <= MOST_AXES
        and all(type(n) is int and 0 <= n < 2**63 for n in found)
    )


def _damaged(source: str, why: str) -> InputError:
    return InputError(f"{source} is a damaged safetensors file: {why}.")


def write_safetensors(
    file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> None:
    """Writes tensors one after the other; none is copied as a whole.

    The header has the order of the tensors, the data that of their sizes, so that each is aligned.
    """
    laid_out = sorted(tensors, key=lambda name: -tensors[name].element_size())
    ends: dict[str, int] = {}
    end = 0
    for name in laid_out:
        end += tensors[name].nbytes
        ends[name] = end
    header: dict[str, object] = {"__metadata__": dict(metadata or PLAIN)}
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [ends[name] - tensor.nbytes, ends[name]],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in laid_out:
        for piece in _as_bytes(tensors[name]):
            file.write(piece)


def _as_bytes(tensor: Tensor) -> Iterator[memoryview]:
    if tensor.numel():
        for piece in pieces(tensor.contiguous()):
            yield piece.view(-1).view(torch.uint8).numpy().data
