"""Two programs side by side: whatever their modules hold, outside of the blocks.

A certificate proves the numbers of the blocks. Everything else of a user's fused model has to be
what acfuse itself makes of the original: classes, modes, attributes, hooks, code, tensors bit by
bit, names and their order, and which of them are one and the same object.
"""

import enum
import functools
import types
import weakref
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acfuse.graph.copies import copied
from acfuse.graph.fx_write import FusedForward
from acfuse.proof.outputs import Check
from acfuse.proof.running import Inputs, floating_dtype
from acfuse.proof.values import HELD, PLAIN, Made, Names, made_of
from acfuse.proof.witness import example_of, seen
from acfuse.system.devices import device_of, random_draws_of_its_own
from acfuse.system.escape import safe

NAME = "program"


@dataclass(frozen=True)
class Apart:
    """The first thing in which two programs differ."""

    where: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where or 'the model'}: found {self.found}, expected {self.expected}"


@dataclass
class Comparison:
    """How two programs were compared: the first difference, and what nobody could look into."""

    apart: Apart | None = None
    compared: int = 0  # values
    unknown: list[str] = field(default_factory=list)


def compare_programs(
    expected: nn.Module, given: nn.Module, proved: Collection[str] = ()
) -> Comparison:
    """What tells a model from the expected one. Of the tensors in `proved`, numbers may differ."""
    free = {id(t) for n in proved if (t := _tensor(expected, n)) is not None}
    return _Walk(free).run(expected, given)


def unlike_values(expected: Any, given: Any) -> str:
    """The first thing that tells plain values, with all that they hold, from others; or ""."""
    apart = _Walk(set()).run(expected, given).apart
    return "" if apart is None else str(replace(apart, where=apart.where or "the whole"))


def is_of_its_structure(expected: nn.Module, given: nn.Module) -> bool:
    """Whether a model is written as acfuse writes it, and not as its authors write a fused one."""
    rewritten = [n for n, m in expected.named_modules() if isinstance(m, FusedForward)]
    if not rewritten:
        return type(expected) is type(given)
    return any(isinstance(module, FusedForward) for module in given.modules())


def has_its_forwards(expected: nn.Module, given: nn.Module) -> bool:
    """Whether the same modules of a model are rewritten."""
    both = [
        {name for name, module in model.named_modules() if isinstance(module, FusedForward)}
        for model in (expected, given)
    ]
    return both[0] == both[1]


def program_check(expected: nn.Module, given: nn.Module, proved: Collection[str] = ()) -> Check:
    """The verdict on all that is outside of the blocks."""
    done = compare_programs(expected, given, proved)
    note = ""
    if done.unknown:
        more = f" and {len(done.unknown) - 1} more" if len(done.unknown) > 1 else ""
        note = f"{done.unknown[0]}{more} could not be compared: nobody can look into that"
    wrong = done.apart is not None
    detail = str(done.apart) if wrong else f"{done.compared} values are the same"
    return Check(
        NAME, not wrong, float(wrong), 0.0, detail=detail, note=note, compared=done.compared
    )


def check_after_a_call(
    expected: nn.Module,
    given: nn.Module,
    proved: Collection[str],
    inputs: Inputs,
    before: Check,
) -> Check:
    """The verdict where a call of one model may have left marks in it, as a cache of sizes.

    Copies of both are called once in the same way. Where only then nothing differs, what did so
    is written by the call itself; whether it changes what the first call gives, the outputs show.
    """
    call = example_of(expected, inputs).cast(floating_dtype(expected))
    with random_draws_of_its_own(device_of(expected), device_of(given)):
        try:
            twins = copied(expected), copied(given)
            if not program_check(given, twins[1]).passed:  # a copy has its class's own forward
                return before
            calls = [call.on(device_of(twin)).cast(None) for twin in twins]
            failed = [seen(*pair).failure for pair in zip(twins, calls, strict=True)]
        except Exception:  # of whatever its attributes are
            return before
    check = program_check(*twins, proved)
    if any(failed) or not check.passed:
        return before
    note = f"{before.detail}; after one call of both models nothing differs any more"
    return replace(check, note="; ".join(filter(None, (note, check.note))))


