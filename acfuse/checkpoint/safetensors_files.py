"""safetensors: a header in JSON, then the bytes of all tensors. Read lazily, written in pieces."""

import json
from collections.abc import Iterator, Mapping
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from acfuse.checkpoint.memory import pieces
from acfuse.checkpoint.opened import Opened
from acfuse.errors import InputError
from acfuse.text import one_line

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_safetensors(source: Opened) -> tuple[dict[str, str] | None, dict[str, Tensor]]:
    """The metadata and the tensors of a file. Their numbers are read when they are looked at."""
    try:
        with safe_open(source.place, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{source.name} is a damaged safetensors file: {one_line(error)}."
        ) from error
    with source.open() as raw:  # the library sorts by dtype: the file's header has the order
        header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
    return metadata, {name: tensors[name] for name in header if name in tensors}


def write_safetensors(
    file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> None:
    """Writes tensors one after the other; none is copied as a whole.

    The header has the order of the tensors, the data that of their sizes, so that each is aligned.
    Source: github.com/huggingface/safetensors, "Format".
    """
    laid_out = sorted(tensors, key=lambda name: -tensors[name].element_size())
    ends: dict[str, int] = {}
    end = 0
    for name in laid_out:
        end += tensors[name].nbytes
        ends[name] = end
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
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
