"""A file to its tensors, and to a model where it holds one. Nothing is run, or chosen silently."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from acfuse.errors import InputError, UsageError
from acfuse.files.detect import recognise
from acfuse.files.hdf5 import read_hdf5
from acfuse.files.nesting import check_names, entry, values_of
from acfuse.files.opened_file import Opened, opened
from acfuse.files.pt2_archive import read_exported
from acfuse.files.records import (
    DEFAULTS,
    Container,
    ReadOptions,
)
from acfuse.files.safetensors import read_safetensors
from acfuse.files.shards import read_index, shard_of
from acfuse.files.tensor_check import check_dense, check_stored
from acfuse.files.torch_load import read_torch

Read = tuple[Container, dict[str, Tensor]]


def read_tensors(source: Path, how: ReadOptions = DEFAULTS) -> Read:
    """The tensors of a file (or of all that an index names), and the wrapper around them."""
    with opened(source, how.limits, how.sha256) as file:
        kind = recognise(file, how.limits)
        if kind == "index":
            container, tensors = _read_shards(source, file, how)
        else:
            container, tensors = READERS[kind](file, how)
    how.limits.check("tensors", len(tensors), source.name)
    check_dense(tensors, source.name)
    return replace(container, digests={source: file.sha256, **container.digests}), tensors


def _read_torch(source: Opened, how: ReadOptions) -> Read:
    whole, notes = read_torch(source, how.allow_classes, how.limits)
    values = values_of(whole, source.name, how.limits)
    held = [v for v in values if isinstance(v, Tensor)]
    held += [t for v in values if isinstance(v, nn.Module) for t in (*v.parameters(), *v.buffers())]
    check_stored(held, source.name, source.size)
    path, found = (
        ((), whole) if isinstance(whole, nn.Module) else entry(whole, how.key, source.name)
    )
    if isinstance(found, nn.Module):
        for module in found.modules():  # each by its own names: paths may be without end
            parts = (vars(module), module._modules, module._parameters, module._buffers)
            check_names((str(name) for part in parts for name in part), source.name)
        return Container("module", whole, path, notes=notes), dict(found.state_dict())
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)}
    return Container("state_dict", whole, path, notes=notes), tensors


def _read_safetensors(source: Opened, how: ReadOptions) -> Read:
    _no_key(source, how)
    metadata, tensors = read_safetensors(source, how.limits)
    return Container("safetensors", metadata=metadata), tensors


def _read_hdf5(source: Opened, how: ReadOptions) -> Read:
    _no_key(source, how)
    metadata, tensors = read_hdf5(source, how.limits)
    return Container("hdf5", metadata=metadata), tensors


def _read_exported(source: Opened, how: ReadOptions) -> Read:
    _no_key(source, how)
    program, notes = read_exported(source, how.limits)
    check_stored(program.state_dict().values(), source.name, source.size)
    return Container("exported", program, notes=notes), dict(program.state_dict())


def _no_key(source: Opened, how: ReadOptions) -> None:
    if how.key is not None:
        raise UsageError(f"{source.name} holds tensors and no entries: leave --key away.")


READERS: dict[str, Callable[[Opened, ReadOptions], Read]] = {
    "torch": _read_torch,
    "safetensors": _read_safetensors,
    "hdf5": _read_hdf5,
    "exported": _read_exported,
}


def _read_shards(source: Path, file: Opened, how: ReadOptions) -> Read:
    """All shards of an index as one checkpoint, in the order of the index."""
    if how.sha256 is not None:
        raise UsageError(f"{source.name} names several files, and --sha256 is of one. Remove it.")
    index = read_index(file, how.limits)
    digests: dict[Path, str] = {}
    tensors: dict[str, Tensor] = {}
    notes: tuple[str, ...] = ()
    container = Container("state_dict", whole={})
    shards = {name: shard_of(source, name) for name in index.values()}
    for name, shard in shards.items():
        container, found = read_tensors(shard, ReadOptions(limits=how.limits))
        digests.update(container.digests)
        notes += container.notes
        named = {k for k, file in index.items() if file == name}
        if set(found) != named:
            odd = sorted(set(found) ^ named)[0]
            where = "has no" if odd in named else "holds an unknown"
            raise InputError(f"{source.name}: the shard {name} {where} {odd}: they do not match.")
        tensors.update(found)
    ordered = {key: tensors[key] for key in index}
    whole = ordered if container.kind == "state_dict" else None
    return replace(container, whole=whole, path=(), digests=digests, notes=notes), ordered
