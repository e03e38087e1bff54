"""Reads the forward of one module, alone, into a torch.fx graph.

Sub-modules of the user's own stay calls: each is read for itself, so that control flow in one does
not hide another. What is read is brought into a form in which every value is written once.
"""

import dis
import gc
import inspect
import operator
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from acfuse.errors import NotFusable, Reason
from acfuse.files.pt2_graph import ProgramModule
from acfuse.graph.calls import Call, signature
from acfuse.graph.fx_layers import used_targets
from acfuse.graph.fx_values import (
    ASSERTS,
    KNOWN,
    RECORDED,
    SIZES,
    Value,
    function_name,
    is_seen,
    outline,
    parts_made,
    type_of,
    types_told,
)
from acfuse.graph.own_layers import calls_plainly, has_hooks, is_layer
from acfuse.graph.randomness import RANDOM_FUNCTIONS, watched_randomness


@dataclass
class Traced:
    """The forward of one module as a graph, or the reason why it could not be read.

    `used` are the modules and tensors that it uses on any of its paths, `called` the same with each
    sequence as one module; `complete` says that all paths could be followed to their ends, `unseen`
    that it asks what no graph shows, `decides` that the paths differ by what its input is, `typed`
    that it asked if this is a tensor, and was told that it is.
    """

    module: nn.Module
    call: Call
    graph: fx.Graph | None = None
    refusal: NotFusable | None = None
    mutated: frozenset[str] = field(default_factory=frozenset)  # values written in place
    returns_new: bool = False  # whether it returns a tensor that shares no memory with its inputs
    writes: Mapping[str, str] = field(default_factory=dict)  # value -> the step that overwrites it
    used: frozenset[str] = frozenset()
    called: frozenset[str] = frozenset()
    decides: bool = False
    complete: bool = False
    unseen: bool = False
    typed: bool = False


SEVERAL_RESULTS = (nn.RNNBase, nn.MultiheadAttention, nn.AdaptiveLogSoftmaxWithLoss)


