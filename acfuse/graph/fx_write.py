"""Puts regions back: the module with its forward rewritten, or the region alone to be measured."""

import copy
import inspect
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import _forward_from_src
from torch.fx.immutable_collections import immutable_dict, immutable_list

from acfuse.graph.calls import is_same
from acfuse.graph.combination import Move
from acfuse.graph.fx_asserts import assert_arguments, assert_axes
from acfuse.graph.fx_layers import used_targets
from acfuse.graph.fx_read import metadata_only
from acfuse.graph.own_code import names_in_forward


class FusedForward:
    """What a rewritten module has beside its own class: a forward that runs `acfuse_graph`.

    The module stays an instance of the class that it was, with its methods and properties, and
    everything that its forward does not use. It is copied and pickled as that class and its graph,
    so that loading it needs the class and acfuse, and reads no forward again.
    """

    if TYPE_CHECKING:  # torch.jit compiles the types of what is annotated
        acfuse_graph: fx.Graph

    def __init_subclass__(cls) -> None:
        """Nothing: what a user's class does for its sub-classes is not meant for this one."""

    def __setattr__(self, name: str, value: object) -> None:
        """Sets what the forward still reads, or never read. What it was read with is fixed."""
        held = vars(self)
        if name in held and name in names_in_forward(_own_class(self)) - FREE:
            known = held[name]  # a tensor is still read where it stands
            if known is not value and not isinstance(known, Tensor) and not _is_same(value, known):
                raise AttributeError(
                    f"{name} was {known!r:.60} when this {type(self).__name__} was fused, and its "
                    "forward keeps to that. Set it before fusing."
                )
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if isinstance(self, fx.GraphModule):  # whoever changes its graph changes its class
            twin: Any = with_forward(fx.GraphModule, copy.deepcopy(self.acfuse_graph), {})
        else:
            twin = object.__new__(type(self))
            twin.__dict__["acfuse_graph"] = self.acfuse_graph
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(_state(self), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        return with_forward, (_own_class(self), self.acfuse_graph, {}), _state(self)


def _is_same(value: object, known: object) -> bool:
    try:
        return is_same(value, known)
    except Exception:  # of what cannot be compared
        return False


def _state(module: Any) -> dict[str, Any]:
    """What a copy of a rewritten module is given: what its class says, if it says so."""
    own = type(module).__getstate__ is not object.__getstate__  # type: ignore[comparison-overlap]
    state = module.__getstate__() if own else vars(module)
    return {name: value for name, value in state.items() if name not in REPLACED}


def _own_class(module: object) -> type[Any]:
    """The class that a module has, or had before it was rewritten."""
    kind = type(module)
    if issubclass(kind, fx.GraphModule):  # each has a class to itself
        return fx.GraphModule
    return kind.__mro__[2] if issubclass(kind, FusedForward) else kind


def _kept(module: object) -> dict[str, Any]:
    """Its state. A forward of the instance itself is what was read, and is replaced."""
    return {name: value for name, value in vars(module).items() if name not in REPLACED}


FREE = frozenset({"training", "forward", "acfuse_graph"})  # that may change at any time
REPLACED = ("acfuse_graph", "_graph", "forward")


def with_forward(kind: type[Any], graph: fx.Graph, state: Mapping[str, Any]) -> nn.Module:
    """A module of a class with this state, whose forward is this graph."""
    forward = _forward(graph)
    own = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__,
           "__qualname__": kind.__qualname__}  # fmt: skip
    own |= {name: _is_done for name in CONVERSIONS if _is_conversion(getattr(kind, name, None))}
    # The metaclass of a user may do more than make a class: it is not asked.
    fused_kind: Any = type.__new__(type(kind), kind.__name__, (FusedForward, kind), own)
    fused: nn.Module = object.__new__(fused_kind)
    vars(fused).update(state, acfuse_graph=graph)
    if kind is fx.GraphModule:
        vars(fused)["_graph"] = graph
    return fused


