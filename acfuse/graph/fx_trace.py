"""Reads the forward of one module, alone, into a torch.fx graph.

Sub-modules of the user's own stay calls: each is read for itself, so that control flow in one does
not hide another. What is read is brought into a form in which every value is written once.
"""

import builtins
import dis
import inspect
import operator
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_list

from acfuse.errors import NotFusable, Reason


@dataclass(frozen=True)
class Call:
    """How a module is called: which parameters get tensors, and the plain values of the others.

    `lists` are the parameters that get several tensors, with the type and the length of the list.
    `guessed` says that nobody was seen to call it so.
    """

    tensors: tuple[str, ...]
    values: tuple[tuple[str, object], ...] = ()
    lists: tuple[tuple[str, type, int], ...] = ()
    guessed: bool = field(default=False, compare=False)

    @classmethod
    def default(cls, module: nn.Module, *, guessed: bool = False) -> "Call":
        """One tensor for every parameter without a default."""
        parameters = _signature(module).parameters.values()
        needed = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return cls(
            tuple(p.name for p in needed if p.default is p.empty),
            tuple((p.name, p.default) for p in needed if p.default is not p.empty),
            guessed=guessed,
        )

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Call":
        """The call that a node of another graph makes. Raises TypeError for one of another form."""
        bound = _signature(module).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments.items()
        tensors = tuple(n for n, v in given if isinstance(v, fx.Node))
        lists = tuple(
            (n, kind, len(v))
            for n, v in given
            for kind in (list, tuple)
            if type(v) in (kind, LISTS[kind]) and v and all(isinstance(e, fx.Node) for e in v)
        )
        others = {*tensors, *(name for name, *_ in lists)}
        values = tuple((n, v) for n, v in given if n not in others)
        deep: list[fx.Node] = []
        fx.map_arg([v for _, v in values], deep.append)
        if deep:
            raise TypeError("tensors stand deep inside an argument")
        return cls(tensors, values, lists)


LISTS: dict[type, type] = {list: immutable_list, tuple: tuple}  # what fx makes of them


def _signature(module: nn.Module) -> inspect.Signature:
    """The parameters of a forward."""
    bound = module.forward
    return _known(bound.__func__) if inspect.ismethod(bound) else inspect.signature(bound)


@lru_cache(maxsize=1024)
def _known(function: Any) -> inspect.Signature:
    return inspect.signature(MethodType(function, object()))


