"""Outputs of two models side by side: how far apart they are, and how far they may be."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from acfuse.errors import NotEqual, UsageError
from acfuse.proof.certificate import BLOCK_LIMIT, Certificate, unravel
from acfuse.proof.leaves import Holder, Leaves, as_numbers, is_discrete, named, unlike
from acfuse.proof.noise import Noise, Noises, along, apart, sizes, without_noise
from acfuse.system.devices import CPU
from acfuse.system.escape import html_table, one_line, safe

Outputs = Leaves | Sequence[Tensor]

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

    Where neither is given, the honest scale is the largest output. Some outputs may have their own,
    `of_outputs`, by name.
    """

    atol: float | None = None
    rtol: float | None = None
    of_outputs: Mapping[str, "Tolerance"] = field(default_factory=dict)

    @classmethod
    def given(
        cls, atol: Mapping[str, float] | None, rtol: Mapping[str, float] | None
    ) -> "Tolerance":
        """That of numbers by the name of the output; under "" is what holds for all others."""
        both = [{} if each is None else each for each in (atol, rtol)]
        names = dict.fromkeys(name for each in both for name in each if name)
        own = {name: cls(both[0].get(name), both[1].get(name)) for name in names}
        return cls(both[0].get(""), both[1].get(""), own)

    def of(self, output: str) -> "Tolerance":
        """That of one output; what is not given for it alone, is as for all."""
        own = self.of_outputs.get(self.name_of(output), Tolerance())
        atol, rtol = own.atol, own.rtol
        return Tolerance(self.atol if atol is None else atol, self.rtol if rtol is None else rtol)

    def name_of(self, output: str) -> str:
        """The name under which an output has its own; "" if it has none."""
        wanted = _spoken(output)
        return next((name for name in self.of_outputs if _spoken(name) == wanted), "")

    def check_names(self, outputs: Iterable[str]) -> None:
        """Raises UsageError if it names an output that is none of these."""
        known = {_spoken(name): name for name in outputs}
        odd = [name for name in self.of_outputs if _spoken(name) not in known]
        if odd:
            listed = ", ".join(filter(None, known)) or "one that has no name"
            raise UsageError(f"--atol, --rtol: {odd[0]} is no output; the outputs are {listed}.")

    @property
    def is_given(self) -> bool:
        return self.atol is not None or self.rtol is not None or bool(self.of_outputs)

    @property
    def pair(self) -> tuple[float, float]:
        """(atol, rtol), with torch's default beside the one that is given."""
        atol = 0.0 if self.atol is None else self.atol
        return atol, (1e-5 if self.rtol is None and self.atol is not None else self.rtol or 0.0)


def _spoken(output: str) -> str:
    """The name of an output as a user says it: boxes for ['boxes'] or .boxes, 0 for [0]."""
    return output.strip(".[]'\"")


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
    compared: int | None = None  # numbers; 0: nothing is proved. None: it is not counted
    left_out: int = 0  # numbers that rounding decides in the original itself
    needed: Mapping[str, float] = field(default_factory=dict)  # the atol that passes, by output


