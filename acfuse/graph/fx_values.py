"""The values of a forward that is read: they record what is done to them, and tell what is certain.

A forward may ask `isinstance(x, torch.Tensor)`. No class can answer that for a value alone, without
being taken for a tensor by compiled code as well. So `builtins.isinstance` is exchanged, for the
whole process, while a forward runs on such values (`types_told`); of anything else than these
values it gives what it always gave, to other threads as well.
"""

import builtins
import math
import operator
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

IN_PLACE_METHODS = tuple(
    name for name in dir(operator) if name[0] == "i" and hasattr(operator, name[1:])
    and hasattr(Tensor, f"__{name}__")
)  # fmt: skip
IN_PLACE = {*IN_PLACE_METHODS, "setitem", "delitem"}
METADATA = {"size", "dim", "ndimension", "numel", "stride", "is_floating_point", "element_size"}
METADATA_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "requires_grad", "is_cuda"}
SIZES = {"shape", "ndim", "size", "dim", "ndimension", "numel", "stride"}
ASSERTS = {"_assert", "_assert_is_none"}
OWN_ATTRIBUTES = {"node", "tracer", "root", "attr", "_node"}


class Value(fx.Proxy):
    """A value of a traced forward, which answers like the tensor that it stands for, or not at all.

    `y += z` writes into y. Whatever asks for a number makes the forward unreadable, even if the
    forward catches the error: it might take another way with real tensors.
    """

    def __getattr__(self, name: str) -> "_Attribute":
        kind = type_of(self.node)
        if name.startswith("__") or (kind is not None and not hasattr(kind, name)):
            raise AttributeError(f"a {kind} has no attribute {name}")
        return _Attribute(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if "tracer" in vars(self) and name not in OWN_ATTRIBUTES:  # once it is made
            raise self._unreadable(f"it sets the {name} of a value")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        spelled: list[str] = vars(self)["tracer"].spelled
        spelled.append(f"<{self.node.name}, asked {len(spelled)}>")
        return spelled[-1]

    __str__ = __repr__

    def __format__(self, how: str) -> str:
        return format(str(self), how)

    def __index__(self) -> int:
        raise self._unreadable("it uses a size or a number of its input as a plain number")

    def __ceil__(self) -> fx.Proxy:
        return self._rounded(math.ceil)

    def __floor__(self) -> fx.Proxy:
        return self._rounded(math.floor)

    def _rounded(self, how: Callable[[Any], int]) -> fx.Proxy:
        if type_of(self.node) not in NUMBERS:  # of a tensor it would be a plain number
            raise self._unreadable("it rounds a number of its input")
        return self.tracer.create_proxy("call_function", how, (self,), {})

    def __len__(self) -> int:
        count = parts_made(self.node)
        return self.__index__() if count is None else count

    def __hash__(self) -> int:
        raise self._unreadable("it looks a value up")

    def __deepcopy__(self, memo: object) -> "Value":
        raise self._unreadable("it copies a value, with what it is made of")

    def _unreadable(self, why: str) -> Exception:
        reader: Any = self.tracer
        return reader.cannot(why)  # type: ignore[no-any-return]


def _in_place(operation: Callable[..., Any]) -> Callable[[Value, object], fx.Proxy]:
    def written(self: Value, other: object) -> fx.Proxy:
        made: fx.Proxy = self.tracer.create_proxy("call_function", operation, (self, other), {})
        return made

    return written


for _name in IN_PLACE_METHODS:  # without these, `y **= 2` would be read as `y = y ** 2`
    setattr(Value, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Attribute(Value, fx.proxy.Attribute):
    """What `x.name` gives: the beginning of a method call, or a value.

    Until it is one of these the reader has it among the `looks`: nothing tells what a forward
    does that only holds it against another (`x.dtype is torch.float64`).
    """

    def __init__(self, root: Value, name: str) -> None:
        super().__init__(root, name)
        vars(self)["key"] = object()
        self._reader.looks[vars(self)["key"]] = name

    @property
    def _reader(self) -> Any:
        return vars(self)["tracer"]

    def __call__(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        self._reader.looks.pop(vars(self)["key"], None)
        return super().__call__(*args, **kwargs)

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The step that gives it, from when it is asked for."""
        self._reader.looks.pop(vars(self)["key"], None)
        return super().node

    def __hash__(self) -> int:
        return Value.__hash__(self)


_isinstance = isinstance


def _asked_for_type(value: Any, kinds: Any) -> bool:
    """`isinstance`: what is a tensor for certain is one; what may be anything has no answer."""
    if type(value) not in RECORDED or _isinstance(value, kinds):
        return _isinstance(value, kinds)
    kind = type_of(value.node)
    if kind is None:
        raise value.tracer.cannot("it asks for the type of a value")
    value.tracer.typed = True
    value.tracer.told.append(value.node)
    return issubclass(kind, kinds)


@contextmanager
def types_told() -> Iterator[None]:
    """Within it `isinstance` knows the values of a forward. Not to be nested."""
    builtins.isinstance = _asked_for_type
    try:
        yield
    finally:
        builtins.isinstance = _isinstance


RECORDED = (Value, _Attribute)


def type_of(node: fx.Node) -> type | None:
    """What a value is with real tensors, where that is certain. Remembered with the node."""
    if KNOWN not in node.meta:
        node.meta[KNOWN] = _type_made(node)
    kind: type | None = node.meta[KNOWN]
    return kind


def _type_made(node: fx.Node) -> type | None:
    if node.op == "get_attr":
        return nn.Parameter
    if node.op in ("call_module", "placeholder"):
        return None
    reads = [type_of(n) for n in node.all_input_nodes]
    if node.op == "call_method":
        name = "shape" if node.target == "size" and len(node.args) == 1 else str(node.target)
        return ATTRIBUTES.get(name) if reads[0] in TENSORS else None
    if node.target is getattr:
        return ATTRIBUTES.get(str(node.args[1])) if reads[0] in TENSORS else None
    if node.target is operator.getitem and reads[0] is torch.Size:
        return int if isinstance(node.args[1], int) else torch.Size
    if node.target in NUMBER_OPERATIONS and reads and set(reads) <= NUMBERS:
        plain = [a for a in (*node.args, *node.kwargs.values()) if not _isinstance(a, fx.Node)]
        kinds = {*reads, *map(type, plain)}
        made = NUMBER_OPERATIONS[node.target] or (float if float in kinds else int)
        return made if kinds <= NUMBERS else None
    if node.target in COMPARISONS and reads and set(reads) <= {int, float, torch.Size, torch.dtype}:
        return bool
    return Tensor if node.target in TENSOR_OPERATIONS and set(reads) & TENSORS else None


def parts_made(node: fx.Node) -> int | None:
    """How many parts a value was split into, if the call says it. Of chunks there may be fewer."""
    if function_name(node) != "split":
        return None
    given = (*node.args[1:2], node.kwargs.get("split_size_or_sections"))
    return next((len(sizes) for sizes in given if isinstance(sizes, (list, tuple))), None)


def is_seen(node: fx.Node) -> bool:
    """Whether nobody can make anything of what a step gives but what the graph shows.

    Of a tensor that is so, or of a size. A forward that asks `x.is_contiguous() is True` leaves
    nothing in the graph but the question.
    """
    name = function_name(node)
    if node.users or node.op not in ("call_method", "call_function") or name in ASSERTS | IN_PLACE:
        return True
    if name in SIZES or type_of(node) in (Tensor, torch.Size, int) or node.target in ARITHMETIC:
        return True
    packet = getattr(torch.ops.aten, name, None)
    schemas = [getattr(packet, o)._schema for o in packet.overloads()] if packet else []
    if isinstance(node.target, torch._ops.OpOverload):
        schemas = [node.target._schema]
    of_tensors = [s for s in schemas if any("Tensor" in str(a.type) for a in s.arguments)]
    results = [str(result.type) for schema in of_tensors for result in schema.returns]
    return bool(of_tensors) and all(kind in ("Tensor", "List[Tensor]") for kind in results)


ARITHMETIC = {f for n, f in vars(operator).items() if hasattr(Tensor, f"__{n.strip('_')}__")}
KNOWN = "acfuse_type"
TENSORS = {Tensor, nn.Parameter}
ATTRIBUTES: dict[str, type] = {
    "shape": torch.Size, "size": int, "ndim": int, "dim": int, "numel": int, "dtype": torch.dtype,
    "device": torch.device, "is_cuda": bool,
}  # fmt: skip
COMPARISONS = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge}
NUMBERS = {int, float}
NUMBER_OPERATIONS = {  # of sizes, and what they give; None: a float where one of them is
    operator.add: None, operator.sub: None, operator.mul: None, operator.neg: None,
    operator.floordiv: None, operator.mod: None, operator.truediv: float,
    math.ceil: int, math.floor: int,
}  # fmt: skip
TENSOR_OPERATIONS = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul,
    operator.truediv, operator.itruediv, operator.neg, torch.add, torch.sub, torch.mul, torch.div,
    torch.relu, torch.sigmoid, torch.tanh, torch.cat, nn.functional.relu, nn.functional.gelu,
    nn.functional.silu,
}  # fmt: skip


def function_name(node: fx.Node) -> str:
    """What a node calls: the name of its function, method or layer class."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    if node.op == "call_function":
        return getattr(node.target, "__name__", str(node.target))
    return str(node.target)


def outline(graph: fx.Graph) -> list[object]:
    """What a graph does, to be compared. Tensors that it makes of nothing are numbered anew."""
    numbers: dict[str, str] = {}

    def told(value: object) -> object:
        text = str(value)
        return CONSTANTS.sub(lambda m: numbers.setdefault(m[0], f"constant {len(numbers)}"), text)

    return [
        (
            n.op,
            told(n.target) if n.op == "get_attr" else n.target,
            told(n.name),
            told(n.args),
            told(n.kwargs),
        )
        for n in graph.nodes
    ]


CONSTANTS = re.compile(r"_tensor_constant\d+")
