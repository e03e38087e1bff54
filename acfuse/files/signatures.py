"""What a call of a class or function of a file would raise, told from its text alone."""

import ast
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

Definition = ast.ClassDef | ast.FunctionDef
CAPTURES = ast.ExceptHandler | ast.MatchAs | ast.MatchStar | ast.MatchMapping
# How a file may import what it calls `nn.Module`, and nothing else.
MODULE = ("import torch", "import torch.nn", "import torch.nn as nn", "from torch import nn")
BASES = ("nn.Module", "torch.nn.Module")


def fault_of_call(path: Path, name: str, arguments: Mapping[str, Any]) -> TypeError | None:
    """The TypeError that `name(**arguments)` raises for its signature; None if that is not certain.

    It is certain for a plain function, or a class of torch modules with an `__init__`, that the
    file defines once and speaks of nowhere else in a way that may change it. Nothing of the file
    is run. Raises SyntaxError for a file that is no Python.
    """
    tree = _parsed(path)
    if tree is None:
        return None
    found = _only_definition(tree, name)
    method = _init(tree, found) if isinstance(found, ast.ClassDef) else found
    if method is None:
        return None
    own = _without_body(method, f"{name}.__init__" if method is not found else name)
    try:
        own(*(() if method is found else (None,)), **arguments)
    except TypeError as error:
        return error
    return None


def _parsed(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are the import's to give
            return ast.parse(path.read_bytes(), path.resolve())
    except (OSError, ValueError, RecursionError, MemoryError):
        return None


def _only_definition(tree: ast.Module, name: str) -> Definition | None:
    """The definition of a name, if nothing else in the file can bind or change it."""
    if _may_bind_anything(tree):
        return None
    bound = [node for node in ast.walk(tree) if _binds(node, name) or _hands_on(node, name)]
    found = bound[0] if len(bound) == 1 else None
    if not isinstance(found, Definition) or found not in tree.body or found.decorator_list:
        return None
    return found


def _may_bind_anything(tree: ast.Module) -> bool:
    """Whether a file imports whatever there is, or reaches for its own namespace."""
    reaching = {"globals", "setattr", "delattr", "exec", "eval", "vars", "locals", "__builtins__"}
    return any(
        (isinstance(node, ast.alias) and node.name == "*")
        or (isinstance(node, ast.Name) and node.id in reaching)
        or (isinstance(node, ast.Attribute) and node.attr in ("modules", "__dict__")
            and ast.unparse(node.value) in ("sys", "self.__class__", "type(self)"))
        for node in ast.walk(tree)
    )  # fmt: skip


def _hands_on(node: ast.AST, name: str) -> bool:
    """Whether a node gives what a name means to something that may change it."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) in ("super", "isinstance"):
        return False
    values = [*node.args, *(keyword.value for keyword in node.keywords)]
    return any(isinstance(value, ast.Name) and value.id == name for value in values)


def _binds(node: ast.AST, name: str) -> bool:
    """Whether a node gives a name, or an attribute of what it names, another value."""
    if isinstance(node, Definition | ast.AsyncFunctionDef):
        return node.name == name
    if isinstance(node, ast.alias):
        return (node.asname or node.name.partition(".")[0]) == name
    if isinstance(node, ast.Name):
        return node.id == name and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Attribute):
        changed = not isinstance(node.ctx, ast.Load)
        return changed and isinstance(node.value, ast.Name) and node.value.id == name
    captured = getattr(node, "name", None) or getattr(node, "rest", None)
    return isinstance(node, CAPTURES) and captured == name


def _init(tree: ast.Module, found: ast.ClassDef) -> ast.FunctionDef | None:
    """The `__init__` that a call of a class calls first; None if that is not certain."""
    if found.keywords or len(found.bases) != 1 or not _is_module(tree, found.bases[0]):
        return None
    if any(_binds(node, "__new__") for node in ast.walk(found)):
        return None
    bound = [node for node in ast.walk(found) if _binds(node, "__init__")]
    init = bound[0] if len(bound) == 1 and bound[0] in found.body else None
    return init if isinstance(init, ast.FunctionDef) and not init.decorator_list else None


def _is_module(tree: ast.Module, base: ast.expr) -> bool:
    """Whether a class that others derive from is `torch.nn.Module` itself."""
    text = ast.unparse(base)
    if text not in BASES:
        return False
    top = text.partition(".")[0]
    binding = [node for node in ast.walk(tree) if _binds(node, top)]
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    ours = [alias for n in imports for alias in n.names if _statement(n, alias) in MODULE]
    return bool(binding) and all(node in ours for node in binding)


def _statement(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    """An import of one name, as it is written."""
    front = f"from {node.module} import" if isinstance(node, ast.ImportFrom) else "import"
    return " ".join([front, alias.name, *(["as", alias.asname] if alias.asname else [])])


def _without_body(method: ast.FunctionDef, name: str) -> FunctionType:
    """A function of the same signature that does nothing, so that Python itself words the error."""
    given = method.args
    plain = [arg.arg for arg in (*given.posonlyargs, *given.args)]
    names = [*plain, *(a.arg for a in (*given.kwonlyargs, given.vararg, given.kwarg) if a)]
    more = (given.vararg and inspect.CO_VARARGS, given.kwarg and inspect.CO_VARKEYWORDS)
    code = (lambda: None).__code__
    code = code.replace(
        co_name=method.name,
        co_qualname=name,
        co_posonlyargcount=len(given.posonlyargs),
        co_argcount=len(plain),
        co_kwonlyargcount=len(given.kwonlyargs),
        co_varnames=tuple(names),
        co_nlocals=len(names),
        co_flags=code.co_flags | sum(flag or 0 for flag in more),
    )
    made = FunctionType(code, {}, method.name, (None,) * len(given.defaults))
    both = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    made.__kwdefaults__ = {arg.arg: None for arg, default in both if default is not None}
    return made
