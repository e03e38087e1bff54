"""How a module is called: what the forward around it, a user, or its own parameters say."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree


@dataclass(frozen=True, eq=False)
class Call:
    """How a module is called: which parameters get tensors, and the plain values of the others.

    `lists` are the parameters that get several tensors, with the type and the length of the list.
    `guessed` says that nobody was seen to call it so.
    """

    tensors: tuple[str, ...]
    values: tuple[tuple[str, object], ...] = ()
    lists: tuple[tuple[str, type, int], ...] = ()
    guessed: bool = False

    def __eq__(self, other: object) -> bool:
        """Whether a forward that was read for one call holds for another."""
        return isinstance(other, Call) and is_same(
            (self.tensors, self.values, self.lists), (other.tensors, other.values, other.lists)
        )

    @classmethod
    def default(cls, module: nn.Module, *, guessed: bool = False) -> "Call":
        """One tensor for every parameter without a default."""
        parameters = signature(module).parameters.values()
        needed = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return cls(
            tuple(p.name for p in needed if p.default is p.empty),
            tuple((p.name, p.default) for p in needed if p.default is not p.empty),
            guessed=guessed,
        )

    @classmethod
    def given(cls, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Call":
        """The call that a user makes, with real tensors. Raises TypeError for another form."""
        bound = signature(module).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments.items()
        lists = tuple(
            (n, type(v), len(v)) for n, v in given
            if type(v) in (list, tuple) and v and all(isinstance(e, Tensor) for e in v)
        )  # fmt: skip
        tensors = tuple(n for n, v in given if isinstance(v, Tensor))
        others = {*tensors, *(name for name, *_ in lists)}
        values = tuple((n, v) for n, v in given if n not in others)
        if any(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves([v for _, v in values])):
            raise TypeError("tensors stand deep inside an argument")
        return cls(tensors, values, lists)

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Call":
        """The call that a node of another graph makes. Raises TypeError for one of another form."""
        bound = signature(module).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments.items()
        tensors = tuple(n for n, v in given if isinstance(v, fx.Node))
        lists = tuple(
            (n, kind, len(v))
            for n, v in given
            for kind in (list, tuple)
            if type(v) in (kind, LISTS[kind]) and v and all(isinstance(e, fx.Node) for e in v)
        )
        others = {*tensors, *(name for name, *_ in lists)}
        values = tuple((n, v) for n, v in given if n not in others)
        deep: list[fx.Node] = []
        fx.map_arg([v for _, v in values], deep.append)
        if deep:
            raise TypeError("tensors stand deep inside an argument")
        return cls(tensors, values, lists)


def is_list(value: Any, kind: str, count: int) -> bool:
    """Whether an argument is a list or tuple, as it is called, of so many."""
    return type(value).__name__ == kind and len(value) == count


def is_same(value: Any, known: Any) -> bool:
    """Whether two arguments are one to any forward: equal, and of one type in each of their parts.

    False, 0 and 0.0 are equal, and a forward may ask which of them it has.
    """
    if _kind(value) is not _kind(known):
        return False
    if isinstance(known, Mapping):
        return is_same([*value.items()], [*known.items()])
    if isinstance(known, (list, tuple)):
        return len(value) == len(known) and all(map(is_same, value, known))
    if isinstance(known, (set, frozenset)):
        return {_typed(v) for v in value} == {_typed(v) for v in known}
    if isinstance(known, float):
        return repr(value) == repr(known)  # -0.0 is another than 0.0
    if is_dataclass(known):
        return is_same(vars(value), vars(known))
    return bool(value == known)


def _typed(value: Any) -> Any:
    """A member of a set, with its type, and those of what it holds."""
    inner = tuple(map(_typed, value)) if isinstance(value, tuple) else value
    return type(value), inner


LISTS: dict[type, type] = {list: immutable_list, tuple: tuple}  # what fx makes of them
MUTABLE: dict[type, type] = {immutable_list: list, immutable_dict: dict}


def _kind(value: Any) -> type:
    """The class of a value, before torch.fx made it one that cannot be changed."""
    kind = type(value)
    return MUTABLE.get(kind, kind)


def signature(module: nn.Module) -> inspect.Signature:
    """The parameters of a forward; those that torch.jit compiled have a schema of their own."""
    bound: Any = module.forward
    if isinstance(module, torch.jit.ScriptModule):
        return _of_schema(bound.schema)
    return _known(bound.__func__) if inspect.ismethod(bound) else inspect.signature(bound)


def _of_schema(schema: Any) -> inspect.Signature:
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    given = [(a.name, a.default_value if a.has_default_value() else empty)
             for a in schema.arguments[1:]]  # fmt: skip
    return inspect.Signature([inspect.Parameter(n, kind, default=d) for n, d in given])


@lru_cache(maxsize=1024)
def _known(function: Any) -> inspect.Signature:
    return inspect.signature(MethodType(function, object()))
