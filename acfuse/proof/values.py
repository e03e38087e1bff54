"""What any value of Python is made of, so that two of them can be compared part by part.

Nothing is asked of a class but what Python and torch keep for every object: its attributes, its
slots, and how it would be pickled.
"""

import copyreg
import enum
import functools
import re
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from acfuse.graph.own_code import globals_in

Parts = Sequence[tuple[str, Any]]  # each with the way to it from what it is a part of


@dataclass(frozen=True)
class Made:
    """What a value is by itself, and its parts. Not `known`: there is more, and nobody can see it.

    `alone` is compared by equality. Parts that are not `ordered` are told apart by their names.
    """

    alone: object = None
    parts: Parts = ()
    ordered: bool = True
    known: bool = True


class Names(dict[str, Any]):
    """The modules, parameters or buffers of a module, by name."""


def made_of(value: Any) -> Made:
    """What a value is made of. A tensor is not taken apart."""
    kind = type(value)
    if kind in PLAIN:
        return Made(repr(value))
    if kind is Names:
        return Made(None, [(f".{name}", part) for name, part in value.items()])
    for base, rule in RULES:
        if isinstance(value, base):
            made: Made = rule(value)
            return made
    return _object(value)


PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice,
         torch.dtype, torch.device, torch.layout, torch.memory_format)  # fmt: skip


def attributes(value: Any) -> dict[str, Any]:
    """Everything that stands in an object's own namespace and slots."""
    found = {f".{name}": part for name, part in getattr(value, "__dict__", {}).items()}
    for name in copyreg._slotnames(type(value)):  # type: ignore[attr-defined]
        if name != "__dict__" and hasattr(value, name):
            found[f".{name}"] = getattr(value, name)
    return found


def _object(value: Any) -> Made:
    """An object without a rule of its own: its attributes, and what it would be pickled as."""
    parts = attributes(value)
    pickled = reduced(value)
    if has_own_reduce(value):
        parts |= {f" (pickled, {i})": part for i, part in enumerate(pickled or ())}
    known = pickled is not None or (bool(parts) and _is_pythons(type(value)))
    base: Any = next((kind for kind in NUMBERS if isinstance(value, kind)), None)
    alone = None if base is None else base.__repr__(value)
    return Made(alone, list(parts.items()), ordered=False, known=known)


def _is_pythons(kind: type) -> bool:
    """Whether a class is built on `object` alone, as far as that can be told."""
    return all(k is object or k.__flags__ & HEAP for k in kind.__mro__)


NUMBERS = (int, float, complex, str, bytes)  # and what is built on them
HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def has_own_reduce(value: Any) -> bool:
    """Whether an object's class says itself what it is pickled as, or another does for it."""
    kind: Any = type(value)
    if kind in copyreg.dispatch_table:
        return True
    return (kind.__reduce_ex__, kind.__reduce__) != (object.__reduce_ex__, object.__reduce__)


def reduced(value: Any) -> list[Any] | None:
    """What an object would be pickled as; None if it cannot be."""
    try:
        told: Any = copyreg.dispatch_table.get(type(value))
        made = told(value) if told is not None else value.__reduce_ex__(4)
    except Exception:  # whatever a class makes of it
        return None
    if isinstance(made, str):
        return [made]
    return [list(part) if i in (3, 4) and part is not None else part
            for i, part in enumerate(made)]  # fmt: skip


def _module(value: nn.Module) -> Made:
    parts = attributes(value)
    for name in COMPILED:
        parts.pop(name, None)
    held = [("", Names(parts.pop(f".{n}", {}))) for n in ("_parameters", "_buffers", "_modules")]
    named = {f" ({name})": part for name, (_, part) in zip(HELD, held, strict=True)}
    return Made(None, [*parts.items(), *((name, named[name]) for name in named)], ordered=False)


# What torch.compile and torch.jit leave on a module: how it is run, not what it gives.
COMPILED = ("._compiled_call_impl", "._is_torch_compile", ".__overloads__")
HELD = ("parameters", "buffers", "modules")


def _script(value: torch.jit.ScriptModule) -> Made:
    code = re.sub(r"(___torch_mangle_\d+\.)|( object at 0x[0-9a-f]+)", "", _code_of(value))
    modes = [getattr(module, "training", None) for module in value.modules()]  # frozen: none
    return Made((code, modes), [(" (tensors)", Names(value.state_dict(keep_vars=True)))])


def _code_of(value: torch.jit.ScriptModule) -> str:
    code: str = value._c.dump_to_str(True, False, False)
    return code


