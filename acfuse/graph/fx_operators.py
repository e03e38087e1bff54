"""Which operator a node of a forward is, by the name that aten gives it; which axes it works on.

Names of the user's play no part. A layer counts by torch's own class, a function by what it is.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acfuse.graph.fx_values import function_name
from acfuse.graph.layouts import IMAGE, ROWS, Reading
from acfuse.graph.rules import RULES
from acfuse.graph.rules_axes import permuted, swaps_channels
from acfuse.graph.steps import LinearSubmodule, Opaque

CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
TRANSPOSED = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}
NORMS = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}  # the other takes rows as well
POOL = "kernel_size stride padding ceil_mode count_include_pad"
# The operator that a layer calls on its input, and the attributes that are its other arguments.
LAYERS: dict[type[nn.Module], tuple[str, str]] = {
    nn.Linear: ("linear", "weight bias"),
    nn.modules.batchnorm._BatchNorm:
        ("batch_norm", "weight bias running_mean running_var training momentum eps"),
    nn.PixelShuffle: ("pixel_shuffle", "upscale_factor"),
    nn.Upsample: ("interpolate", "size scale_factor mode align_corners recompute_scale_factor"),
    nn.Identity: ("clone", ""),
    nn.modules.dropout._DropoutNd: ("dropout", "p training"),
    nn.AvgPool1d: ("avg_pool1d", POOL),
    nn.AvgPool2d: ("avg_pool2d", f"{POOL} divisor_override"),
    nn.AvgPool3d: ("avg_pool3d", f"{POOL} divisor_override"),
    nn.modules.padding._ConstantPadNd: ("constant_pad_nd", "padding value"),
    nn.modules.padding._ReflectionPadNd: ("reflection_pad2d", "padding"),
    nn.modules.padding._ReplicationPadNd: ("replication_pad2d", "padding"),
    nn.modules.padding._CircularPadNd: ("_pad_circular", "padding"),
}  # fmt: skip
ACTIVATIONS = {name.lower() for name in nn.modules.activation.__all__}

# What torch calls an operator beside aten's own name.
ALIASES = {
    "subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div", "negative": "neg",
    "reshape": "reshape", "view": "reshape", "view_as": "reshape_as",
    "concat": "cat", "concatenate": "cat", "swapaxes": "transpose", "swapdims": "transpose",
    "dropout1d": "dropout", "dropout2d": "dropout", "dropout3d": "dropout",
}  # fmt: skip
NAMES = {**dict(zip(RULES, RULES, strict=True)), **ALIASES}
OPERATORS = {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "neg": "neg",
             "getitem": "getitem", "matmul": "matmul"}  # fmt: skip
FUNCTIONS: dict[Any, str] = {  # torch's and Python's own, by what they are
    getattr(place, spelled): name
    for place, names, prefixes in ((torch, NAMES, ("",)), (F, NAMES, ("",)),
                                   (operator, OPERATORS, ("", "i")))
    for plain, name in names.items()
    for spelled in (prefix + plain for prefix in prefixes)
    if hasattr(place, spelled)
}  # fmt: skip


def operator_of(node: fx.Node) -> str | None:
    """The name of the operator that a node calls; None if no rule describes it."""
    if node.op == "call_method":
        name = str(node.target).rstrip("_")
        return NAMES.get(name) if hasattr(Tensor, name) else None
    if node.op != "call_function":
        return None
    if isinstance(node.target, torch._ops.OpOverload):
        own = node.target.namespace == "aten"
        return NAMES.get(function_name(node).rstrip("_")) if own else None
    return FUNCTIONS.get(node.target)


def call_of_layer(layer: nn.Module) -> tuple[str, str]:
    """The operator that a layer calls, and the attributes that are its settings; "" if unknown."""
    return next((call for kind, call in LAYERS.items() if isinstance(layer, kind)), ("", ""))


def spatial_rank_of(module: nn.Module, graph: fx.Graph | None = None) -> int | None:
    """The spatial axes of a module's convolutions (or of those in its graph), where all agree."""
    layers = [*module.modules()]
    ranks: set[int] = set()
    for kinds in (CONVOLUTIONS | TRANSPOSED, NORMS):  # norms tell it where there is no convolution
        ranks = ranks or {n for m in layers for kind, n in kinds.items() if isinstance(m, kind)}
    if not ranks and graph is not None:
        ranks = {_rank(node) for node in convolutions_of(graph)}
    return ranks.pop() if len(ranks) == 1 else None


def convolutions_of(graph: fx.Graph) -> list[fx.Node]:
    """The nodes of a graph that are convolutions, other than calls of layers."""
    return [node for node in graph.nodes if (operator_of(node) or "").startswith("conv")]


def _rank(convolution: fx.Node) -> int:
    name = operator_of(convolution) or ""
    return int(name[-2]) if name.endswith("d") else len(convolution.args[3])  # type: ignore[arg-type]


