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
    """The attributes of its module that a forward names, by itself and by its class's methods."""
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
            new = _of_itself(functions[name].__code__)
            names |= new
            pending += new
    return frozenset(names)


def _of_itself(code: CodeType) -> set[str]:
    """The attributes that a method names of its own module: `self.name`."""
    own = code.co_varnames[0] if code.co_argcount else ""
    found: set[str] = set()
    for part in _parts(code):
        before: Any = None
        for step in dis.get_instructions(part):
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and before == own:
                found.add(step.argval)
            loads = step.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF"))
            before = step.argval if loads else None
            before = before[-1] if isinstance(before, tuple) else before
    return found


@lru_cache(maxsize=1024)
def globals_in(code: CodeType) -> tuple[str, ...]:
    """The globals that some code reads, sets or deletes: not the attributes."""
    steps = (i for part in _parts(code) for i in dis.get_instructions(part))
    return tuple(dict.fromkeys(i.argval for i in steps if i.opname.endswith(("_GLOBAL", "_NAME"))))


def _parts(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