@dataclass
class Traced:
    """The forward of one module as a graph, or the reason why it could not be read.

    `used` are the modules and tensors that it uses on any of its ways, `decides` says that these
    differ by what its input is, `typed` that it asked whether this is a tensor, and was told so.
    """

    module: nn.Module
    call: Call
    graph: fx.Graph | None = None
    refusal: NotFusable | None = None
    mutated: frozenset[str] = field(default_factory=frozenset)  # values written in place
    returns_new: bool = False  # whether it returns a tensor that shares no memory with its inputs
    writes: Mapping[str, str] = field(default_factory=dict)  # value -> the step that overwrites it
    used: frozenset[str] = frozenset()
    decides: bool = False
    typed: bool = False


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch's own, with torch's own forward."""
    forward = inspect.getattr_static(module, "forward", None)
    places = (getattr(forward, "__module__", None), type(module).__module__)
    return any(place is not None and place.startswith("torch.nn.") for place in places)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs anything besides its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Image(fx.Proxy):
    """A value of a traced forward, which answers like the tensor that it stands for, or not at all.

    `y += z` writes into y. Whatever asks for a number makes the forward unreadable, even if the
    forward catches the error: it might take another way with real tensors.
    """

    def __iadd__(self, other: object) -> fx.Proxy:
        return self._written_by(operator.iadd, other)

    def __isub__(self, other: object) -> fx.Proxy:
        return self._written_by(operator.isub, other)

    def __imul__(self, other: object) -> fx.Proxy:
        return self._written_by(operator.imul, other)

    def __itruediv__(self, other: object) -> fx.Proxy:
        return self._written_by(operator.itruediv, other)

    def _written_by(self, operation: Callable[..., Any], other: object) -> fx.Proxy:
        written: fx.Proxy = self.tracer.create_proxy("call_function", operation, (self, other), {})
        return written

    def __getattr__(self, name: str) -> "_Attribute":
        kind = _type_of(self.node)
        if name.startswith("__") or (kind is not None and not hasattr(kind, name)):
            raise AttributeError(f"a {kind} has no attribute {name}")
        return _Attribute(self, name)

    def __index__(self) -> int:
        raise self._unreadable("a size or a number of its input decides")

    def __int__(self) -> int:
        return self.__index__()

    def __float__(self) -> float:
        return float(self.__index__())

    def __len__(self) -> int:
        count = _parts_made(self.node)
        return self.__index__() if count is None else count

    def __hash__(self) -> int:
        raise self._unreadable("it looks a value up")

    def _unreadable(self, why: str) -> Exception:
        reader: Any = self.tracer
        return reader.cannot(why)  # type: ignore[no-any-return]


class _Attribute(_Image, fx.proxy.Attribute):
    """What `x.name` gives: the beginning of a method call, or a value."""

    def __hash__(self) -> int:
        return _Image.__hash__(self)


_isinstance = isinstance


def _asked_for_type(value: Any, kinds: Any) -> bool:
    """`isinstance`, while a forward is read: what is a tensor for certain is a Tensor.

    What may be something else has no answer. Compiled code does not ask here, and must not: it
    would take the value for the tensor that it says it is.
    """
    if type(value) not in RECORDED or _isinstance(value, kinds):
        return _isinstance(value, kinds)
    kind = _type_of(value.node)
    if kind is not None:
        value.tracer.typed = True
        return issubclass(kind, kinds)
    asker = sys._getframe(1).f_globals.get("__name__", "")
    if asker.partition(".")[0] in OURS:
        return False
    raise value.tracer.cannot("it asks for the type of a value")


RECORDED = (_Image, _Attribute)
OURS = ("torch", "acfuse")


def _type_of(node: fx.Node) -> type | None:
    """What a value is with real tensors, where that is certain."""
    if "tensor" in node.meta:
        return Tensor
    if node.op == "get_attr":
        return nn.Parameter
    if node.op in ("call_module", "placeholder"):
        return None
    reads = [_type_of(n) for n in node.all_input_nodes]
    if node.op == "call_method":
        name = "shape" if node.target == "size" and len(node.args) == 1 else str(node.target)
        return ATTRIBUTES.get(name) if reads[0] in TENSORS else None
    if node.target is getattr:
        return ATTRIBUTES.get(str(node.args[1])) if reads[0] in TENSORS else None
    if node.target is operator.getitem and reads[0] is torch.Size:
        return int if isinstance(node.args[1], int) else torch.Size
    if node.target in COMPARISONS and reads and set(reads) <= {int, torch.Size, torch.dtype}:
        return bool
    return Tensor if node.target in TENSOR_OPERATIONS and set(reads) & TENSORS else None


def _parts_made(node: fx.Node) -> int | None:
    """How many parts a value was split into, if the call says it. Of chunks there may be fewer."""
    if getattr(node.target, "__name__", node.target) != "split":
        return None
    given = (*node.args[1:2], node.kwargs.get("split_size_or_sections"))
    return next((len(sizes) for sizes in given if isinstance(sizes, (list, tuple))), None)


TENSORS = {Tensor, nn.Parameter}
ATTRIBUTES: dict[str, type] = {
    "shape": torch.Size, "size": int, "ndim": int, "dim": int, "numel": int, "dtype": torch.dtype,
    "device": torch.device, "is_cuda": bool,
}  # fmt: skip
COMPARISONS = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge}
TENSOR_OPERATIONS = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul,
    operator.truediv, operator.itruediv, operator.neg, torch.add, torch.sub, torch.mul, torch.div,
    torch.relu, torch.sigmoid, torch.tanh, torch.cat, nn.functional.relu, nn.functional.gelu,
    nn.functional.silu,
}  # fmt: skip
SEVERAL_RESULTS = (nn.RNNBase, nn.MultiheadAttention, nn.AdaptiveLogSoftmaxWithLoss)


class _Reader(fx.Tracer):
    """A tracer that takes one module alone, with the arguments of one call, along one way.

    `answers` are given to what the forward asks of its values (`if x.shape[0] == 1`); after them it
    is told True. `asked` are the values that it asked about; `typed` says that it asked for a type.
    """

    def __init__(
        self, module: nn.Module, call: Call, answers: tuple[bool, ...], inline: Collection[int]
    ) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # none: sizes are not values
        self.module = self.root = module
        self.call, self.answers, self.inline = call, answers, inline
        self.asked: list[fx.Node] = []
        self.typed = False
        self.unreadable = ""
        self.graph = fx.Graph(tracer_cls=type(self))
        self.submodule_paths = {m: name for name, m in module.named_modules()}
        self.tensor_attrs = {  # tensors that are plain attributes
            value: f"{path}.{name}" if path else name
            for m, path in self.submodule_paths.items()
            for name, value in vars(m).items()
            if isinstance(value, Tensor)
        }
        self.stored: dict[int, fx.Proxy] = {}

    def read(self) -> None:
        """Runs the forward on values that record what is done to them."""
        positional, keywords = self._arguments()
        result = self.module.forward(*positional, **keywords)
        self.create_node("output", "output", (self.create_arg(result),), {})

    @cached_property
    def parameter_names(self) -> dict[int, str]:
        """The name of each parameter, seen from the module that is read."""
        return {id(p): name for name, p in self.module.named_parameters()}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Every value is one that knows what it may tell."""
        return _Image(node, self)

    def create_arg(self, a: Any) -> Any:
        """A value is its node, before anything asks for its type.

        A tensor that the forward makes itself is remembered with the node: no module has it.
        """
        if type(a) in RECORDED:
            return a.node
        argument: Any = super().create_arg(a)
        if isinstance(a, Tensor) and str(argument.target).startswith("_tensor_constant"):
            argument.meta["constant"] = a
        return argument

    def parameter(self, value: nn.Parameter) -> Any:
        """The value that stands for a parameter of the module."""
        name = self.parameter_names.get(id(value))
        if name is None:
            return value
        if id(value) not in self.stored:
            self.stored[id(value)] = self.create_proxy("get_attr", name, (), {})
        return self.stored[id(value)]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """A module that is called is one step, and torch's own nearly all give one tensor."""
        result = super().call_module(m, forward, args, kwargs)
        several = isinstance(m, SEVERAL_RESULTS) or getattr(m, "return_indices", False)
        if type(result) is _Image and is_layer(m) and not several:
            result.node.meta["tensor"] = True
        return result

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Everything but what is asked for, and a plain Sequential, which only names layers."""
        names = inspect.getattr_static(m, "forward") is nn.Sequential.forward
        return not (names or id(m) in self.inline) or has_hooks(m)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answers as it was told to."""
        if len(self.asked) >= QUESTIONS:
            raise self.cannot("it asks its input too much")
        self.asked.append(obj.node)
        place = len(self.asked) - 1
        return self.answers[place] if place < len(self.answers) else True

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a value, where it is known how many there are."""
        count = _parts_made(obj.node)
        if count is None:
            raise self.cannot("how many parts a value has decides")
        return iter([_indexed(obj, i) for i in range(count)])

    def cannot(self, why: str) -> Exception:
        """The error to raise at what cannot be read; it counts even if the forward catches it."""
        self.unreadable = self.unreadable or why
        return fx.proxy.TraceError(why)

    def _arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """A placeholder for each parameter; only those that get tensors are traced."""
        values = dict(self.call.values)
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        lists = {name: (kind, count) for name, kind, count in self.call.lists}
        for parameter in _signature(self.module).parameters.values():
            name = parameter.name
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if values.get(name):
                    raise NotFusable(Reason.UNTRACEABLE, f"it takes any number of {name}")
                continue
            default = () if parameter.default is parameter.empty else (parameter.default,)
            proxy = self.create_proxy("placeholder", name, default, {})
            value = values.get(name, proxy)
            if name in lists:
                kind, count = lists[name]
                value = kind(self._tensor(_indexed(proxy, i)) for i in range(count))
            elif name not in values and not self.call.guessed:
                self._tensor(proxy)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(value)
            else:
                keywords[name] = value
        return positional, keywords

    def _tensor(self, value: fx.Proxy) -> fx.Proxy:
        """A value that is a tensor for certain."""
        value.node.meta["tensor"] = True
        return value


def _indexed(several: fx.Proxy, index: int) -> fx.Proxy:
    part: fx.Proxy = several[index]  # type: ignore[index]
    return part


_current: _Reader | None = None


@contextmanager
def reading() -> Iterator[None]:
    """Within it forwards can be traced: calls of modules and uses of parameters are recorded.

    One exchange of nn.Module's methods serves any number of forwards, because it is slow: Python
    forgets what it knows of all sub-classes.
    """
    call, look_up = nn.Module.__call__, nn.Module.__getattr__

    def recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _current is None:
            return call(module, *args, **kwargs)
        return _current.call_module(module, partial(call, module), args, kwargs)

    def recorded_look_up(module: nn.Module, name: str) -> Any:
        value: Any = look_up(module, name)
        if _current is None or not isinstance(value, nn.Parameter):
            return value
        return _current.parameter(value)

    nn.Module.__call__, nn.Module.__getattr__ = recorded_call, recorded_look_up  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = call, look_up  # type: ignore[method-assign]


@contextmanager
def watched_randomness() -> Iterator[Callable[[], bool]]:
    """Tells at its end if random numbers were drawn; gives the generators back as they were."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    found: list[bool] = []

    def drawn() -> bool:
        if not found:
            numpy_now = tuple(np.random.get_state())
            found.append(
                not torch.equal(torch.get_rng_state(), before[0])
                or random.getstate() != before[1]
                or not all(map(np.array_equal, numpy_now, tuple(before[2])))
            )
        return found[0]

    try:
        yield drawn
    finally:
        if drawn():
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            np.random.set_state(before[2])


