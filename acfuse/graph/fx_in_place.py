"""Folds that leave every forward as it is: two layers are exchanged, and the calls of them stay.

A forward that decides by the size of its input is no graph, but each of its paths is one. Where a
convolution is read by one norm alone, on every path, the convolution may take the norm up: it stays
what it is, with other numbers, and the norm gives what it is given. So may a convolution of a class
of its author's, whose forward decides how to pad: whatever stands before a convolution,
`scale * (conv(x) + bias) + shift` is a convolution of the same x.

That nobody notices is not assumed: all forwards around both are read before and after the exchange,
and must do the same on each of their paths.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from acfuse.graph.another_mode import another_mode
from acfuse.graph.calls import Call, signature
from acfuse.graph.copies import copied
from acfuse.graph.fx_layers import TARGETING, parts_at, used_targets
from acfuse.graph.fx_modules import Analysis, ModuleReader
from acfuse.graph.fx_operators import CONVOLUTIONS
from acfuse.graph.fx_read import is_norm
from acfuse.graph.fx_sites import NormSite
from acfuse.graph.fx_trace import Traced, TracedPath, followed, reading
from acfuse.graph.fx_values import METADATA, METADATA_ATTRIBUTES, TENSORS, outline, type_of
from acfuse.graph.fx_write import NewLayer, nodes_between, rewrite_module
from acfuse.graph.own_layers import has_hooks, is_layer
from acfuse.graph.steps import PerChannel
from acfuse.system.devices import device_of

FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Pair:
    """A convolution and the norm that alone reads it, by their names in the module that calls both.

    `graph` is the two alone, from what the convolution convolves to what the norm gives.
    """

    module: nn.Module
    convolution: str
    norm: NormSite
    graph: fx.Graph

    @property
    def layers(self) -> tuple[nn.Module, nn.Module]:
        """The convolution and the norm."""
        names = self.convolution, self.norm.name
        return self.module.get_submodule(names[0]), self.module.get_submodule(names[1])


def pairs_in(reader: ModuleReader) -> list[Pair]:
    """The pairs of a model that was read, which may be exchanged together or one by one."""
    with reading():
        users = _users(reader)
        found = [p for a in reader.analyses.values() for p in _pairs_of(reader, a, users)]
        return [*_unnoticed(reader, found)] if found else []


def _users(reader: ModuleReader) -> Mapping[int, set[int]]:
    """The modules whose forwards use a layer or tensor on any path, by its id.

    What a layer that is no module of the user's own holds is used with it.
    """
    users: dict[int, set[int]] = {}
    for key, analysis in reader.analyses.items():
        module, traced = analysis.traced.module, analysis.traced
        parts = parts_at(module, traced.used | traced.called)
        for part in module.modules():
            if id(part) in parts and id(part) not in reader.analyses:
                parts |= _held(part, reader)
        for part_id in parts:
            users.setdefault(part_id, set()).add(key)
    return users


def _held(module: nn.Module, reader: ModuleReader) -> set[int]:
    """The modules that a container or layer may call, up to those whose forwards are read."""
    children = [*module.children()]
    inner = [_held(child, reader) for child in children if id(child) not in reader.analyses]
    return {id(child) for child in children}.union(*inner)


def _pairs_of(
    reader: ModuleReader, analysis: Analysis, users: Mapping[int, set[int]]
) -> Iterator[Pair]:
    """The pairs that one module's forward calls, if all that it may do is known."""
    module = analysis.traced.module
    called = [(n, m) for n, m in module.named_modules() if id(module) in users.get(id(m), ())]
    if id(module) in reader.inlined or not any(_is_convolution(m) for _, m in called):
        return
    unread = [m for _, m in called if id(m) in reader.analyses and not _is_read(reader, m)]
    if analysis.graph is not None and not unread:
        return  # its regions fold what it calls
    known = analysis.traced.decides or analysis.graph is not None
    if not known or not _is_called_one_way(reader, analysis):
        return
    paths = _complete(module, analysis.traced.call)
    if paths is None:
        return
    for convolution, norm in _neighbours(module, [path.reader.graph for path in paths]):
        layers = module.get_submodule(convolution), module.get_submodule(norm)
        alone = all(users.get(id(layer)) == {id(module)} for layer in layers)
        if not alone or not _convolves(reader, layers[0]):
            continue
        site = _norm_site(reader, layers[1], norm)
        if site is not None:
            yield Pair(module, convolution, site, _alone(module, convolution, site))