# What works on the last axis, and what does with each pixel or channel alike, wherever it stands.
LAST = {"linear", "matmul", "mm", "addmm"}
EACH = {"add", "sub", "mul", "rsub", "div", "neg", "dropout", "feature_dropout", "clone",
        "contiguous"}  # fmt: skip
ALIKE = {*EACH, "getitem", "slice", "split", "split_with_sizes", "chunk", "cat"}


def call_of(node: fx.Node) -> tuple[str | None, tuple[Any, ...]]:
    """The operator of a node and its arguments by place, written as the rules take them.

    `x.permute(0, 2, 1)` is `x.permute((0, 2, 1))`, `x.view(y.shape)` is `x.reshape_as(y)`, and
    `x.reshape(-1, channels)` has a name of its own.
    """
    name, args = operator_of(node), node.args
    if name == "permute" and all(isinstance(a, int) for a in args[1:]):
        return name, (args[0], args[1:])
    if name != "reshape" or len(args) < 2:
        return name, args
    sizes = args[1:] if len(args) > 2 else args[1]
    if isinstance(sizes, fx.Node):
        like = _sized(sizes)
        return ("reshape_as", (args[0], like)) if like is not None else (None, args)
    wanted = [*sizes] if isinstance(sizes, (tuple, list)) else []
    if len(wanted) == 2 and wanted[0] == -1:
        channels = wanted[1] if isinstance(wanted[1], int) else None
        own = channels is not None or _size_of(wanted[1])[1] == -1
        return ("rows_of_channels", (args[0], channels)) if own else (None, args)
    known = [_size_of(size) for size in wanted[:-1]]
    like = known[0][0] if known else None
    # A flatten makes two axes of three: what undoes it is written with three sizes.
    if len(wanted) == 3 and like is not None and known == [(like, 0), (like, 1)]:
        return "reshape_as", (args[0], like)
    return None, args


def _sized(node: Any) -> fx.Node | None:
    """What `x.shape` or `x.size()` is the size of."""
    if not isinstance(node, fx.Node):
        return None
    getter = node.op == "call_method" and node.target == "size" and len(node.args) == 1
    attribute = node.target is getattr and node.args[1] == "shape"
    of = node.args[0] if getter or attribute else None
    return of if isinstance(of, fx.Node) else None


def _size_of(node: Any) -> tuple[fx.Node | None, Any]:
    """Of which value one size is, and which one."""
    if not isinstance(node, fx.Node):
        return None, None
    if node.target is operator.getitem:
        return _sized(node.args[0]), node.args[1]
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        of = node.args[0]
        return (of if isinstance(of, fx.Node) else None), node.args[1]
    return None, None


def reading_of(
    node: fx.Node, module: nn.Module, children: Mapping[str, LinearSubmodule | Opaque | None]
) -> Reading | None:
    """Where a node has the channels of what it reads and gives; None: nothing tells."""
    if node.name in children:
        known = children[node.name]
        if isinstance(known, LinearSubmodule):
            return _reading_of_all(known)
        return Reading(alike=True) if known is None else None
    name, args = call_of(node)
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED, *NORMS)):
            return Reading(IMAGE)
        name, _ = call_of_layer(layer)
    if name in LAST:
        return Reading(ROWS, each=True)
    if name in ("permute", "transpose"):
        return _reading_of_a_permute(name, args[1:])
    if name in ("flatten", "rows_of_channels", "reshape_as"):
        return Reading(rows=True)
    if name == "batch_norm":
        return Reading(alike=True, norm=True, each=True)
    if name == "getitem" and not _keeps_axes(node.args[1]):
        return None
    if name in ALIKE:
        return Reading(alike=True, each=name in EACH)
    return Reading(IMAGE) if name in RULES else None


def _reading_of_all(known: LinearSubmodule) -> Reading | None:
    """The same of a module that is linear as a whole, if all that it reads and gives is alike."""
    graph = known.graph
    ends = {graph.spatial_axes(value) for value in (*graph.inputs, graph.output or "")}
    if ends == {ROWS}:
        return Reading(ROWS)
    told = any(value in graph.widths for value in graph.inputs)
    return Reading(IMAGE) if told and ROWS not in ends else None


def _reading_of_a_permute(name: str, settings: tuple[Any, ...]) -> Reading | None:
    dims = (0, 2, 1) if name == "transpose" else settings[0] if settings else ()
    if name == "transpose" and not swaps_channels(*settings):
        return None
    last = permuted(dims)
    return None if last is None else Reading(permuted=(len(dims), None if len(dims) == 3 else last))


def _keeps_axes(index: Any) -> bool:
    """Whether an index leaves all axes: it takes ranges of them, or one of several results."""
    parts = index if isinstance(index, tuple) else (index,)
    return isinstance(index, int) or all(isinstance(p, slice) or p is Ellipsis for p in parts)
