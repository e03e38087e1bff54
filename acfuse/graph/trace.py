"""Reads the forward of one module, alone, into a torch.fx graph.

Sub-modules of the user's own stay calls: each is read for itself, so that control flow in one does
not hide another. What is read is brought into a form in which every value is written once.
"""

import inspect
import operator
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from acfuse.errors import NotFusable, Reason


@dataclass(frozen=True)
class Call:
    """How a module is called: which parameters get tensors, and the plain values of the others."""

    tensors: tuple[str, ...]
    values: tuple[tuple[str, object], ...] = ()

    @classmethod
    def default(cls, module: nn.Module) -> "Call":
        """One tensor for every parameter without a default."""
        parameters = inspect.signature(module.forward).parameters.values()
        needed = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return cls(
            tuple(p.name for p in needed if p.default is p.empty),
            tuple((p.name, p.default) for p in needed if p.default is not p.empty),
        )

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Call":
        """The call that a node of another graph makes."""
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        tensors = tuple(n for n, v in bound.arguments.items() if isinstance(v, fx.Node))
        values = tuple((n, v) for n, v in bound.arguments.items() if not isinstance(v, fx.Node))
        return cls(tensors, values)


@dataclass
class Traced:
    """The forward of one module as a graph, or the reason why it could not be read."""

    module: nn.Module
    call: Call
    graph: fx.Graph | None = None
    refusal: NotFusable | None = None
    poisoned: frozenset[str] = field(default_factory=frozenset)  # values written in place
    returns_new: bool = False  # whether it returns a tensor that shares no memory with its inputs
    writes: Mapping[str, str] = field(default_factory=dict)  # value -> the step that overwrites it


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch's own, with torch's own forward."""
    forward = inspect.getattr_static(module, "forward", None)
    places = (getattr(forward, "__module__", None), type(module).__module__)
    return any(place is not None and place.startswith("torch.nn.") for place in places)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs anything besides its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Image(fx.Proxy):
    """A value of a traced forward. `y += z` writes into y, as it does in a tensor."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self._written_by(operator.iadd, other)

    def __isub__(self, other: object) -> fx.Proxy:
        return self._written_by(operator.isub, other)

    def __imul__(self, other: object) -> fx.Proxy:
        return self._written_by(operator.imul, other)

    def __itruediv__(self, other: object) -> fx.Proxy:
        return self._written_by(operator.itruediv, other)

    def _written_by(self, operation: Callable[..., Any], other: object) -> fx.Proxy:
        written: fx.Proxy = self.tracer.create_proxy("call_function", operation, (self, other), {})
        return written


class _Reader(fx.Tracer):
    """A tracer that takes one module alone, with the arguments of one call."""

    trace_asserts = True

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # none: sizes are not values
        self.module, self.call = module, call

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Every value is one that knows what `+=` means."""
        return _Image(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Everything but a plain Sequential, which only names the layers inside."""
        return inspect.getattr_static(m, "forward") is not nn.Sequential.forward or has_hooks(m)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        """A placeholder for each parameter; only those that get tensors are traced."""
        values = dict(self.call.values)
        keywords: dict[str, Any] = {}
        for parameter in inspect.signature(self.module.forward).parameters.values():
            name = parameter.name
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if values.get(name):
                    raise NotFusable(Reason.UNTRACEABLE, f"it takes any number of {name}")
                continue
            default = () if parameter.default is parameter.empty else (parameter.default,)
            proxy = self.create_proxy("placeholder", name, default, {})
            keywords[name] = values.get(name, proxy)
        positional = [
            p.name
            for p in inspect.signature(self.module.forward).parameters.values()
            if p.kind is p.POSITIONAL_ONLY
        ]
        first = [keywords.pop(name) for name in positional]

        def run(_: nn.Module) -> Any:
            return self.module.forward(*first, **keywords)

        return run, [self.module]