def _is_read(reader: ModuleReader, module: nn.Module) -> bool:
    """Whether a module's forward is one graph."""
    return reader.analyses[id(module)].graph is not None


def _is_called_one_way(reader: ModuleReader, analysis: Analysis) -> bool:
    """Whether a module has one tensor for its argument, so that there is nothing to assert."""
    module, call = analysis.traced.module, analysis.traced.call
    one = len(signature(module).parameters) == 1 and len(call.tensors) == 1
    return one and id(module) not in reader.twice and not has_hooks(module)


def _complete(module: nn.Module, call: Call) -> list[TracedPath] | None:
    """All paths through a forward that it does not refuse; None if it may do something else.

    It must do the same in another mode, and not ask if what it is given is a tensor at all.
    """
    paths, more = followed(module, call)
    with another_mode():
        again, _ = followed(module, call)
    whole = [path for path in paths if not path.is_guard]
    sure = not more and all(p.error is None and not p.reader.unreadable for p in whole)
    typed = any(type_of(node) in TENSORS for path in paths for node in path.reader.told)
    if typed or not sure or any(p.drawn for p in paths) or not _is_alike(paths, again):
        return None
    return whole


def _is_alike(paths: Sequence[TracedPath], others: Sequence[TracedPath]) -> bool:
    """Whether a forward does the same on each of its paths as another time."""

    def told(path: TracedPath | None) -> object:
        ended = path and (path.answers, type(path.error), bool(path.reader.unreadable))
        return ended, path and outline(path.reader.graph)

    return all(told(a) == told(b) for a, b in zip_longest(paths, others))


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, tuple(CONVOLUTIONS))