QUESTIONS = 16  # that a forward may ask of its values on one way
WAYS = 32  # through a forward


@dataclass
class _Way:
    """One way through a forward: the graph, or the error with which it ended."""

    reader: _Reader
    answers: tuple[bool, ...]
    error: Exception | None
    drawn: bool

    @property
    def is_guard(self) -> bool:
        """Whether the forward itself refuses its input here: `assert` or `raise`."""
        if self.error is None or self.reader.unreadable:
            return False
        last = self.error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is None:
            return False
        code = last.tb_frame.f_code
        raises = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
        torchs = last.tb_frame.f_globals.get("__name__", "").partition(".")[0] in OURS
        return raises and (not torchs or code.co_name == "_check_input_dim")


def trace(module: nn.Module, call: Call, inline: Collection[int] = ()) -> Traced:
    """Reads one forward, within `reading`. One that cannot be read is a result, not an error.

    Modules that it calls stay calls, but for those whose ids are in `inline`: of these the forward
    is read as if it stood here.

    Where it asks something of its values, both answers are tried. An answer that makes it raise an
    error is asserted not to be given; of the others all have to do the same.
    """
    ways: list[_Way] = []
    pending: list[tuple[bool, ...]] = [()]
    while pending and len(ways) < WAYS:
        way = _take(module, call, pending.pop(), inline)
        ways.append(way)
        known = len(way.reader.answers)
        pending += [(*way.answers[:i], False) for i in range(known, len(way.answers))]
    used = frozenset(
        str(n.target)
        for way in ways
        for n in way.reader.graph.nodes
        if n.op in ("call_module", "get_attr")
    )
    refusal, graph = _agreed(module, ways) if not pending else (DECIDES, None)
    decides = refusal is DECIDES
    typed = any(way.reader.typed for way in ways)
    return Traced(module, call, graph, refusal, used=used, decides=decides, typed=typed)


