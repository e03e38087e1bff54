"""From a forward to steps: each node becomes the name of an operator and its arguments.

Names of the user's play no part. A layer counts by torch's own class and forward, a function by
what it is; everything that is not known here is opaque, which is always safe. Graphs of aten's
operators (exported programs) and of torch's functions are read alike.
"""

import contextlib
import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from acfuse.algebra import Conv
from acfuse.algebra.geometry import LARGEST_KERNEL
from acfuse.errors import NotFusable, Reason
from acfuse.graph import rules
from acfuse.graph.calls import signature
from acfuse.graph.fx_norms import normalised
from acfuse.graph.fx_operators import (
    ACTIVATIONS,
    CONVOLUTIONS,
    TRANSPOSED,
    call_of,
    call_of_layer,
    reading_of,
    spatial_rank_of,
)
from acfuse.graph.fx_trace import Traced
from acfuse.graph.fx_values import ASSERTS, METADATA, METADATA_ATTRIBUTES, function_name
from acfuse.graph.images import Image, Parts, not_linear
from acfuse.graph.layouts import IMAGE, ROWS, Operation, axes_of
from acfuse.graph.own_layers import has_hooks
from acfuse.graph.randomness import RANDOM_FUNCTIONS, watched_randomness
from acfuse.graph.rules import RULES
from acfuse.graph.steps import (
    ConvStep,
    Graph,
    Layer,
    LinearSubmodule,
    Opaque,
    PerChannel,
    Rule,
    Step,
    planned_rule,
)
from acfuse.system.escape import one_line


def steps_of(
    traced: Traced,
    children: Mapping[str, LinearSubmodule | Opaque | None],
    spatial_rank: int | None = None,
) -> Graph:
    """The steps of a traced forward.

    `children` says for each node that calls a module of the user's own what that module is (None:
    it only passes its input on), `spatial_rank` how many spatial axes its images have, where its
    own convolutions do not tell.
    """
    if traced.graph is None:
        raise ValueError("the forward was not traced")
    own = spatial_rank_of(traced.module, traced.graph)
    rank = own if own is not None else spatial_rank
    return _Builder(traced, traced.graph, children, rank).build()


