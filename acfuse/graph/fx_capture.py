"""Captures a forward that cannot be read: its operators are recorded while it runs.

It runs on images without numbers, whose batch and spatial sizes are symbols that nobody knows. What
works for those works for all sizes, and a forward that asks for one of them, or for what follows
from it, cannot be captured. In-place writes are made explicit (functionalised) by torch itself.
Calls of modules stay calls, as where a forward is read. The channels are those that the module's
own weights take. Written frames become pads (`fx_frames`); after that no operator may be left that
takes a size of its input.
"""

import contextlib
import copy
import gc
import inspect
import logging
import operator
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from acfuse.errors import NotFusable, Reason
from acfuse.graph.calls import Call
from acfuse.graph.copies import copied
from acfuse.graph.fx_frames import PLACING, frames_as_pads, size_of
from acfuse.graph.fx_operators import operator_of, spatial_rank_of
from acfuse.graph.fx_trace import DECIDES, Traced, read_by
from acfuse.graph.fx_values import function_name
from acfuse.graph.grids import simple
from acfuse.graph.own_layers import has_hooks
from acfuse.graph.randomness import watched_randomness
from acfuse.graph.sizes import SYMBOLIC, Sizes, has_one_shape, is_elementwise, is_sized
from acfuse.system.dispatch import DispatchMode

CANDIDATES = 8  # numbers of channels that are tried
LARGEST = 200  # modules inside of one that is captured: all of them are run
TENSOR: Any = Tensor
RANKS = (TENSOR.dim, TENSOR.ndimension, TENSOR.size, TENSOR.ndim.__get__)
CONSTANT = "_captured_constant"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
RESULTS = (Tensor, int, float, str, type(None))
LOGGERS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")


