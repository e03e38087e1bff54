"""Copies of models."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn

from acfuse.graph.own_layers import is_layer


def copied(model: nn.Module, shared: Mapping[int, Any] | None = None) -> nn.Module:
    """What `copy.deepcopy` gives, several times as fast; `shared` holds by id what is not copied.

    Most of a model are torch's own layers, and most of these are numbers, and dicts that are empty
    (hooks of each kind): slow to copy one by one.
    """
    known: dict[int, Any] = dict(shared or {})
    for module in model.modules():
        if is_layer(module) and not module._modules and id(module) not in known:
            known[id(module)] = _layer(module, known)
            continue
        for value in vars(module).values():
            if type(value) in EMPTY and not value:
                known.setdefault(id(value), type(value)())
    return copy.deepcopy(model, known)


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
