"""A file to a live model or bare tensors. Nothing is chosen silently, and nothing is run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from acfuse.checkpoint.exported_files import read_exported
from acfuse.checkpoint.hdf5_files import read_hdf5
from acfuse.checkpoint.kinds import recognise
from acfuse.checkpoint.models import build_model, fit_prefix, load_into
from acfuse.checkpoint.nests import entry, values_of
from acfuse.checkpoint.numbers import check_dense, check_stored
from acfuse.checkpoint.pickled import read_torch
from acfuse.checkpoint.records import BareTensors, Checkpoint, LiveModel, Wrapper
from acfuse.checkpoint.safetensors_files import read_safetensors
from acfuse.checkpoint.shards import INDEX, read_index, shard_of
from acfuse.errors import InputError, UsageError

Read = tuple[Wrapper, dict[str, Tensor]]


def load(
    source: Path,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    allow_classes: Sequence[str] = (),
) -> Checkpoint:
    """Reads a checkpoint; with `model`, into the network that it names.

    Raises InputError for a file that cannot be used, UnsafeError for one that would run code.
    """
    wrapper, tensors = read_tensors(source, key=key, allow_classes=allow_classes)
    if wrapper.network is not None:
        if model is not None:
            raise UsageError(f"{source.name} holds a whole model; --model is for state dicts.")
        return LiveModel(wrapper.network.eval(), tensors, wrapper)
    if model is None:
        return BareTensors(tensors, wrapper)
    network = build_model(model, model_args or {})
    prefix, fitting = fit_prefix(tensors, network)
    load_into(network, fitting, source.name)
    notes = (f"stripped the prefix {prefix!r} from every key",) if prefix else ()
    return LiveModel(network.eval(), fitting, replace(wrapper, prefix=prefix), notes)


def read_tensors(
    source: Path, *, key: str | None = None, allow_classes: Sequence[str] = ()
) -> Read:
    """The tensors of a file (or of all that an index names), and the wrapper around them."""
    kind = recognise(source)
    if kind == "index":
        return _read_shards(source)
    wrapper, tensors = READERS[kind](source, key, allow_classes)
    check_dense(tensors, source.name)
    return wrapper, tensors


def _read_torch(source: Path, key: str | None, allow_classes: Sequence[str]) -> Read:
    whole = read_torch(source, allow_classes)
    values = values_of(whole, source.name)
    held = [v for v in values if isinstance(v, Tensor)]
    held += [t for v in values if isinstance(v, nn.Module) for t in (*v.parameters(), *v.buffers())]
    check_stored(held, source.name, source.stat().st_size)
    path, found = ((), whole) if isinstance(whole, nn.Module) else entry(whole, key, source.name)
    if isinstance(found, nn.Module):
        return Wrapper("module", whole, path), dict(found.state_dict())
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)}
    return Wrapper("state_dict", whole, path), tensors


def _read_safetensors(source: Path, key: str | None, _: Sequence[str]) -> Read:
    _no_key(source, key)
    metadata, tensors = read_safetensors(source)
    return Wrapper("safetensors", metadata=metadata), tensors


def _read_hdf5(source: Path, key: str | None, _: Sequence[str]) -> Read:
    _no_key(source, key)
    metadata, tensors = read_hdf5(source)
    return Wrapper("hdf5", metadata=metadata), tensors


def _read_exported(source: Path, key: str | None, _: Sequence[str]) -> Read:
    _no_key(source, key)
    program = read_exported(source)
    return Wrapper("exported", program), dict(program.state_dict())


def _no_key(source: Path, key: str | None) -> None:
    if key is not None:
        raise UsageError(f"{source.name} holds tensors and no entries: leave --key away.")


READERS: dict[str, Callable[[Path, str | None, Sequence[str]], Read]] = {
    "torch": _read_torch,
    "safetensors": _read_safetensors,
    "hdf5": _read_hdf5,
    "exported": _read_exported,
}


def _read_shards(source: Path) -> Read:
    """All shards of an index as one checkpoint, in the order of the index."""
    index = read_index(source)
    tensors: dict[str, Tensor] = {}
    wrapper = Wrapper("state_dict", whole={})
    shards = {name: shard_of(source, name) for name in index.values()}
    for name, shard in shards.items():
        wrapper, found = read_tensors(shard)
        named = {k for k, file in index.items() if file == name}
        if set(found) != named:
            odd = sorted(set(found) ^ named)[0]
            where = "has no" if odd in named else "holds an unknown"
            raise InputError(f"{source.name}: the shard {name} {where} {odd}: they do not match.")
        tensors.update(found)
    ordered = {key: tensors[key] for key in index}
    whole = ordered if wrapper.kind == "state_dict" else None
    return replace(wrapper, whole=whole, path=()), ordered


def files_of(source: Path) -> list[Path]:
    """The files that a model is in: one, or an index with its shards."""
    if not source.name.endswith(INDEX):
        return [source]
    return [source, *(shard_of(source, name) for name in sorted(set(read_index(source).values())))]
