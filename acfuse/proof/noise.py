"""How far rounding moves what the original gives: of that, no fused model can be nearer.

Every weight and every pixel is moved by some units of rounding, once up or down at random and once
the other way, and the model is run: where a decision (the largest score, a box above a threshold)
is as near as that, one of the two shows it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from acfuse.graph.copies import copied
from acfuse.proof.leaves import Leaves, as_numbers, is_discrete, unlike
from acfuse.proof.running import Image, moved_by_rounding, run

UNITS = 16  # of rounding that numbers are moved by; noise is given for one of them
ENOUGH = 6  # pairs of draws: a channel of one number is as good as never still in all of them
BLURRED = 2.0**-6  # of a channel: where one unit of rounding costs that much, nothing is compared


@dataclass(frozen=True)
class Noise:
    """What one unit of rounding does to one output, in absolute numbers.

    `whole` is that of its largest change, `channels` that of each place along some axes, by axis
    (none: too little is known of them). Where it is `unsteady`, rounding decides what comes out.
    """

    whole: float = 0.0
    channels: Mapping[int, Tensor] = field(default_factory=dict)
    unsteady: Tensor | None = None
    is_lost: bool = False  # it has not even the same shape, or value, each time


Noises = Mapping[str, Noise]


def axes_of(numbers: Tensor) -> tuple[int, ...]:
    """The axes of an output along which its parts may be of different sizes."""
    return (1,) if numbers.ndim == 2 else (1, numbers.ndim - 1) if numbers.ndim > 2 else ()


def along(axis: int, values: Tensor) -> Tensor:
    """The largest value at each place along an axis."""
    return values.transpose(0, axis).flatten(1).amax(1)


def sizes(numbers: Tensor) -> Tensor:
    """How large numbers are; those that are not finite count as nothing."""
    return numbers.abs().nan_to_num(nan=0.0, posinf=0.0)


def apart(one: Tensor, other: Tensor) -> Tensor:
    """How far numbers are from others, in float64; infinitely if one is NaN or Inf, not both so."""
    if is_discrete(one):
        return torch.where(one == other, 0.0, math.inf).double()
    one, other = one.double(), other.double()
    same = (one == other) | (one.isnan() & other.isnan())
    return torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=math.inf)


class Responses:
    """How far each output of one run moves at most, over several others that are as good."""

    def __init__(self, true: Leaves) -> None:
        self.true = true
        self.moved: dict[str, Tensor | None] = {}  # None: it became something else
        for name, value in true.items():
            numbers = as_numbers(value)
            nothing = torch.zeros((), device="cpu")
            self.moved[name] = nothing if numbers is None else apart(numbers, numbers)

    def add(self, other: Leaves, units: float) -> None:
        """Takes in a run whose numbers were moved by so many units of rounding."""
        for name, value in self.true.items():
            known, numbers = self.moved[name], as_numbers(value)
            given = as_numbers(other[name]) if name in other else None
            if known is None or name not in other:
                self.moved[name] = None
            elif numbers is None or given is None:
                self.moved[name] = None if unlike(value, other[name]) else known
            elif numbers.shape != given.shape:
                self.moved[name] = None
            else:
                self.moved[name] = torch.maximum(known, apart(numbers, given) / units)


def noises(responses: Sequence[Responses], usual: int, dtype: torch.dtype) -> list[Noises]:
    """The noise of each output on each input.

    That of the `usual` first ones is taken together: what one input happens to leave alone, the
    next one moves. Of the channels of the others nothing is said.
    """
    each = [{n: _noise(r.true[n], m, dtype) for n, m in r.moved.items()} for r in responses]
    pooled: dict[tuple[str, int, int], Tensor] = {}
    count: dict[tuple[str, int, int], int] = {}
    whole: dict[str, float] = {}
    for noise in each[:usual]:
        for name, own in noise.items():
            whole[name] = max(whole.get(name, 0.0), own.whole)
            for axis, values in own.channels.items():
                key = (name, axis, len(values))
                pooled[key] = torch.maximum(pooled.get(key, values), values)
                count[key] = count.get(key, 0) + 1

    def together(i: int, name: str, own: Noise) -> Noise:
        keys = {axis: (name, axis, len(values)) for axis, values in own.channels.items()}
        known = {a: pooled[k] for a, k in keys.items() if i < usual and count[k] >= min(usual, 3)}
        return Noise(max(own.whole, whole.get(name, 0.0)), known, own.unsteady, own.is_lost)

    return [{n: together(i, n, own) for n, own in noise.items()} for i, noise in enumerate(each)]


def _noise(value: object, moved: Tensor | None, dtype: torch.dtype) -> Noise:
    numbers = as_numbers(value)
    if moved is None:
        return Noise(is_lost=True)
    if numbers is None or numbers.numel() == 0:
        return Noise()
    if is_discrete(numbers):
        return Noise(unsteady=moved > 0)
    half_of_the_digits = math.sqrt(torch.finfo(dtype).eps)
    size, axes = sizes(numbers.double()), axes_of(numbers)
    limit = torch.full_like(size, half_of_the_digits * float(size.max()))
    for axis in axes:
        shape = [-1 if i == axis else 1 for i in range(size.ndim)]
        own = max(BLURRED, half_of_the_digits) * along(axis, size)
        limit = torch.minimum(limit, own.reshape(shape))
    unsteady = moved > limit.clamp_min(torch.finfo(dtype).tiny)
    if numbers.ndim > 1:  # a row that is another one may agree with it here and there
        unsteady |= unsteady.double().mean(-1, keepdim=True) > 0.5
    steady = torch.where(unsteady, 0.0, moved)
    return Noise(float(steady.max()), {a: along(a, steady) for a in axes}, unsteady)


def without_noise(true: Sequence[Leaves], usual: int, share: float) -> list[Noises]:
    """As if rounding moved nothing: what passes so needs no measure of it.

    The channels of the `usual` first outputs are taken together, because one number of a channel
    may be near 0: such a share of the largest is what each may be off. Of the channels of the
    others nothing is said.
    """
    pooled: dict[tuple[str, int, int], Tensor] = {}
    for leaves in true[:usual]:
        for name, axis, size in _channel_sizes(leaves):
            key = (name, axis, len(size))
            pooled[key] = torch.maximum(pooled.get(key, size), size)
    still: list[Noises] = []
    for i, leaves in enumerate(true):
        channels: dict[str, dict[int, Tensor]] = {name: {} for name in leaves}
        for name, axis, size in _channel_sizes(leaves) if i < usual else ():
            channels[name][axis] = share * pooled[name, axis, len(size)]
        still.append({name: Noise(0.0, own) for name, own in channels.items()})
    return still


def _channel_sizes(leaves: Leaves) -> Iterator[tuple[str, int, Tensor]]:
    """How large each place along the axes of each output of real numbers is."""
    for name, value in leaves.items():
        numbers = as_numbers(value)
        if numbers is not None and numbers.numel() and not is_discrete(numbers):
            size = sizes(numbers.double())
            yield from ((name, axis, along(axis, size)) for axis in axes_of(numbers))


def own_rounding(
    true: Sequence[Leaves], shipped: Sequence[Leaves], usual: int, dtype: torch.dtype
) -> list[Noises]:
    """How far what ships is from float64: the least that rounding moves, and known already."""
    responses = [Responses(t) for t in true]
    for response, result in zip(responses, shipped, strict=True):
        response.add(result, 1)
    return noises(responses, usual, dtype)


def responses_of(
    model: nn.Module,
    given: Sequence[Image],
    true: Sequence[Leaves],
    dtype: torch.dtype,
    usual: int,
    *,
    each: bool = False,
) -> list[Responses]:
    """How far the outputs of a model move when every number is moved by rounding to a dtype.

    There are enough draws for the channels of the `usual` first inputs together, and one pair for
    each of the others; for each input alone where it makes decisions, of which every one counts,
    or where `each` asks for that. Where `dtype` is half of float32, that is what it is run in.
    """
    precision = dtype if torch.finfo(dtype).bits >= 32 else torch.float32

    def moved(pair: int, units: float) -> Callable[[Image], Leaves]:
        near = _moved(model, dtype, precision, pair, units)
        return lambda image: run(near, image, precision)

    units = (UNITS, 1) if each else (UNITS,)  # what is decided is not the same at any distance
    return drawn(moved, given, true, dtype, usual, units=units, each=each)


def drawn(
    moved: Callable[[int, float], Callable[[Image], Leaves]],
    given: Sequence[Image],
    true: Sequence[Leaves],
    dtype: torch.dtype,
    usual: int,
    *,
    units: Sequence[float] = (UNITS,),
    each: bool = False,
) -> list[Responses]:
    """How far outputs move: `moved` gives what runs with its weights moved, by draw and units."""
    responses = [Responses(t) for t in true]
    together = -(-ENOUGH // max(1, min(usual, 3)))
    wanted = [
        ENOUGH if each or any(map(_is_decided, t.values())) else together if i < usual else 1
        for i, t in enumerate(true)
    ]
    for pair in range(max(wanted, default=0)):
        for size in (sign * unit for unit in units for sign in (1, -1)):
            answer = moved(pair, size)
            for i, image in enumerate(given):
                if pair >= wanted[i]:
                    continue
                generator = torch.Generator().manual_seed(100 * pair + i)
                near = {n: moved_by_rounding(x, dtype, generator, size) for n, x in image.items()}
                try:
                    other = answer(near)
                except Exception:  # what it takes, but not that: no measure of noise
                    continue
                responses[i].add(other, abs(size))
    return responses


def _is_decided(value: object) -> bool:
    """Whether a part of an output is one of several, as rounding may decide: a class, a place."""
    numbers = as_numbers(value)
    return numbers is not None and numbers.numel() > 0 and is_discrete(numbers)


def _moved(
    model: nn.Module, dtype: torch.dtype, precision: torch.dtype, seed: int, units: float
) -> nn.Module:
    """A copy in another precision, each number of it so many units of a dtype's rounding away."""
    near, generator = copied(model).to(precision), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*near.parameters(), *near.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(moved_by_rounding(tensor.double(), dtype, generator, units))
    return near