def _take(
    module: nn.Module, call: Call, answers: tuple[bool, ...], inline: Collection[int]
) -> _Way:
    global _current
    reader = _Reader(module, call, answers, inline)
    outer, _current = _current, reader
    error: Exception | None = None
    with watched_randomness() as drawn, torch.no_grad():
        try:
            builtins.isinstance = _asked_for_type
            reader.read()
        except Exception as raised:  # what a stranger's forward does under tracing is open
            error = raised
        finally:
            builtins.isinstance, _current = _isinstance, outer
        told = len(reader.asked) - len(answers)
        return _Way(reader, (*answers[: len(reader.asked)], *[True] * told), error, drawn())


DECIDES = NotFusable(Reason.UNTRACEABLE, "its forward decides by its input")


def _agreed(module: nn.Module, ways: list[_Way]) -> tuple[NotFusable | None, fx.Graph | None]:
    """The graph that all ways through a forward agree on, or why there is none."""
    if any(way.drawn for way in ways):
        return NotFusable(Reason.RANDOM, "its forward draws random numbers"), None
    whole = [way for way in ways if not way.is_guard] or ways
    for way in whole:
        if isinstance(way.error, NotFusable):
            return way.error, None
        if way.error is not None or way.reader.unreadable:
            return _refusal(module, way.reader.unreadable or way.error), None
    first = whole[0]
    if any(_outline(way.reader.graph) != _outline(first.reader.graph) for way in whole):
        return DECIDES, None
    for i, question in enumerate(first.reader.asked):
        other = (*first.answers[:i], not first.answers[i])
        if not any(way.answers[: i + 1] == other for way in whole):
            error = next(way.error for way in ways if way.answers[: i + 1] == other)
            _assert(question, first.answers[i], f"{type(error).__name__}: {error}")
    graph = first.reader.graph
    for node in [n for n in graph.nodes if n.op == "get_attr" and not n.users]:
        graph.erase_node(node)  # looked at, not used
    targets = [node.target for node in graph.nodes if isinstance(node.target, str)]
    odd = next((t for t in targets if not t.isprintable() or '"' in t or "\\" in t), None)
    if odd is not None:  # torch.fx writes it into code, in quotes, as it is
        return NotFusable(Reason.UNTRACEABLE, f"{odd!r} cannot be written as code"), None
    return None, graph