class _Builder:
    def __init__(
        self,
        traced: Traced,
        graph: fx.Graph,
        children: Mapping[str, LinearSubmodule | Opaque | None],
        spatial_rank: int | None,
    ) -> None:
        self.module, self.graph, self.mutated = traced.module, graph, traced.mutated
        self.writers = set(traced.writes.values())
        self.children, self.spatial_rank = children, spatial_rank
        self.names: dict[fx.Node, str] = {}  # node -> value; passing nodes share a name
        self.constants: dict[fx.Node, Any] = {}
        self.rows: dict[fx.Node, fx.Node] = {}  # the first value that has the same rows
        self.parts: dict[fx.Node, Parts] = {}  # of a node that gives several results
        self.steps: list[Step] = []
        self.metadata = metadata_only(graph)
        for node in graph.nodes:
            if self._is_constant(node):
                self.constants[node] = None
        read = {node: reading_of(node, self.module, children) for node in graph.nodes}
        self.readings = {node: reading for node, reading in read.items() if reading is not None}
        self.axes = axes_of([*self._operations()])

    def build(self) -> Graph:
        inputs: list[str] = []
        for node in self.graph.nodes:
            if node in self.metadata or node.op == "output":
                continue
            if node.op == "placeholder":
                self.names[node] = node.name
                inputs.append(node.name)
            elif node not in self.constants:
                self._add(node)
        returned = next(node for node in self.graph.nodes if node.op == "output")
        single = returned.args[0]
        return Graph(
            tuple(self.steps),
            tuple(inputs),
            frozenset(self.names[n] for n in returned.all_input_nodes if n in self.names),
            self.names.get(single) if isinstance(single, fx.Node) else None,
            self.spatial_rank,
            frozenset(
                self.names.get(n, n.name) for n in self.graph.nodes if n.name in self.mutated
            ),
            {
                name: axes
                for node, name in self.names.items()
                if (axes := self._spatial_axes(node)) not in (None, self.spatial_rank)
            },
        )

    def _operations(self) -> Iterator[Operation]:
        for node, reading in self.readings.items():
            if node not in self.constants:
                reads = [n for n in node.all_input_nodes if n not in self.constants]
                yield Operation(node, reads, reading)

    def _keeps_rows(self, node: fx.Node, rule: Rule | None) -> bool:
        """Whether a node gives one row for each that it reads: a layer, or factors of one axis.

        A constant of more axes may give rows more of them, or repeat these.
        """
        reads = [n for n in node.all_input_nodes if n not in self.constants]
        if len(reads) != 1 or not self.axes.get(node) == self.axes.get(reads[0]) == ROWS:
            return False
        reading = self.readings.get(node)
        plain = rule is None or isinstance(rule, ConvStep | PerChannel)
        known = plain and (not isinstance(rule, PerChannel) or rule.axes is None)
        return known and reading is not None and reading.each

    def _spatial_axes(self, node: fx.Node) -> int | None:
        """How many spatial axes a value has, none where it is read in several ways."""
        axes = self.axes.get(node, IMAGE)
        return self.spatial_rank if axes == IMAGE else axes

    def _is_constant(self, node: fx.Node) -> bool:
        reads = node.all_input_nodes
        if node.name in self.mutated or node.name in self.writers:
            return False
        return node.op == "get_attr" or (
            node.op in ("call_function", "call_method")
            and bool(reads)
            and all(r in self.constants for r in reads)
        )

    def _constant(self, node: fx.Node) -> Any:
        """The value of what depends on the model alone; computed once, without drawing numbers."""
        if node not in self.constants:
            raise NotFusable(Reason.ACTIVATION, f"{node.name} depends on the input")
        if self.constants[node] is None and node.op == "get_attr":
            self.constants[node] = self._stored(str(node.target))
        if self.constants[node] is None:
            given = fx.map_arg((node.args, node.kwargs), self._constant)
            with torch.no_grad(), watched_randomness() as drawn:
                value = _carried_out(node, *_mapped(_doubled, given))
                if drawn():
                    raise NotFusable(Reason.RANDOM, "a kernel is drawn at random in the forward")
            if isinstance(value, Tensor) and not bool(value.isfinite().all()):
                raise NotFusable(Reason.OVERFLOW, f"{node.name}, a constant, holds NaN or Inf")
            self.constants[node] = value
        return self.constants[node]

    def _stored(self, target: str) -> Any:
        """A tensor of the module; one that is computed whenever it is asked for, in float64."""
        owner, _, name = target.rpartition(".")
        holder = self.module.get_submodule(owner)
        if parametrize.is_parametrized(holder, name):
            holder = copy.deepcopy(holder).double()
        with torch.no_grad():
            return getattr(holder, name)

    def _add(self, node: fx.Node) -> None:
        rule: Rule | None
        try:
            made, images = self._read(node)
            if callable(made):
                self._check_parts(node, made)
            rule = None if callable(made) else planned_rule(made)
        except NotFusable as refusal:
            rule = Opaque(refusal.why, refusal.code, channels=normalised(node))
        if node.name in self.mutated:
            rule = Opaque(f"{node.name} is overwritten in place", Reason.IN_PLACE)
        if self._keeps_rows(node, rule):
            read = next(n for n in node.all_input_nodes if n not in self.constants)
            self.rows[node] = self.rows.get(read, read)
        if rule is None:  # another name for what it reads
            self.names[node] = images[0].value
            if callable(made):
                self.parts[node] = made
            return
        reads = [self.names[n] for n in node.all_input_nodes if n in self.names]
        if not isinstance(rule, Opaque):
            reads = [image.value for image in images]
        self.names[node] = node.name
        self.steps.append(Step(node.name, tuple(reads), rule))

    def _check_parts(self, node: fx.Node, parts: Parts) -> None:
        """Whether each of several results is read alone, and described by a rule."""
        for user in node.users:
            if user.target is not operator.getitem or not isinstance(user.args[1], int):
                raise _no_rule(node)
            parts(user.args[1])

    def _read(self, node: fx.Node) -> tuple[Rule | Parts | None, Sequence[Image]]:
        """The rule of a node, and the images that it takes in their order. Raises NotFusable."""
        if node.op == "call_module":
            return self._called(node)
        name, args = call_of(node)
        if name is None or name not in RULES:
            raise _no_rule(node)
        kwargs: Any
        args, kwargs = fx.map_arg((args, node.kwargs), self._plain)
        if isinstance(node.target, FunctionType):  # written in Python: it has an order of its own
            own = zip(node.target.__code__.co_varnames, args, strict=False)
            args, kwargs = (), {**dict(own), **kwargs}
        return rules.apply(name, *args, **kwargs)

    def _plain(self, node: fx.Node) -> Any:
        """What a node stands for in the arguments of a rule."""
        if node in self.names:
            axes = self._spatial_axes(node)
            rows = id(self.graph), self.rows.get(node, node).name
            return Image(self.names[node], axes, parts=self.parts.get(node), rows=rows)
        return self._constant(node)

    def _called(self, node: fx.Node) -> tuple[Rule | None, Sequence[Image]]:
        """The same for the call of a module."""
        layer = self.module.get_submodule(str(node.target))
        arguments: Sequence[Any] = node.args
        if node.kwargs:  # in whatever order they are written
            try:
                arguments = signature(layer).bind(*node.args, **node.kwargs).args
            except TypeError as error:
                why = f"how {node.target} is called is not understood: {one_line(error)}"
                raise NotFusable(Reason.CALLS, why) from None
        read = [a for a in arguments if isinstance(a, fx.Node) and a in self.names]
        images = [Image(self.names[n], self._spatial_axes(n)) for n in read]
        kind = type(layer).__name__
        if node.name in self.children:
            known = self.children[node.name]
            count = len(known.graph.inputs) if isinstance(known, LinearSubmodule) else 1
            if len(images) != count and not isinstance(known, Opaque):
                raise NotFusable(Reason.ACTIVATION, f"{kind} works on constants")
            return known, images
        if len(node.all_input_nodes) > 1 or any(a is not None for a in arguments[1:]):
            raise NotFusable(Reason.UNKNOWN_LAYER, f"{kind} is called with more than one input")
        if not images:
            raise NotFusable(Reason.ACTIVATION, f"{kind} works on constants")
        return layer_rule(layer, images[0].spatial_rank), images


