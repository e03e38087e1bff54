"""The certificate: one fused block against the layers that it replaced, for all inputs.

The replaced layers, run in float64, are an affine map that commutes with shifts. Impulses read its
kernel out, zeros its bias; every stored weight must be that value, rounded once. Images of all
sorts then show, up to the border, that the layers really are that map. The layers are run as they
are: no formula of the fusion is used, so none of its mistakes can be shared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from acfuse.algebra import Adjoint, AdjointGeometry, Planned, Value
from acfuse.errors import InputError
from acfuse.findings import Block, Run
from acfuse.proof.impulses import (
    NOISE,
    SOME,
    fitting,
    image_size,
    largest_in_rows,
    output_size,
    read_out,
    room_for,
    rows,
    unit_in_last_place,
)
from acfuse.proof.random_probes import Claims
from acfuse.system.devices import CPU
from acfuse.system.dispatch import DispatchMode
from acfuse.system.escape import one_line

ULP_LIMIT = 0.51
BLOCK_LIMIT = 1e-11  # float64, relative to the largest output of a channel
DRAWS, OWN_FACTOR = 6, 16  # a sum may be off by 16 times what moving its terms did in six draws


@dataclass(frozen=True)
class Certificate:
    """What was measured for one block.

    `ulp` is the worst distance of a stored weight or bias from the exact one, in units of the last
    place; `error` the worst difference of outputs, in float64, relative to the largest. An empty
    `fault` means passed. `channels` are those in which a weight is wrong, and all; `folded` is the
    dtype whose rounding a block of others was judged by.
    """

    where: str
    ulp: float
    error: float
    weights: int
    wrong: int = 0
    fault: str = ""
    channels: tuple[int, int] = (0, 0)
    folded: str = ""

    @property
    def passed(self) -> bool:
        return not self.fault


def certify(
    block: Block,
    stored: Sequence[Value | None],
    claimed: Sequence[Value | None] = (),
    *,
    exhaustive: bool = False,
) -> Certificate:
    """Compares the convolutions that are stored for a block with what its layers compute.

    `stored` are in float64, one for each source; None: the source is added as it is. `claimed` are
    those that the layers should be, before any rounding, if they are known: what nobody claims is
    computed. With `exhaustive` every channel is read by impulses. Raises InputError where the
    layers cannot be run.
    """
    where, run = block.label, block.reference()
    count = sum(s.kernel.numel() + s.bias.numel() for s in stored if s is not None)
    geometries = [s.geometry if s is not None else None for s in stored]
    try:
        room = room_for(run, geometries)
        probes = list(_probes(stored, seed=0, room=room))
        smallest = min(probes, key=lambda images: sum(image.numel() for image in images))
        first = run(*smallest)
    except RuntimeError as failure:
        why = f"its layers cannot be run ({one_line(failure, 200)})"
        raise InputError(f"{where}: {why}. Does the original run at all?") from failure
    again = (first - run(*smallest)).abs().max() / first.abs().max().clamp_min(1e-300)
    if not float(again) <= BLOCK_LIMIT:  # threads may add in another order
        return Certificate(where, math.inf, math.inf, count, fault="two runs of it differ")
    answers = [run(*images) for images in probes]
    for images, given in zip(probes, answers, strict=True):
        wanted = _output_of(stored, images)
        if given.shape != wanted:
            sizes = f"{tuple(given.shape[2:])} and {wanted[2:]}"
            fault = f"outputs of {sizes} for inputs of {tuple(images[0].shape[2:])}: padding?"
            return Certificate(where, math.inf, math.inf, count, fault=fault)
    claims = Claims(run, claimed or _claimed(block), geometries, block.dtype)
    exact = read_out(run, geometries, room, None if exhaustive else claims.hidden)
    error, fault = 0.0, ""
    for images, given in zip(probes, answers, strict=True):
        expected = apply(exact, images)
        difference = (given - expected).abs().nan_to_num(nan=math.inf)
        error = max(error, float(difference.max()) / max(float(given.abs().max()), 1e-300))
        fault = fault or _fault_in_a_channel(run, images, given, difference)
    found = _worst_ulp(exact, stored, block, _usual_noise(exact))
    if found.ulp > ULP_LIMIT and not fault:  # unless it is the rounding of the layers' own sums
        found = _worst_ulp(exact, stored, block, _measured_noise(run, geometries, room, exact))
    channels = (0, found.channels[1])
    if not (fault or found.ulp <= ULP_LIMIT):
        channels = found.channels
        fault = f"{found.wrong} of {count} weights are wrong; {found.place}"
    return Certificate(where, found.ulp, error, count, found.wrong, fault, channels)


def _claimed(block: Block) -> list[Value | None]:
    """What the algebra says that the layers are."""
    return [term.value for term in block.terms]


def _fault_in_a_channel(
    run: Run, images: Sequence[Tensor], given: Tensor, difference: Tensor
) -> str:
    """What is wrong with the worst channel of an output, in words; "" if nothing is.

    A channel of small numbers beside large ones counts by itself.
    """
    size, errors = _by_channel(given), _by_channel(difference)
    allowed = BLOCK_LIMIT * size
    if not bool((errors <= allowed).all()):
        again = rounded(run)
        moved = [again(*images) for _ in range(DRAWS)]
        own = [OWN_FACTOR * _by_channel(answer - given) for answer in moved]
        allowed = torch.stack([allowed, *own]).amax(0)
    if bool((errors <= allowed).all()):
        return ""
    place = int((errors / allowed).nan_to_num(nan=math.inf).argmax())
    off, limit = (float(x[place] / size[place]) for x in (errors, allowed))
    at = f"channel {place} (at most {limit:.0e})"
    return f"outputs differ by {off:.1e} of the largest of {at}: padding?"


def _by_channel(values: Tensor) -> Tensor:
    """The largest number of each channel."""
    return values.abs().transpose(0, 1).flatten(1).amax(1).clamp_min(1e-300)


def rounded(run: Run, unit: float = 2.0**-52) -> Run:
    """The same layers, whose sums are rounded in another way at each call."""
    mode = _Rounded(unit)

    def run_rounded(*images: Tensor) -> Tensor:
        with mode:
            return run(*images)

    return run_rounded


class _Rounded(DispatchMode):
    """Moves every number that an operator reads by up to three units (of float64), at random.

    What comes out then differs as it might if the same sums were made in another order: where terms
    cancel (branches, a bias and a mean), by much more than a few units of what is left.
    """

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit, self.generator = unit, torch.Generator().manual_seed(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        views = any(r.alias_info is not None for r in func._schema.returns)
        if not (views or func._schema.is_mutable):  # a view of a copy would lead nowhere
            args, kwargs = _pytree.tree_map_only(Tensor, self._moved, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _moved(self, values: Tensor) -> Tensor:
        if values.dtype != torch.float64:
            return values
        how: Any = {"generator": self.generator, "dtype": torch.int8, "device": CPU}
        steps = torch.randint(-3, 3, values.shape, **how)
        steps += steps >= 0  # never none, and rarely as many for two terms that cancel
        return values * (1 + self.unit * steps.to(values.device).double())


def apply(values: Sequence[Value | None], images: Sequence[Tensor]) -> Tensor:
    """The sum of the convolutions of their images."""
    parts = [image if v is None else v(image) for v, image in zip(values, images, strict=True)]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def _output_of(values: Sequence[Value | None], images: Sequence[Tensor]) -> tuple[int, ...]:
    """The shape of what `apply` gives."""
    value, image = next((v, x) for v, x in zip(values, images, strict=True) if v is not None)
    size = output_size(value.geometry, image.shape[2:])
    return (len(image), value.geometry.out_channels, *size)


def _probes(stored: Sequence[Value | None], seed: int, room: int) -> Sequence[list[Tensor]]:
    """Images of every kind: small and larger, odd and even, H != W, shifted mean, large scale."""
    generator = torch.Generator().manual_seed(seed)
    known = [s.geometry for s in stored if s is not None]
    out = known[0].out_channels
    least = [max(_least_output(g, i) for g in known) for i in range(len(known[0].axes))]
    probes = []
    for extra, batch, mean, scale in (
        ((3, 4, 2), 1, 0.0, 1.0),
        ((4, 1, 3), 1, 10.0, 1.0),
        ((0, 1, 1), 2, 0.0, 2.0**40),
        ((1, 2, 0), 1, -1.0, 1e-3),
    ):
        sizes = [n + e + room for n, e in zip(least, extra, strict=False)]
        output = fitting([s.geometry if s is not None else None for s in stored], sizes)
        images = []
        for s in stored:
            channels = out if s is None else s.geometry.in_channels
            size = tuple(output) if s is None else image_size(s.geometry, output)
            shape = batch, channels, *size
            noise = torch.randn(shape, generator=generator, dtype=torch.float64, device=CPU)
            images.append(scale * (noise + mean))
        probes.append(images)
    return probes


def _least_output(geometry: Planned, place: int) -> int:
    """The size of an output that shows a whole window, and of which the image is no less than 1."""
    axis = geometry.axes[place]
    if isinstance(geometry, AdjointGeometry):
        pixels = -(-axis.taps // axis.stride)  # that meet in one of the output, and one more
        return max(axis.stride * pixels + axis.taps - axis.before - axis.after, 2)
    window = -(-axis.taps // axis.stride)
    padded = 1 - (axis.taps - axis.before - axis.after - 1) // axis.stride
    return max(window, padded, 2)


Noise = Sequence[tuple[Tensor, Tensor] | None]  # of a weight and bias, for each output channel


def _usual_noise(exact: Sequence[Value | None]) -> Noise:
    """What float64 sums without much cancellation may be off."""
    known = [largest_in_rows(rows(v)) for v in exact if v is not None]
    weight = NOISE * torch.stack(known).amax(0)
    return [None if v is None else (weight.clone(), NOISE * v.bias.abs()) for v in exact]


def _measured_noise(
    run: Run,
    geometries: Sequence[Planned | None],
    room: int,
    exact: Sequence[Value | None],
) -> Noise:
    """What the layers' own float64 sums may be off, where their terms cancel."""
    noise, again = _usual_noise(exact), rounded(run)
    for _ in range(DRAWS):
        values = read_out(again, geometries, room)
        for own, true, moved in zip(noise, exact, values, strict=True):
            if own is None or true is None or moved is None:
                continue
            weight = largest_in_rows(rows(moved) - rows(true))
            bias = (moved.bias - true.bias).abs()
            for floor, change in zip(own, (weight, bias), strict=True):
                torch.maximum(floor, OWN_FACTOR * change, out=floor)
    return noise


