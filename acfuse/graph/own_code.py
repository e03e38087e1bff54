"""The code that authors wrote: which names it uses, in a forward and elsewhere."""

import dis
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any


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


def names_in(code: CodeType) -> set[str]:
    """The attributes and globals that some code names."""
    return {name for part in _parts(code) for name in part.co_names}


@lru_cache(maxsize=1024)
def globals_in(code: CodeType) -> tuple[str, ...]:
    """The globals that some code names: not the attributes."""
    loads = (i for part in _parts(code) for i in dis.get_instructions(part))
    return tuple(dict.fromkeys(i.argval for i in loads if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")))


def _parts(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
