"""From a traced forward to steps: what each node does, as a rule or opaquely.

Names play no part. A layer counts by torch's own class and forward, a function by what it is;
everything that is not known here is opaque, which is always safe.
"""

import contextlib
import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from acfuse.algebra import (
    Affine,
    AvgPool,
    Conv,
    Pad,
    batch_norm,
    combined,
    per_channel,
    transposed_conv,
)
from acfuse.algebra.geometry import LARGEST_KERNEL, Border
from acfuse.errors import NotFusable, Reason
from acfuse.graph.fx_trace import RANDOM_FUNCTIONS, Traced, has_hooks, watched_randomness
from acfuse.graph.fx_values import function_name
from acfuse.graph.steps import (
    ChannelSlice,
    Concat,
    ConvStep,
    Graph,
    LinearSubmodule,
    Opaque,
    PerChannel,
    Rule,
    Step,
    Sum,
    planned_rule,
)
from acfuse.system.escape import one_line

CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
TRANSPOSED = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}
POOLS = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
PADS: dict[type[nn.Module], Border] = {
    nn.ConstantPad1d: "zeros", nn.ConstantPad2d: "zeros", nn.ConstantPad3d: "zeros",
    nn.ReflectionPad1d: "reflect", nn.ReflectionPad2d: "reflect", nn.ReflectionPad3d: "reflect",
    nn.ReplicationPad1d: "replicate", nn.ReplicationPad2d: "replicate",
    nn.ReplicationPad3d: "replicate", nn.CircularPad1d: "circular", nn.CircularPad2d: "circular",
    nn.CircularPad3d: "circular",
}  # fmt: skip
PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
PASSING_METHODS = {"contiguous", "clone"}
METADATA = {"size", "dim", "ndimension", "numel", "stride", "is_floating_point", "element_size"}
METADATA_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "requires_grad", "is_cuda"}
ASSERTS = {"_assert", "_assert_is_none"}


def steps_of(
    traced: Traced, children: Mapping[str, LinearSubmodule | Opaque], axes: int | None = None
) -> Graph:
    """The steps of a traced forward.

    `children` says for each node that calls a module of the user's own what that module is, `axes`
    how many spatial axes its images have, where its own convolutions do not tell.
    """
    own = spatial_axes(traced.module)
    return _Builder(traced, children, own if own is not None else axes).build()


def spatial_axes(module: nn.Module) -> int | None:
    """The number of spatial axes of a module's convolutions, if it is one."""
    kinds = (CONVOLUTIONS | TRANSPOSED).items()
    axes = {n for m in module.modules() for kind, n in kinds if isinstance(m, kind)}
    return axes.pop() if len(axes) == 1 else None


