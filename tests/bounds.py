"""How far apart two roundings of one computation may lie: bounds from theory, not from a machine.

No two processors add in the same order, so no factor that was measured on one of them holds on all.
What holds is this, with u the unit roundoff of a dtype, half of its machine epsilon:

- A sum of n products is, in whatever order it is computed, the exact sum of products that are each
  off by a relative gamma(n) = n u / (1 - n u) at most (Higham, Accuracy and Stability of Numerical
  Algorithms, 2nd edition, sections 3.1 and 3.4). `linear_bound` uses it for what is linear.
- If the single errors are independent and of mean zero, lambda sqrt(n) u takes the place of
  gamma(n), with a probability of 1 - 2 exp(-lambda^2 / 2) (Higham and Mary, A new approach to
  probabilistic rounding error analysis, SIAM J. Sci. Comput. 41 (2019), theorem 2.4). `rounding`
  uses it for whole networks, in which the worst case of each layer never meets that of the next.

So a computed output is an exact output of slightly different numbers, and how far it can be off is
the condition of the computation: what those differences do to the exact output.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

LAMBDA = 8.0  # a bound that one number in 10**13 exceeds, by the theorem
STEP = 2.0**-20  # by how much numbers are moved: far above float64's own rounding, still linear
DRAWS = 4  # how often: what one draw happens to leave alone, the next one moves


def gamma(terms: int, dtype: torch.dtype = torch.float64) -> float:
    """The largest relative error of each product in a sum of so many (Higham, lemma 3.1)."""
    u = torch.finfo(dtype).eps / 2
    assert terms * u < 1, "a sum of so many terms may lose every digit"
    return terms * u / (1 - terms * u)


@torch.no_grad()
def linear_bound(
    run: Callable[..., Tensor], *inputs: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """What rounding may cost a map that is linear, for each number of its output, in float64.

    gamma(n) times the same map of absolute values, |W| * |x| + |b| for a convolution, where n
    counts the roundings on the way of a product into the output. One more is for the weights, which
    may have been rounded to the dtype themselves. Nothing that is linear can be off by more,
    however much cancels in it.
    """
    exact, images = in_float64(run, inputs)
    with _Sizes() as mode:
        size = exact(*(x.abs() for x in images)).abs()
    return gamma(mode.roundings + 1, dtype) * size


@torch.no_grad()
def rounding(
    run: Callable[..., Any], *inputs: Tensor, dtype: torch.dtype = torch.float64, longest: int = 1
) -> list[float]:
    """How far apart two computations of a network may lie in a dtype, for each of its outputs.

    Each is off by lambda times the deviation that `condition` gives, in units u; they err
    independently of each other, so their difference deviates sqrt(2) times as much.
    """
    u = torch.finfo(dtype).eps / 2
    units = condition(run, *inputs, longest=longest)
    return [math.sqrt(2) * LAMBDA * u * each for each in units]


@torch.no_grad()
def condition(run: Callable[..., Any], *inputs: Tensor, longest: int = 1) -> list[float]:
    """How far each output deviates, in units u, if every sum is computed with such errors.

    Every number that is read is moved by up to one unit at random. This is the standard deviation
    of the number of an output that moves most, times sqrt(n) for the n terms of the longest sum.
    Of what torch does not run itself, only the inputs are seen: its weights have to be among them,
    and the length of its longest sum has to be given.
    """
    exact, images = in_float64(run, inputs)

    def fresh() -> Callable[..., Any]:  # what a model remembers of a call may change the next
        return copy.deepcopy(exact) if isinstance(exact, nn.Module) else exact

    true = tensors_of(fresh()(*(x.clone() for x in images)))
    squares = [torch.zeros_like(x) for x in true]
    for draw in range(DRAWS):
        again, mode = fresh(), _Moved(draw)
        copies = [mode.moved(x) for x in images]
        with mode:
            near = tensors_of(again(*copies))
        longest = max(longest, mode.longest)
        for total, a, b in zip(squares, near, true, strict=True):
            total += (mode.moved(a) - b).square() / DRAWS
    return [math.sqrt(longest * largest(total)) / STEP for total in squares]


def assert_within(given: Any, expected: Any, bound: Any) -> None:
    """Every number of `given` is finite and lies within a bound of the one expected.

    A bound is one for every number (or a tensor of them), or a list with one for each output.
    """
    assert any(x.numel() for x in tensors_of(expected)), "nothing to compare"
    assert not (difference := differ(given, expected, bound)), difference


def differ(given: Any, expected: Any, bound: Any) -> str:
    """How two results differ by more than a bound; empty if they do not."""
    ours, theirs = tensors_of(given), tensors_of(expected)
    shapes = [[tuple(x.shape) for x in part] for part in (ours, theirs)]
    if shapes[0] != shapes[1]:
        return f"the shapes are {shapes[0]}, not {shapes[1]}"
    bounds = bound if isinstance(bound, list) else [bound] * len(theirs)
    for i, (a, b, limit) in enumerate(zip(ours, theirs, bounds, strict=True)):
        error = (a.double() - b.double()).abs()
        limits = torch.as_tensor(limit, dtype=torch.float64)
        if not bool((error <= limits).all()):  # NaN is within nothing
            most = f"{largest(error):.1e}, of at most {largest(limits):.1e}"
            return f"output {i} is off by {most}; its largest number is {largest(b):.1e}"
    return ""


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of floating numbers in what a model gives, in order."""
    leaves = _pytree.tree_leaves(value)
    return [x.detach() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def in_float64(
    run: Callable[..., Any], inputs: Sequence[Tensor]
) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """A copy of a model, and its inputs, in float64. Functions are taken to compute in it."""
    exact = copy.deepcopy(run).double() if isinstance(run, nn.Module) else run
    return exact, tuple(x.detach().double() for x in inputs)


def largest(values: Tensor) -> float:
    """The largest size of any; 0 of none."""
    return float(values.abs().max()) if values.numel() else 0.0


# --- every operation, on other numbers --------------------------------------------------------


class _OtherNumbers(TorchDispatchMode):
    """Runs each operation on other numbers than it is given.

    Views and what writes in place get what they are given: those pass numbers on, or would write
    to a copy.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if any(argument.alias_info for argument in func._schema.arguments):
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        args = self.change(name, list(args))
        result = func(*args, **(kwargs or {}))
        out = result[0] if isinstance(result, (tuple, list)) and result else result
        if isinstance(out, Tensor) and out.numel():
            self.count(name, _terms(name, args, out))
        return result

    def change(self, name: str, args: list[Any]) -> list[Any]:
        raise NotImplementedError

    def count(self, name: str, terms: int) -> None:
        raise NotImplementedError


class _Moved(_OtherNumbers):
    """Every number moved by up to one STEP, at random. `longest` is that of all sums."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.longest = 1
        self._generator = torch.Generator().manual_seed(seed)

    def moved(self, x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            return x
        draw = torch.rand(x.shape, generator=self._generator, dtype=torch.float64)
        return x * (1 + STEP * (2 * draw - 1))

    def change(self, name: str, args: list[Any]) -> list[Any]:
        changed: list[Any] = _pytree.tree_map(self.moved, args)
        return changed

    def count(self, name: str, terms: int) -> None:
        self.longest = max(self.longest, terms)


class _Sizes(_OtherNumbers):
    """Absolute values, and sums in place of differences. `roundings` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.roundings = 0

    def change(self, name: str, args: list[Any]) -> list[Any]:
        args = _pytree.tree_map(_size, args)
        place = 3 if "batch_norm" in name else SUBTRACTED.get(name)
        if place is not None and args[0].is_floating_point():
            args[place] = -args[place]
        return args

    def count(self, name: str, terms: int) -> None:
        self.roundings += terms


def _size(x: Any) -> Any:
    is_number = isinstance(x, float) or (isinstance(x, Tensor) and x.is_floating_point())
    return abs(x) if is_number else x


SUBTRACTED = {"sub": 1, "rsub": 0}  # which argument is; of a BatchNorm it is the mean
FACTORS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # which argument is the first factor


def _terms(name: str, args: Sequence[Any], out: Tensor) -> int:
    """How many roundings an operation makes on the way of a number into its result."""
    if name in FACTORS:
        return int(args[FACTORS[name]].shape[-1]) + 1
    if name == "convolution":
        return int(args[1].numel() // out.shape[1]) + 1
    if "avg_pool" in name and "adaptive" not in name:
        return math.prod(args[1]) + 1
    if "batch_norm" in name:
        return 8  # (x - mean) * (weight / sqrt(variance + eps)) + bias
    sizes = [x.numel() for x in _pytree.tree_leaves(args) if isinstance(x, Tensor)]
    return max((n // out.numel() for n in sizes), default=1)