@contextmanager
def watched_randomness() -> Iterator[Callable[[], bool]]:
    """Tells whether random numbers were drawn; gives the generators back as they were."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()

    def drawn() -> bool:
        numpy_now = tuple(np.random.get_state())
        return (
            not torch.equal(torch.get_rng_state(), before[0])
            or random.getstate() != before[1]
            or not all(map(np.array_equal, numpy_now, tuple(before[2])))
        )

    try:
        yield drawn
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


def trace(module: nn.Module, call: Call) -> Traced:
    """Reads one forward. Nothing is raised for a forward that cannot be read: it is the result."""
    reader = _Reader(module, call)
    try:
        with watched_randomness() as drawn, torch.no_grad():
            graph = reader.trace(module)
            if drawn():
                refusal = NotFusable(Reason.RANDOM, "its forward draws random numbers")
                return Traced(module, call, refusal=refusal)
    except NotFusable as refusal:
        return Traced(module, call, refusal=refusal)
    except Exception as error:  # what a stranger's forward does under tracing is open
        return Traced(module, call, refusal=_refusal(module, error))
    return Traced(module, call, graph)


def _refusal(module: nn.Module, error: Exception) -> NotFusable:
    """Why a forward could not be read. One that names a random function may not be fused around."""
    code = getattr(module.forward, "__code__", None)
    random_names = sorted(RANDOM_FUNCTIONS & set(code.co_names if code else ()))
    if random_names:
        why = f"its forward draws random numbers ({random_names[0]})"
        return NotFusable(Reason.RANDOM, why)
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return NotFusable(Reason.UNTRACEABLE, f"its forward cannot be read ({first})")


RANDOM_FUNCTIONS = {"rand", "randn", "randint", "rand_like", "randn_like", "randint_like",
                    "randperm", "bernoulli", "bernoulli_", "multinomial", "normal", "normal_",
                    "uniform_", "poisson", "trunc_normal_", "exponential_"}  # fmt: skip
PASSING_LAYERS = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten)
VIEWS = {
    "contiguous",
    "to",
    "type",
    "float",
    "double",
    "half",
    "bfloat16",
    "cpu",
    "cuda",
    "view_as",
    "reshape_as",
    "expand_as",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "getattr",
    "view",
    "reshape",
    "chunk",
    "split",
    "getitem",
    "transpose",
    "permute",
    "narrow",
    "squeeze",
    "unsqueeze",
    "flatten",
    "detach",
    "select",
    "unbind",
    "expand",
    "t",
    "data",
}


def function_name(node: fx.Node) -> str:
    """What a node calls: the name of its function, method or layer class."""
    if node.op == "call_function":
        return getattr(node.target, "__name__", str(node.target))
    return str(node.target)


def write_once(traced: Traced, makes_new: Callable[[nn.Module], bool]) -> None:
    """Makes in-place writes explicit: who reads a value after it was overwritten reads the result.

    Where that can't be said, because a value is written through a view, by index, or under another
    of its names, the values are `poisoned`. `makes_new` says of a module of the user's own whether
    what it returns is a tensor of its own, sharing no memory with what it takes.
    """
    graph, module = traced.graph, traced.module
    if graph is None:
        return
    order = {node: i for i, node in enumerate(graph.nodes)}
    behind: dict[fx.Node, set[fx.Node]] = {}  # whose memory each value may be, or share
    names: dict[fx.Node, set[fx.Node]] = {}  # and the other way round
    for node in graph.nodes:
        bases = _aliased(node, module, makes_new)
        behind[node] = {*bases, *(n for base in bases for n in behind[base])}
        for base in behind[node]:
            names.setdefault(base, set()).add(node)
    poisoned: set[fx.Node] = set()
    writes: dict[str, str] = {}
    for node in graph.nodes:
        target = _written(node, module)
        if target is None:
            continue
        shared = {target, *behind[target]}
        shared |= {n for base in tuple(shared) for n in names.get(base, ()) if n is not node}
        writes.update((n.name, node.name) for n in shared)
        late = {n for n in shared - {target} if any(order[u] > order[node] for u in n.users)}
        if late or function_name(node) == "setitem":
            poisoned |= shared
            continue
        if any(n.op in ("placeholder", "get_attr") for n in shared):
            poisoned |= shared  # the caller, or a later call, sees the change
        for user in list(target.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(target, node)
    traced.poisoned = frozenset(node.name for node in poisoned)
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
    return node.all_input_nodes[:1] if views else []


def _written(node: fx.Node, module: nn.Module) -> fx.Node | None:
    """The value that a node overwrites, if it is one that does."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        return None
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return first if getattr(layer, "inplace", False) else None
    name = function_name(node)
    if node.op == "call_method":
        return first if name.endswith("_") and not name.startswith("_") else None
    if node.op == "call_function":
        in_place = name in IN_PLACE_OPERATORS or (name.endswith("_") and not name.startswith("_"))
        return first if in_place or node.kwargs.get("inplace") is True else None
    return None


IN_PLACE_OPERATORS = {"iadd", "isub", "imul", "itruediv", "setitem"}
