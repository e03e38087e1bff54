"""What a program computes, step by step: each operator that ran, what it read and what it gave.

Values are not kept: a few sums of each, at random signs, tell it from any other. So a trace of a
large network takes no memory, and values of different programs can be looked for in one another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils.weak import WeakIdKeyDictionary

from acfuse.graph.copies import copied
from acfuse.proof.leaves import as_numbers, is_discrete
from acfuse.proof.running import Image, cast
from acfuse.system.devices import CPU, device_of, exact_arithmetic
from acfuse.system.dispatch import DispatchMode

SUMS = 3  # of a value: that two others happen to have equal ones is out of the question
CHUNK = 2**20  # numbers at a time


@dataclass(frozen=True)
class Mark:
    """What tells a value from others: how many numbers it has, their norm, and some sums of them.

    The sums are at random signs, the same for all values of that many numbers in the same order. So
    of two values they are about as far apart as the norm of their difference.
    """

    count: int
    norm: float
    sums: tuple[float, ...]
    is_discrete: bool = False  # places, classes: they are the same, or others

    @classmethod
    def of(cls, value: Tensor) -> "Mark | None":
        """That of a value; None where there is nothing to be told by."""
        numbers = as_numbers(value)
        if numbers is None or numbers.numel() < 2:
            return None
        flat = numbers.reshape(-1)
        sums, square = torch.zeros(SUMS, dtype=torch.float64, device=CPU), 0.0
        for start in range(0, len(flat), CHUNK):
            part = flat[start : start + CHUNK].double()
            sums += _signs(start)[:, : len(part)].double() @ part
            square += float(part.square().sum())
        return cls(len(flat), square**0.5, tuple(map(float, sums)), is_discrete(numbers))


@lru_cache(maxsize=16)
def _signs(start: int) -> Tensor:
    generator = torch.Generator().manual_seed(start)
    drawn = torch.randint(0, 2, (SUMS, CHUNK), generator=generator, dtype=torch.int8, device=CPU)
    return 2 * drawn - 1


@dataclass(frozen=True)
class Step:
    """One operator that ran, on something that comes from the inputs.

    `where` is its module, or the name of its node; `reads` and `gives` are the numbers of values in
    the trace, `weights` the constants that it read besides, in order.
    """

    where: str
    operator: str
    settings: Mapping[str, Any]
    reads: tuple[int, ...]
    gives: tuple[int, ...]
    weights: tuple[Tensor, ...] = field(repr=False)


@dataclass
class Trace:
    """The steps of one run, in order, and the marks of their values."""

    steps: list[Step] = field(default_factory=list)
    marks: dict[int, Mark | None] = field(default_factory=dict)
    given: tuple[int, ...] = ()  # the inputs
    ends: tuple[int, ...] = ()  # what the program gives
    is_exact: bool = False  # whether it was run in float64

    def new(self, value: Tensor) -> int:
        """Takes one more value in."""
        self.marks[len(self.marks)] = Mark.of(value)
        return len(self.marks) - 1


def trace_of_model(model: nn.Module, image: Image, dtype: torch.dtype) -> Trace:
    """What a PyTorch model computes for an image, in its dtype or float64. It stays as it is."""
    model, device = copied(model), device_of(model)
    trace = Trace(is_exact=dtype == torch.float64)
    if dtype == torch.float64:
        model.double()
    given = {name: cast(value, dtype).to(device) for name, value in image.items()}
    recorder = _Recorder(trace)
    trace.given = tuple(map(recorder.known_as, given.values()))
    with torch.no_grad(), exact_arithmetic(device), _places(model, recorder.places), recorder:
        result = model(**given)
    ends = [x for x in _pytree.tree_leaves(result) if isinstance(x, Tensor)]
    trace.ends = tuple(recorder.known[x] for x in ends if x in recorder.known)
    return trace


@contextmanager
def _places(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keeps, while a model runs, the names of the modules that are running, the innermost last."""
    hooks = []
    for name, module in model.named_modules():

        def begin(*_: Any, name: str = name) -> None:
            stack.append(name)

        def end(*_: Any) -> None:
            stack.pop()

        hooks.append(module.register_forward_pre_hook(begin, prepend=True))
        hooks.append(module.register_forward_hook(end, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Recorder(DispatchMode):
    """Takes every operator that runs into a trace."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace, self.known, self.places = trace, WeakIdKeyDictionary(), list[str]()

    def known_as(self, value: Tensor) -> int:
        """The number of a value that has just been made."""
        self.known[value] = number = self.trace.new(value)
        return number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        tensors = [x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        reads = [self.known[x] for x in tensors if x in self.known]
        weights = [x for x in tensors if x not in self.known]
        result = func(*args, **(kwargs or {}))
        if not reads:
            return result
        made = [x for x in _pytree.tree_leaves(result) if isinstance(x, Tensor)]
        gives = [self.known_as(x) for x in made]
        for value in made if func._schema.is_mutable else ():
            gives += self._aliases_of(value)
        self.trace.steps.append(
            Step(
                self.places[-1] if self.places else "",
                func._schema.name.removeprefix("aten::"),
                _settings(func, args, kwargs or {}),
                tuple(reads),
                tuple(gives),
                tuple(x.detach() for x in weights),
            )
        )
        return result

    def _aliases_of(self, value: Tensor) -> list[int]:
        """What lies where something was just written is another value now."""
        if value.layout != torch.strided:
            return []
        place = value.untyped_storage().data_ptr()
        others = [x for x in self.known if x.layout == torch.strided and x is not value]
        return [self.known_as(x) for x in others if x.untyped_storage().data_ptr() == place]


def _settings(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operator that are no tensors, by name."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
    return {
        name: value
        for name, value in {**given, **kwargs}.items()
        if not any(isinstance(x, Tensor) for x in _pytree.tree_leaves(value))
    }