@dataclass(frozen=True)
class Proofs:
    """Everything that was measured."""

    certificates: tuple[Certificate, ...] = ()
    checks: tuple[Check, ...] = ()
    remarks: tuple[str, ...] = ()  # on what could not be measured
    place: str = ""  # where outputs begin to differ, as far as that was found
    looks_like: str = ""  # the known mistake that gives the difference, and what to do about it

    def __repr__(self) -> str:
        told = f"{len(self.certificates)} certificates, {len(self.checks)} checks"
        return f"<Proofs: {'equal' if self.passed else 'NOT EQUAL'}, {told}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, then each measurement."""
        verdict = "Equal" if self.passed else f"Not equal: {self.fault}"
        blocks = [(c.where, f"{c.ulp:.2f}", f"{c.error:.1e}", c.fault) for c in self.certificates]
        checks = [(c.name, c.passed, f"{c.error:.1e}", c.detail) for c in self.checks]
        return (
            f"<p><b>{safe(verdict, 'html')}</b></p>"
            f"{html_table(('block', 'worst ULP', 'error', 'fault'), blocks)}"
            f"{html_table(('check', 'passed', 'error', 'detail'), checks)}"
        )

    def raise_for_fault(self) -> None:
        """Raises NotEqual, with what is wrong, unless all is proved."""
        if not self.passed:
            raise NotEqual(
                self.fault + (f" (looks like: {self.looks_like})" * bool(self.looks_like))
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of the measurements."""
        return (*(check.note for check in self.checks if check.note), *self.remarks)

    @property
    def passed(self) -> bool:
        proofs: list[Certificate | Check] = [*self.certificates, *self.checks]
        return all(proof.passed for proof in proofs)

    @property
    def worst(self) -> int | None:
        """The place of the certificate that fails by most, if one does."""
        failed = [i for i, c in enumerate(self.certificates) if not c.passed]

        def by(place: int) -> tuple[float, float]:
            """How far layers are from being such a map, then how far a stored number is off."""
            certificate = self.certificates[place]
            error, ulp = (
                math.inf if math.isnan(n) else n for n in (certificate.error, certificate.ulp)
            )
            return error if error > BLOCK_LIMIT else 0.0, ulp

        return max(failed, key=by, default=None)

    @property
    def fault(self) -> str:
        """The worst block, or the first other thing that is wrong, in one line; or nothing."""
        worst = self.worst
        if worst is not None:
            certificate = self.certificates[worst]
            failed = sum(not c.passed for c in self.certificates)
            more = f" (the worst of {failed} such blocks)" if failed > 1 else ""
            return f"{certificate.where}: {certificate.fault}{more}"
        for check in self.checks:
            if not check.passed:
                place = f"; {self.place}" if self.place else ""
                return f"{check.name}: {check.detail}{self._advice}{place}"
        return ""

    @property
    def _advice(self) -> str:
        """What --atol would have to be for every check that fails by a tolerance alone."""
        failed = [check for check in self.checks if not check.passed]
        if not failed or not all(check.needed for check in failed):
            return ""
        names = sorted({name for check in failed for name in check.needed})
        most = {name: max(check.needed.get(name, 0.0) for check in failed) for name in names}
        told = ",".join(f"{name}:" * bool(name) + f"{atol:g}" for name, atol in most.items())
        return f"; atol {told} would pass"


@dataclass(frozen=True)
class _Measured:
    """What was measured of one output, as a whole or at each place along an axis."""

    name: str
    axis: int | None
    error: Tensor
    scale: Tensor
    noise: Tensor


@dataclass
class Difference:
    """The largest differences seen over several outputs of two models, the first the true one.

    Outputs are compared by name, each on its own scale, and by channel where the noise of the
    original's channels is known.
    """

    error: float = 0.0
    absolute: float = 0.0
    excess: float = -math.inf  # of |a - b| over atol + rtol * |b|
    needed: dict[str, float] = field(default_factory=dict)  # the smallest atol, by output
    place: str = ""
    exceeded: Tolerance = field(default_factory=Tolerance)  # that of the output at this place
    failure: str = ""  # why outputs cannot even be compared
    is_hollow: bool = False  # true outputs are NaN or Inf: there, the others must be the same
    takes_any: bool = False  # there, the others need only be one of them too
    tolerance: Tolerance = field(default_factory=Tolerance)
    compared: int = 0  # numbers
    left_out: int = 0  # numbers that rounding decides in the original itself
    empty: dict[str, bool] = field(default_factory=dict)  # outputs: whether it always was
    measured: list[_Measured] = field(default_factory=list)

    def fail(self, why: str) -> None:
        """Notes that there is nothing to compare: no tolerance allows that."""
        self.failure = self.failure or why
        self.error = self.absolute = self.excess = math.inf

    def worst(self, limit: float, floor: float = 0.0) -> tuple[float, float, str]:
        """(error, what it may be, where) of what comes closest to its allowance, or exceeds it.

        That is `limit`, or some times the noise of the original itself at that very place; or
        `floor`, which is absolute. Both are relative to the largest number there. Of outputs with a
        tolerance it says nothing.
        """
        if self.failure:
            return math.inf, limit, ""
        found, nearest = (0.0, limit, ""), 0.0
        for each in self.measured:
            if self.tolerance.of(each.name).is_given:
                continue
            allowed = (limit * each.scale).maximum(OWN_FACTOR * each.noise).clamp_min(floor)
            ratio = torch.where(each.error > 0, each.error / allowed, 0.0)
            place = int(ratio.argmax())
            if float(ratio[place]) > nearest:
                nearest, scale = float(ratio[place]), float(each.scale[place]) or 1.0
                error, most = float(each.error[place]) / scale, float(allowed[place]) / scale
                at = f"place {place} along axis {each.axis} of " if each.axis is not None else ""
                found = (error, most, f"{at}{_output(each.name)}")
        return found

    @property
    def advice(self) -> dict[str, float]:
        """What --atol would have to be, by the names under which outputs have a tolerance."""
        needed: dict[str, float] = {}
        for output, number in self.needed.items():
            name = self.tolerance.name_of(output)
            given = self.tolerance.of(output).atol
            enough = given if given is not None and number <= given else _up(number)
            needed[name] = max(needed.get(name, 0.0), enough)
        return needed

    def compare(
        self, true: Outputs, answer: Callable[[], Outputs], noise: Noises | Sequence[float] = ()
    ) -> None:
        """Takes in what the other model answers, if it does."""
        try:
            given = answer()
        except Exception as error:  # whatever it is: the original did not fail
            self.fail(f"the fused model fails ({one_line(error, 200)})")
            return
        self.add(true, given, noise)

    def add(self, true: Outputs, given: Outputs, noise: Noises | Sequence[float] = ()) -> None:
        """Takes one more pair of outputs in. `noise` is that of each true output, absolute."""
        if isinstance(true, Sequence) and len(true) != len(given):
            self.fail(f"the models give {len(true)} and {len(given)} outputs")
            return
        true, given = named(true), named(given)
        if self.tolerance.of_outputs:
            self.tolerance.check_names(true)
        if not isinstance(noise, Mapping):
            noise = {n: Noise(value) for n, value in zip(true, noise, strict=False)}
        for name, expected in true.items():
            own = noise.get(name, Noise())
            numbers = as_numbers(expected)
            if own.is_lost:
                self.left_out += 1 if numbers is None else numbers.numel()
            elif name not in given:
                self.fail(f"{_output(name)} is missing")
            elif difference := unlike(expected, given[name]):
                self.fail(f"{_output(name)} {difference}")
            elif numbers is not None:
                other = as_numbers(given[name])
                assert other is not None
                self._add_numbers(name, numbers, other, own)
            elif not isinstance(expected, Holder):
                self.compared += 1

    def _add_numbers(self, name: str, b: Tensor, a: Tensor, noise: Noise) -> None:
        self.empty[name] = self.empty.get(name, True) and b.numel() == 0
        if b.numel() == 0:
            return
        distance = apart(b, a)
        if self.takes_any and not is_discrete(b):
            distance = torch.where(b.isfinite() | a.isfinite(), distance, 0.0)
        if noise.unsteady is not None:
            distance = torch.where(noise.unsteady, 0.0, distance)
            self.left_out += int(noise.unsteady.sum())
        self.compared += b.numel() - int(0 if noise.unsteady is None else noise.unsteady.sum())
        if is_discrete(b):
            if bool(distance.any()):
                at = _index(distance)
                self.fail(f"{_output(name)} is {a[at]} at {[*at]}, the original's {b[at]}")
            return
        self.is_hollow |= not bool(b.isfinite().all())
        b = b.double()
        size = sizes(b)
        self._measure(name, None, distance.max(), size.max(), torch.tensor(noise.whole, device=CPU))
        for axis, own in noise.channels.items():
            self._measure(name, axis, along(axis, distance), along(axis, size), own)
        largest = float(distance.max())
        self.error = max(self.error, largest / (float(size.max()) or 1.0))
        self.absolute = max(self.absolute, largest)
        tolerance = self.tolerance.of(name)
        if not tolerance.is_given:
            return
        atol, rtol = tolerance.pair
        beyond = distance - rtol * size
        excess = float(beyond.max()) - atol
        self.needed[name] = max(self.needed.get(name, 0.0), float(beyond.max()))
        if excess > self.excess:
            self.excess, self.exceeded = excess, tolerance
            self.place = f"{[*_index(beyond)]} of {_output(name)}"

    def _measure(
        self, name: str, axis: int | None, error: Tensor, scale: Tensor, noise: Tensor
    ) -> None:
        parts = (part.reshape(-1).double() for part in (error, scale, noise))
        self.measured.append(_Measured(name, axis, *parts))


def _output(name: str) -> str:
    return f"output {name}" if name else "the output"


def _index(values: Tensor) -> tuple[int, ...]:
    """Where the largest value is."""
    return unravel(int(values.argmax()), tuple(values.shape))


def concluded(check: Check, difference: Difference) -> Check:
    """A check with how much was compared, and the words for what could not be."""
    compared, left_out = difference.compared, difference.left_out
    detail, warning = check.detail, check.warning
    unseen = [_output(name) for name, is_empty in difference.empty.items() if is_empty]
    if left_out and not difference.failure:
        detail += (
            f"; {left_out} of {compared + left_out} numbers are not compared: rounding decides them"
            " in the original itself"
        )
    if check.passed and compared == 0:
        why = f"{', '.join(unseen)} was empty on every input that was tried"
        why = why if unseen else "the original gives nothing that rounding does not decide"
        warning = f"nothing was compared: {why}"
    elif check.passed and unseen:
        warning = warning or f"nothing of {', '.join(unseen)} was compared: it was always empty"
    return replace(check, compared=compared, left_out=left_out, detail=detail, warning=warning)


def rounding_limit(dtype: torch.dtype) -> float:
    """What outputs may be apart in the dtype that ships, of the largest number there."""
    return HALF_LIMIT if torch.finfo(dtype).bits == 16 else ROUNDING_LIMIT


def still(true: Sequence[Leaves], usual: int, limit: float) -> list[Noises]:
    """No noise at all, for a first comparison with a limit."""
    return without_noise(true, usual, limit / OWN_FACTOR)


def judge(
    name: str,
    difference: Difference,
    tolerance: Tolerance,
    dtype: torch.dtype,
    own: Difference | None = None,
) -> Check:
    """The verdict on outputs as they ship: by the user's tolerance, or by the largest output."""
    return concluded(_judged(name, difference, tolerance, dtype, own), difference)


def _judged(
    name: str,
    difference: Difference,
    tolerance: Tolerance,
    dtype: torch.dtype,
    own: Difference | None,
) -> Check:
    rounding = own.error if own is not None else None
    warning = HOLLOW if difference.is_hollow else ""
    if difference.failure:
        return Check(name, False, math.inf, 0.0, math.inf, rounding, difference.failure)
    info, half = torch.finfo(dtype), torch.finfo(dtype).bits == 16
    error, limit, at = difference.worst(rounding_limit(dtype), info.tiny)  # without a tolerance
    passed = error <= limit
    detail = f"outputs differ by {error:.1e} of the largest (at most {limit:.0e})"
    detail += "" if passed else f", in {at}"
    if tolerance.is_given and passed:
        atol, rtol = difference.exceeded.pair
        passed = difference.excess <= 0
        detail = f"max |a-b| {difference.absolute:.1e}, atol {atol:g} + rtol {rtol:g} * |b|"
        if not passed:
            detail += f" exceeded at {difference.place}"
            if own is not None and own.excess > 0:
                detail += ". The original's own rounding exceeds it too: no fused model could pass"
        check = Check(
            name, passed, difference.error, atol, difference.absolute, rounding, detail, warning
        )
        return check if passed else replace(check, needed=difference.advice)
    usual = max(ROUNDING_WARNING, OWN_FACTOR * (rounding or 0.0))
    if passed and not half and error > usual:
        unusual = f"outputs differ by {error:.1e} of the largest, in {at}, more than is usual"
        warning = "; ".join(filter(None, (warning, unusual)))
    return Check(name, passed, error, limit, difference.absolute, rounding, detail, warning)


def _up(number: float) -> float:
    """A number with two digits, rounded up: what is said to pass has to."""
    if not 0 < number < math.inf:
        return number
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f"{(math.floor(number / unit) + 1) * unit:.1e}")
