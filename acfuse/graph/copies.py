"""Copies of models."""

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from acfuse.errors import InputError
from acfuse.graph.own_layers import is_layer


def copied(model: nn.Module, shared: Mapping[int, Any] | None = None) -> nn.Module:
    """What `copy.deepcopy` gives, several times as fast; `shared` holds by id what is not copied.

    Most of a model are torch's own layers, and most of these are numbers, and dicts that are empty
    (hooks of each kind): slow to copy one by one. A tensor that was computed from others, as a
    weight that a hook computes before each call, is copied with the numbers that it has. Raises
    InputError where a class says that its copy is, or holds, the original.
    """
    known: dict[int, Any] = dict(shared or {})
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
    allowed = {id(value) for value in (shared or {}).values()}
    twin: nn.Module = copy.deepcopy(model, known)
    _make_sure(model, twin, allowed)
    return twin


def _make_sure(model: nn.Module, twin: nn.Module, allowed: Collection[int]) -> None:
    """Raises InputError if a copy shares a module or a tensor with the original."""
    own = {id(part) for part in _parts(model)} - set(allowed)
    for path, module in twin.named_modules():
        if any(id(part) in own for part in (module, *_tensors(module))):
            raise InputError(
                f"{path or 'the model'} cannot be copied: the __deepcopy__ of its class, or of one "
                "around it, gives parts of the original. Remove that method."
            )


def _parts(model: nn.Module) -> Iterator[object]:
    for module in model.modules():
        yield module
        yield from _tensors(module)


def _tensors(module: nn.Module) -> list[Tensor]:
    held = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in held if tensor is not None]


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