def _mapping(value: Mapping[Any, Any]) -> Made:
    parts: list[tuple[str, Any]] = []
    base: Any = OrderedDict if isinstance(value, OrderedDict) else dict
    for i, (key, part) in enumerate(base.items(value)):
        plain = type(key) in PLAIN
        parts += [] if plain else [(f"(key {i})", key)]
        parts.append((f"[{key!r}]" if plain else f"[{i}]", part))
    return Made(None, [*parts, *attributes(value).items(), *_factory(value)])


def _factory(value: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(value, "default_factory"):
        yield ".default_factory", value.default_factory


def _sequence(value: Sequence[Any]) -> Made:
    base: Any = next(kind for kind in (list, tuple, deque) if isinstance(value, kind))
    parts = [(f"[{i}]", part) for i, part in enumerate(base.__iter__(value))]
    return Made(getattr(value, "maxlen", None), [*parts, *attributes(value).items()])


def _set(value: set[Any] | frozenset[Any]) -> Made:
    plain = all(map(_is_plain, value))
    alone = sorted(map(repr, value)) if plain else len(value)
    named = {f"{{{part.__qualname__}}}": part for part in value if hasattr(part, "__qualname__")}
    known = plain or len(named) == len(value)  # functions and classes, each of a name of its own
    return Made(alone, [*sorted(named.items()), *attributes(value).items()], known=known)


def _is_plain(value: Any) -> bool:
    """Whether a value's text is all of it."""
    return type(value) in PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


def _array(value: np.ndarray[Any, Any]) -> Made:
    if value.dtype.hasobject:
        return Made((value.dtype, value.shape), [(".flat", value.ravel().tolist())])
    return Made((type(value), value.dtype.str, value.shape, value.tobytes()))


def _number(value: np.generic) -> Made:
    return Made((value.dtype.str, value.tobytes()))


def _function(value: types.FunctionType) -> Made:
    cells = [_content(cell) for cell in value.__closure__ or ()]
    names = zip(value.__code__.co_freevars, cells, strict=True)
    used = [n for n in globals_in(value.__code__) if n in value.__globals__]
    parts = [(".__defaults__", value.__defaults__), (".__kwdefaults__", value.__kwdefaults__)]
    parts += [(f" (its {name})", content) for name, content in names]
    parts += [(f" (global {name})", value.__globals__[name]) for name in used]
    return Made(value.__code__, [*parts, *attributes(value).items()])


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return ...


def _method(value: types.MethodType) -> Made:
    return Made(None, [(".__func__", value.__func__), (".__self__", value.__self__)])


def _builtin(value: types.BuiltinFunctionType) -> Made:
    return Made(value.__qualname__, [(".__self__", value.__self__)])


def _partial(value: functools.partial[Any]) -> Made:
    parts = [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    return Made(None, [*parts, *attributes(value).items()])


def _class(value: type) -> Made:
    own = {f".{n}": part for n, part in vars(value).items() if n not in BOOKKEEPING}
    parts = [(" (bases)", value.__bases__), (" (metaclass)", type(value)), *own.items()]
    return Made((value.__module__, value.__qualname__), parts, ordered=False)


# What Python keeps of a class for itself.
BOOKKEEPING = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__annotations__",
    "_abc_impl",
    "__abc_cache__",
}


def _wrapper(value: Any) -> Made:
    names = ("fget", "fset", "fdel", "__func__")
    return Made(None, [(f".{n}", getattr(value, n)) for n in names if hasattr(value, n)])


def _graph(value: fx.Graph) -> Made:
    code = value.python_code("self")
    return Made(code.src, [(f" (global {n})", part) for n, part in code.globals.items()])


def _generator(value: torch.Generator) -> Made:
    return Made((value.device, value.get_state().numpy().tobytes()))


def _enumeration(value: enum.Enum) -> Made:
    return Made(value.name, [(".value", value.value)])


def _library(value: types.ModuleType) -> Made:
    return Made(value.__name__)


def _reference(value: weakref.ref[Any]) -> Made:
    return Made(None, [("()", value())])


RULES: tuple[tuple[Any, Any], ...] = (
    (torch.jit.ScriptModule, _script),
    (nn.Module, _module),
    (enum.Enum, _enumeration),
    (type, _class),
    (dict, _mapping),
    ((list, tuple, deque), _sequence),
    ((set, frozenset), _set),
    (np.ndarray, _array),
    (np.generic, _number),
    (types.FunctionType, _function),
    (types.MethodType, _method),
    ((types.BuiltinFunctionType, types.MethodWrapperType), _builtin),
    (functools.partial, _partial),
    ((property, staticmethod, classmethod), _wrapper),
    (types.ModuleType, _library),
    (weakref.ref, _reference),
    (torch.Generator, _generator),
    (fx.Graph, _graph),
)