def layer_rule(layer: Any, spatial_rank: int | None = None) -> Rule | None:
    """The rule of one of torch's own layers; None where it only passes its input on.

    `spatial_rank` is that of what it reads, where it is known. Raises NotFusable for a layer that
    is not linear, or that no rule describes.
    """
    kind = type(layer).__name__
    if has_hooks(layer):
        raise NotFusable(Reason.HOOKS, f"a {kind} has hooks")
    convolution = next((k for k in CONVOLUTIONS if isinstance(layer, k)), None)
    if convolution is not None:
        if type(layer)._conv_forward is not convolution._conv_forward:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"{kind} has arithmetic of its own")
        return ConvStep(conv_of(layer))
    if isinstance(layer, tuple(TRANSPOSED)):
        return ConvStep(conv_of(layer))
    name, attributes = call_of_layer(layer)
    if not name:
        raise _not_known(kind)
    pads = getattr(layer, "padding", None)  # of a pad: both ends of each axis
    image = Image(spatial_rank=len(pads) // 2 if isinstance(pads, tuple) else spatial_rank)
    if parametrize.is_parametrized(layer):
        layer = copy.deepcopy(layer).double()
    settings = (getattr(layer, name) for name in attributes.split())
    rule, _ = rules.apply(name, image, *settings)
    return rule  # type: ignore[return-value]  # no layer has several results


def conv_of(layer: Any) -> Layer:
    """The record of a convolution, transposed or not, or of an nn.Linear.

    Of a parametrized one it is that of its effective weight.

    Raises NotFusable for settings that fit no layer of its axes.
    """
    if parametrize.is_parametrized(layer):
        layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        weight = layer.weight
    if isinstance(layer, nn.Linear):
        return Conv(weight, layer.bias, (), (), ())
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        settings = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        return rules.conv_transpose(Image(), weight, layer.bias, *settings).layer
    whole = isinstance(layer.padding, str) or len(layer.padding) == weight.ndim - 2
    if layer.padding_mode != "zeros" and not whole:
        # Torch takes one number for all axes here only where it pads with zeros.
        why = f"it has {len(layer.padding)} pads for {weight.ndim - 2} axes"
        raise NotFusable(Reason.SIZES, why)
    return rules.conv(
        Image(), weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups,
        border=layer.padding_mode,
    ).layer  # fmt: skip


def is_convolution(layer: nn.Module) -> bool:
    """Whether a layer is a convolution, a matrix or a pool; in a program, whether it held one."""
    weight = getattr(layer, "weight", None)
    holds = type(layer) is nn.Module and isinstance(weight, Tensor) and weight.ndim > 1
    return holds or isinstance(layer, nn.Linear) or hasattr(layer, "kernel_size")


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer is a BatchNorm; in a program, whether it held the statistics of one."""
    holds = type(layer) is nn.Module and {"running_mean", "running_var"} <= layer._buffers.keys()
    return holds or isinstance(layer, nn.modules.batchnorm._BatchNorm)


def _no_rule(node: fx.Node) -> NotFusable:
    """The reason to stop at a node that no rule describes."""
    if node.target is getattr or (node.op == "call_method" and node.target in METADATA):
        asked = node.args[1] if node.target is getattr else node.target
        return not_linear(f"what is computed from its {asked}")
    return _not_known(function_name(node))


def _not_known(name: str) -> NotFusable:
    if name in RANDOM_FUNCTIONS:
        return NotFusable(Reason.RANDOM, f"{name} draws random numbers")
    is_activation = name.lower().replace("_", "") in ACTIVATIONS
    return not_linear(f"the activation {name}" if is_activation else name)


def _mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    """A value with each tensor in it changed."""
    return fx.node.map_aggregate(value, lambda v: change(v) if isinstance(v, Tensor) else v)


def _doubled(tensor: Tensor) -> Tensor:
    """A floating tensor in float64: what is computed from weights is rounded once, at the end."""
    return tensor.detach().double() if tensor.is_floating_point() else tensor


def _carried_out(node: fx.Node, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """What a node makes of constants, if that is of a size that a kernel can have.

    It is tried on tensors without numbers first. Raises NotFusable if it is too large, or fails.
    """

    def call(args: Any, kwargs: Mapping[str, Any]) -> Any:
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)

    sizes: list[int] = []
    with contextlib.suppress(Exception):  # its size may depend on numbers
        ghosts = _mapped(lambda tensor: tensor.to("meta"), (args, kwargs))
        _mapped(lambda made: sizes.append(made.numel()), call(*ghosts))
    if sum(sizes) > LARGEST_KERNEL:
        why = f"{node.name} has {sum(sizes):,} numbers, too many for a kernel"
        raise NotFusable(Reason.WINDOW, why)
    try:
        return call(args, kwargs)
    except Exception as error:
        why = f"{node.name} cannot be computed ({one_line(error, 200)})"
        raise NotFusable(Reason.UNTRACEABLE, why) from error


def metadata_only(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that ask for shapes only to assert something about them."""
    shapes: set[fx.Node] = set()
    for node in graph.nodes:
        getter = node.op == "call_method" and node.target in METADATA
        attribute = node.target is getattr and node.args[1] in METADATA_ATTRIBUTES
        reads = node.all_input_nodes
        derived = node.op == "call_function" and bool(reads) and shapes.issuperset(reads)
        if getter or attribute or derived:
            shapes.add(node)
    only: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        asserts = node.op == "call_function" and function_name(node) in ASSERTS
        if (asserts and shapes.issuperset(node.all_input_nodes)) or (
            node in shapes and only.issuperset(node.users)
        ):
            only.add(node)
    return only