def _neighbours(module: nn.Module, graphs: Sequence[fx.Graph]) -> list[tuple[str, str]]:
    """(convolution, norm): each call of one is read by a call of the other, and by nothing else."""
    known: dict[tuple[int, int], tuple[str, str]] = {}
    uses: dict[int, list[fx.Node]] = {}
    for node in (n for graph in graphs for n in graph.nodes if n.op in TARGETING):
        for part in parts_at(module, [str(node.target)]):
            uses.setdefault(part, []).append(node)
        reader = _only_reader(node)
        if node.op == "call_module" and reader is not None:
            first, second = (module.get_submodule(str(n.target)) for n in (node, reader))
            if _is_convolution(first) and first is not second:
                names = str(node.target), str(reader.target)
                known.setdefault((id(first), id(second)), names)
    return [
        names
        for (first, second), names in known.items()
        if {_only_reader(n) for n in uses[first]} == set(uses[second])
        and all(n.op == "call_module" for n in (*uses[first], *uses[second]))
        and not _uses_inside(module, names, uses)
    ]


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The call of a module that alone reads what a node gives, and reads nothing else."""
    users = [*node.users]
    if len(users) != 1 or users[0].op != "call_module":
        return None
    return users[0] if users[0].args == (node,) and not users[0].kwargs else None


def _uses_inside(
    module: nn.Module, names: Sequence[str], uses: Mapping[int, list[fx.Node]]
) -> bool:
    """Whether a forward reaches into these layers, for what they hold."""
    parts = [module.get_submodule(name) for name in names]
    inner: list[object] = [m for part in parts for m in part.modules() if m is not part]
    inner += [t for part in parts for t in (*part.parameters(), *part.buffers())]
    return any(id(part) in uses for part in inner)


def _convolves(reader: ModuleReader, layer: Any) -> bool:
    """Whether what a layer gives is a convolution with its own weight and bias, and no more."""
    plain = {"weight", "bias"} == layer._parameters.keys() and not isinstance(layer.padding, str)
    if not plain or has_hooks(layer) or parametrize.is_parametrized(layer):
        return False
    if is_layer(layer):
        return True
    analysis = reader.analyses.get(id(layer))
    if analysis is None or layer.padding_mode != "zeros" or id(layer) in reader.twice:
        return False
    call = analysis.traced.call
    with_bias: Any = copied(layer, {id(p): p for p in layer.parameters()})
    if layer.bias is None:
        with_bias.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    before, after = _complete(layer, call), _complete(with_bias, call)
    if before is None or after is None or not _is_called_one_way(reader, analysis):
        return False
    function = FUNCTIONS[layer.weight.ndim - 2]
    fits = all(
        _ends_in(path.reader.graph, function, bias=layer.bias is not None) for path in before
    )
    fits &= all(_ends_in(path.reader.graph, function, bias=True) for path in after)
    return fits and _is_alike(before, after)


def _ends_in(graph: fx.Graph, function: object, *, bias: bool) -> bool:
    """Whether a forward gives what a function makes with its weight and bias, used nowhere else.

    The bias is taken out of the graph.
    """
    returned = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(returned, fx.Node) or returned.target is not function:
        return False
    given = dict(zip(ARGUMENTS, returned.args, strict=False)) | returned.kwargs
    own = {
        n.target: n for n in graph.nodes if n.op == "get_attr" and n.target in ("weight", "bias")
    }
    if given.get("weight") is not own.get("weight") or given.get("bias") is not own.get("bias"):
        return False
    if ("bias" in own) != bias or len(returned.users) > 1 or given.get("input") in own.values():
        return False
    if any(_numbers_are_read(tensor, returned) for tensor in own.values()):
        return False
    returned.args, returned.kwargs = (), {**given, "bias": None}
    for node in [*own["bias"].users, own["bias"]] if bias else ():
        if node.users:
            return False  # of its size
        graph.erase_node(node)
    return True


def _numbers_are_read(tensor: fx.Node, by: fx.Node) -> bool:
    """Whether anybody else asks for more of a tensor than its size or type."""
    return any(
        not (user.target is getattr and user.args[1] in METADATA_ATTRIBUTES)
        and not (user.op == "call_method" and user.target in METADATA)
        for user in tensor.users
        if user is not by
    )


def _norm_site(reader: ModuleReader, norm: nn.Module, name: str) -> NormSite | None:
    """Where in a module the norm stands with which it begins; None if it begins with none."""
    if has_hooks(norm) or id(norm) in reader.twice | reader.inlined:
        return None
    if is_layer(norm):
        return NormSite(name) if is_norm(norm) else None
    analysis = reader.analyses.get(id(norm))
    if analysis is None or not _is_called_one_way(reader, analysis):
        return None
    return (
        _site_of_paths(reader, analysis, name)
        if analysis.traced.decides
        else _site_in(name, analysis)
    )


def _site_in(name: str, analysis: Analysis) -> NormSite | None:
    """The norm with which a forward begins, as long as nothing else reads what it makes."""
    steps, forward = analysis.graph, analysis.traced.graph
    if steps is None or forward is None or len(steps.inputs) != 1:
        return None
    value = first = steps.inputs[0]
    if first in steps.mutated or first in analysis.traced.writes:
        return None
    while value not in steps.outputs or value == first:
        readers = steps.readers.get(value, ())
        if len(readers) != 1 or not isinstance(readers[0].rule, PerChannel):
            break
        value = readers[0].value
    nodes = {node.name: node for node in forward.nodes}
    site = NormSite(name, value, first, forward)
    inside = nodes_between(nodes[value], [nodes[first]])
    return site if value != first and not any("constant" in n.meta for n in inside) else None


def _site_of_paths(reader: ModuleReader, analysis: Analysis, name: str) -> NormSite | None:
    """The norm that a module is as a whole, whichever path its forward takes; or None.

    With gradients, some write the norm out (detectron2's frozen one).
    """
    norm, call = analysis.traced.module, analysis.traced.call
    sites: list[NormSite] = []
    answers: list[Tensor] = []
    for path in _complete(norm, call) or ():
        graph = path.reader.graph
        _in_float64(graph)
        way = Analysis(Traced(norm, call, graph), None, None)
        reader.read_steps(norm, way)
        site = _site_in(name, way)
        steps = way.graph
        if site is None or steps is None or site.output != steps.output:
            return None
        width = steps.widths.get(site.output)
        if width is None:
            return None
        sites.append(site)
        answers.append(_scale_and_shift(norm, graph, *width))
    apart = max((float((one - answers[0]).abs().max()) for one in answers), default=math.inf)
    return sites[0] if apart <= SAME * float(answers[0].abs().max()) else None


SAME = 2.0**-40  # of the largest: formulas that are equal differ by a few roundings of float64


def _in_float64(graph: fx.Graph) -> None:
    """Makes a graph ask no input for its dtype: all is computed in float64 where it is read."""
    asked = [n for n in graph.nodes if n.target is getattr and n.args[1] == "dtype"]

    def known(node: fx.Node) -> Any:
        return torch.float64 if node in asked else node

    for user in {user: None for node in asked for user in node.users}:
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), known)


def _scale_and_shift(norm: nn.Module, graph: fx.Graph, channels: int, axes: int) -> Tensor:
    """What a graph that is one factor and one shift per channel makes of zeros and of ones."""
    network = fx.GraphModule(copied(norm).double(), graph)
    shape = (1, channels, *[1] * axes)
    image = torch.zeros(shape, dtype=torch.float64, device=device_of(norm))
    with torch.no_grad():
        return torch.stack([network(image.clone()), network(image + 1)])


def _alone(module: nn.Module, convolution: str, norm: NormSite) -> fx.Graph:
    """A convolution and the norm behind it as a forward of the module that calls both."""
    layer: Any = module.get_submodule(convolution)
    graph = fx.Graph()
    image = graph.placeholder("x")
    if is_layer(layer):
        value = graph.call_module(convolution, (image,))
    else:
        tensors = [
            graph.get_attr(f"{convolution}.{name}") if layer._parameters[name] is not None else None
            for name in ("weight", "bias")
        ]
        settings = layer.stride, layer.padding, layer.dilation, layer.groups
        function = FUNCTIONS[layer.weight.ndim - 2]
        value = graph.call_function(function, (image, *tensors, *settings))
    if norm.forward is None:
        value = graph.call_module(norm.name, (value,))
    else:
        nodes = {node.name: node for node in norm.forward.nodes}
        made = {nodes[norm.source]: value}
        for node in nodes_between(nodes[norm.output], [nodes[norm.source]]):
            made[node] = graph.node_copy(node, made.__getitem__)
            if node.op in TARGETING:
                made[node].target = f"{norm.name}.{node.target}"
        value = made[nodes[norm.output]]
    graph.output(value)
    return graph


def _unnoticed(reader: ModuleReader, pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs whose exchange no forward around them notices."""
    taken = {id(layer): pair for pair in pairs for layer in pair.layers}
    around = [
        (analysis, within)
        for analysis in reader.analyses.values()
        if (within := {id(m) for m in analysis.traced.module.modules()} & taken.keys())
        and id(analysis.traced.module) not in taken
    ]
    before = [followed(a.traced.module, a.traced.call)[0] for a, _ in around]
    with _exchanged(reader.model, pairs):
        after = [followed(a.traced.module, a.traced.call)[0] for a, _ in around]
    noticed = {
        layer
        for (_, within), one, two in zip(around, before, after, strict=True)
        if not _is_alike(one, two)
        for layer in within
    }
    for pair in pairs:
        if noticed.isdisjoint(map(id, pair.layers)):
            yield pair


@contextmanager
def _exchanged(model: nn.Module, pairs: Sequence[Pair]) -> Iterator[None]:
    """Within it the layers of a model are what they will be when folded, but for their numbers."""
    others: dict[int, nn.Module] = {}
    for pair in pairs:
        convolution, norm = pair.layers
        twins = [copied(layer, _tensors(layer)) for layer in (convolution, norm)]
        first: Any = twins[0]
        if first.bias is None:
            first.bias = nn.Parameter(first.weight.new_zeros(len(first.weight)))
        others |= {id(convolution): first, id(norm): without_norm(twins[1], pair.norm)}
    places = [(m, name) for m in model.modules() for name in m._modules]
    before = [module._modules[name] for module, name in places]
    try:
        for (module, name), child in zip(places, before, strict=True):
            module._modules[name] = others.get(id(child), child)
        yield
    finally:
        for (module, name), child in zip(places, before, strict=True):
            module._modules[name] = child


def _tensors(module: nn.Module) -> dict[int, Tensor]:
    return {id(t): t for t in (*module.parameters(), *module.buffers())}


def without_norm(norm: nn.Module, site: NormSite) -> nn.Module:
    """What is left of the module that a site names, without its norm. Takes the module apart."""
    returned = {site.output} if site.forward is None else _returned(site.forward)
    if returned == {site.output}:  # it is the norm, and no more
        return nn.Identity().train(norm.training)
    assert site.forward is not None
    left = nn.Module().train(norm.training)  # a norm no more, whatever class it had
    left._modules, left._parameters = norm._modules, norm._parameters
    read = used_targets(site.forward)
    left._buffers = {name: tensor for name, tensor in norm._buffers.items() if name in read}
    taken: Mapping[str, Sequence[NewLayer]] = {site.output: [(site.source, None, None)]}
    return rewrite_module(left, site.forward, taken, {})


def _returned(graph: fx.Graph) -> set[str]:
    """What a forward returns, if that is one value."""
    returned = next(node for node in graph.nodes if node.op == "output").args[0]
    return {returned.name} if isinstance(returned, fx.Node) else set()
