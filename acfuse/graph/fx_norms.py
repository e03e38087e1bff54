"""Norms of rows before a linear layer, taken apart: the factors behind them are linear.

A LayerNorm or RMSNorm divides by what it measures of each row, and then has a factor and a shift
for each channel. These are the next layer's, if that alone reads them.
"""

from torch import fx, nn
from torch.nn import functional as F

from acfuse.graph.fx_operators import LAST, call_of_layer, operator_of
from acfuse.graph.own_layers import has_hooks, is_layer


def norms_apart(module: nn.Module, graph: fx.Graph) -> None:
    """Writes the norms that a linear layer alone reads as what they do, without their factors.

    The factors are a product and a sum behind them. The graph is changed in place.
    """
    for node in [n for n in graph.nodes if n.op == "call_module" and len(n.users) == 1]:
        layer = module.get_submodule(str(node.target))
        if len(node.args) != 1 or node.kwargs or has_hooks(layer) or not is_layer(layer):
            continue
        if not isinstance(layer, nn.LayerNorm | nn.RMSNorm) or not _is_of_rows(layer):
            continue
        if not _is_linear(module, next(iter(node.users))):
            continue
        shape = tuple(layer.normalized_shape)
        with graph.inserting_before(node):
            value = (
                graph.call_function(F.layer_norm, (node.args[0], shape, None, None, layer.eps))
                if isinstance(layer, nn.LayerNorm)
                else graph.call_function(F.rms_norm, (node.args[0], shape, None, layer.eps))
            )
            value = graph.call_method("mul", (value, graph.get_attr(f"{node.target}.weight")))
            if getattr(layer, "bias", None) is not None:
                value = graph.call_method("add", (value, graph.get_attr(f"{node.target}.bias")))
        node.replace_all_uses_with(value)
        graph.erase_node(node)


def normalised(node: fx.Node) -> int | None:
    """How many channels a node of that kind measures together."""
    shape = node.args[1] if node.target in (F.layer_norm, F.rms_norm) and len(node.args) > 1 else ()
    return int(shape[0]) if isinstance(shape, tuple) and len(shape) == 1 else None  # type: ignore[arg-type]


def _is_of_rows(layer: nn.LayerNorm | nn.RMSNorm) -> bool:
    """Whether it has a factor for each channel, and no more."""
    return layer.weight is not None and layer.weight.ndim == 1


def _is_linear(module: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return call_of_layer(module.get_submodule(str(node.target)))[0] in LAST
    return operator_of(node) in LAST
