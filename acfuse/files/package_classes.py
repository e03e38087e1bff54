"""The classes of an installed package that a pickle may name, where a user allows the package.

The user names the package, and the file names modules and classes in it. So no more is taken than
what is known to do nothing when it is made: torch modules, and objects that are only attributes.
Functions, what a module has from elsewhere, and classes that bring a way of their own to be made,
copied or filled are refused, whatever they do.
"""

import importlib.machinery
import importlib.util
import inspect
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acfuse.errors import UnsafeError, UsageError
from acfuse.files.user_modules import imported

FLAG = "--allow-package"
# What a class may bring, beside plain names, and be made and filled as its base is.
HARMLESS = {
    "__module__", "__qualname__", "__doc__", "__annotations__", "__dict__", "__weakref__",
    "__init__", "__repr__", "__str__", "__len__", "__iter__", "__getitem__", "__contains__",
    "__call__", "__getattr__", "__dir__", "__constants__", "__jit_unused_properties__",
    "__firstlineno__", "__static_attributes__", "__annotate__", "__annotate_func__",
    "__annotations_cache__",
}  # fmt: skip
OURS = ("acfuse", "torch", "numpy")  # of which what is safe is known one by one


def in_package(name: str, allowed: Sequence[str]) -> str:
    """The module of a class that a pickle names, if its package is among `allowed`; "" if not.

    Nothing is imported. Raises UsageError for what is no package that can be allowed.
    """
    packages = {spec.removesuffix(":*") for spec in allowed if spec.endswith(":*")}
    for package in packages:
        if not package.isidentifier() or package in {*OURS, *sys.stdlib_module_names}:
            raise UsageError(
                f"{FLAG} {package}: expected the name of an installed package, as in an import; "
                "none of Python's own, of torch or numpy."
            )
    return name.rpartition(".")[0] if name.partition(".")[0] in packages else ""


def package_of(name: str) -> str:
    """The installed package of a class, by the name that a pickle has for it; "" if there is none.

    Nothing is imported.
    """
    top = name.partition(".")[0]
    if not top.isidentifier() or top in {*OURS, *sys.stdlib_module_names}:
        return ""
    spec = importlib.machinery.PathFinder.find_spec(top)
    places = {"site-packages", "dist-packages"}
    return top if spec and spec.origin and places & {*Path(spec.origin).parts} else ""


def own_class(module: str, name: str) -> type[Any]:
    """The class of that name, from a module of a package that the user allowed.

    Raises UnsafeError for what is no class of the package's own that is only its attributes.
    """
    parts = module.split(".")
    if not all(part.isidentifier() and not part.startswith("__") for part in parts):
        raise UnsafeError(f"{FLAG} {parts[0]}: {module} is no module that a class comes from.")
    place = imported(module, FLAG)
    found = vars(place).get(name.rpartition(".")[2])
    if not inspect.isclass(found) or found.__module__ != module:
        raise UnsafeError(f"{FLAG} {parts[0]}: {name} is no class of that package's own.")
    if not _is_only_attributes(found):
        raise UnsafeError(
            f"{FLAG} {parts[0]}: {name} may act when it is made. Only torch modules, and objects "
            "that are only attributes, can be allowed. Whoever made the file can save the "
            "model's state_dict()."
        )
    return found


def _is_only_attributes(kind: type[Any]) -> bool:
    """Whether making an object of a class, and filling it, runs nothing that the class brings."""
    if type(kind) is not type:
        return False
    is_module = issubclass(kind, nn.Module)
    if issubclass(kind, (torch.fx.GraphModule, torch.jit.ScriptModule)):
        return False
    for base in kind.__mro__:
        if base in (object, types.SimpleNamespace):
            continue
        if is_module and (base is nn.Module or base.__module__.startswith("torch.nn.modules.")):
            continue
        special = {name for name in vars(base) if name.startswith("__") and name.endswith("__")}
        if special - HARMLESS or ("__init__" in special and not is_module):
            return False
    # Torch asks an object if it wants to be filled in a way of its own.
    return is_module or not hasattr(kind(), "__setstate__")
