"""A fused checkpoint back into the form that the original came in, written as a stream."""

import io
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy
import torch
from torch import Tensor, nn

from acfuse.checkpoint.hdf5_files import write_hdf5
from acfuse.checkpoint.memory import PIECE, let_go
from acfuse.checkpoint.nests import rewrapped
from acfuse.checkpoint.records import Wrapper
from acfuse.checkpoint.safetensors_files import write_safetensors

Write = Callable[[IO[bytes]], None]


def writer(wrapper: Wrapper, fused: Mapping[str, Tensor] | nn.Module) -> Write:
    """What writes a fused checkpoint to an open file, in the form that the original came in."""
    if isinstance(fused, nn.Module):
        return lambda file: _save(rewrapped(wrapper.whole, wrapper.path, fused), file)
    tensors = {wrapper.prefix + key: tensor for key, tensor in fused.items()}
    if wrapper.kind == "safetensors":
        return lambda file: write_safetensors(file, tensors, wrapper.metadata)
    if wrapper.kind == "hdf5":
        return lambda file: write_hdf5(file, tensors, wrapper.metadata or {})
    return lambda file: _save(rewrapped(wrapper.whole, wrapper.path, tensors), file)


def _save(value: Any, file: IO[bytes]) -> None:
    torch.save(value, _LettingGo(file))  # type: ignore[arg-type]


class _LettingGo:
    """A file that needs nothing of what was written to it to stay in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, data: Any) -> int:
        """Writes a tensor's bytes (or a few of torch's own)."""
        if len(data) < PIECE:
            return self.file.write(data)
        view = memoryview(data)
        address = numpy.frombuffer(view, dtype=numpy.uint8).ctypes.data
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            self.file.write(piece)
            let_go(address + start, len(piece))
        return len(view)

    def flush(self) -> None:
        """Passes on what is still waiting."""
        self.file.flush()


def to_bytes(wrapper: Wrapper, fused: Mapping[str, Tensor] | nn.Module) -> bytes:
    """A fused checkpoint as the bytes of a file, in the form that the original came in."""
    buffer = io.BytesIO()
    writer(wrapper, fused)(buffer)
    return buffer.getvalue()
