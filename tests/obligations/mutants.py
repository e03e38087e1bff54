"""The geometry with one operator changed, and which obligations should notice."""

import ast
import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from acfuse.algebra import adjoint_geometry, geometry

SOURCES = {
    module.__name__.rpartition(".")[2]: Path(module.__file__).read_text(encoding="utf-8")
    for module in (geometry, adjoint_geometry)
}
MARK = re.compile(r"# proved: ([a-z, -]+)$")

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Mod: ast.FloorDiv,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "gcd": "min"}
# What decides no map: limits of memory, costs, and channels of layers that nothing is done to.
APART = {"reach", "spacing", "lowered_taps", "multiply_adds", "_too_large", "__post_init__",
         "taps", "stride", "identity", "affine", "without_shift", "pixels", "weights",
         "crops", "dilation_at", "_layer_taps"}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: where, what it was, what it became; and the obligations named there."""

    source: str
    line: int
    change: str
    tree: ast.Module
    obligations: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.source} {self.line}: {self.change}"

    def module(self) -> ModuleType:
        """The source with this change."""
        module = ModuleType(f"mutated_{self.source}")
        sys.modules[module.__name__] = module  # where dataclasses look for names
        exec(compile(self.tree, f"mutated {self.source}", "exec"), module.__dict__)
        return module


def marks(source: str) -> dict[int, tuple[str, ...]]:
    """The obligations that each line of a source names, or the comment above it."""
    found = {}
    for number, line in enumerate(SOURCES[source].splitlines(), start=1):
        if mark := MARK.search(line):
            alone = line.lstrip().startswith("#")
            found[number + alone] = tuple(mark.group(1).split(", "))
    return found


def mutants() -> Iterator[Mutant]:
    """Every change of one operator in code that decides, with what is named nearest around it."""
    for source, text in SOURCES.items():
        tree, named = ast.parse(text), marks(source)
        nodes = list(_deciding(tree, (), named))
        for place, (node, obligations) in enumerate(nodes):
            for change in range(_changes(node)):
                copy = deepcopy(tree)
                other, _ = list(_deciding(copy, (), named))[place]
                told = _told(other)
                _change(other, change)
                new = _told(other)
                ast.fix_missing_locations(copy)
                yield Mutant(source, node.lineno, f"{told} -> {new}", copy, obligations)


def _deciding(
    node: ast.AST, around: tuple[str, ...], named: dict[int, tuple[str, ...]]
) -> Iterator[tuple[ast.expr | ast.If, tuple[str, ...]]]:
    """The expressions that can be changed; not those of limits, messages and annotations."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and child.name in APART:
            continue
        if isinstance(child, ast.Raise | ast.JoinedStr | ast.AnnAssign | ast.arguments):
            continue
        if isinstance(child, ast.If) and "LARGEST" in ast.unparse(child.test):
            continue
        if isinstance(node, ast.FunctionDef) and child is node.returns:
            continue
        inner = named.get(getattr(child, "lineno", 0), around)
        if _changes(child):
            yield child, inner
        yield from _deciding(child, inner, named)


def _told(node: ast.AST) -> str:
    return ast.unparse(node.test if isinstance(node, ast.If) else node)


def _changes(node: ast.AST) -> int:
    """How many changes this expression has."""
    match node:
        case ast.Compare():
            return sum(type(op) in OPERATORS for op in node.ops)
        case ast.If():
            return int(not _changes(node.test))
        case ast.BoolOp() | ast.IfExp():
            return 1
        case ast.BinOp():
            return int(type(node.op) in OPERATORS)
        case ast.UnaryOp():
            return int(not isinstance(node.operand, ast.Constant))
        case ast.Call(func=ast.Name(id=name)):
            return int(name in NAMES)
        case ast.Subscript(slice=ast.Constant(value=0)):
            return 1
        case ast.Subscript(slice=ast.UnaryOp()):
            return 1
    return 0


def _change(node: ast.AST, number: int) -> None:
    """Makes one of them, in place."""
    match node:
        case ast.If():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Compare():
            node.ops[number] = OPERATORS[type(node.ops[number])]()
        case ast.BoolOp() | ast.BinOp():
            node.op = OPERATORS[type(node.op)]()
        case ast.IfExp():
            node.body, node.orelse = node.orelse, node.body
        case ast.UnaryOp():
            node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
            if isinstance(node.op, ast.Not):
                node.operand = ast.UnaryOp(ast.Not(), node.operand)
        case ast.Call(func=ast.Name() as name):
            name.id = NAMES[name.id]
        case ast.Subscript():
            node.slice = ast.Constant(-1 if isinstance(node.slice, ast.Constant) else 0)