class _Builder:
    def __init__(
        self, traced: Traced, children: Mapping[str, LinearSubmodule | Opaque], axes: int | None
    ) -> None:
        if traced.graph is None:
            raise ValueError("the forward was not traced")
        self.module, self.graph, self.mutated = traced.module, traced.graph, traced.mutated
        self.children = children
        self.names: dict[fx.Node, str] = {}  # node -> value; passing nodes share a name
        self.constants: dict[fx.Node, Any] = {}
        self.steps: list[Step] = []
        self.metadata = metadata_only(self.graph)
        self.axes = axes

    def build(self) -> Graph:
        inputs: list[str] = []
        outputs: set[str] = set()
        single = None
        for node in self.graph.nodes:
            if node in self.metadata:
                continue
            if node.op == "placeholder":
                self.names[node] = node.name
                inputs.append(node.name)
            elif node.op == "output":
                for read in node.all_input_nodes:
                    if read in self.names:
                        outputs.add(self.names[read])
                if isinstance(node.args[0], fx.Node) and node.args[0] in self.names:
                    single = self.names[node.args[0]]
            elif self._is_constant(node):
                self.constants[node] = None
            else:
                self._add(node)
        return Graph(
            tuple(self.steps),
            tuple(inputs),
            frozenset(outputs),
            single,
            self.axes,
            frozenset(
                self.names.get(n, n.name) for n in self.graph.nodes if n.name in self.mutated
            ),
        )

    def _is_constant(self, node: fx.Node) -> bool:
        reads = node.all_input_nodes
        if node.op == "get_attr":
            return node.name not in self.mutated
        return (
            node.op in ("call_function", "call_method")
            and bool(reads)
            and all(r in self.constants for r in reads)
        )

    def _constant(self, node: Any) -> Any:
        """The value of what depends on the model alone; computed once, without drawing numbers."""
        if isinstance(node, (tuple, list)):
            return type(node)(self._constant(n) for n in node)
        if not isinstance(node, fx.Node):
            return node
        if node not in self.constants:
            raise NotFusable(Reason.ACTIVATION, f"{node.name} depends on the input")
        if self.constants[node] is None:
            if node.op == "get_attr":
                self.constants[node] = self._stored(str(node.target))
                return self.constants[node]
            args = _mapped(_doubled, self._constant(tuple(node.args)))
            kwargs = {k: _mapped(_doubled, self._constant(v)) for k, v in node.kwargs.items()}
            with torch.no_grad(), watched_randomness() as drawn:
                value = _carried_out(node, args, kwargs)
                if drawn():
                    raise NotFusable(Reason.RANDOM, "a kernel is drawn at random in the forward")
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
        reads = tuple(self.names[n] for n in node.all_input_nodes if n in self.names)
        rule: Rule | None
        try:
            rule = planned_rule(self._rule(node))
        except NotFusable as refusal:
            rule = Opaque(refusal.why, refusal.code)
        if node.name in self.mutated:
            why = f"{node.name} is overwritten in place"
            rule = Opaque(why, Reason.IN_PLACE)
        if rule is None:
            # What passes is the value among what it reads, wherever a factor of 1 stands.
            self.names[node] = reads[0]
            return
        if not isinstance(rule, Opaque):
            reads = self._ordered_reads(node, rule)
            if len(reads) < (len(rule.signs) if isinstance(rule, Sum) else 1):
                rule = Opaque(f"{node.name} works on constants", Reason.ACTIVATION)
        self.names[node] = node.name
        self.steps.append(Step(node.name, reads, rule))

    def _ordered_reads(self, node: fx.Node, rule: Rule) -> tuple[str, ...]:
        """The values that a rule takes, once for each time that it takes them (x + x)."""
        arguments: list[Any] = [*node.args, *node.kwargs.values()]
        if isinstance(rule, Concat):
            arguments = [*arguments[0]]
        values = [self.names[a] for a in arguments if isinstance(a, fx.Node) and a in self.names]
        return tuple(values[: len(rule.signs)] if isinstance(rule, Sum) else values)

    def _rule(self, node: fx.Node) -> Rule | None:
        """The rule of a node; None where it only passes its value on. Raises NotFusable."""
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            if node.name in self.children:
                return self.children[node.name]
            if len(node.all_input_nodes) > 1:
                why = f"{type(layer).__name__} is given more than its image"
                raise NotFusable(Reason.UNKNOWN_LAYER, why)
            return layer_rule(layer)
        if node.op == "call_method":
            return self._method(node)
        return self._function(node)

    def _method(self, node: fx.Node) -> Rule | None:
        name = str(node.target).rstrip("_")
        if name in PASSING_METHODS:
            return None
        if name in METHODS:
            return self._arithmetic(node, METHODS[name])
        if name in PARTS:
            self._check_parts(node)
            return None
        if node.target in METADATA:
            raise _stands_between(f"what is computed from its {node.target}")
        raise _stands_between(str(node.target))

    def _function(self, node: fx.Node) -> Rule | None:
        target = node.target
        if target in ARITHMETIC:
            return self._arithmetic(node, ARITHMETIC[target])
        if target in PARTS:
            self._check_parts(node)
            return None
        if target is operator.getitem and self._made_of(node.args[0]) in PARTS:
            return ChannelSlice(self._part(node.args[0], node.args[1]))  # type: ignore[arg-type]
        if target in FUNCTIONS:
            return FUNCTIONS[target](self, node)
        if target in JOINS:
            return self._joined(node)
        if target is getattr:
            raise _stands_between(f"what is computed from its {node.args[1]}")
        raise _stands_between(function_name(node))

    def _made_of(self, node: Any) -> Any:
        return node.target if isinstance(node, fx.Node) else None

    def _check_parts(self, node: fx.Node) -> None:
        """A value in parts by channels is another name for it, where each part is read alone."""
        for user in node.users:
            if user.target is not operator.getitem or not isinstance(user.args[1], int):
                raise _stands_between(function_name(node))
            self._part(node, user.args[1])

    def _part(self, node: fx.Node, index: int) -> slice | tuple[int, int]:
        """Which channels are the part of that number; NotFusable if that is not known."""
        chunks = function_name(node) == "chunk"
        given = self._arguments(node, ("input", "chunks" if chunks else "sizes", "dim"))
        how = given.get("chunks") or given.get("sizes") or given.get("split_size_or_sections")
        how = how or given.get("split_size")
        dim = given.get("dim", 0)
        if index >= 0 and (dim == 1 or (self.axes is not None and dim == -1 - self.axes)):
            if chunks and isinstance(how, int):
                return index, how
            if isinstance(how, int):
                return slice(index * how, (index + 1) * how)
            if isinstance(how, (list, tuple)) and all(isinstance(n, int) for n in how):
                return slice(sum(how[:index]), sum(how[: index + 1]))
        raise _stands_between(function_name(node))

    def _joined(self, node: fx.Node) -> Rule:
        """Values side by side: concatenated by channels, or in a way that no rule describes."""
        given = self._arguments(node, ("tensors", "dim"))
        tensors, dim = given.get("tensors"), given.get("dim", given.get("axis", 0))
        by_channels = dim == 1 or (self.axes is not None and dim == -1 - self.axes)
        known = isinstance(tensors, (list, tuple)) and all(
            isinstance(t, fx.Node) and t in self.names for t in tensors
        )
        if by_channels and known and JOINS[node.target] == "concatenated":
            return Concat()
        raise NotFusable(Reason.CONCATENATED, f"the arms are {JOINS[node.target]}, not added")

    def _arithmetic(self, node: fx.Node, op: Callable[..., Any]) -> Rule | None:
        args = list(node.args)
        alpha = node.kwargs.get("alpha", 1)
        if set(node.kwargs) - {"alpha", "inplace"} or not isinstance(alpha, (int, float)):
            raise NotFusable(Reason.ACTIVATION, f"{node.name} has options that no rule knows")
        values = [a for a in args if isinstance(a, fx.Node) and a in self.names]
        if op is operator.neg:
            return PerChannel(Affine(-1.0), like_image=True)
        if len(args) != 2 or not values:
            raise NotFusable(Reason.ACTIVATION, f"{node.name} stands between")
        if len(values) == 2:
            if node.target is torch.rsub:
                return Sum((-float(alpha), 1.0))
            if op is operator.add:
                return Sum((1.0, float(alpha)))
            if op is operator.sub:
                return Sum((1.0, -float(alpha)))
            raise NotFusable(Reason.ACTIVATION, "a product of two activations stands between")
        first = args[0] is values[0]
        if node.target is torch.rsub or (
            alpha != 1 and not first
        ):  # c + alpha * x: alpha is no factor of the constant
            raise NotFusable(Reason.ACTIVATION, f"{node.name} has options that no rule knows")
        factor = self._per_channel(args[1] if first else args[0])
        by = combined(SIGNS[op], factor * alpha, value_first=first)
        return None if by.changes_nothing else PerChannel(by, like_image=by.channels is None)

    def _per_channel(self, constant: Any) -> Tensor | float:
        """A constant as one number or one per channel; by its shape, or it is refused."""
        value = self._constant(constant)
        if isinstance(value, (bool, int, float)):
            return float(value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise NotFusable(Reason.NOT_PER_CHANNEL, f"{constant} is not a factor per channel")
        return per_channel(value, self.axes)

    def functional_conv(self, node: fx.Node) -> Rule:
        """F.conv1d, 2d, 3d with a kernel that depends on the model alone."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = self._arguments(node, names)
        weight, bias = self._constant(given["weight"]), self._constant(given.get("bias"))
        axes = weight.ndim - 2
        stride, dilation = (_each(given.get(n, 1), axes) for n in ("stride", "dilation"))
        pads = _pads(given.get("padding", 0), weight.shape[2:], dilation)
        return ConvStep(Conv(weight, bias, stride, pads, dilation, given.get("groups", 1)))

    def functional_batch_norm(self, node: fx.Node) -> Rule:
        """F.batch_norm with statistics of the model."""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training",
                 "momentum", "eps")  # fmt: skip
        given = self._arguments(node, names)
        mean, variance, weight, bias = (
            self._constant(given.get(n)) for n in ("running_mean", "running_var", "weight", "bias")
        )
        training = bool(given.get("training", False))
        by = batch_norm(weight, bias, mean, variance, given.get("eps", 1e-5), training)
        return PerChannel(by, like_image=True)

    def functional_pad(self, node: fx.Node) -> Rule:
        """F.pad with zeros or another border, on the spatial axes."""
        given = self._arguments(node, ("input", "pad", "mode", "value"))
        amounts, mode = self._constant(given["pad"]), given.get("mode", "constant")
        if mode == "constant" and given.get("value"):
            raise NotFusable(Reason.BORDERS, f"it pads with {given['value']}, not with zeros")
        border: Border = "zeros" if mode == "constant" else mode
        return self._pad(amounts, border)

    def _pad(self, amounts: Any, border: Border) -> Rule:
        whole = [*amounts]
        if self.axes is None or not all(isinstance(n, int) for n in whole):
            raise NotFusable(Reason.UNKNOWN_LAYER, "the padding depends on the input")
        if len(whole) > 2 * self.axes:
            raise NotFusable(Reason.CHANNELS, "it pads the channels")
        whole += [0] * (2 * self.axes - len(whole))
        pairs = tuple(zip(whole[::2], whole[1::2], strict=True))
        return ConvStep(Pad(0, tuple(reversed(pairs)), border))

    def indexed(self, node: fx.Node) -> Rule:
        """A crop of the spatial axes by constant amounts from both ends: x[:, :, 1:-1, :]."""
        index = node.args[1]
        index = index if isinstance(index, tuple) else (index,)
        axes = -1 if self.axes is None else self.axes
        if sum(part is Ellipsis for part in index) == 1:
            place = index.index(Ellipsis)
            missing = (slice(None),) * (axes + 3 - len(index))
            index = (*index[:place], *missing, *index[place + 1 :])
        if axes < 0 or len(index) > axes + 2:
            raise NotFusable(Reason.ACTIVATION, "an index stands between")
        channels = index[1] if len(index) > 1 else None
        if isinstance(channels, slice) and channels != slice(None):
            return self._some_channels(channels, (index[0], *index[2:]))
        cuts = []
        for place, part in enumerate(index):
            cut = _cut(part)
            if cut is None or (place < 2 and cut != (0, 0)):
                raise NotFusable(Reason.ACTIVATION, "an index stands between")
            cuts.append(cut)
        cuts += [(0, 0)] * (axes + 2 - len(cuts))
        return ConvStep(Pad(0, tuple(cuts[2:])))

    def _some_channels(self, channels: slice, others: tuple[Any, ...]) -> Rule:
        """x[:, a:b], and nothing else of it."""
        bounds = (channels.start, channels.stop)
        if (
            any(part != slice(None) for part in others)
            or channels.step not in (None, 1)
            or not all(n is None or isinstance(n, int) for n in bounds)
        ):
            raise NotFusable(Reason.ACTIVATION, "an index stands between")
        return ChannelSlice(channels)

    def functional_pool(self, node: fx.Node) -> Rule:
        """F.avg_pool1d, 2d, 3d."""
        names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
                 "divisor_override")  # fmt: skip
        given = self._arguments(node, names)
        axes = int(function_name(node)[-2])
        return pool_rule(
            axes,
            given["kernel_size"],
            given.get("stride"),
            given.get("padding", 0),
            given.get("ceil_mode", False),
            given.get("count_include_pad", True),
            given.get("divisor_override"),
        )

    def functional_dropout(self, node: fx.Node) -> Rule | None:
        """F.dropout outside of training."""
        given = self._arguments(node, ("input", "p", "training", "inplace"))
        if given.get("training", True):
            raise NotFusable(Reason.RANDOM, "a dropout is in training mode")
        return None

    def _arguments(self, node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
        return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


ARITHMETIC: dict[Any, Callable[..., Any]] = {
    operator.add: operator.add, operator.iadd: operator.add, torch.add: operator.add,
    operator.sub: operator.sub, operator.isub: operator.sub, torch.sub: operator.sub,
    torch.subtract: operator.sub,
    torch.rsub: operator.sub, operator.mul: operator.mul, operator.imul: operator.mul,
    torch.mul: operator.mul, torch.multiply: operator.mul, operator.truediv: operator.truediv,
    operator.itruediv: operator.truediv, torch.div: operator.truediv, operator.neg: operator.neg,
    torch.neg: operator.neg, torch.negative: operator.neg,
}  # fmt: skip

JOINS: dict[Any, str] = {
    torch.cat: "concatenated", torch.concat: "concatenated", torch.concatenate: "concatenated",
    torch.stack: "stacked", torch.hstack: "stacked", torch.vstack: "stacked",
}  # fmt: skip

PARTS = {"chunk", "split", torch.chunk, torch.split}

SIGNS = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/"}

METHODS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
}

FUNCTIONS: dict[Any, Callable[[_Builder, fx.Node], Rule | None]] = {
    F.conv1d: _Builder.functional_conv,
    F.conv2d: _Builder.functional_conv,
    F.conv3d: _Builder.functional_conv,
    F.batch_norm: _Builder.functional_batch_norm,
    F.pad: _Builder.functional_pad,
    F.avg_pool1d: _Builder.functional_pool,
    F.avg_pool2d: _Builder.functional_pool,
    F.avg_pool3d: _Builder.functional_pool,
    F.dropout: _Builder.functional_dropout,
    F.dropout1d: _Builder.functional_dropout,
    F.dropout2d: _Builder.functional_dropout,
    F.dropout3d: _Builder.functional_dropout,
    operator.getitem: _Builder.indexed,
}


def layer_rule(layer: Any) -> Rule | None:
    """The rule of one of torch's own layers; None where it only passes its input on.

    Raises NotFusable for a layer that is not linear, or that no rule describes.
    """
    kind = next((k for k in CONVOLUTIONS if isinstance(layer, k)), None)
    name = type(layer).__name__
    if has_hooks(layer):
        raise NotFusable(Reason.HOOKS, f"a {name} has hooks")
    if kind is not None:
        if type(layer)._conv_forward is not kind._conv_forward:
            raise NotFusable(Reason.UNKNOWN_LAYER, f"{name} has arithmetic of its own")
        return ConvStep(conv_of(layer))
    if any(isinstance(layer, k) for k in TRANSPOSED):
        return ConvStep(transposed_conv_of(layer))
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return PerChannel(
            batch_norm(
                layer.weight,
                layer.bias,
                layer.running_mean,
                layer.running_var,
                layer.eps,
                layer.training,
            ),
            like_image=True,
        )
    if isinstance(layer, PASSING):
        if layer.training and not isinstance(layer, nn.Identity):
            raise NotFusable(Reason.RANDOM, "a dropout is in training mode")
        return None
    pool = next((n for k, n in POOLS.items() if isinstance(layer, k)), None)
    if pool is not None:
        return pool_rule(
            pool,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.ceil_mode,
            layer.count_include_pad,
            getattr(layer, "divisor_override", None),
        )
    border = next((b for k, b in PADS.items() if isinstance(layer, k)), None)
    if border is not None:
        if getattr(layer, "value", 0):
            raise NotFusable(Reason.BORDERS, f"it pads with {layer.value}, not with zeros")
        amounts = [int(n) for n in layer.padding]
        pairs = tuple(zip(amounts[::2], amounts[1::2], strict=True))
        return ConvStep(Pad(0, tuple(reversed(pairs)), border))
    raise _stands_between(name)


ACTIVATIONS = {name.lower() for name in nn.modules.activation.__all__}


def _stands_between(name: str) -> NotFusable:
    """The reason to stop at a layer or function that is not linear, or that no rule describes."""
    if name in RANDOM_FUNCTIONS:
        return NotFusable(Reason.RANDOM, f"{name} draws random numbers")
    if name.lower().replace("_", "") in ACTIVATIONS:
        return NotFusable(Reason.ACTIVATION, f"an activation ({name}) stands between")
    return NotFusable(Reason.ACTIVATION, f"{name} stands between")


def _mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    """A value with each tensor in it changed."""
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(change, inner) for inner in value)
    return change(value) if isinstance(value, Tensor) else value


def _doubled(tensor: Tensor) -> Tensor:
    """A floating tensor in float64: what is computed from weights is rounded once, at the end."""
    return tensor.detach().double() if tensor.is_floating_point() else tensor


def _carried_out(node: fx.Node, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """What a node makes of constants, if that is of a size that a kernel can have.

    It is tried on tensors without numbers first. Raises NotFusable if it is too large, or fails.
    """

    def call(change: Callable[[Tensor], Any]) -> Any:
        given = _mapped(change, args)
        named = {key: _mapped(change, value) for key, value in kwargs.items()}
        if node.op == "call_function":
            return node.target(*given, **named)  # type: ignore[operator]
        return getattr(given[0], str(node.target))(*given[1:], **named)

    sizes: list[int] = []
    with contextlib.suppress(Exception):  # its size may depend on numbers
        _mapped(lambda made: sizes.append(made.numel()), call(lambda tensor: tensor.to("meta")))
    if sum(sizes) > LARGEST_KERNEL:
        why = f"{node.name} has {sum(sizes):,} numbers, too many for a kernel"
        raise NotFusable(Reason.WINDOW, why)
    try:
        return call(lambda tensor: tensor)
    except Exception as error:
        why = f"{node.name} cannot be computed ({one_line(error, 200)})"
        raise NotFusable(Reason.UNTRACEABLE, why) from error


def conv_of(layer: Any) -> Conv:
    """The record of an nn.Conv1d, 2d or 3d (a parametrized one with its effective weight).

    Raises NotFusable for settings that fit no layer of its axes.
    """
    if parametrize.is_parametrized(layer):
        layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        weight = layer.weight
    axes = weight.ndim - 2
    dilation = _each(layer.dilation, axes)
    each = isinstance(layer.padding, str) or len(layer.padding) == axes
    if layer.padding_mode != "zeros" and not each:
        # Torch takes one number for all axes here only where it pads with zeros.
        raise NotFusable(Reason.SIZES, f"it has {len(layer.padding)} pads for {axes} axes")
    return Conv(
        weight,
        layer.bias,
        _each(layer.stride, axes),
        _pads(layer.padding, weight.shape[2:], dilation),
        dilation,
        layer.groups,
        layer.padding_mode,
    )


def transposed_conv_of(layer: Any) -> Conv:
    """The record of a transposed convolution of stride 1; NotFusable for other strides."""
    if any(s != 1 for s in layer.stride):
        raise NotFusable(Reason.UNKNOWN_LAYER, "a transposed convolution with a stride")
    axes = layer.weight.ndim - 2
    pads, more = _each(layer.padding, axes), _each(layer.output_padding, axes)
    crops = tuple((n, n - m) for n, m in zip(pads, more, strict=True))
    dilation = _each(layer.dilation, axes)
    return transposed_conv(layer.weight.detach(), layer.bias, crops, dilation, layer.groups)


def pool_rule(
    axes: int,
    size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Rule:
    """Average pooling as a rule; NotFusable if its divisor is not constant."""
    size = _each(size, axes)
    pads = tuple((p, p) for p in _each(padding, axes))
    step = size if stride in (None, ()) else _each(stride, axes)
    pool = AvgPool(0, size, step, pads, ceil_mode, count_include_pad, divisor)
    pool.check()
    return ConvStep(pool)


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


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """A setting per axis, from one number or one per axis."""
    if isinstance(value, int):
        return (value,) * axes
    if not isinstance(value, (tuple, list)) or not all(isinstance(n, int) for n in value):
        raise NotFusable(Reason.UNKNOWN_LAYER, "a layer's settings depend on the input")
    whole = tuple(value) * axes if len(value) == 1 else tuple(value)
    if len(whole) != axes:
        raise NotFusable(Reason.SIZES, f"a layer of {axes} axes has {len(whole)} settings")
    return whole


def _pads(
    padding: Any, size: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Padding (before, after) per axis, from torch's numbers or "same" and "valid"."""
    if padding == "valid":
        return ((0, 0),) * len(size)
    if padding == "same":  # torch puts the odd one behind
        whole = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
        return tuple((n // 2, n - n // 2) for n in whole)
    return tuple((n, n) for n in _each(padding, len(size)))


def _cut(part: Any) -> tuple[int, int] | None:
    """What a slice cuts from both ends, as negative pads; None if that depends on the size."""
    if not isinstance(part, slice) or part.step not in (None, 1):
        return None
    start, stop = part.start or 0, part.stop
    if not isinstance(start, int) or start < 0:
        return None
    if stop is None:
        return (-start, 0)
    return (-start, stop) if isinstance(stop, int) and stop < 0 else None