def foreign_check(*, has_inputs: bool) -> Check:
    """What is said of a model of another structure, which has nothing to be compared with."""
    told = "it is not of the structure that acfuse gives, so that only its "
    if has_inputs:
        note = f"the fused model: {told}outputs were compared, and not the code that makes them"
        return Check(NAME, True, 0.0, 0.0, detail=note, note=note, compared=0)
    detail = f"the fused model: {told}outputs could be compared; give the shape of an input"
    return Check(NAME, False, 0.0, 0.0, detail=detail, compared=0)


def _tensor(model: nn.Module, name: str) -> Tensor | None:
    owner, _, last = name.rpartition(".")
    found = getattr(model.get_submodule(owner), last, None)
    return found if isinstance(found, Tensor) else None


class _Walk:
    """Goes through two programs at once, as they are written, until something differs."""

    def __init__(self, free: set[int]) -> None:
        self.free = free  # the tensors of the expected program whose numbers are proved elsewhere
        self.partners: dict[int, tuple[Any, Any, str]] = {}
        self.others: dict[int, tuple[Any, str]] = {}
        self.pairs: dict[tuple[int, int], tuple[Any, Any]] = {}  # kept: an id is of what lives
        self.done = Comparison()

    def run(self, expected: Any, given: Any) -> Comparison:
        """Compares the two, and all that they hold."""
        stack = [("", expected, given)]
        while stack and self.done.apart is None:
            where, a, b = stack.pop()
            stack.extend(reversed(self._compared(where, a, b)))
        return self.done

    def _differ(self, where: str, found: str, expected: str) -> list[tuple[str, Any, Any]]:
        self.done.apart = Apart(where.strip().lstrip("."), found, expected)
        return []

    def _compared(self, where: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
        """Compares two values by themselves; their parts, which are to be compared next."""
        self.done.compared += 1
        if type(a) in PLAIN or type(b) in PLAIN:
            same = type(a) is type(b) and repr(a) == repr(b)
            return [] if same else self._differ(where, shown(b), shown(a))
        if (id(a), id(b)) in self.pairs:
            return []
        self.pairs[id(a), id(b)] = a, b
        if not _is_fixed(a) or not _is_fixed(b):
            known = self.partners.setdefault(id(a), (a, b, where))
            other = self.others.setdefault(id(b), (a, where))
            if known[1] is not b:
                return self._differ(where, "one of its own", f"the same as {_name(known[2])}")
            if other[0] is not a:
                return self._differ(where, f"the same as {_name(other[1])}", "one of its own")
        if a is b:
            return []
        parts: list[tuple[str, Any, Any]] = []
        if type(a) is not type(b):
            one, two = type(a), type(b)
            if (one.__module__, one.__qualname__) != (two.__module__, two.__qualname__):
                return self._differ(where, _kind(b), _kind(a))
            parts.append((f"{where} (class)", one, two))
        if isinstance(a, Tensor):
            why = unlike_tensors(a, b, numbers=id(a) not in self.free)
            more = [(f"{where} (attributes)", vars(a), vars(b))] if vars(a) or vars(b) else []
            return self._differ(where, *why) if why else [*parts, *more]
        return [*parts, *self._parts(where, a, b)]

    def _parts(self, where: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
        one, two = made_of(a), made_of(b)
        if not (one.known and two.known) and not _is_equal(a, b):
            self.done.unknown.append(_name(where))
        if one.alone != two.alone:
            return self._differ(where, _alone(b, two), _alone(a, one))
        ours, theirs = dict(one.parts), dict(two.parts)
        for name, part in theirs.items():
            if name not in ours:
                return self._differ(_joined(where, name), shown(part), "nothing")
        for name, part in ours.items():
            if name not in theirs:
                return self._differ(_joined(where, name), "nothing", shown(part))
        if one.ordered and [*ours] != [*theirs]:
            orders = (", ".join(n.lstrip(".") for n in names)[:100] for names in (theirs, ours))
            found, expected = orders
            return self._differ(where, f"the order {found}", expected)
        return [(_joined(where, name), part, theirs[name]) for name, part in ours.items()]


def _joined(where: str, name: str) -> str:
    return where if name in [f" ({held})" for held in HELD] else where + name


def _name(where: str) -> str:
    return where.strip().lstrip(".") or "the model"


def _is_fixed(value: Any) -> bool:
    """Whether nobody can change a value, so that it does not matter how many there are of it."""
    return isinstance(value, FIXED)


FIXED = (tuple, frozenset, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
         types.MethodWrapperType, types.ModuleType, functools.partial, property, staticmethod,
         classmethod, weakref.ref, enum.Enum, np.generic, Names)  # fmt: skip


def _is_equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:
        return False


def unlike_tensors(a: Any, b: Any, *, numbers: bool = True) -> tuple[str, str] | None:
    """(found, expected) of what tells one tensor from another; None if nothing does.

    On which device they are, and whether they have gradients, changes nothing of a program.
    """
    for what in ("dtype", "shape", "layout", "is_quantized"):
        ours, theirs = getattr(a, what), getattr(b, what)
        if ours != theirs:
            ours, theirs = (tuple(n) if what == "shape" else n for n in (ours, theirs))
            return f"the {what} {theirs}", f"{ours}"
    if not numbers or a.is_meta or b.is_meta:
        return None if a.is_meta == b.is_meta else (shown(b), shown(a))
    one, two = _numbers(a), _numbers(b)
    same = one == two
    if a.is_floating_point() or a.is_complex():
        same |= (one != one) & (two != two)
    same &= _signs(one) == _signs(two)
    if bool(same.all()):
        return None
    at = tuple(int(i) for i in torch.unravel_index((~same).int().argmax(), same.shape))
    place = f" at {[*at]}" if at else ""
    return f"{two[at].item()!r}{place}", f"{one[at].item()!r}"


def _numbers(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        tensor = tensor.float()  # torch computes nothing with eight bits
    return tensor.to_dense() if tensor.layout != torch.strided else tensor.resolve_conj()


def _signs(numbers: Tensor) -> Tensor:
    """Which numbers have a sign, zeros as well; of those that are no numbers it says nothing."""
    if not numbers.is_floating_point():
        return torch.zeros_like(numbers, dtype=torch.bool)
    return torch.signbit(numbers) & (numbers == numbers)


def shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, type):
        return f"the class {safe(value.__qualname__)}"
    if type(value) in PLAIN:
        return safe(f"{value!r:.60}")
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str):
        module = getattr(value, "__module__", None)
        return safe(name)[:60] + (f" of {safe(module)}" if module else "")
    if isinstance(value, (tuple, list)) and all(type(part) in PLAIN for part in value):
        return safe(f"{value!r:.60}")
    return f"a {safe(type(value).__qualname__)}"


def _kind(value: Any) -> str:
    """A value by its class, in full where that is neither Python's nor torch's."""
    kind = type(value)
    own = kind.__module__.partition(".")[0] not in ("builtins", "torch")
    full = safe(f"{kind.__module__}.{kind.__qualname__}") if own else safe(kind.__qualname__)
    return shown(value) if type(value) in PLAIN else f"a {full}"


def _alone(value: Any, made: Made) -> str:
    code = getattr(value, "__code__", None)
    if code is not None:
        return f"{shown(value)}, line {code.co_firstlineno}"
    return shown(value) if made.alone is None else safe(f"{shown(value)} ({made.alone!r:.60})")
