"""Frames of constants that a captured forward writes around an image, as pads.

A frame is written in many ways: into a larger image of constants, over the border of a padded one,
side by side. All of them are told by what stands where: an image in the middle, and everywhere
around it the same constants, one for each channel. If these are what the layers before make of
zero,

    frame(g(v), g(0)) = g(pad(v))      where g looks at each pixel alone,

it is a pad of what those layers read, and the image itself is the middle of what they then make.
"""

import contextlib
import copy
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from acfuse.algebra import Conv
from acfuse.algebra.layers import Pads
from acfuse.errors import NotFusable
from acfuse.graph import rules, rules_axes
from acfuse.graph.fx_operators import operator_of
from acfuse.graph.fx_read import layer_rule
from acfuse.graph.grids import Grid, Part, UnknownPlace, joined, simple
from acfuse.graph.images import Image, not_linear
from acfuse.graph.own_layers import has_hooks, is_layer
from acfuse.graph.steps import ConvStep, PerChannel, Rule
from acfuse.system.devices import device_of

# A border is computed in float64, and in another order than a layer's own shift. This leaves 12
# bits for what cancels out on the way, and is 2**16 times finer than what float32 can tell.
SAME_BORDER = 2.0**-40
LARGEST_CONSTANT = 2**20  # numbers of one that is looked at
OPS = torch.ops.aten
OPEN = float("nan")  # what stands where nothing was written; nothing is equal to it
# What an operator fills its result with: a number, or the place of the argument that says it.
FILLED: dict[Any, float | int] = {
    OPS.zeros.default: 0.0, OPS.zeros_like.default: 0.0, OPS.new_zeros.default: 0.0,
    OPS.zero.default: 0.0, OPS.ones.default: 1.0, OPS.ones_like.default: 1.0,
    OPS.new_ones.default: 1.0, OPS.full.default: 1, OPS.full_like.default: 1,
    OPS.new_full.default: 2, OPS.fill.Scalar: 1, OPS.scalar_tensor.default: 0,
    OPS.empty.memory_format: OPEN, OPS.empty_like.default: OPEN, OPS.new_empty.default: OPEN,
}  # fmt: skip
COPIES = {OPS.clone.default, OPS.alias.default, OPS.detach.default, OPS.lift_fresh_copy.default}
WRITTEN = {OPS.copy.default, OPS.fill.Tensor}
PLACING = {
    *FILLED, *COPIES, *WRITTEN, OPS.expand.default, OPS.constant_pad_nd.default, OPS.slice.Tensor,
    OPS.slice_scatter.default, OPS.select.int, OPS.select_scatter.default, OPS.cat.default,
}  # fmt: skip


def frames_as_pads(module: nn.Module, graph: fx.Graph, rank: int) -> None:
    """Writes the frames and crops of a captured graph as pads, and takes out what made them.

    Its nodes have the sizes of what they give in `meta["size"]`, and its dtype in `meta["dtype"]`.
    What is no frame stays as it is.
    """
    _compute_once(module, graph)
    while _rewrite_one(_Frames(module, graph, rank)):
        _compute_once(module, graph)


def _rewrite_one(frames: "_Frames") -> bool:
    for node in frames.graph.nodes:
        if node.target in PLACING and any(user.target not in PLACING for user in node.users):
            found = frames.frame(node)
            if (
                found is not None
                and not _is_pad_of(node, found[0])
                and frames.rewrite(node, *found)
            ):
                return True
    return False


def _is_pad_of(node: fx.Node, image: fx.Node) -> bool:
    """Whether a node is the image itself, or a pad or a crop of it as it should be written."""
    if node is image or node.target is not OPS.constant_pad_nd.default:
        return node is image
    before, pads, *value = node.args
    plain = all(isinstance(n, int) for n in pads) and value in ([], [0])  # type: ignore[union-attr]
    return before is image and plain


def _compute_once(module: nn.Module, graph: fx.Graph) -> None:
    """Takes out what is computed again, and what nobody reads.

    Operators write nothing any more and draw nothing, and neither do torch's layers in eval mode.
    """
    known: dict[str, fx.Node] = {}
    for node in [n for n in graph.nodes if _is_pure(module, n)]:
        same = known.setdefault(f"{node.op} {node.target} {node.args} {node.kwargs}", node)
        if same is not node:
            node.replace_all_uses_with(same)
    for node in reversed([n for n in graph.nodes if _is_pure(module, n)]):
        if not node.users:
            graph.erase_node(node)