def _forward(graph: fx.Graph) -> Any:
    """A graph as a function. Defaults are put in by themselves: not every one can be spelled."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder" and node.args]
    defaults = [node.args for node in placeholders]
    for node in placeholders:
        node.args = (None,)
    code = graph.python_code("self")
    for node, args in zip(placeholders, defaults, strict=True):
        node.args = args
    forward = _forward_from_src(code.src, code.globals)
    if defaults:
        forward.__defaults__ = tuple(_mutable(default) for (default,) in defaults)
    return forward


def _mutable(value: Any) -> Any:
    """A value as it was before torch.fx made it one that cannot be changed."""
    if isinstance(value, immutable_dict):
        return {key: _mutable(item) for key, item in value.items()}
    if isinstance(value, immutable_list):
        return [*map(_mutable, value)]
    return tuple(map(_mutable, value)) if type(value) is tuple else value


# What authors call the conversion to their own deploy form. Many call it on all that have it.
CONVERSIONS = ("fuse", "fuse_convs", "switch_to_deploy", "reparameterize", "reparameterize_layer",
               "convert_to_deploy", "repvgg_convert", "full_fusion", "partial_fusion",
               "prep_model_for_conversion", "merge_kernel", "reparam")  # fmt: skip


def _is_conversion(method: Any) -> bool:
    """Whether a method can be called of a module alone; `fuse(x, y)` is arithmetic of its own."""
    try:
        parameters = list(inspect.signature(method).parameters.values())[1:]
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in kinds for p in parameters)


def _is_done(self: nn.Module, *_: Any, **__: Any) -> None:
    """Nothing: this module is fused."""


@torch.jit.unused
def taken_up(*_: Any, **__: Any) -> Any:
    """What a module has for a forward whose layers are run by the forward around it.

    They were fused with what stands beside it there: it gives no more what it gave alone. Raises
    RuntimeError.
    """
    raise RuntimeError(
        "this module was fused with what stands behind it, and cannot be called alone."
    )


NewLayer = tuple[str, str, nn.Module] | tuple[str, None, None]


EMPTY: Mapping[str, Any] = {}


def rewrite_module(
    module: nn.Module,
    graph: fx.Graph,
    regions: Mapping[str, Sequence[NewLayer]],
    fixed: Mapping[str, object],
    keep: Collection[str] = (),
    axes: Mapping[str, int] = EMPTY,
    moves: Mapping[str, Sequence[Move]] = EMPTY,
) -> nn.Module:
    """`module` with each region's output made by new layers. Takes the given module apart.

    `regions` maps the name of the output node of each region to its summands: (source node, name of
    the new layer, layer), or (source node, None, None) where the source is added as it is. Layers
    that nobody calls any more are gone; new ones stand where the first of them stood. `fixed` are
    the arguments whose values the forward was read with (the class Tensor: that it is some tensor;
    a Rank: one of so many axes): with others it raises AssertionError.
    Layers and tensors to `keep` stay, because others use them. `axes` says of a region how many
    axes its sources must have, or AssertionError is raised, `moves` what is done behind it.
    """
    twin = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    returned = twin.graph_copy(graph, copied)
    twin.output(returned)
    by_name = {old.name: new for old, new in copied.items()}
    before = used_targets(twin)
    unread = metadata_only(twin)
    for output in [n.name for n in graph.nodes if n.name in regions]:
        terms = regions[output]
        old = by_name[output]
        dead = nodes_between(old, [by_name[source] for source, _, _ in terms])
        sources = [(by_name[source], name) for source, name, _ in terms]
        new = _insert(twin, sources, axes.get(output))
        for move in moves.get(output, ()):
            with twin.inserting_after(new):
                new = _enlarge(twin, new, move)
        old.replace_all_uses_with(new)
        by_name[output] = new
        gone = {*dead, *(unread & _behind(dead, twin) if unread else ())}
        for node in reversed([n for n in twin.nodes if n in gone]):
            if not node.users:
                twin.erase_node(node)
    layers = {name: layer for s in regions.values() for _, name, layer in s if name and layer}
    assert_arguments(module, twin, fixed)
    used = {*used_targets(twin), *keep}
    _exchange(module, before - used, used, layers)
    add_constants(module, twin)
    if _is_sequence(module, twin):  # it needs no other forward than its own
        return module
    return with_forward(_own_class(module), twin, _kept(module))


def _is_sequence(module: nn.Module, graph: fx.Graph) -> bool:
    """Whether a graph is what an nn.Sequential does with the layers that it has."""
    first, *calls, output = graph.nodes
    names = [str(node.target) for node in calls if node.op == "call_module"]
    chained = all(
        node.args == (before,) for before, node in zip([first, *calls], calls, strict=False)
    )
    own = type(module) is nn.Sequential and "forward" not in vars(module)
    plain = len(names) == len(calls) and output.args == ((calls or [first])[-1],)
    return own and plain and chained and names == [*module._modules]


def add_constants(module: nn.Module, graph: fx.Graph) -> None:
    """Gives a module the tensors that its forward made of nothing, as plain attributes."""
    for node in graph.nodes:
        if "constant" in node.meta:
            vars(module)[str(node.target)] = node.meta["constant"]


def _enlarge(graph: fx.Graph, image: fx.Node, move: Move) -> fx.Node:
    """Calls what makes an image larger."""
    if move.merged > 1:
        return graph.call_function(nn.functional.pixel_shuffle, (image, *move.settings))
    scale = [*map(float, move.scale)]
    return graph.call_function(nn.functional.interpolate, (image,), {"scale_factor": scale})


def _insert(
    graph: fx.Graph, terms: Sequence[tuple[fx.Node, str | None]], axes: int | None
) -> fx.Node:
    """Calls the new layers right behind the last of what they read, and adds what they give.

    That early, because a later step might overwrite what they read.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    fixed = [node for node in graph.nodes if node.op == "placeholder"]
    last = max([*fixed, *(source for source, _ in terms)], key=order.__getitem__)
    total: fx.Node | None = None
    if axes is not None:
        with graph.inserting_before(last.next):
            for source in {source: None for source, _ in terms}:
                last = assert_axes(graph, source, axes)
    for source, name in terms:
        value = source
        if name is not None:
            with graph.inserting_after(last):
                last = value = graph.call_module(name, (source,))
        if total is not None:
            with graph.inserting_after(last):
                last = value = graph.call_function(operator.add, (total, value))
        total = value
    if total is None:
        raise ValueError("a region without sources")
    return total


