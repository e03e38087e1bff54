"""Outputs of two models side by side: how far apart they are, and how far they may be."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from acfuse.proof.certificate import Certificate
from acfuse.system.escape import one_line

ALGEBRA_LIMIT = 1e-10  # float64, folded weights before their rounding
NOISE_FACTOR = 100  # above a model's own answer to float64 rounding nothing can be told
OWN_FACTOR = 16  # the same for the dtype that ships: so many times what one rounding of it costs
STORED_LIMIT = 8  # float64, rounded weights: so many machine epsilons of the stored dtype
ROUNDING_LIMIT, ROUNDING_WARNING = 1e-4, 1e-5  # in the dtype that ships, of the largest output
HALF_LIMIT = 0.1  # the same for float16 and bfloat16, whose own rounding is that coarse
HOLLOW = "the original's own outputs hold NaN or Inf; of those, nothing more could be compared"


@dataclass(frozen=True)
class Tolerance:
    """|a - b| <= atol + rtol * |b| for every element, b the original; the rule of torch.allclose.

    Where neither is given, the honest scale is the largest output.
    """

    atol: float | None = None
    rtol: float | None = None

    @property
    def is_given(self) -> bool:
        return self.atol is not None or self.rtol is not None

    @property
    def pair(self) -> tuple[float, float]:
        """(atol, rtol), with torch's default beside the one that is given."""
        atol = 0.0 if self.atol is None else self.atol
        return atol, (1e-5 if self.rtol is None and self.atol is not None else self.rtol or 0.0)


@dataclass(frozen=True)
class Check:
    """One measurement over the whole model: the largest error, and what it may be.

    `error` is relative to the largest output, `absolute` the largest difference of one element,
    `own` the rounding of the original itself on the same scale.
    """

    name: str
    passed: bool
    error: float
    limit: float
    absolute: float = 0.0
    own: float | None = None
    detail: str = ""
    warning: str = ""
    note: str = ""


