"""What a caller gets from a model, taken apart: every number and value of it, by name.

Results are compared by name: what holds them (its class and its keys) is one more value.
"""

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from acfuse.system.devices import CPU

Leaves = Mapping[str, Any]
DEPTH = 32  # of what holds what: deeper, or in a circle, only classes are compared
PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type,
    enum.Enum,
    torch.dtype,
    torch.Size,
)


@dataclasses.dataclass(frozen=True)
class Holder:
    """The class of what holds other values, and their keys, in order."""

    kind: type
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        keys = ", ".join(self.keys)
        return f"a {self.kind.__name__} of {keys}" if keys else f"an empty {self.kind.__name__}"


def leaves_of(result: Any) -> dict[str, Any]:
    """Every value in a result by its name, which is how a caller reaches it."""
    return dict(_leaves(result, "", 0))


def named(values: Leaves | Sequence[Tensor]) -> Leaves:
    """Tensors that have no names, by their places."""
    return values if isinstance(values, Mapping) else {f"[{i}]": v for i, v in enumerate(values)}


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor) and value.is_nested:
        parts: Any = [(f"[{i}]", part) for i, part in enumerate(value.unbind())]
    else:
        parts = None if isinstance(value, (Tensor, np.ndarray, *PLAIN)) else _parts(value)
    if parts is None:
        yield name, value
        return
    yield f"{name} (structure)", Holder(type(value), tuple(key for key, _ in parts))
    if depth < DEPTH:
        for key, part in parts:
            yield from _leaves(part, name + key, depth + 1)


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """What a value holds, each with its way to it; None if it is one by itself."""
    own = getattr(value, "__dict__", {})
    attributes = [(f".{key}", part) for key, part in own.items()]
    if dataclasses.is_dataclass(value):
        fields = [f.name for f in dataclasses.fields(value) if hasattr(value, f.name)]
        attributes += [(f".{n}", getattr(value, n)) for n in fields if n not in own]
    if isinstance(value, Mapping):
        items = [(f"[{key!r}]", part) for key, part in value.items()]
        shown = {id(part) for _, part in items}  # keys that are attributes as well are named once
        return items + [(k, part) for k, part in attributes if id(part) not in shown]
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return [(f"[{i}]", part) for i, part in enumerate(value)] + attributes
    if isinstance(value, (set, frozenset)):
        return [(f"[{part!r}]", None) for part in sorted(value, key=repr)]
    if type(value) in _pytree.SUPPORTED_NODES:
        children, context = _pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)
        parts = [(f"<{i}>", part) for i, part in enumerate(children)]
        return [*parts, ("<context>", repr(context))]
    slots = [n for kind in type(value).__mro__ for n in getattr(kind, "__slots__", ())]
    attributes += [
        (f".{n}", getattr(value, n)) for n in slots if n not in own and hasattr(value, n)
    ]
    return attributes or None


def as_numbers(value: Any) -> Tensor | None:
    """A value as a dense tensor on the CPU, if it is one or more numbers."""
    if isinstance(value, (bool, int, float, complex, np.ndarray, np.generic)):
        try:
            value = torch.as_tensor(value, device=CPU)
        except (TypeError, RuntimeError):
            return None
    if not isinstance(value, Tensor):
        return None
    try:
        return _dense(value)
    except (NotImplementedError, RuntimeError):  # of kinds that torch itself hardly knows
        return None


def _dense(value: Tensor) -> Tensor:
    if value.is_meta:
        return torch.empty(0, device=CPU)  # it has none
    value = value.detach().cpu()
    value = value.dequantize() if value.is_quantized else value
    value = value.to_dense() if value.layout != torch.strided else value
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    elif value.dtype not in USUAL:
        value = value.float() if value.is_floating_point() else value.long()
    return value


USUAL = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}  # of others torch computes hardly anything


def unlike(one: Any, other: Any) -> str:
    """How two values differ in what is no number, in words; "" if they do not."""
    if type(one) is not type(other) and not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return f"is of the class {type(other).__name__}, the original's {type(one).__name__}"
    if isinstance(one, Holder):
        return "" if one == other else f"is {other}, the original's {one}"
    for what in ("dtype", "shape"):
        if isinstance(one, (Tensor, np.ndarray)) and getattr(one, what) != getattr(other, what):
            ours, theirs = (_shown(getattr(x, what)) for x in (one, other))
            return f"has the {what} {theirs}, the original {ours}"
    if as_numbers(one) is not None or one is other:
        return ""
    try:
        same = bool(one == other)
    except Exception:
        same = False
    if same or "__eq__" not in {n for kind in type(one).__mro__[:-1] for n in vars(kind)}:
        return ""
    return f"is {other!r:.60}, the original's {one!r:.60}"


def _shown(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)


def is_discrete(numbers: Tensor) -> bool:
    return not numbers.is_floating_point()
