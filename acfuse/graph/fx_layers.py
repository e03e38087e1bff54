"""Which layers and tensors the forward of a module uses, by name and by identity."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx, nn

TARGETING = ("call_module", "get_attr")


def used_targets(graph: fx.Graph) -> set[str]:
    """The modules and tensors that a forward uses, by name."""
    return {str(node.target) for node in graph.nodes if node.op in TARGETING}


def image_of(layer: nn.Module) -> tuple[int, int] | None:
    """(channels, spatial axes) of what a layer reads, if it is a convolution."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return None
    return layer.in_channels, len(layer.kernel_size)


def children_of(module: nn.Module, forward: fx.Graph) -> list[nn.Module]:
    """The modules that a forward calls."""
    calls = [str(node.target) for node in forward.nodes if node.op == "call_module"]
    return [module.get_submodule(target) for target in calls]


def parts_at(module: nn.Module, targets: Iterable[str]) -> set[int]:
    """The layers that a forward calls by these names, the tensors that it reads, and their owners.

    By identity, because they may have other names elsewhere.
    """
    parts: set[int] = set()
    for target in targets:
        found: Any = module
        for name in target.split("."):
            found = getattr(found, name, None)
        owner = module.get_submodule(target.rpartition(".")[0])
        parts |= {id(found), id(owner) if isinstance(found, Tensor) else id(found)}
    return parts - {id(module)}


def tensor_at(module: nn.Module, node: fx.Node) -> Any:
    """The tensor that a forward reads from its module."""
    owner, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), name)


def layers_called(module: nn.Module, nodes: Sequence[fx.Node]) -> list[tuple[str, nn.Module]]:
    """The layers with tensors that these nodes call, or read tensors of, by name."""
    layers: dict[str, nn.Module] = {}
    for node in nodes:
        target = str(node.target)
        if node.op == "get_attr":
            target = target.rpartition(".")[0]
        if node.op not in ("call_module", "get_attr") or not target:
            continue
        for name, inner in module.get_submodule(target).named_modules(prefix=target):
            if inner._parameters or inner._buffers:
                layers[name] = inner
    return list(layers.items())
