"""A file to a live model or bare tensors. Nothing is chosen silently, and nothing is run."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from acfuse.errors import InputError, UsageError
from acfuse.files.detect import recognise
from acfuse.files.hdf5 import read_hdf5
from acfuse.files.nesting import check_names, entry, values_of, with_arrays_as_tensors
from acfuse.files.opened_file import FileState, Opened, opened
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


def read_tensors(source: Path, options: ReadOptions = DEFAULTS) -> Read:
    """The tensors of a file (or of all that an index names), and the container around them."""
    with opened(source, options.limits, options.sha256) as file:
        kind = recognise(file, options.limits)
        if options.key is not None and kind != "torch":
            raise UsageError(f"{source.name} holds tensors and no entries: remove --key.")
        if kind == "torch":
            container, tensors = _read_torch(file, options)
        elif kind == "index":
            container, tensors = _read_shards(source, file, options)
        elif kind == "exported":
            program, notes = read_exported(file, options.limits)
            container, tensors = Container(kind, program, notes=notes), dict(program.state_dict())
            check_stored(tensors.values(), source.name, file.size)
        else:
            read = read_safetensors if kind == "safetensors" else read_hdf5
            metadata, tensors = read(file, options.limits)
            container = Container(kind, metadata=metadata)
    options.limits.check("tensors", len(tensors), source.name)
    check_dense(tensors, source.name)
    return replace(container, files={source: file.state, **container.files}), tensors


def _read_torch(source: Opened, options: ReadOptions) -> Read:
    whole, notes = read_torch(source, options.allow_classes, options.limits)
    values = values_of(whole, source.name, options.limits)
    held = [v for v in values if isinstance(v, Tensor)]
    held += [t for v in values if isinstance(v, nn.Module) for t in (*v.parameters(), *v.buffers())]
    check_stored(held, source.name, source.size)
    path, found = (
        ((), whole) if isinstance(whole, nn.Module) else entry(whole, options.key, source.name)
    )
    if isinstance(found, nn.Module):
        for module in found.modules():  # each by its own names: paths may be without end
            parts = (vars(module), module._modules, module._parameters, module._buffers)
            check_names((str(name) for part in parts for name in part), source.name)
        return Container("module", whole, path, notes=notes), dict(found.state_dict())
    filled = with_arrays_as_tensors(whole, path, source.name)
    if filled is not whole:
        notes = (*notes, "arrays of numpy stand among the tensors: they are taken, and written, as "
                         "tensors")  # fmt: skip
        whole = found = filled
        for part in path:
            found = found[part]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)}
    return Container("state_dict", whole, path, notes=notes), tensors


def _read_shards(source: Path, file: Opened, options: ReadOptions) -> Read:
    """All shards of an index as one checkpoint, in the order of the index."""
    if options.sha256 is not None:
        raise UsageError(f"{source.name} names several files, and --sha256 is of one. Remove it.")
    index = read_index(file, options.limits)
    files: dict[Path, FileState] = {}
    tensors: dict[str, Tensor] = {}
    notes: tuple[str, ...] = ()
    container = Container("state_dict", whole={})
    shards = {name: shard_of(source, name) for name in index.values()}
    for name, shard in shards.items():
        container, found = read_tensors(shard, ReadOptions(limits=options.limits))
        files.update(container.files)
        notes += container.notes
        named = {k for k, file in index.items() if file == name}
        if set(found) != named:
            odd = sorted(set(found) ^ named)[0]
            where = "has no" if odd in named else "holds an unknown"
            raise InputError(f"{source.name}: the shard {name} {where} {odd}: they do not match.")
        tensors.update(found)
    ordered = {key: tensors[key] for key in index}
    whole = ordered if container.kind == "state_dict" else None
    return replace(container, whole=whole, path=(), files=files, notes=notes), ordered
