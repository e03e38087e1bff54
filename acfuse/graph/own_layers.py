"""Which modules are torch's own layers, and which are called as torch calls a module."""

from functools import lru_cache
from typing import Any

from torch import nn


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch's own, and computes what torch's class of it does.

    A sub-class or an instance that brings a method or property in its place is no longer that.
    """
    kind: Any = type(module)
    return _is_torchs_own(kind) and not (vars(module).keys() & _members(kind))


@lru_cache(maxsize=4096)
def _is_torchs_own(kind: Any) -> bool:
    mine = [k for k in kind.__mro__ if not k.__module__.startswith("torch.nn.")]
    base = next(k for k in kind.__mro__ if k not in mine or k is object)
    brought = {name for k in kind.__mro__[: kind.__mro__.index(base)] for name in vars(k)}
    return base not in (nn.Module, object) and not (brought & _members(base)) - HARMLESS


@lru_cache(maxsize=4096)
def _members(kind: Any) -> frozenset[str]:
    """The methods and properties of a class."""
    return frozenset(
        name for k in kind.__mro__ if k is not object for name, value in vars(k).items()
        if callable(value) or isinstance(value, (property, classmethod, staticmethod))
    )  # fmt: skip


# What a sub-class may bring and still compute the same.
HARMLESS = {"__init__", "__repr__", "__init_subclass__", "extra_repr", "reset_parameters",
            "_load_from_state_dict", "_save_to_state_dict", "state_dict", "load_state_dict",
            "__setstate__", "__getstate__", "_get_name"}  # fmt: skip


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs anything besides its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def calls_plainly(module: nn.Module) -> bool:
    """Whether calling a module is nn.Module's own way to run its forward."""
    places = (k for k in type(module).__mro__ if CALLING & vars(k).keys())
    return next(places, nn.Module) is nn.Module and not CALLING & vars(module).keys()


CALLING = {"__call__", "_call_impl", "_wrapped_call_impl"}
