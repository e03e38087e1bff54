"""What others folded: whether weights differ from the exact ones by rounding alone.

acfuse multiplies in float64 and rounds once. Most scripts fold in the dtype of the weights, where
each step rounds: the variance with eps, its root, the quotient, the product, each sum of arms. Such
a step is off by half a unit of its result, and of that many units a weight may be off: as many as
there are steps where nothing cancels, more where arms or terms of a chain do. How much more is
measured, weight by weight: every number that the layers read is moved by as much as it was rounded.

A file folded so is off nearly everywhere. Where all but a few weights are exact, it was not, and
the few are faults.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acfuse.algebra import Value
from acfuse.findings import Block, Run
from acfuse.proof.certificate import Certificate, named_weight, rounded, unravel
from acfuse.proof.faults import OTHER_EPS
from acfuse.proof.impulses import read_out, room_for

FEW, BROAD = 3, 0.25  # weights that are wrong, channels that hold one: up to these, they are faults
STEPS = 8  # half units that a weight may be off where nothing cancels
DRAWS, FACTOR = 12, 4  # a cancelling sum may be off by so many times the largest of these draws
SURE, MANY = 4.0, 8  # so much nearer to those of another eps, in so many channels: it is that one
ALIKE = 1.5  # errors that tell no eps from another

Stored = Sequence[Value | None]
Anew = Callable[[Block, float], Run | None]  # the layers of a block with another BatchNorm eps


@dataclass(frozen=True)
class Allowed:
    """A weight or bias of a block: exact, as stored, and how far rounding may put each number."""

    name: str
    exact: Tensor
    stored: Tensor
    most: Tensor

    def off(self, exact: Tensor) -> Tensor:
        """How far each number is from what is taken to be exact, of what it may be."""
        apart = (self.stored - exact).abs()
        return torch.where(apart == 0, 0.0, apart / self.most).nan_to_num(nan=math.inf)

    @property
    def worst(self) -> Tensor:
        """That of the number which is furthest off."""
        return self.off(self.exact).max()


def allowed(block: Block, stored: Stored, run: Run) -> list[Allowed]:
    """What folding in the block's own dtype may have put its weights off, at most.

    The draws end where all that is stored is within it: more of them only allow more.
    """
    info = torch.finfo(block.dtype)
    names = [t.name or "" for t, s in zip(block.terms, stored, strict=True) if s is not None]
    names = [f"{name}.{what}" for name in names for what in ("weight", "bias")]
    exact = _numbers(stored, run)
    parts = [
        Allowed(name, a, b, STEPS * info.eps / 2 * a.abs() + info.tiny * info.eps)
        for name, a, b in zip(names, exact, _parts(stored), strict=True)
    ]
    again = rounded(run, info.eps / 2)
    for _ in range(DRAWS):
        if all(part.worst <= 1 for part in parts):
            break
        for i, moved in enumerate(_numbers(stored, again)):
            change = FACTOR * (moved - parts[i].exact).abs()
            parts[i] = replace(parts[i], most=torch.maximum(parts[i].most, change))
    return parts


def slack_of(block: Block, stored: Stored) -> list[Tensor]:
    """How far rounding may put each weight and bias, in their order."""
    return [part.most for part in allowed(block, stored, block.reference())]


def _parts(values: Stored) -> list[Tensor]:
    return [part for v in values if v is not None for part in (v.kernel, v.bias)]


def _numbers(like: Stored, run: Run) -> list[Tensor]:
    """The weights and biases that layers are, in the geometry of the stored ones."""
    geometries = [s.geometry if s is not None else None for s in like]
    return _parts(read_out(run, geometries, room_for(run, geometries)))


def judged_as_folded(
    blocks: Sequence[Block],
    certificates: Sequence[Certificate],
    stored: Callable[[Block], Stored],
    anew: Anew,
) -> tuple[Certificate, ...]:
    """The certificates of a file of others: what rounding of its own dtype explains is no fault."""
    channels = [sum(c.channels[i] for c in certificates) for i in (0, 1)]
    wrong = sum(c.wrong for c in certificates if c.channels[0])
    if wrong <= FEW or channels[0] < BROAD * channels[1]:
        return tuple(certificates)
    judged, suspect = [*certificates], (0.0, -1)
    for i, (block, certificate) in enumerate(zip(blocks, certificates, strict=True)):
        if not certificate.channels[0]:
            continue
        parts = allowed(block, stored(block), block.reference())
        judged[i] = _judged(certificate, block, parts)
        if judged[i].passed and certificate.channels[1] >= MANY:
            suspect = max(suspect, (_error(parts, [p.exact for p in parts]), i))
    if suspect[1] >= 0:
        eps = other_eps(blocks[suspect[1]], stored(blocks[suspect[1]]), anew)
        if eps is not None:
            why = f"its weights are those of BatchNorm eps {eps:g}, which is not the layers' own"
            judged[suspect[1]] = replace(judged[suspect[1]], fault=why)
    return tuple(judged)


def _judged(certificate: Certificate, block: Block, parts: Sequence[Allowed]) -> Certificate:
    dtype = str(block.dtype).removeprefix("torch.")
    beyond = sum(int((part.off(part.exact) > 1).sum()) for part in parts)
    if not beyond:
        return replace(certificate, fault="", folded=dtype)
    worst = max(parts, key=lambda part: float(part.worst))
    at = unravel(int(worst.off(worst.exact).argmax()), tuple(worst.exact.shape))
    fault = f"{beyond} of {certificate.weights} weights are wrong, further off than folding in "
    fault += f"{dtype} explains; {named_weight(worst.name, at, worst.exact[at], worst.stored[at])}"
    return replace(certificate, fault=fault, folded=dtype)


def _error(parts: Sequence[Allowed], exact: Sequence[Tensor]) -> float:
    """The mean square of how far the stored numbers are off, of what they may be."""
    return float(torch.cat([p.off(e).reshape(-1) for p, e in zip(parts, exact, strict=True)])
                 .square().mean())  # fmt: skip


def other_eps(block: Block, stored: Stored, anew: Anew) -> float | None:
    """The eps whose weights the stored ones are much nearer to than to those of the layers' own."""
    parts = allowed(block, stored, block.reference())
    found: dict[float, float] = {}
    for eps in OTHER_EPS:
        run = anew(block, eps)
        if run is not None:
            found[eps] = _error(parts, _numbers(stored, run))
    nearest = min(found.values(), default=math.inf)
    if nearest > 1 or SURE * nearest >= _error(parts, [part.exact for part in parts]):
        return None
    return next(eps for eps, error in found.items() if error <= ALIKE * nearest)
