"""Copies of models."""

import contextvars
import copy
import gc
import io
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from acfuse.errors import InputError
from acfuse.graph.own_layers import has_hooks, is_layer
from acfuse.system.devices import CPU, device_of
from acfuse.system.escape import one_line


def copied(model: nn.Module, shared: Mapping[int, Any] | None = None) -> nn.Module:
    """What `copy.deepcopy` gives, several times as fast; `shared` holds by id what is not copied.

    Most of a model are torch's own layers, and most of these are numbers, and dicts that are empty
    (hooks of each kind): slow to copy one by one. A tensor that was computed from others, as a
    weight that a hook computes before each call, is copied with the numbers that it has. Where a
    class has a __deepcopy__ of its own that gives something else than a copy, it is not asked.
    Raises InputError where there is no other way.
    """
    allowed = {id(value) for value in (shared or {}).values()}
    try:
        twin = _copied(model, dict(shared or {}))
        if not _mistake(model, twin, allowed):
            return twin
    except MemoryError:
        raise
    except Exception:  # of whatever its attributes are: another way is tried
        pass
    try:
        known = _taken_otherwise(model) | dict(shared or {})
        twin = _copied(model, known, plainly=_with_own_copies(model))
        why = _mistake(model, twin, allowed)
    except Exception as error:
        why = _culprit(model, dict(shared or {})) or one_line(error, 200)
    if why:
        raise InputError(
            f"the model cannot be copied: {why}. Take it out of the model, or make it where the "
            "forward needs it."
        )
    return twin


def _taken_otherwise(model: nn.Module) -> dict[int, Any]:
    """What deepcopy refuses although another one serves as well, with that one, by id.

    Wherever in the model it stands: tensors that were computed from others, with their numbers; and
    what is no part of a model's state, which copies share: locks, open files, modules.
    """
    known: dict[int, Any] = {}
    seen: set[int] = set()
    stack: list[Any] = [model]
    while stack:
        value = stack.pop()
        if id(value) in seen or isinstance(value, CODE):
            known |= {id(value): value} if isinstance(value, ModuleType) else {}
            continue
        seen.add(id(value))
        if isinstance(value, SHARED):
            known[id(value)] = value
        elif isinstance(value, Tensor):
            if not value.is_leaf:
                known[id(value)] = value.detach().clone()
        else:
            stack.extend(gc.get_referents(value))
    return known


# What deepcopy takes as it is, and what stands behind it is no part of a model.
CODE = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType, FrameType)
SHARED = (
    io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper,
    socket.socket, contextvars.ContextVar, type(threading.Lock()), type(threading.RLock()),
)  # fmt: skip


def _culprit(model: nn.Module, shared: Mapping[int, Any]) -> str:
    """The attribute that cannot be copied, and why; "" if none is so by itself."""
    known = _taken_otherwise(model)
    inner = {id(part): part for part in model.modules()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                copy.deepcopy(value, {**inner, **known, **shared})
            except Exception as error:
                return f"{path}.{name}".strip(".") + f" cannot be ({one_line(error, 120)})"
    return ""


def _with_own_copies(model: nn.Module) -> list[nn.Module]:
    """The modules of a class that says itself how it is copied."""
    kinds = ((m, getattr(type(m), "__deepcopy__", None)) for m in model.modules())
    known = ("torch", "acfuse")
    return [m for m, own in kinds
            if own is not None and str(own.__module__).partition(".")[0] not in known]  # fmt: skip


def _copied(
    model: nn.Module, known: dict[int, Any], plainly: Sequence[nn.Module] = ()
) -> nn.Module:
    twins = [(module, object.__new__(type(module))) for module in plainly]
    known |= {id(module): twin for module, twin in twins}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                known.setdefault(id(value), value.detach().clone())
        if is_layer(module) and not module._modules and id(module) not in known:
            known[id(module)] = _layer(module, known)
            continue
        for value in vars(module).values():
            if type(value) in EMPTY and not value:
                known.setdefault(id(value), type(value)())
    for module, twin in twins:
        vars(twin).update({n: copy.deepcopy(part, known) for n, part in vars(module).items()})
    whole: nn.Module = copy.deepcopy(model, known)
    return whole


def _mistake(model: nn.Module, twin: nn.Module, allowed: Collection[int]) -> str:
    """How a copy shares a module or a tensor with the original, or is something else; or ""."""
    theirs = {id(part) for _, part in _parts(model)} - set(allowed)
    for name, part in _parts(twin):
        if id(part) in theirs:
            return f"a __deepcopy__ gives a part of the original: {name or 'the model'}"
    pairs = zip_longest(_parts(model), _parts(twin), fillvalue=("", None))
    for (name, part), (other, made) in pairs:
        if name != other or _is_other(part, made):
            return f"a __deepcopy__ gives something else: {name or other or 'the model'}"
    return ""


def _is_other(one: object, other: object) -> bool:
    """Whether a part became one of another class or dtype. Numbers may be replaced by ghosts."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype != other.dtype
    for kind in (torch.jit.ScriptModule, fx.GraphModule):
        if isinstance(one, kind) and isinstance(other, kind):
            return False  # a traced one becomes a scripted one; each graph has a class of its own
    return type(one) is not type(other)


def _parts(model: nn.Module) -> Iterator[tuple[str, object]]:
    """The modules and tensors of a model, by name."""
    for path, module in model.named_modules():
        yield path, module
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _layer(layer: nn.Module, known: dict[int, Any]) -> nn.Module:
    twin: nn.Module = object.__new__(type(layer))
    for name, value in vars(layer).items():
        if type(value) in EMPTY and not value:
            vars(twin)[name] = type(value)()
        elif type(value) in PLAIN or (type(value) is tuple and PLAIN.issuperset(map(type, value))):
            vars(twin)[name] = value
        else:
            vars(twin)[name] = copy.deepcopy(value, known)
    return twin


EMPTY = (dict, OrderedDict)
PLAIN = {bool, int, float, str, type(None)}


def on_cpu(model: nn.Module) -> nn.Module:
    """A model on the CPU, as it is written to files: itself, or a copy of one that is elsewhere."""
    return model if device_of(model) == CPU else copied(model).to(CPU)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what runs it in parallel, or compiled: it computes the same."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # slow to load, and then nobody compiled
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel,
                getattr(compiler, "OptimizedModule", None))  # fmt: skip
    while type(model) in wrappers and not has_hooks(model):
        model = next(model.children())
    return model