@dataclass(frozen=True)
class _Worst:
    """The worst distance in units of the last place, how many exceed the limit, and the worst."""

    ulp: float
    wrong: int
    place: str
    channels: tuple[int, int]


def _worst_ulp(
    exact: Sequence[Value | None],
    stored: Sequence[Value | None],
    block: Block,
    noise: Noise,
) -> _Worst:
    """What is furthest from the exact weights.

    Where terms cancel, or the dtype is float64 itself, the noise of the float64 sums is larger than
    its unit: what is below that noise counts as none.
    """
    worst, wrong, place, bad = 0.0, 0, "", torch.zeros(0, dtype=torch.bool, device=CPU)
    for true, have, term, own in zip(exact, stored, block.terms, noise, strict=True):
        if true is None or have is None or own is None:
            continue
        pairs = ((rows(true), rows(have)), (true.bias, have.bias))
        for name, (a, b), floor in zip(("weight", "bias"), pairs, own, strict=True):
            step, by_channel = max(1, SOME // max(a[0].numel(), 1)), []
            for low in range(0, len(a), step):
                part = slice(low, low + step)
                distance = _distance(a[part], b[part], floor[part], block.dtype)
                wrong += int((distance > ULP_LIMIT).sum())
                by_channel.append(distance.flatten(1).amax(1) > ULP_LIMIT)
                largest = float(distance.max())
                if largest > worst or not place:
                    at = unravel(int(distance.argmax()), tuple(a[part].shape))
                    at = (low + at[0], *at[1:])
                    place = named_weight(f"{term.name}.{name}", _stored_at(at, have), a[at], b[at])
                worst = max(worst, largest)
            own_bad = torch.cat(by_channel)
            bad = own_bad | bad if len(bad) else own_bad
    return _Worst(worst, wrong, place, (int(bad.sum()), len(bad)))


def _distance(exact: Tensor, stored: Tensor, floor: Tensor, dtype: torch.dtype) -> Tensor:
    """How far stored numbers are off, in units of the last place: [channels, rest].

    What is below the `floor` of its channel counts as none.
    """
    exact, stored = (numbers.reshape(len(numbers), -1) for numbers in (exact, stored))
    beyond = (exact - stored).abs_().sub_(floor.reshape(-1, 1)).clamp_min_(0)
    return beyond.div_(unit_in_last_place(exact, dtype)).nan_to_num_(nan=math.inf)


def _stored_at(at: tuple[int, ...], value: Value) -> tuple[int, ...]:
    """Where the number of a place among the rows is stored."""
    if len(at) == 1 or not isinstance(value, Adjoint):
        return at
    out, slot, *tap = at
    per_group = value.kernel.shape[1]
    return out // per_group * (len(value.kernel) // value.groups) + slot, out % per_group, *tap


def named_weight(name: str, at: Sequence[int], exact: Tensor, stored: Tensor) -> str:
    """One stored number, with what was expected there."""
    return f"{name}{list(at)} is {stored:.7g}, expected {exact:.7g}"


def unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Where a number of a tensor is; torch.unravel_index would import its compiler for that."""
    place: list[int] = []
    for n in reversed(shape):
        place.append(index % n)
        index //= n
    return tuple(reversed(place))