class _Reader(fx.Tracer):
    """A tracer that takes one module alone, with the arguments of one call, along one path.

    `answers` are given to what the forward asks of its values (`if x.shape[0] == 1`); after them it
    is told True. `asked` are the values that it asked about, `told` those of which it asked for the
    type, `spelled` what it was told where it wrote one as text, `looks` the attributes of them that
    it only looked at; `typed` says that it asked for a type.
    """

    def __init__(
        self, module: nn.Module, call: Call, answers: tuple[bool, ...], inline: Collection[int]
    ) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # none: sizes are not values
        self.module = self.root = module
        self.call, self.answers, self.inline = call, answers, inline
        self.asked: list[fx.Node] = []
        self.told: list[fx.Node] = []
        self.spelled: list[str] = []
        self.looks: dict[object, str] = {}
        self.unseen = False  # whether it asks what no graph shows
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
        self.modes = _modes()
        self.sequence = ""  # that is being read, and is called by the forward itself
        self.made: list[weakref.ref[fx.Proxy]] = []

    def read(self) -> None:
        """Runs the forward on values that record what is done to them."""
        positional, keywords = self._arguments()
        result = self.module.forward(*positional, **keywords)
        self.create_node("output", "output", (self.create_arg(result),), {})
        said = [str(n.args[1:]) for n in self.graph.nodes if function_name(n) in ASSERTS]
        if any(not any(text in message for message in said) for text in self.spelled):
            raise self.cannot("it writes a value as text, beyond the message of an assertion")
        unseen = {n for n in self.graph.nodes if not is_seen(n)}.difference(self.asked, self.told)
        looks = sorted({*map(function_name, unseen), *self.looks.values()} - SIZES)
        if looks:
            self.unseen = True
            raise self.cannot(f"nothing tells what it makes of the {looks[0]} of a value")

    @cached_property
    def tensor_names(self) -> dict[int, str]:
        """The names of parameters, and of buffers of real numbers, seen from the module.

        What a forward makes of these is then computed in float64, as all that is read.
        """
        names = {id(p): name for name, p in self.module.named_parameters()}
        buffers = {id(b): name for name, b in self.module.named_buffers() if _has_numbers(b)}
        return names | buffers

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A step, in the mode in which the forward was called: no graph says `with no_grad()`."""
        if _modes() != self.modes:
            why = "part of its forward runs in another mode (no_grad, autocast)"
            self.cannot(why)
            raise NotFusable(Reason.MODE, why)
        node = super().create_node(*args, **kwargs)
        if self.sequence:
            node.meta["sequence"] = self.sequence
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Every value is one that knows what it may tell. Its type follows from what it reads."""
        type_of(node)
        value = Value(node, self)
        self.made.append(weakref.ref(value))
        return value

    def keeps_values(self) -> bool:
        """Whether a value outlives the forward: it was put on a module, in a list or elsewhere."""
        stored = {id(value) for value in self.stored.values()}

        def is_kept() -> bool:
            values = [value for made in self.made if (value := made()) is not None]
            return any(id(value) not in stored for value in values)

        # A cycle of its own is no keeping. What was made by now is young, and quickly looked at.
        return all(is_kept() and gc.collect(how) >= 0 and is_kept() for how in (0, 2))

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

    def tensor(self, value: Tensor) -> Any:
        """The value that stands for a parameter or buffer of the module."""
        name = self.tensor_names.get(id(value))
        if name is None:
            return value
        if id(value) not in self.stored:
            self.stored[id(value)] = self.create_proxy("get_attr", name, (), {})
        return self.stored[id(value)]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """A module that is called is one step, and torch's own nearly all give one tensor."""
        outer = self.sequence
        if isinstance(m, nn.Sequential):
            self.sequence = outer or self.path_of_module(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
        finally:
            self.sequence = outer
        several = isinstance(m, SEVERAL_RESULTS) or getattr(m, "return_indices", False)
        own = is_layer(m) and not isinstance(m, nn.Sequential)  # that gives what its last one does
        return self._tensor(result) if type(result) is Value and own and not several else result

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Everything but what is asked for, and a plain Sequential, which only names layers."""
        names = inspect.getattr_static(m, "forward") is nn.Sequential.forward
        return not (names or id(m) in self.inline) or has_hooks(m)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answers as it was told to."""
        if len(self.asked) >= QUESTIONS:
            raise self.cannot(f"more than {QUESTIONS} of its decisions depend on its input")
        self.asked.append(obj.node)
        place = len(self.asked) - 1
        return self.answers[place] if place < len(self.answers) else True

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a value, where it is known how many there are."""
        count = parts_made(obj.node)
        if count is None:
            raise self.cannot("it takes a value apart, into nobody knows how many parts")
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
        for parameter in signature(self.module).parameters.values():
            name = parameter.name
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if values.get(name):
                    raise NotFusable(Reason.UNTRACEABLE, f"it takes any number of {name}")
                continue
            proxy = self.proxy(self.graph.placeholder(name, default_value=parameter.default))
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
        value.node.meta[KNOWN] = Tensor
        return value


def _has_numbers(buffer: Tensor) -> bool:
    """Whether a buffer is one to compute with; of others, a forward rather asks what they are."""
    return buffer.is_floating_point() and buffer.ndim > 0


def _modes() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def _indexed(several: fx.Proxy, index: int) -> fx.Proxy:
    part: fx.Proxy = several[index]  # type: ignore[index]
    return part


_current: _Reader | None = None


@contextmanager
def reading() -> Iterator[None]:
    """Within it forwards can be traced: calls of modules and uses of tensors are recorded.

    One exchange of nn.Module's methods serves any number of forwards, because it is slow: Python
    forgets what it knows of all sub-classes.
    """
    call, look_up, store = nn.Module.__call__, nn.Module.__getattr__, nn.Module.__setattr__

    def recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _current is None:
            return call(module, *args, **kwargs)
        if not calls_plainly(module):
            raise _current.cannot(f"the call of {type(module).__name__} is overridden")
        return _current.call_module(module, partial(call, module), args, kwargs)

    def recorded_look_up(module: nn.Module, name: str) -> Any:
        value: Any = look_up(module, name)
        if _current is None or not isinstance(value, Tensor):
            return value
        return _current.tensor(value)

    def recorded_store(module: nn.Module, name: str, value: Any) -> None:
        plain = type(value) in RECORDED and not any(
            name in held for held in (module._parameters, module._buffers, module._modules)
        )  # of such a value torch would ask what it is
        (object.__setattr__ if plain else store)(module, name, value)

    changed: Any = nn.Module
    changed.__call__, changed.__getattr__ = recorded_call, recorded_look_up
    changed.__setattr__ = recorded_store
    try:
        yield
    finally:
        changed.__call__, changed.__getattr__, changed.__setattr__ = call, look_up, store


@contextmanager
def read_by(reader: Any) -> Iterator[None]:
    """Within it calls of modules and uses of tensors are given to another reader, or to none."""
    global _current
    outer, _current = _current, reader
    try:
        yield
    finally:
        _current = outer


TRACING = (TypeError, AttributeError, NameError)  # of values that are no tensors, rather
QUESTIONS = 16  # that a forward may ask of its values on one path
PATHS = 32  # through a forward


@dataclass
class TracedPath:
    """One path through a forward: the graph, or the error with which it ended."""

    reader: _Reader
    answers: tuple[bool, ...]
    error: Exception | None
    drawn: bool

    @property
    def is_guard(self) -> bool:
        """Whether the forward itself refuses its input here: `assert` or `raise`.

        Other errors come of tracing alone, as where compiled code is given a value. What tells
        them apart, without the source, is the instruction at which the innermost frame stands.
        """
        if self.error is None or self.reader.unreadable or isinstance(self.error, TRACING):
            return False
        last = self.error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is None:
            return False
        code = last.tb_frame.f_code
        raises = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
        module = last.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        return raises and (module not in ("torch", "acfuse") or code.co_name == "_check_input_dim")


def trace(module: nn.Module, call: Call, inline: Collection[int] = ()) -> Traced:
    """Reads one forward, within `reading`. One that cannot be read is a result, not an error.

    Modules that it calls stay calls, but for those whose ids are in `inline`: of these the forward
    is read as if it stood here.

    Where it asks something of its values, both answers are tried. An answer that makes it raise an
    error is asserted not to be given; of the others all have to do the same. The graph of an
    exported program is its forward, and is not read again.
    """
    if isinstance(module, torch.jit.ScriptModule):
        why = "it is compiled by torch.jit"
        return Traced(module, call, refusal=NotFusable(Reason.UNTRACEABLE, why))
    if isinstance(module, ProgramModule):
        _erase_unread(module.graph)
        return Traced(module, call, module.graph, used=frozenset(used_targets(module.graph)))
    paths, pending = followed(module, call, inline)
    used = frozenset[str]().union(*(used_targets(path.reader.graph) for path in paths))
    called = frozenset[str]().union(*(_called(path.reader.graph) for path in paths))
    refusal, graph = _agreed(module, paths) if not pending else (DECIDES, None)
    decides = refusal is DECIDES
    typed = any(path.reader.typed for path in paths)
    complete = not pending and all(path.error is None or path.is_guard for path in paths)
    unseen = any(path.reader.unseen for path in paths)
    told: dict[str, Any] = {"used": used, "called": called, "complete": complete, "unseen": unseen}
    return Traced(module, call, graph, refusal, **told, decides=decides, typed=typed)


def followed(
    module: nn.Module, call: Call, inline: Collection[int] = ()
) -> tuple[list[TracedPath], bool]:
    """The paths through a forward, within `reading`, and whether there are more than these."""
    paths: list[TracedPath] = []
    pending: list[tuple[bool, ...]] = [()]
    while pending and len(paths) < PATHS:
        path = _follow(module, call, pending.pop(), inline)
        paths.append(path)
        known = len(path.reader.answers)
        pending += [(*path.answers[:i], False) for i in range(known, len(path.answers))]
    return paths, bool(pending)


def _called(graph: fx.Graph) -> frozenset[str]:
    """What a forward uses, where a sequence is one module that is called."""
    uses = (n for n in graph.nodes if n.op in ("call_module", "get_attr"))
    return frozenset(str(n.meta.get("sequence", n.target)) for n in uses)


def _erase_unread(graph: fx.Graph) -> None:
    """Takes out the tensors that a forward looks at and does not use."""
    for node in [n for n in graph.nodes if n.op == "get_attr" and not n.users]:
        graph.erase_node(node)


def _follow(
    module: nn.Module, call: Call, answers: tuple[bool, ...], inline: Collection[int]
) -> TracedPath:
    global _current
    error: Exception | None = None
    with watched_randomness() as drawn, torch.enable_grad():
        reader = _Reader(module, call, answers, inline)
        outer, _current = _current, reader
        try:
            with types_told():
                reader.read()
            if reader.keeps_values():
                error = reader.cannot("it keeps a value beyond the call")
        except Exception as raised:  # what a stranger's forward does under tracing is open
            error = raised
        finally:
            _current = outer
        more = len(reader.asked) - len(answers)
        return TracedPath(reader, (*answers[: len(reader.asked)], *[True] * more), error, drawn())


DECIDES = NotFusable(Reason.UNTRACEABLE, "its forward has data-dependent control flow")


def _agreed(
    module: nn.Module, paths: list[TracedPath]
) -> tuple[NotFusable | None, fx.Graph | None]:
    """The graph that all paths through a forward agree on, or why there is none."""
    if any(path.drawn for path in paths):
        return NotFusable(Reason.RANDOM, "its forward draws random numbers"), None
    whole = [path for path in paths if not path.is_guard] or paths
    for path in whole:
        if isinstance(path.error, NotFusable):
            return path.error, None
        if path.error is not None or path.reader.unreadable:
            return _refusal(module, path.reader.unreadable or path.error), None
    first = whole[0]
    if any(outline(path.reader.graph) != outline(first.reader.graph) for path in whole):
        return DECIDES, None
    for i, question in enumerate(first.reader.asked):
        other = (*first.answers[:i], not first.answers[i])
        if not any(path.answers[: i + 1] == other for path in whole):
            error = next(path.error for path in paths if path.answers[: i + 1] == other)
            _assert(question, first.answers[i], f"{type(error).__name__}: {error}")
    graph = first.reader.graph
    _erase_unread(graph)
    targets = [node.target for node in graph.nodes if isinstance(node.target, str)]
    odd = next((t for t in targets if not t.isprintable() or '"' in t or "\\" in t), None)
    if odd is not None:  # torch.fx writes it into code, in quotes, as it is
        return NotFusable(Reason.UNTRACEABLE, f"{odd!r} cannot be written as code"), None
    return None, graph


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
