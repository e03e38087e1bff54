"""The code that authors wrote: which names it uses, in a forward and elsewhere."""

import dis
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn


def functions_of(kind: type[Any]) -> dict[str, FunctionType]:
    """The methods of a class that are its author's own, and those behind its properties."""
    found: dict[str, FunctionType] = {}
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "acfuse", "builtins"):
            continue
        for name, value in vars(base).items():
            function = value.fget if isinstance(value, property) else value
            function = getattr(function, "__func__", function)
            if isinstance(function, FunctionType):
                found.setdefault(name, function)
    return found


def names_in_forward(kind: type[Any]) -> frozenset[str]:
    """The names that a forward uses, and the methods of its class that it may call by these."""
    return _names_in_forward(kind)  # type: ignore[arg-type, unused-ignore]


@lru_cache(maxsize=1024)
def _names_in_forward(kind: Any) -> frozenset[str]:
    functions = functions_of(kind)
    names: set[str] = set()
    read: set[str] = set()
    pending = ["forward"]
    while pending:
        name = pending.pop()
        if name in functions and name not in read:
            read.add(name)
            new = names_in(functions[name].__code__)
            names |= new
            pending += new
    return frozenset(names)


def method_with_one_alone(kind: type[nn.Module], name: str, others: set[str]) -> str | None:
    """A method that calls one layer of a class without any of the others that go with it."""
    inner = names_in_forward(kind)
    for method, function in functions_of(kind).items():
        code = function.__code__
        if method not in inner and name in _called_in(code) and not names_in(code) & others:
            return method
    return None


def names_in(code: CodeType) -> set[str]:
    """The attributes and globals that some code names."""
    return {name for part in _parts(code) for name in part.co_names}


def _called_in(code: CodeType) -> set[str]:
    """The names of what some code calls: attributes that are loaded for a call at once."""
    loads = (i for part in _parts(code) for i in dis.get_instructions(part))
    return {
        i.argval for i in loads
        if i.opname == "LOAD_METHOD" or (i.opname == "LOAD_ATTR" and FLAGGED and (i.arg or 0) & 1)
    }  # fmt: skip


FLAGGED = sys.version_info >= (3, 12)  # where LOAD_ATTR tells it by a bit of its own


def _parts(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