def _behind(nodes: Sequence[fx.Node], graph: fx.Graph) -> set[fx.Node]:
    """These nodes and all that is computed from them."""
    found = set(nodes)
    for node in graph.nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _exchange(
    module: nn.Module, unused: set[str], used: set[str], layers: Mapping[str, nn.Module]
) -> None:
    """Takes the unused layers out of a module, under all their names, and puts the new ones in."""
    present = [*module.modules()]  # held, so that no new one is taken for one of these by its id
    owners = {t.rpartition(".")[0] for t in used if not _is_module(module, t)} - {""}
    keep = {id(module.get_submodule(t)) for t in (*used, *owners) if _is_module(module, t)}
    keep -= {id(module)}
    gone: set[int] = set()
    for target in unused:
        if _is_module(module, target):
            gone.add(id(module.get_submodule(target)))
        else:
            owner, _, name = target.rpartition(".")
            if owner and not any(t == owner or t.startswith(owner + ".") for t in used):
                gone.add(id(module.get_submodule(owner)))
            elif owner not in used:
                holder = module.get_submodule(owner)
                holder._parameters.pop(name, None)
                holder._buffers.pop(name, None)
                # A norm that was read as part of this forward only holds its activation now.
                left = {*holder._parameters, *holder._buffers}
                if owner and not used & {f"{owner}.{name}" for name in left}:
                    _emptied(module, owner)
    # A layer that takes the place of another stands at its path, in whatever container that is.
    placed = set()
    for name, layer in layers.items():
        if _is_module(module, name) or "." in name:
            _owner_of(module, name, gone)._modules[name.rpartition(".")[2]] = layer
            placed.add(name)
    names = list(module._modules)
    keep |= {id(layer) for layer in layers.values()}
    _prune(module, gone - keep, keep)
    del present
    first = next((i for i, name in enumerate(names) if name not in module._modules), len(names))
    children = list(module._modules.items())
    new = [(name, layer) for name, layer in layers.items() if name not in placed]
    for name, _ in new:
        vars(module).pop(name, None)  # a place that was held by None
    place = sum(n in module._modules for n in names[:first])
    module._modules.clear()
    module._modules.update([*children[:place], *new, *children[place:]])


def _owner_of(module: nn.Module, name: str, gone: set[int]) -> nn.Module:
    """What is to hold a new layer; it is all that is left of a module on the path that is gone."""
    for part in name.split(".")[:-1]:
        held = module._modules.get(part)
        if held is None or id(held) in gone:
            held = module._modules[part] = nn.Module().eval()
        module = held
    return module


def _emptied(module: nn.Module, path: str) -> None:
    """Puts a plain container with the same sub-modules at a path."""
    owner, _, name = path.rpartition(".")
    container = nn.Module()
    container._modules.update(module.get_submodule(path)._modules)
    container.training = module.training
    module.get_submodule(owner)._modules[name] = container


def _prune(module: nn.Module, gone: set[int], keep: set[int]) -> None:
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        if id(child) in gone:
            del module._modules[name]
        elif id(child) not in keep and child._modules:
            _prune(child, gone, keep)
            if not child._modules and not child._parameters and not child._buffers:
                del module._modules[name]


def _is_module(module: nn.Module, target: str) -> bool:
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part, None)
    return isinstance(found, nn.Module)


def nodes_between(output: fx.Node, sources: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes that make `output` from `sources`, in order, constants included."""
    needed, stack = set(), [output]
    while stack:
        node = stack.pop()
        if node not in needed and node not in sources:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    return [node for node in output.graph.nodes if node in needed]