def _outline(graph: fx.Graph) -> list[object]:
    """What a graph does, to be compared."""
    return [(n.op, n.target, n.name, str(n.args), str(n.kwargs)) for n in graph.nodes]


def _assert(question: fx.Node, answer: bool, message: str) -> None:
    """Behind a value that was asked about: what it has to be for the rest to be right."""
    graph = question.graph
    with graph.inserting_after(question):
        holds = question if answer else graph.call_function(operator.not_, (question,))
    with graph.inserting_after(holds):
        graph.call_function(torch._assert, (holds, message))


def _refusal(module: nn.Module, error: Exception | str | None) -> NotFusable:
    """Why a forward could not be read. One that names a random function may not be fused around."""
    code = getattr(module.forward, "__code__", None)
    random_names = sorted(RANDOM_FUNCTIONS & set(code.co_names if code else ()))
    if random_names:
        why = f"its forward draws random numbers ({random_names[0]})"
        return NotFusable(Reason.RANDOM, why)
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return NotFusable(Reason.UNTRACEABLE, f"its forward cannot be read ({first})")


RANDOM_FUNCTIONS = {"rand", "randn", "randint", "rand_like", "randn_like", "randint_like",
                    "randperm", "bernoulli", "bernoulli_", "multinomial", "normal", "normal_",
                    "uniform_", "poisson", "trunc_normal_", "exponential_"}  # fmt: skip
