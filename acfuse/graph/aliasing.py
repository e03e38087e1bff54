"""Who shares memory with whom in a traced forward, and what is written in place.

A value is new only if torch itself says so: the operator's schema names no alias, and it is a
kernel and no composition of others, whose schema promises less (einsum may give a view). Whatever
else torch has may give back what it reads, and writes where its name or arguments say so. What
torch does not have, and a module that cannot be read, may do both with all that it reads.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acfuse.graph.fx_trace import Traced
from acfuse.graph.fx_values import IN_PLACE, METADATA, METADATA_ATTRIBUTES, function_name
from acfuse.graph.own_layers import is_layer

PLACES = (torch, F, operator, torch._C._nn, torch.special, torch.linalg, torch.fft)
# Compositions of torch that always end in a kernel, beside those whose schema says it.
NEW = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
       "batch_norm", "instance_norm", "layer_norm", "group_norm", "linear", "matmul", "softmax",
       "log_softmax", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_avg_pool1d",
       "adaptive_avg_pool2d", "adaptive_avg_pool3d", "truediv", "pow"}  # fmt: skip
NEW_LAYERS = tuple(
    f"torch.nn.modules.{name}"
    for name in ("conv", "batchnorm", "instancenorm", "normalization", "activation", "pooling")
)


@dataclass(frozen=True)
class Effect:
    """What a step may do with what it reads: `shares` memory with it, and `writes` it.

    `gives_back` says that it writes one value, and that its result is that value.
    """

    shares: Sequence[fx.Node] = ()
    writes: Sequence[fx.Node] = ()
    gives_back: bool = False


ChildEffect = Callable[[nn.Module, fx.Node], Effect]


def write_once(traced: Traced, child: ChildEffect) -> None:
    """Makes in-place writes explicit: who reads a value after it was overwritten reads the result.

    Where that can't be said, because a value is written through a view, by index, or under another
    of its names, the values are `mutated`. `child` says what a module of the user's own does.
    """
    graph = traced.graph
    if graph is None:
        return
    order = {node: i for i, node in enumerate(graph.nodes)}
    effects = {node: effect_of(node, traced.module, child) for node in graph.nodes}
    behind: dict[fx.Node, set[fx.Node]] = {}  # whose memory each value may be, or share
    aliases: dict[fx.Node, set[fx.Node]] = {}  # and the other way round
    for node, effect in effects.items():
        behind[node] = {*effect.shares, *(n for base in effect.shares for n in behind[base])}
        for base in behind[node]:
            aliases.setdefault(base, set()).add(node)
    mutated: set[fx.Node] = set()
    writes: dict[str, str] = {}
    for node, effect in effects.items():
        for target in effect.writes:
            shared = {target, *behind[target]}
            shared |= {n for base in tuple(shared) for n in aliases.get(base, ())}
            shared = {n for n in shared if order[n] < order[node]}  # what is made later sees it
            for n in shared:
                writes.setdefault(n.name, node.name)
            kept = shared - {target} if effect.gives_back else shared
            if any(order[u] > order[node] for n in kept for u in n.users):
                mutated |= shared
            elif any(n.op in ("placeholder", "get_attr") for n in shared):
                mutated |= shared  # the caller, or a later call, sees the change
            if effect.gives_back and not mutated.intersection(kept):
                for user in list(target.users):
                    if user is not node and order[user] > order[node]:
                        user.replace_input_with(target, node)
    traced.mutated = frozenset(node.name for node in mutated)
    traced.writes = writes
    returned = next(n for n in graph.nodes if n.op == "output").args[0]
    traced.returns_new = isinstance(returned, fx.Node) and not any(
        n.op in ("placeholder", "get_attr") for n in (returned, *behind[returned])
    )


def effect_of(node: fx.Node, module: nn.Module, child: ChildEffect) -> Effect:
    """What a step does with the memory of what it reads."""
    reads = node.all_input_nodes
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        if not is_layer(layer):
            return child(layer, node)
        if getattr(layer, "inplace", False):
            return Effect(reads, reads, gives_back=True)
        new = any(kind.__module__ in NEW_LAYERS for kind in type(layer).__mro__)
        return Effect(() if new or isinstance(layer, nn.Linear) else reads)
    if node.op not in ("call_function", "call_method") or not reads:
        return Effect()
    if isinstance(node.target, torch._ops.OpOverload):
        return _by_schema(node, node.target)
    name = function_name(node)
    asked = node.args[1] if node.target is getattr else node.target
    if node.target is getattr or (node.op == "call_method" and asked in METADATA):
        return Effect(() if asked in METADATA | METADATA_ATTRIBUTES else reads)
    if not _is_torchs_own(node, name):
        return Effect(reads, reads)
    written = _nodes(node.kwargs.get("out"))
    if name in IN_PLACE or _asks_for_inplace(node):
        written = written or reads[:1]
    elif name.endswith("_") and getattr(operator, name, None) is not node.target:  # not_, is_
        written = written or _arguments_written(node, name)
    gives_back = len(written) == 1 and name not in ("setitem", "delitem")
    return Effect(written if written else () if _makes_new(name) else reads, written, gives_back)


def _is_torchs_own(node: fx.Node, name: str) -> bool:
    if node.op == "call_method":
        return hasattr(Tensor, name)
    return any(getattr(place, name, None) is node.target for place in PLACES)


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def _asks_for_inplace(node: fx.Node) -> bool:
    """Whether a function is told to work in place, by whatever place that argument has."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is not False
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return False
    given = inspect.signature(node.target).bind_partial(*node.args).arguments
    return given.get("inplace", False) is not False


def _arguments_written(node: fx.Node, name: str) -> list[fx.Node]:
    """What an operator whose name ends in an underscore writes: what its schema marks, or all."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return node.all_input_nodes
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    places = {i for s in schemas for i, a in enumerate(s.arguments) if _is_written(a)}
    return [n for i, argument in enumerate(node.args) if i in places for n in _nodes(argument)]


def _by_schema(node: fx.Node, target: torch._ops.OpOverload) -> Effect:
    """The same of an operator of a library, which declares it."""
    schema, reads = target._schema, node.all_input_nodes
    named = {a.name: n for a in schema.arguments for n in [node.kwargs.get(a.name)]}
    given = {**named, **dict(zip((a.name for a in schema.arguments), node.args, strict=False))}
    written = [n for a in schema.arguments if _is_written(a) for n in _nodes(given[a.name])]
    aliased = any(result.alias_info is not None for result in schema.returns)
    if target.namespace != "aten" or aliased or _is_composed(target):
        return Effect(reads, written, gives_back=len(written) == 1 and len(schema.returns) == 1)
    return Effect((), written)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


@cache
def _makes_new(name: str) -> bool:
    """Whether torch's operator of that name never gives back what it reads, or a view of it."""
    if name in NEW:
        return True
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or name.endswith("_"):
        return False
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    plain = [
        o for o in overloads
        if _is_composed(o) is not None and not any(map(_is_written, o._schema.arguments))
    ]  # fmt: skip
    views = any(r.alias_info is not None for o in plain for r in o._schema.returns)
    return bool(plain) and not views and not any(map(_is_composed, plain))


def _is_composed(target: torch._ops.OpOverload) -> bool | None:
    """Whether an operator is made of others; None for one that the dispatcher does not have."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(
            target.name(),  # type: ignore[no-untyped-call]
            "CompositeImplicitAutograd",
        )
    except RuntimeError:  # of numbers and lists
        return None
