"""A fused checkpoint back into the form that the original came in, written as a stream."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy
import torch
from torch import Tensor, nn

from acfuse.files.hdf5 import write_hdf5
from acfuse.files.nesting import rewrapped
from acfuse.files.opened_file import opened
from acfuse.files.records import Container
from acfuse.files.safetensors import write_safetensors
from acfuse.system.limits import LIMITS, Limits
from acfuse.system.memory import PIECE, page_out

Write = Callable[[IO[bytes]], None]


def copied(path: Path, sha256: str, limits: Limits = LIMITS) -> Write:
    """What writes a file as it is. Raises UnsafeError if it is not that of the hash any more."""

    def write(file: IO[bytes]) -> None:
        with opened(path, limits, sha256) as held, held.open() as source:
            shutil.copyfileobj(source, file)

    return write


def writer(container: Container, fused: Mapping[str, Tensor] | nn.Module) -> Write:
    """What writes a fused checkpoint to an open file, in the form that the original came in."""
    if isinstance(fused, nn.Module):
        return lambda file: _save(rewrapped(container.whole, container.path, fused), file)
    named = {container.prefix + key: tensor for key, tensor in fused.items()}
    tensors = _with_rest(named, container)
    if container.kind == "safetensors":
        return lambda file: write_safetensors(file, tensors, container.metadata)
    if container.kind == "hdf5":
        return lambda file: write_hdf5(file, tensors, container.metadata or {})
    return lambda file: _save(rewrapped(container.whole, container.path, tensors), file)


def _with_rest(fused: Mapping[str, Tensor], container: Container) -> dict[str, Tensor]:
    """The tensors of a fused checkpoint among those that are none of the model's.

    These stand before the tensor of the model before which they stood.
    """
    if not container.rest:
        return dict(fused)
    result: dict[str, Tensor] = {}
    waiting: list[str] = []
    before: dict[str, list[str]] = {}
    for key in container.order:
        if key in container.rest:
            waiting.append(key)
        elif key in fused:
            before[key], waiting = waiting, []
    for key, tensor in fused.items():
        result.update((k, container.rest[k]) for k in before.get(key, ()))
        result[key] = tensor
    result.update((k, container.rest[k]) for k in waiting)
    return result


def _save(value: Any, file: IO[bytes]) -> None:
    torch.save(value, _PagingOut(file))  # type: ignore[arg-type]


class _PagingOut:
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
            page_out(address + start, len(piece))
        return len(view)

    def flush(self) -> None:
        """Passes on what is still waiting."""
        self.file.flush()
