"""Patterns on live modules: whose layers a module has, and what one says that they compute."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from acfuse.algebra import Affine, LinearConv
from acfuse.errors import NotFusable
from acfuse.files.cost_table import CostTable
from acfuse.graph.fx_layers import layers_called
from acfuse.graph.fx_read import is_convolution, layer_rule
from acfuse.graph.fx_write import nodes_between
from acfuse.graph.regions import lone_chains
from acfuse.graph.steps import ConvStep, Graph, PerChannel, Region
from acfuse.patterns.pattern import Pattern
from acfuse.patterns.values import Layer
from acfuse.system.devices import device_of


def label(
    module: nn.Module, patterns: Sequence[Pattern], within: set[int] | None
) -> Pattern | None:
    """The pattern whose layers a module has (all of them among `within`); the one with the most."""

    def look(name: str) -> Layer | None:
        owner, _, last = name.rpartition(".")
        layer = submodule(module, name)
        if layer is None:  # a factor may be a tensor of the block itself
            layer = submodule(module, owner) if owner else module
            return Affine() if isinstance(getattr(layer, last, None), Tensor) else None
        return Affine() if layer._parameters or layer._buffers else None

    best, most = None, 0 if within else 1
    for pattern in patterns:
        names = pattern.layers(look)
        modules = [m for name in names if (m := submodule(module, name)) is not None]
        convolutions = sum(map(is_convolution, modules))
        if convolutions + (pattern.arms(look) > 1) < pattern.least(look) or not convolutions:
            continue
        if len(names) > most and (within is None or {id(m) for m in modules} <= within):
            best, most = pattern, len(names)
    return best


def single_arm(
    module: nn.Module,
    patterns: Sequence[Pattern],
    graph: Graph,
    forward: fx.Graph,
    costs: CostTable | None,
) -> Region | None:
    """The one arm of a block that its pattern knows with any number of them, and what it reads."""
    pattern = label(module, patterns, None)
    try:
        names = layers_of(module, pattern) if pattern is not None else ()
    except NotFusable:  # a layer with one of its names is something else
        return None
    layers = {id(submodule(module, name)) for name in names}
    if sum(is_convolution(module.get_submodule(name)) for name in names) != 1:
        return None
    nodes = {node.name: node for node in forward.nodes}
    for region in lone_chains(graph, costs):
        inside = nodes_between(nodes[region.output], [nodes[s] for s in region.sources])
        if layers == {id(layer) for _, layer in layers_called(module, inside)}:
            return region
    return None


def submodule(module: nn.Module, name: str) -> nn.Module | None:
    """The module at a path; None where there is none."""
    found: Any = module
    for part in name.split("."):
        parts = found._modules if isinstance(found, nn.Module) else {}
        found = parts[part] if part in parts else None  # noqa: SIM401  # torch.jit's has no get
    return found if isinstance(found, nn.Module) else None


def layers_of(module: nn.Module, pattern: Pattern) -> tuple[str, ...]:
    """The names of a pattern's layers in a module."""
    return tuple(pattern.layers(partial(_layer_at, module)))


def value_of(module: nn.Module, pattern: Pattern) -> LinearConv | None:
    """What a pattern says that a module's layers compute; None if that is no convolution."""
    try:
        return pattern.value(partial(_layer_at, module), device_of(module))
    except NotFusable:
        return None


def _layer_at(module: nn.Module, name: str) -> Layer | None:
    """What the layer at a path does to its input. Raises NotFusable."""
    layer = submodule(module, name)
    if layer is None:
        return None
    rule = layer_rule(layer)
    if isinstance(rule, ConvStep | PerChannel):
        return rule.layer if isinstance(rule, ConvStep) else rule.by
    return Affine() if rule is None else None


def free_name(module: nn.Module, base: str, taken: set[str], used: set[str]) -> str:
    """`base`, or with a number behind it where something that is still used has that name."""
    name, number = base, 1
    while name in taken or _is_used(module, name, used):
        number += 1
        name = f"{base}_{number}"
    return name


def _is_used(module: nn.Module, name: str, used: set[str]) -> bool:
    if any(target == name or target.startswith(name + ".") for target in used):
        return True
    if "." in name or name in module._modules or not hasattr(module, name):
        return False
    # What is None holds the place of the fused convolution in many a training form.
    return vars(module).get(name, module) is not None or hasattr(type(module), name)