def _is_pure(module: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return is_layer(layer) and not layer.training and not has_hooks(layer)
    return node.op in ("get_attr", "call_function")


class _Frames:
    """What stands where in each value of a graph, as it is now."""

    def __init__(self, module: nn.Module, graph: fx.Graph, rank: int) -> None:
        self.module, self.graph, self.rank = module, graph, rank
        spatial = {size for node in graph.nodes for size in node.meta.get("size", ())[2:]}
        self.sizes = frozenset(spatial)
        self.grids: dict[fx.Node, Grid] = {}
        self.constants: dict[fx.Node, Tensor | None] = {}

    def frame(self, node: fx.Node) -> tuple[fx.Node, Tensor | None, Pads] | None:
        """The image in a frame, the constants around it, and how many; None for what is none."""
        with contextlib.suppress(UnknownPlace):
            return self.grid(node).frame()
        return None

    def rewrite(self, node: fx.Node, image: fx.Node, border: Tensor | None, pads: Pads) -> bool:
        """Exchanges a frame or a crop for a pad; False if the border is not what zero becomes."""
        if border is None:
            changes = any(map(any, pads))
            if not changes and (node.target in COPIES or image.op == "placeholder"):
                return False  # a copy, which may be made for its own sake
            node.replace_all_uses_with(self._padded(image, pads) if changes else image)
            return True
        chain = self._chain(image, border)
        if chain is None or any(n < 0 for pair in pads for n in pair):
            return False
        begin, layers = chain
        made = self._padded(begin, pads)
        readers = [reader for reader, _ in layers]
        for reader in readers[:1]:
            reader.replace_input_with(begin, made)
        for _, made in layers:
            users = [user for user in made.users if user not in readers]
            made.meta["size"] = _grown(made.meta["size"], pads)
            middle = self._padded(made, tuple((-a, -b) for a, b in pads))
            for user in users:
                user.replace_input_with(made, middle)
        node.replace_all_uses_with(made)
        return True

    def _padded(self, image: fx.Node, pads: Pads) -> fx.Node:
        """Zeros around an image, or less of it, right behind it."""
        flat = [n for pair in reversed(pads) for n in pair]
        with self.graph.inserting_after(image):
            made = self.graph.call_function(OPS.constant_pad_nd.default, (image, flat, 0.0))
        made.meta["size"] = _grown(image.meta["size"], pads)
        return made

    def _chain(
        self, image: fx.Node, border: Tensor
    ) -> tuple[fx.Node, list[tuple[fx.Node, fx.Node]]] | None:
        """From where on a border is what the layers up to an image make of zero.

        Gives the value before them, and of each layer the node that reads and the one that gives.
        """
        layers: list[tuple[fx.Node, fx.Node]] = []
        known: list[Rule | None] = []
        while True:
            zero = border.new_zeros((), dtype=torch.float64)
            for rule in known:
                zero = _of_constants(rule, zero)
            largest = max(float(zero.abs().max()), float(border.abs().max()))
            if float((zero - border).abs().max()) <= SAME_BORDER * largest:
                return image, layers
            found = self._pixelwise(image)
            if found is None:
                return None
            rule, reader, before = found
            layers, known, image = [(reader, image), *layers], [rule, *known], before

    def _pixelwise(self, node: fx.Node) -> tuple[Rule | None, fx.Node, fx.Node] | None:
        """A rule that looks at each pixel alone, the node that reads, and its one image."""
        reader: Any = node.args[0] if node.target is operator.getitem else node
        images = [n for n in reader.all_input_nodes if self._constant(n) is None]
        if len(images) != 1 or reader.op not in ("call_function", "call_module"):
            return None
        try:
            rule = self._rule(reader)
            if reader is not node:
                rule = rule(node.args[1]) if callable(rule) else None
        except NotFusable:
            return None
        if isinstance(rule, ConvStep):
            pixelwise = isinstance(rule.layer, Conv) and rule.layer.geometry.is_pointwise
        else:
            pixelwise = isinstance(rule, PerChannel)
        return (rule, reader, images[0]) if pixelwise else None

    def _rule(self, node: fx.Node) -> Any:
        """What a layer or an operator makes of its one image. Raises NotFusable."""
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            if not is_layer(layer) or len(node.args) != 1:
                raise not_linear(str(node.target))
            return layer_rule(layer)
        name = operator_of(node)
        if name is None:
            raise not_linear(node.name)

        def plain(argument: fx.Node) -> Any:
            known = self._constant(argument)
            return Image(argument.name, self.rank) if known is None else known

        args, kwargs = fx.map_arg((node.args, node.kwargs), plain)
        return rules.apply(name, *args, **kwargs)[0]

    def _constant(self, node: fx.Node) -> Tensor | None:
        """What a node gives whatever the images are, if its sizes are numbers; in float64."""
        if node not in self.constants:
            self.constants[node] = None
            if all(isinstance(size, int) for size in node.meta.get("size", (None,))):
                self.constants[node] = self._evaluated(node)
        return self.constants[node]

    def _evaluated(self, node: fx.Node) -> Tensor | None:
        size = torch.Size(node.meta["size"])
        if size.numel() > LARGEST_CONSTANT:
            return None
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return _double(getattr(self.module.get_submodule(owner), name))
        filled = _filled(node)
        if filled is not None:
            return self._number(filled).expand(size)
        source: Any = node.args[0] if node.target is operator.getitem else node
        reads = source.all_input_nodes
        if not reads or any(self._constant(n) is None for n in reads):
            return None
        dtypes = {n.meta["dtype"] for n in reads if n.meta["dtype"].is_floating_point}
        if dtypes - {node.meta["dtype"]}:
            return None  # rounded on the way
        with torch.no_grad():
            made = self._run(source)
        part = made if source is node else made[node.args[1]]
        return _double(part) if isinstance(part, Tensor) else None

    def _run(self, node: fx.Node) -> Any:
        """What a node makes of constants, in float64."""
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._constant)
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            known = is_layer(layer) and not layer.training and not has_hooks(layer)
            return copy.deepcopy(layer).double()(*args, **kwargs) if known else None
        if kwargs.get("dtype") is not None:
            kwargs = {**kwargs, "dtype": torch.float64}
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def grid(self, node: Any) -> Grid:
        """What stands where in a value. Raises UnknownPlace for what is no image."""
        size = node.meta.get("size", ()) if isinstance(node, fx.Node) else ()
        if len(size) != self.rank + 2:
            raise UnknownPlace
        if node not in self.grids:
            itself = Part(node, size[2:], (0,) * self.rank)
            self.grids[node] = Grid.of(itself, size[2:], self.sizes)
            with contextlib.suppress(UnknownPlace):
                self.grids[node] = self._looked_at(node)
        return self.grids[node]

    def _looked_at(self, node: fx.Node) -> Grid:
        """The same, of a node whose arguments are known. Raises UnknownPlace."""
        args: Any = node.args
        match node.target:
            case _ if (known := self._same_everywhere(node, self.rank)) is not None:
                return Grid.of(known, node.meta["size"][2:], self.sizes)
            case target if target in COPIES:
                return self.grid(args[0])
            case target if target in WRITTEN and self._is_like(node, args[1]):
                return self.grid(args[1])
            case OPS.constant_pad_nd.default:
                return self._padded_grid(*args)
            case OPS.slice.Tensor:
                axis, place = self._range(*args)
                return self.grid(args[0]).between(axis, *place) if place else self.grid(args[0])
            case OPS.slice_scatter.default:
                whole, part, *rest = args
                axis, place = self._range(whole, *rest)
                if not place:
                    return self.grid(part)
                return self.grid(whole).pasted(self.grid(part), axis, *place)
            case OPS.select_scatter.default:
                return self._with_row(*args)
            case OPS.cat.default:
                grids, dim = [self.grid(part) for part in args[0]], self._dim(*args[1:])
                return joined(self._axis(dim), grids)
        raise UnknownPlace

    def _same_everywhere(self, node: fx.Node, rank: int) -> Tensor | None:
        """The constants that a node gives at every pixel, if it does: [channels], or one number.

        It is read as an image with so many spatial axes.
        """
        known = self._constant(node)
        if known is not None and known.numel() > 1:
            shape, ones = tuple(known.shape), (1,) * rank
            bare = shape[1:] if len(shape) == rank + 2 and shape[0] == 1 else shape
            return known.reshape(-1) if bare[1:] == ones and len(bare) == rank + 1 else None
        if known is not None or _filled(node) is not None:
            return known.reshape(()) if known is not None else self._number(_filled(node))
        source = node.args[node.target in WRITTEN] if node.args else None
        if not isinstance(source, fx.Node):
            return None
        if node.target in (*COPIES, *WRITTEN, OPS.expand.default):
            same = source.meta["dtype"] == node.meta["dtype"]
            return self._field(source, rank) if same else None
        if node.target is OPS.slice.Tensor and node.args[1:2] != (1,):
            return self._field(source, rank)
        if node.op != "call_module" or len(node.args) != 1:
            return None
        before = self._field(source, rank)
        found = self._pixelwise(node) if before is not None else None
        return None if before is None or found is None else _of_constants(found[0], before)

    def _field(self, node: fx.Node, rank: int) -> Tensor | None:
        """The same, also of what was put together of others."""
        known = self._same_everywhere(node, rank)
        if known is None:
            with contextlib.suppress(UnknownPlace):
                known = self.grid(node).constants
        return known

    def _is_like(self, node: fx.Node, other: Any) -> bool:
        """Whether another value has the same shape and dtype."""
        own, sizes = node.meta["size"], other.meta.get("size", ())
        alike = len(own) == len(sizes) and node.meta["dtype"] == other.meta.get("dtype")
        return alike and all(simple(a - b) == 0 for a, b in zip(own, sizes, strict=True))

    def _axis(self, dim: int) -> int:
        """The spatial axis of a dimension. Raises UnknownPlace for batch and channels."""
        axis = dim - 2 if dim >= 0 else self.rank + dim
        if axis < 0:
            raise UnknownPlace
        return axis

    def _dim(self, dim: int = 0) -> int:
        return dim

    def _number(self, value: Any) -> Tensor:
        device = device_of(self.module)
        return torch.full((), value, dtype=torch.float64, device=device)

    def _padded_grid(self, image: Any, pads: Any, value: Any = 0) -> Grid:
        grid = self.grid(image)
        pairs = [*zip(pads[::2], pads[1::2], strict=True)]
        if len(pairs) > self.rank or not isinstance(value, (int, float)):
            raise UnknownPlace
        for place, (before, after) in enumerate(pairs):
            axis = self.rank - 1 - place
            grid = grid.padded(axis, (_size(before), _size(after)), self._number(value))
        return grid

    def _range(
        self, image: fx.Node, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1
    ) -> tuple[int, tuple[Any, Any] | None]:
        """The axis of a slice, and where it begins and ends; None where it is all there is.

        Raises UnknownPlace for a slice of another kind.
        """
        size = image.meta["size"][dim]
        begin, stop = _size(start) or 0, _size(end)
        if stop is None or (isinstance(stop, int) and stop >= rules_axes.END):
            stop = size
        begin, stop = (size + n if isinstance(n, int) and n < 0 else n for n in (begin, stop))
        if simple(begin) == 0 and simple(stop - size) == 0 and step == 1:
            return 0, None
        if step != 1:
            raise UnknownPlace
        return self._axis(dim), (begin, stop)

    def _with_row(self, whole: Any, part: Any, dim: int, index: Any) -> Grid:
        """An image with constants in one of its rows."""
        grid, known, begin = self.grid(whole), self._field(part, self.rank - 1), _size(index)
        axis = self._axis(dim)
        if known is None:
            raise UnknownPlace
        if isinstance(begin, int) and begin < 0:
            begin = grid.shape[axis] + begin
        return grid.pasted(grid.filled(known, axis, 1), axis, begin, begin + 1)


