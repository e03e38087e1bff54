"""Who shares memory with whom in a traced forward, and what is written in place.

Told by the names of operators, as torch has them, and of aten's by what they declare. An operator
that is not known here is taken for one that gives a new tensor.
"""

from collections.abc import Callable

import torch
from torch import fx, nn

from acfuse.graph.fx_trace import Traced, is_layer
from acfuse.graph.fx_values import function_name

PASSING_LAYERS = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten)
# Functions, methods and attributes whose result may be what they read, or a view of it.
VIEWS = {
    "getattr", "getitem", "data", "detach", "t", "view", "view_as", "reshape", "reshape_as",
    "flatten", "squeeze", "unsqueeze", "transpose", "permute", "expand", "expand_as", "narrow",
    "select", "unbind", "chunk", "split", "contiguous", "to", "type", "float", "double", "half",
    "bfloat16", "cpu", "cuda", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
}  # fmt: skip
IN_PLACE_OPERATORS = {"iadd", "isub", "imul", "itruediv", "setitem"}


def write_once(traced: Traced, makes_new: Callable[[nn.Module], bool]) -> None:
    """Makes in-place writes explicit: who reads a value after it was overwritten reads the result.

    Where that can't be said, because a value is written through a view, by index, or under another
    of its names, the values are `mutated`. `makes_new` says of a module of the user's own whether
    what it returns is a tensor of its own, sharing no memory with what it takes.
    """
    graph, module = traced.graph, traced.module
    if graph is None:
        return
    order = {node: i for i, node in enumerate(graph.nodes)}
    behind: dict[fx.Node, set[fx.Node]] = {}  # whose memory each value may be, or share
    aliases: dict[fx.Node, set[fx.Node]] = {}  # and the other way round
    for node in graph.nodes:
        bases = _aliased(node, module, makes_new)
        behind[node] = {*bases, *(n for base in bases for n in behind[base])}
        for base in behind[node]:
            aliases.setdefault(base, set()).add(node)
    mutated: set[fx.Node] = set()
    writes: dict[str, str] = {}
    for node in graph.nodes:
        target = _written(node, module)
        if target is None:
            continue
        shared = {target, *behind[target]}
        shared |= {n for base in tuple(shared) for n in aliases.get(base, ()) if n is not node}
        writes.update((n.name, node.name) for n in shared)
        late = {n for n in shared - {target} if any(order[u] > order[node] for u in n.users)}
        if late or function_name(node) == "setitem":
            mutated |= shared
            continue
        if any(n.op in ("placeholder", "get_attr") for n in shared):
            mutated |= shared  # the caller, or a later call, sees the change
        for user in list(target.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(target, node)
    traced.mutated = frozenset(node.name for node in mutated)
    traced.writes = writes
    returned = next(n for n in graph.nodes if n.op == "output").args[0]
    traced.returns_new = isinstance(returned, fx.Node) and not any(
        n.op in ("placeholder", "get_attr") for n in (returned, *behind[returned])
    )


def _aliased(
    node: fx.Node, module: nn.Module, makes_new: Callable[[nn.Module], bool]
) -> list[fx.Node]:
    """The inputs of a node that its output may be, or share memory with."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        passes = isinstance(layer, PASSING_LAYERS) if is_layer(layer) else not makes_new(layer)
        return node.all_input_nodes if passes else []
    views = node.op in ("call_function", "call_method") and function_name(node) in VIEWS
    return node.all_input_nodes[:1] if views or _is_view(node.target) else []


def _is_view(target: object) -> bool:
    """Whether aten says of an operator that it gives a view of what it reads."""
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    return any(result.alias_info is not None for result in target._schema.returns)


def _written(node: fx.Node, module: nn.Module) -> fx.Node | None:
    """The value that a node overwrites, if it is one that does."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        return None
    name = function_name(node)
    writes = name.endswith("_") and not name.startswith("_")
    if node.op == "call_module":
        writes = getattr(module.get_submodule(name), "inplace", False)
    elif node.op == "call_function":
        writes = writes or name in IN_PLACE_OPERATORS or node.kwargs.get("inplace") is True
    elif node.op != "call_method":
        return None
    return first if writes else None
