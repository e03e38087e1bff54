"""Where in a loaded object the tensors stand, and the object with others in their place."""

from argparse import Namespace
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acfuse.errors import InputError, UnsafeError, UsageError
from acfuse.system.escape import listed, one_line
from acfuse.system.limits import Limits

# Entries that may hold tensors by name, but not the weights of a network.
NOT_WEIGHTS = ("optim", "sched", "scaler", "grad", "loss", "metric", "hyper", "conf", "args")


def values_of(whole: Any, name: str, limits: Limits) -> list[Any]:
    """Everything in a loaded object that is no container, shared parts once.

    Raises UnsafeError for more, or deeper, than a checkpoint can be.
    """
    seen: set[int] = set()
    leaves = []
    level, depth = [whole], 0
    while level:
        below: list[Any] = []
        for value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Mapping):
                below += value.values()
            elif isinstance(value, (list, tuple, set, frozenset, deque)):
                below += value
            elif isinstance(value, (Namespace, SimpleNamespace)):
                below += vars(value).values()
            elif isinstance(value, np.ndarray) and value.dtype.hasobject:
                below += value.ravel().tolist()
            else:
                leaves.append(value)
        level, depth = below, depth + 1
        limits.check("levels", depth, name)
        limits.check("values", len(seen) + len(below), name)
    return leaves


def check_names(names: Iterable[str], source: str) -> None:
    """Raises UnsafeError for paths in a module that would not be text inside of quotes.

    torch.fx writes the forward of a traced module as code, with the names of its parts as they are.
    A file says what a pickled module, or an exported program, calls them.
    """
    for name in names:
        if '"' in name or "\\" in name:
            raise UnsafeError(f"{source}: {name!r} is no name of a layer: torch runs it as code.")


def entry(whole: Any, key: str | None, name: str) -> tuple[tuple[str, ...], Any]:
    """Where in a loaded object the tensors, or a model, stand. Never chooses between two silently.

    A set of weights and their average (EMA) are two, whatever the entries are called.
    """
    if not isinstance(whole, Mapping):
        raise InputError(f"{name} holds {type(whole).__name__}; expected a dict of tensors.")
    if key is not None:
        path = _path_of(whole, key)
        found: Any = whole
        for part in path:
            found = found[part]
        if not path or not _is_weights(found):
            raise UsageError(f"{name} holds no tensors under {key!r}. It has {_entries(whole)}.")
        return path, found
    if _holds_tensors(whole):
        return (), whole
    candidates = dict(_candidates(whole, (), set(), {}))
    if not candidates:
        raise InputError(
            f"{name} holds {_entries(whole)} but no tensors. Give --key with the entry that "
            "holds the weights."
        )
    if len(candidates) > 1:
        keys = listed([".".join(path) for path in candidates])
        raise UsageError(f"{name} holds several sets of weights: {keys}. Choose one with --key.")
    ((path, found),) = candidates.items()
    return path, found


def _path_of(whole: Any, key: str) -> tuple[str, ...]:
    """The entries that a dotted key leads through (an entry's own name may have dots); or none."""
    if not isinstance(whole, Mapping):
        return ()
    if key in whole:
        return (key,)
    for entry, value in whole.items():
        if isinstance(entry, str) and key.startswith(entry + "."):
            rest = _path_of(value, key.removeprefix(entry + "."))
            if rest:
                return (entry, *rest)
    return ()


def _candidates(
    whole: Mapping[Any, Any], path: tuple[str, ...], seen: set[int], known: dict[int, bool]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in whole.items():
        if not isinstance(key, str) or any(word in key.lower() for word in NOT_WEIGHTS):
            continue
        if id(value) not in known:  # shared parts are looked at once
            known[id(value)] = _is_weights(value)
        if known[id(value)]:
            yield (*path, key), value
        elif isinstance(value, Mapping) and len(path) < 3 and id(value) not in seen:
            seen.add(id(value))
            yield from _candidates(value, (*path, key), seen, known)


def _is_weights(value: Any) -> bool:
    return isinstance(value, nn.Module) or _holds_tensors(value)


def _holds_tensors(value: Any) -> bool:
    """Whether this is a dict of tensors by name (a few other values may stand among them)."""
    if not isinstance(value, Mapping) or not value:
        return False
    tensors = sum(isinstance(v, (Tensor, np.ndarray)) for v in value.values())
    return tensors * 2 > len(value) and all(isinstance(k, str) for k in value)


def _entries(whole: Mapping[Any, Any]) -> str:
    keys = [repr(k) if isinstance(k, (str, int)) else type(k).__name__ for k in list(whole)[:8]]
    return "{" + ", ".join(keys) + "}"


def rewrapped(whole: Any, path: tuple[str, ...], new: Mapping[str, Tensor] | nn.Module) -> Any:
    """The object with other tensors, or another model, in their place; it is not touched itself."""
    if not path and isinstance(new, nn.Module):
        return new
    result: dict[Any, Any] = OrderedDict() if isinstance(whole, OrderedDict) else {}
    if path:
        for key, value in whole.items():
            result[key] = rewrapped(value, path[1:], new) if key == path[0] else value
        return result
    return _with_tensors(whole, dict(new), result)  # type: ignore[arg-type]


def with_arrays_as_tensors(whole: Any, path: tuple[str, ...], name: str) -> Any:
    """The object with tensors for the arrays of numpy that stand among those at a place."""
    if path:
        part = with_arrays_as_tensors(whole[path[0]], path[1:], name)
        if part is whole[path[0]]:
            return whole
        made: dict[Any, Any] = OrderedDict() if isinstance(whole, OrderedDict) else {}
        made.update((k, part if k == path[0] else v) for k, v in whole.items())
        return made
    if not isinstance(whole, Mapping):
        return whole
    arrays = {
        k: v for k, v in whole.items() if isinstance(v, np.ndarray) and v.dtype.kind in "biuf"
    }
    if not arrays:
        return whole
    try:
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
    except TypeError as error:
        raise InputError(f"{name}: {one_line(error)}") from error
    return OrderedDict((k, tensors.get(k, v)) for k, v in whole.items())


def beside(whole: Mapping[Any, Any], path: tuple[str, ...]) -> dict[Any, Any]:
    """All that stands in an object beside the tensors at a place, which is given as plain dicts."""
    if not path:
        return {key: value for key, value in whole.items() if not isinstance(value, Tensor)}
    return {k: beside(v, path[1:]) if k == path[0] else v for k, v in whole.items()}


def _with_tensors(
    whole: Mapping[Any, Any], tensors: dict[str, Tensor], result: dict[Any, Any]
) -> Any:
    new = list(tensors)
    for key, value in whole.items():
        if not isinstance(value, Tensor):
            result[key] = value
            continue
        while new and (new[0] not in whole or new[0] == key):  # the new ones stand before it
            name = new.pop(0)
            result[name] = tensors[name]
            if name == key:
                break
    result.update((name, tensors[name]) for name in new)
    if hasattr(whole, "_metadata"):  # the versions of the layers, which torch keeps there
        result._metadata = whole._metadata  # type: ignore[attr-defined]
    return result