@dataclass(frozen=True)
class Proofs:
    """Everything that was measured."""

    certificates: tuple[Certificate, ...] = ()
    checks: tuple[Check, ...] = ()
    remarks: tuple[str, ...] = ()  # on what could not be measured

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of the measurements."""
        return (*(check.note for check in self.checks if check.note), *self.remarks)

    @property
    def passed(self) -> bool:
        proofs: list[Certificate | Check] = [*self.certificates, *self.checks]
        return all(proof.passed for proof in proofs)

    @property
    def fault(self) -> str:
        """The first thing that is wrong, in one line; empty if nothing is."""
        for certificate in self.certificates:
            if not certificate.passed:
                return f"{certificate.where}: {certificate.fault}"
        for check in self.checks:
            if not check.passed:
                return f"{check.name}: {check.detail}"
        return ""


@dataclass
class Difference:
    """The largest differences seen over several outputs of two models, the first the true one."""

    error: float = 0.0
    absolute: float = 0.0
    excess: float = -math.inf  # of |a - b| over atol + rtol * |b|
    needed: float = 0.0  # the smallest atol that would pass beside this rtol
    place: str = ""
    failure: str = ""  # why outputs cannot even be compared
    is_hollow: bool = False  # true outputs are NaN or Inf: there, the others need only be one too
    tolerance: Tolerance = field(default_factory=Tolerance)
    measured: list[tuple[float, float]] = field(default_factory=list)  # (error, the original's own)

    def fail(self, why: str) -> None:
        """Notes that there is nothing to compare: no tolerance allows that."""
        self.failure = self.failure or why
        self.error = self.absolute = self.excess = self.needed = math.inf
        self.measured.append((math.inf, 0.0))

    def worst(self, limit: float) -> tuple[float, float]:
        """(error, what it may be) of the output that comes closest to its allowance, or exceeds it.

        That is `limit`, or some times the noise of the original itself on that very input.
        """
        pairs = [(error, max(limit, OWN_FACTOR * own)) for error, own in self.measured]
        return max(pairs, key=lambda pair: pair[0] / pair[1], default=(0.0, limit))

    def compare(
        self,
        true: Sequence[Tensor],
        answer: Callable[[], Sequence[Tensor]],
        noise: Sequence[float] = (),
    ) -> None:
        """Takes in what the other model answers, if it does."""
        try:
            given = answer()
        except Exception as error:  # whatever it is: the original did not fail
            self.fail(f"the fused model fails ({one_line(error, 200)})")
            return
        self.add(true, given, noise)

    def add(
        self, true: Sequence[Tensor], given: Sequence[Tensor], noise: Sequence[float] = ()
    ) -> None:
        """Takes one more pair of outputs in. `noise` is that of each true output, absolute."""
        if len(true) != len(given):
            self.fail(f"the models give {len(true)} and {len(given)} outputs")
            return
        atol, rtol = self.tolerance.pair
        for index, (b, a) in enumerate(zip(true, given, strict=True)):
            if a.shape != b.shape:
                shapes = f"{tuple(a.shape)}, the original {tuple(b.shape)}"
                self.fail(f"output {index} has the shape {shapes}")
                continue
            b, a = b.double(), a.double()
            self.is_hollow |= not bool(b.isfinite().all())
            distance = (a - b).abs()
            distance = torch.where((a == b) | ~(a.isfinite() | b.isfinite()), 0.0, distance)
            distance = distance.nan_to_num(nan=math.inf)
            if distance.numel() == 0:
                continue
            largest, scale = float(distance.max()), _scale(b)
            self.error = max(self.error, largest / scale)
            own = noise[index] / scale if index < len(noise) else 0.0
            self.measured.append((largest / scale, own))
            self.absolute = max(self.absolute, largest)
            beyond = distance - rtol * b.abs().nan_to_num(posinf=0.0)
            self.needed = max(self.needed, float(beyond.max()))
            excess = float(beyond.max()) - atol
            if excess > self.excess:
                place = torch.unravel_index(beyond.argmax(), beyond.shape)
                self.excess = excess
                self.place = f"output {index} at {[int(i) for i in place]}"


def _scale(output: Tensor) -> float:
    """The largest number of an output; 1 for one of zeros alone, which nothing is divided by."""
    finite = output[output.isfinite()]
    return float(finite.abs().max()) or 1.0 if finite.numel() else 1.0


def largest_changes(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[float]:
    """How much each output of a model changed, at most; of numbers that are not finite, nothing."""
    pairs = zip(before, after, strict=True)
    changes = ((a.double() - b.double()).abs() for a, b in pairs)
    return [float(c[c.isfinite()].max()) if bool(c.isfinite().any()) else 0.0 for c in changes]


def judge(
    name: str,
    difference: Difference,
    tolerance: Tolerance,
    dtype: torch.dtype,
    own: Difference | None = None,
) -> Check:
    """The verdict on outputs as they ship: by the user's tolerance, or by the largest output."""
    rounding = own.error if own is not None else None
    warning = HOLLOW if difference.is_hollow else ""
    if difference.failure:
        return Check(name, False, math.inf, 0.0, math.inf, rounding, difference.failure)
    if tolerance.is_given:
        atol, rtol = tolerance.pair
        passed = difference.excess <= 0
        detail = f"max |a-b| {difference.absolute:.1e}, atol {atol:g} + rtol {rtol:g} * |b|"
        if not passed:
            detail += f" exceeded at {difference.place}; atol {_up(difference.needed)} would pass"
            if own is not None and own.excess > 0:
                detail += ". The original's own rounding exceeds it too: no fused model could pass"
        return Check(
            name, passed, difference.error, atol, difference.absolute, rounding, detail, warning
        )
    half = torch.finfo(dtype).bits == 16
    error, limit = difference.worst(HALF_LIMIT if half else ROUNDING_LIMIT)
    passed = error <= limit
    detail = f"outputs differ by {error:.1e} of the largest (at most {limit:.0e})"
    if passed and not half and error > ROUNDING_WARNING:
        warning = f"outputs differ by {error:.1e} of the largest, more than is usual"
    return Check(name, passed, error, limit, difference.absolute, rounding, detail, warning)


def _up(number: float) -> str:
    """A number with two digits, rounded up: what is said to pass has to."""
    if not 0 < number < math.inf:
        return f"{number:g}"
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{(math.floor(number / unit) + 1) * unit:.1e}"