PASSING_LAYERS = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten)
VIEWS = {
    "contiguous",
    "to",
    "type",
    "float",
    "double",
    "half",
    "bfloat16",
    "cpu",
    "cuda",
    "view_as",
    "reshape_as",
    "expand_as",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "getattr",
    "view",
    "reshape",
    "chunk",
    "split",
    "getitem",
    "transpose",
    "permute",
    "narrow",
    "squeeze",
    "unsqueeze",
    "flatten",
    "detach",
    "select",
    "unbind",
    "expand",
    "t",
    "data",
}


def function_name(node: fx.Node) -> str:
    """What a node calls: the name of its function, method or layer class."""
    if node.op == "call_function":
        return getattr(node.target, "__name__", str(node.target))
    return str(node.target)


def write_once(traced: Traced, makes_new: Callable[[nn.Module], bool]) -> None:
    """Makes in-place writes explicit: who reads a value after it was overwritten reads the result.

    Where that can't be said, because a value is written through a view, by index, or under another
    of its names, the values are `mutated`. `makes_new` says of a module of the user's own whether
    what it returns is a tensor of its own, sharing no memory with what it takes.
    """
    graph, module = traced.graph, traced.module
    if graph is None:
        return
    order = {node: i for i, node in enumerate(graph.nodes)}
    behind: dict[fx.Node, set[fx.Node]] = {}  # whose memory each value may be, or share
    names: dict[fx.Node, set[fx.Node]] = {}  # and the other way round
    for node in graph.nodes:
        bases = _aliased(node, module, makes_new)
        behind[node] = {*bases, *(n for base in bases for n in behind[base])}
        for base in behind[node]:
            names.setdefault(base, set()).add(node)
    mutated: set[fx.Node] = set()
    writes: dict[str, str] = {}
    for node in graph.nodes:
        target = _written(node, module)
        if target is None:
            continue
        shared = {target, *behind[target]}
        shared |= {n for base in tuple(shared) for n in names.get(base, ()) if n is not node}
        writes.update((n.name, node.name) for n in shared)
        late = {n for n in shared - {target} if any(order[u] > order[node] for u in n.users)}
        if late or function_name(node) == "setitem":
            mutated |= shared
            continue
        if any(n.op in ("placeholder", "get_attr") for n in shared):
            mutated |= shared  # the caller, or a later call, sees the change
        for user in list(target.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(target, node)
    traced.mutated = frozenset(node.name for node in mutated)
    traced.writes = writes
    returned = next(n for n in graph.nodes if n.op == "output").args[0]
    traced.returns_new = isinstance(returned, fx.Node) and not any(
        n.op in ("placeholder", "get_attr") for n in (returned, *behind[returned])
    )


def _aliased(
    node: fx.Node, module: nn.Module, makes_new: Callable[[nn.Module], bool]
) -> list[fx.Node]:
    """The inputs of a node that its output may be, or share memory with."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        passes = isinstance(layer, PASSING_LAYERS) if is_layer(layer) else not makes_new(layer)
        return node.all_input_nodes if passes else []
    views = node.op in ("call_function", "call_method") and function_name(node) in VIEWS
    return node.all_input_nodes[:1] if views else []


def _written(node: fx.Node, module: nn.Module) -> fx.Node | None:
    """The value that a node overwrites, if it is one that does."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        return None
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return first if getattr(layer, "inplace", False) else None
    name = function_name(node)
    if node.op == "call_method":
        return first if name.endswith("_") and not name.startswith("_") else None
    if node.op == "call_function":
        in_place = name in IN_PLACE_OPERATORS or (name.endswith("_") and not name.startswith("_"))
        return first if in_place or node.kwargs.get("inplace") is True else None
    return None


IN_PLACE_OPERATORS = {"iadd", "isub", "imul", "itruediv", "setitem"}