def captured(traced: Traced, spatial_rank: int | None) -> Traced:
    """What is recorded of a forward that could not be read, or why that cannot be done either.

    Within `reading`. Several images are tried with the same number of channels.
    """
    module = traced.module
    rank = spatial_rank_of(module) or spatial_rank
    large = sum(1 for _ in module.modules()) > LARGEST
    if rank is None or large or traced.call.guessed:  # then it may get something else than images
        return traced
    weights = (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
    own = next((weight.dtype for weight in weights), torch.get_default_dtype())
    for channels in _channels_of(module)[:CANDIDATES]:
        recorder = _Recorder(module, traced.call, channels, rank, own)
        error = recorder.run()
        if recorder.known is not None:
            return replace(traced, refusal=recorder.known, decides=recorder.known is DECIDES)
        if error is not None:
            continue  # it may take another number of channels
        others = (d for d in DTYPES if d != own) if recorder.reads_dtype else ()
        for dtype in others:
            other = copied(module).to(dtype)
            again = _Recorder(other, traced.call, channels, rank, dtype)
            if again.run() is not None or _outline(again) != _outline(recorder):
                return replace(traced, refusal=DECIDES, decides=True)
        graph, used = recorder.graph, recorder.used
        return replace(traced, graph=graph, refusal=None, used=used, called=used)
    return traced


def _channels_of(module: nn.Module) -> list[int]:
    """The channels that a module may take, as its weights tell, the likeliest first."""
    found: dict[int, None] = {}
    for inner in module.modules():
        taken = getattr(inner, "in_channels", None) or getattr(inner, "num_features", None)
        if isinstance(taken, int):
            found[taken] = None
    for weight in (*module.parameters(), *module.buffers()):
        if weight.ndim > 2:
            found |= dict.fromkeys((weight.shape[1], weight.shape[0]))
        elif weight.ndim == 1:
            found[len(weight)] = None
    return [*found]


def _outline(recorder: "_Recorder") -> list[str]:
    """What a captured graph does, whatever its dtype."""
    nodes = recorder.graph.nodes
    lines = (f"{n.op} {n.target} {n.name} {n.args} {n.kwargs}" for n in nodes)
    return [line.replace(str(recorder.dtype), "its dtype") for line in lines]


class _Operators(TorchFunctionMode):
    """Tells calls of torch's functions from what a forward does around them.

    These may give tensors and sizes. What else they give is asked of a tensor by the forward.
    """

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sizes = self.recorder.sizes
        with sizes.operator(getattr(func, "__name__", "")):
            result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.recorder.made.append(weakref.ref(result))
        elif isinstance(result, torch.dtype):
            self.recorder.reads_dtype = True
        elif isinstance(result, (int, float, str)) and func not in RANKS:  # if it is contiguous
            sizes.asked = True
            raise NotFusable(DECIDES.code, DECIDES.why)
        return result


class _Recorder(DispatchMode):
    """Records one forward, for one call, with so many channels."""

    def __init__(
        self, module: nn.Module, call: Call, channels: int, rank: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.module, self.call, self.channels, self.rank = module, call, channels, rank
        self.dtype = dtype
        self.sizes, self.graph, self.used = Sizes(), fx.Graph(), frozenset[str]()
        self.paths = {m: path for path, m in module.named_modules()}
        self.stored = {
            id(value): f"{path}.{name}" if path else name
            for m, path in self.paths.items()
            for held in _held(m)
            for name, value in held.items()
            if isinstance(value, Tensor)
        }
        self.nodes: dict[int, fx.Node] = {}
        self.alive: list[Tensor] = []  # whose ids are the keys
        self.kept: dict[str, Tensor] = {}  # which no module has
        self.made: list[weakref.ref[Tensor]] = []  # by the forward
        self.reads_dtype = self.paused = False
        self.refusal: NotFusable | None = None

    @property
    def known(self) -> NotFusable | None:
        """Why the forward cannot be captured, whatever its channels."""
        if self.sizes.asked:
            return DECIDES
        if self.sizes.unknown:
            self._unreadable("an operator has to know its sizes")
        return self.refusal

    def run(self) -> Exception | None:
        """Captures the forward into `graph`. Gives the error with which it ended."""
        before = _State(self.module)
        try:
            with _unlogged(), watched_randomness() as drawn, torch.no_grad():
                self._run()
                if drawn():
                    self.cannot(Reason.RANDOM, "its forward draws random numbers")
                if before.is_other():
                    self.cannot(Reason.UNTRACEABLE, "its forward keeps something for later")
        except Exception as error:  # whatever a forward raises that is given such images
            return error
        finally:
            before.restore()
        for name, tensor in self.kept.items():
            vars(self.module)[name] = tensor
        return None

    def cannot(self, code: Reason, why: str) -> NotFusable:
        """The error to raise at what cannot be captured; it counts even if it is caught."""
        self.refusal = self.refusal or NotFusable(code, why)
        return self.refusal

    def tensor(self, value: Tensor) -> Tensor:
        """What stands for a tensor of the module: itself."""
        return value

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """A module that is called is one step, but for a plain Sequential, which names layers."""
        if type(m).forward is nn.Sequential.forward and not has_hooks(m):
            return forward(*args, **kwargs)
        if m not in self.paths:
            raise self.cannot(Reason.UNTRACEABLE, f"it calls a {type(m).__name__} of elsewhere")
        given = self._as_nodes((args, kwargs))
        self.paused = True
        try:
            with read_by(None):
                result = forward(*args, **kwargs)
        finally:
            self.paused = False
        if not isinstance(result, Tensor):
            raise self.cannot(Reason.UNTRACEABLE, f"{self.paths[m]} gives more than one tensor")
        node = self.graph.call_module(self.paths[m], *given)
        self._know(self._inner(result), node)
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:  # of images they were made explicit
            raise self.cannot(Reason.IN_PLACE, "its forward writes into a tensor that it keeps")
        if torch.Tag.nondeterministic_seeded in func.tags:
            name = func.overloadpacket.__name__
            raise self.cannot(Reason.RANDOM, f"its forward draws random numbers ({name})")
        if not has_one_shape(func) and any(map(is_sized, _leaves((args, kwargs)))):
            raise self._unreadable(f"it calls {func.overloadpacket.__name__}")
        made = func(*args, **kwargs)
        results = made if isinstance(made, (tuple, list)) else [made]
        if self.paused or not any(isinstance(result, Tensor) for result in results):
            return made
        node = self.graph.call_function(func, *self._as_nodes((args, kwargs)))
        if isinstance(made, Tensor):
            self._know(made, node)
            return made
        for index, result in enumerate(results):
            if isinstance(result, Tensor):
                self._know(result, self.graph.call_function(operator.getitem, (node, index)))
        return made

    def _run(self) -> None:
        mode = FakeTensorMode(shape_env=self.sizes, allow_non_fake_inputs=True)
        mode.cache_enabled = False  # to look up takes longer than to do it again
        with mode, self.sizes.ignore_fresh_unbacked_symbols():
            self._make_sure()
            images = self._images()
            with _functionalized(), self, enable_python_dispatcher(), self._wrapped_weights():
                self.graph.output(self._result(images))
        self._fill_in()
        targets = (str(n.target) for n in self.graph.nodes if n.op in ("call_module", "get_attr"))
        self.used = frozenset(targets)
        odd = next((t for t in self.used if not t.isprintable() or '"' in t or "\\" in t), None)
        if odd is not None:  # torch.fx writes it into code
            raise self.cannot(Reason.UNTRACEABLE, f"{odd!r} cannot be written as code")
        frames_as_pads(self.module, self.graph, self.rank)
        self._refuse_rest()

    def _make_sure(self) -> None:
        """Raises NotFusable if questions are not heard, as another version of torch might ask."""
        with contextlib.suppress(NotFusable):
            bool(self.sizes.size() == 0)
        if not self.sizes.asked:
            raise self.cannot(Reason.UNTRACEABLE, "this version of torch answers for its sizes")
        self.sizes.asked = False

    def _images(self) -> dict[str, Any]:
        """An image for each parameter that gets a tensor, several for one that gets a list."""
        device = next((w.device for w in (*self.module.parameters(), *self.module.buffers())), None)

        def image() -> Tensor:
            batch, channels = self.sizes.size(), self.sizes.size(self.channels)
            spatial = [self.sizes.size() for _ in range(self.rank)]
            with self.sizes.operator("empty"):
                return torch.empty(batch, channels, *spatial, dtype=self.dtype, device=device)

        lists = {name: [image() for _ in range(n)] for name, _, n in self.call.lists}
        return {name: image() for name in self.call.tensors} | lists

    @contextlib.contextmanager
    def _wrapped_weights(self) -> Iterator[None]:
        """Within it the module's own tensors are watched like images. NotFusable if one changes."""
        wrapped = [
            (holder, name, torch._to_functional_tensor(value), value)
            for inner in self.paths
            for holder in _held(inner)
            for name, value in holder.items()
            if isinstance(value, Tensor)
        ]
        for holder, name, outer, _ in wrapped:
            holder[name] = outer
        yield  # where it fails, `run` puts everything back
        for holder, name, outer, value in wrapped:
            if holder[name] is not outer or self._inner(outer) is not value:
                raise self.cannot(Reason.IN_PLACE, "its forward changes a tensor that it keeps")
            holder[name] = value

    def _result(self, images: dict[str, Any]) -> Any:
        """Runs the forward; its result, as nodes."""
        values, kinds = dict(self.call.values), {name: kind for name, kind, _ in self.call.lists}
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        wrapped: list[tuple[Any, Tensor]] = []

        def given(image: Tensor, node: fx.Node) -> Any:
            self._know(image, node)
            wrapped.append((torch._to_functional_tensor(image), image))
            return wrapped[-1][0]

        for parameter in inspect.signature(self.module.forward).parameters.values():
            name = parameter.name
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if values.get(name):
                    raise self.cannot(Reason.UNTRACEABLE, f"it takes any number of {name}")
                continue
            node = self.graph.placeholder(name, default_value=parameter.default)
            value = values.get(name)
            if name in kinds:
                several = enumerate(images[name])
                parts = [
                    given(image, self.graph.call_function(operator.getitem, (node, i)))
                    for i, image in several
                ]
                value = kinds[name](parts)
            elif name in images:
                value = given(images[name], node)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(value)
            else:
                keywords[name] = value
        with read_by(self), _Operators(self), self.sizes.unwritten():
            result = self.module.forward(*positional, **keywords)
        if self.known is not None:  # also where the forward caught it
            raise self.known
        if not all(isinstance(leaf, RESULTS) for leaf in _leaves(result)):
            raise self.cannot(Reason.UNTRACEABLE, "its forward gives more than tensors")
        nodes = self._as_nodes(result)
        del result
        if self._keeps_values({id(outer) for outer, _ in wrapped}):
            raise self._unreadable("it keeps a value beyond the call")
        if any(self._inner(outer) is not image for outer, image in wrapped):
            raise self.cannot(Reason.IN_PLACE, "its forward overwrites what it is given")
        if not self.sizes.told <= self.sizes.fixed.keys():
            raise self._unreadable("nothing tells how many channels it takes")
        return nodes

    def _keeps_values(self, given: set[int]) -> bool:
        """Whether a tensor outlives the forward: it was put in a list or elsewhere."""
        own = {id(value) for m in self.paths for held in _held(m) for value in held.values()}

        def is_kept() -> bool:
            values = [value for made in self.made if (value := made()) is not None]
            return any(id(value) not in given | own for value in values)

        return all(is_kept() and gc.collect(how) >= 0 and is_kept() for how in (0, 2))

    def _inner(self, tensor: Tensor) -> Tensor:
        """The tensor below torch's bookkeeping of writes, which are carried out first."""
        if not torch._is_functional_tensor(tensor):
            return tensor
        with self.sizes.operator("sync"):
            torch._sync(tensor)  # type: ignore[attr-defined, no-untyped-call]
            inner: Tensor = torch._from_functional_tensor(tensor)
        return inner

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        self.alive.append(tensor)
        self.nodes[id(tensor)] = node
        with torch._C.DisableTorchFunction():  # it is not the forward that asks
            sizes, node.meta["dtype"] = tensor.shape, tensor.dtype
        node.meta["size"] = tuple(getattr(getattr(n, "node", n), "expr", n) for n in sizes)

    def _as_nodes(self, value: Any) -> Any:
        """A value with a node for each tensor and each size in it."""
        return fx.node.map_aggregate(value, self._as_node)

    def _as_node(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(self._inner(value))
        if isinstance(value, SYMBOLIC):
            node = self.graph.call_function(size_of, (str(value.node.expr),))
            node.meta["size_of"] = value.node.expr
            return node
        return value

    def _node(self, tensor: Tensor) -> fx.Node:
        """The node that makes a tensor; for one that was there before, what holds it."""
        if id(tensor) not in self.nodes:
            if isinstance(tensor, FakeTensor):
                raise self.cannot(Reason.IN_PLACE, "a module that it calls changes its input")
            target = self.stored.get(id(tensor), f"{CONSTANT}{len(self.kept)}")
            node = self.graph.create_node("get_attr", target, (), {})
            if id(tensor) not in self.stored:
                vars(self.module)[target] = self.kept[target] = node.meta["constant"] = tensor
            self._know(tensor, node)
        return self.nodes[id(tensor)]

    def _fill_in(self) -> None:
        """Writes the channels that are certain as numbers."""
        fixed = self.sizes.fixed
        for node in self.graph.nodes:
            size = node.meta.get("size", ())
            node.meta["size"] = tuple(
                simple(n if isinstance(n, int) else n.subs(fixed)) for n in size
            )
        for node in self.graph.find_nodes(op="call_function", target=size_of):
            number = node.meta["size_of"] = simple(node.meta["size_of"].subs(fixed))
            for user in [*node.users] if isinstance(number, int) else ():
                given = user.args, user.kwargs
                user.args, user.kwargs = fx.map_arg(given, partial(_exchanged, node, number))

    def _refuse_rest(self) -> None:
        """Raises NotFusable for operators that cannot stand in a forward for any size and dtype."""
        constant: set[fx.Node] = set()
        for node in self.graph.nodes:
            reads = node.all_input_nodes
            if node.op == "get_attr" or (reads and constant.issuperset(reads)):
                constant.add(node)
            target: Any = node.target
            if node.op != "call_function" or target is operator.getitem:
                continue
            if target is size_of:
                if node.users:
                    name = function_name(next(iter(node.users)))
                    raise self._unreadable(f"{name} takes a size of its input")
                continue
            name = function_name(node)
            if target in PLACING and operator_of(node) is None:
                raise self._unreadable("it sets an item of a value, which makes no frame")
            if not (is_elementwise(target) or operator_of(node) or node in constant):
                raise self._unreadable(f"it calls {name}, which no rule describes")
            if any(
                isinstance(v, (torch.dtype, torch.device))
                for v in _leaves((node.args, node.kwargs))
            ):
                raise self._unreadable(f"{name} is told a dtype or a device")

    def _unreadable(self, why: str) -> NotFusable:
        return self.cannot(Reason.UNTRACEABLE, f"its forward cannot be read ({why})")


def _held(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module has its tensors, by name."""
    return vars(module), module._buffers, module._parameters


def _exchanged(old: fx.Node, new: int, node: fx.Node) -> Any:
    return new if node is old else node


def _leaves(value: Any) -> list[Any]:
    """Everything in lists, tuples and dicts."""
    if not isinstance(value, (list, tuple, dict)):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [leaf for part in parts for leaf in _leaves(part)]


class _State:
    """What a module and those inside of it hold, to see if a forward leaves anything there."""

    def __init__(self, module: nn.Module) -> None:
        own = [vars(inner) for inner in module.modules()]
        inner = [v for held in own for v in held.values() if isinstance(v, (dict, list, set))]
        self.held = [(holder, copy.copy(holder)) for holder in (*own, *inner)]

    def is_other(self) -> bool:
        """Whether something was added, taken out or exchanged."""
        return any(_ids(holder) != _ids(before) for holder, before in self.held)

    def restore(self) -> None:
        """Puts back what there was."""
        for holder, before in self.held:
            if isinstance(holder, list):
                holder[:] = before
            else:
                holder.clear()
                holder.update(before)


def _ids(holder: Any) -> list[Any]:
    if isinstance(holder, dict):
        held = ((k, id(v)) for k, v in holder.items() if not str(k).startswith(CONSTANT))
        return sorted(held, key=str)
    return [id(value) for value in holder]


@contextlib.contextmanager
def _functionalized() -> Iterator[None]:
    """Within it writes in place are recorded as what they make."""
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keeps torch from logging what cannot be captured: it is refused with a reason."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