def _of_constants(rule: Rule | None, value: Tensor) -> Tensor:
    """What a rule that looks at each pixel alone makes of constants: [channels], or one number."""
    match rule:
        case PerChannel(by):
            return value * by.scale + by.shift
        case ConvStep(layer):
            channels, rank = layer.geometry.in_channels, len(layer.geometry.axes)
            image = value.expand(channels).reshape(1, channels, *[1] * rank)
            return layer.linear()(image).reshape(-1)
    return value


def _filled(node: fx.Node) -> float | None:
    """The number that a node is filled with, if it is."""
    if node.op != "call_function" or node.target not in FILLED:
        return None
    value: Any = FILLED[node.target]
    if isinstance(value, int):
        value = node.args[value] if value < len(node.args) else None
    return value if isinstance(value, (int, float)) else None


def size_of(expression: str) -> int:
    """Stands in a captured graph for a size that depends on the input. It is never called."""
    raise AssertionError(expression)


def _size(argument: Any) -> Any:
    """A size or place as a number or an expression."""
    return argument.meta["size_of"] if isinstance(argument, fx.Node) else argument


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()


def _grown(size: Sequence[Any], pads: Pads) -> tuple[Any, ...]:
    spatial = (simple(n + sum(pair)) for n, pair in zip(size[2:], pads, strict=True))
    return (*size[:2], *spatial)
