"""The whole model: whether the algebra is exact, and what rounding costs as it ships."""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from acfuse.errors import InputError, UsageError
from acfuse.findings import Block
from acfuse.proof.certificate import Certificate, certify
from acfuse.rewrite import fused_copy
from acfuse.system.escape import one_line

ALGEBRA_LIMIT = 1e-10  # float64, folded weights before their rounding
NOISE_FACTOR = 100  # above a model's own answer to float64 rounding nothing can be told
OWN_FACTOR = 16  # the same for the dtype that ships: so many times what one rounding of it costs
STORED_LIMIT = 8  # float64, rounded weights: so many machine epsilons of the stored dtype
ROUNDING_LIMIT, ROUNDING_WARNING = 1e-4, 1e-5  # in the dtype that ships, of the largest output
HALF_LIMIT = 0.1  # the same for float16 and bfloat16, whose own rounding is that coarse
HOLLOW = "the original's own outputs hold NaN or Inf; of those, nothing more could be compared"
FRESH_NOTE = (
    "BatchNorm statistics are fresh (mean 0, variance 1): a weak test, so the algebra was also "
    "checked on a copy with random ones"
)


@dataclass(frozen=True)
class Inputs:
    """What a model is run on. `shapes` are (name or None, shape), one for each input."""

    shapes: tuple[tuple[str | None, tuple[int, ...]], ...]
    seed: int = 0
    samples: int = 3


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


@dataclass(frozen=True)
class Proofs:
    """Everything that was measured."""

    certificates: tuple[Certificate, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

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


def input_names(model: nn.Module) -> list[str]:
    """The parameters of a model's forward that have no default."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def named_shapes(model: nn.Module, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Which parameter gets which shape. Raises UsageError where that does not fit."""
    names = input_names(model)
    given: dict[str, tuple[int, ...]] = {}
    free = [n for n in names if n not in {name for name, _ in inputs.shapes}]
    for name, shape in inputs.shapes:
        if name is None and free:
            name = free.pop(0)
        if name is None or name not in inspect.signature(model.forward).parameters:
            raise UsageError(
                f"--input-shape: {name or shape} is too much; the model takes {', '.join(names)}."
            )
        given[name] = shape
    missing = [n for n in names if n not in given]
    if missing:
        raise UsageError(f"--input-shape: none is given for {', '.join(missing)}.")
    return given


def images(
    shapes: dict[str, tuple[int, ...]], seed: int, *, mean: float = 0.0, scale: float = 1.0
) -> dict[str, Tensor]:
    """Random inputs, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * (torch.randn(*shape, generator=generator, dtype=torch.float64) + mean)
        for name, shape in shapes.items()
    }


def run(model: nn.Module, given: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors that a model gives, in order."""
    with torch.no_grad():
        result = model(**{name: image.to(dtype) for name, image in given.items()})
    return [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def variations(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Inputs of the given shape, with several seeds; then of other sizes.

    Other batches and odd sizes are tried, and left out where the model itself cannot take them.
    Raises InputError where it cannot take the given shape.
    """
    shapes = named_shapes(model, inputs)
    for sample in range(max(1, inputs.samples)):
        given = images(shapes, inputs.seed + sample)
        if sample == 0:
            _run_or_explain(model, given, dtype, shapes)
        yield given
    for change in (_other_batch, _other_size):
        other = {name: change(shape) for name, shape in shapes.items()}
        given = images(other, inputs.seed)
        try:
            run(model, given, dtype)
        except Exception:
            continue
        yield given


def _other_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (3 if shape[0] == 1 else 1, *shape[1:])


def _other_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], *(n + 1 + 2 * i for i, n in enumerate(shape[2:])))


def _run_or_explain(
    model: nn.Module,
    given: dict[str, Tensor],
    dtype: torch.dtype,
    shapes: dict[str, tuple[int, ...]],
) -> None:
    try:
        run(model, given, dtype)
    except Exception as error:
        text = " ".join(str(error).split())[:200].rstrip(".")
        listed = ", ".join(f"{n} {','.join(map(str, s))}" for n, s in shapes.items())
        raise InputError(
            f"the model cannot take an input of this shape ({listed}): {text}. "
            "Is --input-shape right?"
        ) from error


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in: that of its first floating parameter."""
    parameters = [*model.parameters(), *model.buffers()]
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def verify_models(
    original: nn.Module,
    fused: nn.Module,
    found: Sequence[Block],
    inputs: Inputs | None,
    tolerance: Tolerance,
    find: Callable[[nn.Module], Sequence[Block]] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Proofs:
    """Certificates block by block, then the whole model, in float64 and in the dtype that ships.

    `find` finds the blocks of another model of this kind: where BatchNorm statistics are fresh, the
    algebra is also checked on a copy with random ones. Without `inputs` only the certificates are
    made, which hold for all inputs.
    """
    certificates = []
    for block in found:
        progress(f"certificate of {block.label}")
        certificates.append(certify(original, fused, block))
    if inputs is None:
        return Proofs(tuple(certificates))
    dtype = floating_dtype(original)
    usual = list(variations(original, inputs, dtype))
    shapes = named_shapes(original, inputs)
    given = [*usual, images(shapes, inputs.seed, mean=10.0), images(shapes, inputs.seed, scale=1e3)]
    true = copy.deepcopy(original).double().eval()
    if not _is_deterministic(true, given[0]):
        why = "two runs of the original model on one input differ: nothing can be compared"
        return Proofs(tuple(certificates), (Check("repeated", False, math.inf, 0.0, detail=why),))
    expected = [run(true, g, torch.float64) for g in given]
    noise = _own_noise(true, given[0], expected[0])
    checks, notes = [], []
    if find is not None:
        progress("algebra of the whole model, in float64")
        exact = fused_copy(true, found, dtype=torch.float64)
        checks.append(_algebra(exact, given, expected, noise))
        del exact
        if has_fresh_statistics(original):
            notes.append(FRESH_NOTE)
            before = awake(original)
            after = fused_copy(before, find(before), dtype=torch.float64)
            truth = [run(before, g, torch.float64) for g in given]
            noise_awake = _own_noise(before, given[0], truth[0])
            name = "algebra, random statistics"
            checks.append(_algebra(after, given, truth, noise_awake, name=name))
    progress("stored weights, in float64")
    noise_stored = noise_of_rounding(true, given, expected, dtype)
    checks.append(_stored(fused, given, expected, noise_stored, dtype))
    progress(f"rounding in {str(dtype).removeprefix('torch.')}")
    checks.append(
        _rounding(original, fused, given, expected, noise_stored, len(usual), dtype, tolerance)
    )
    return Proofs(tuple(certificates), tuple(checks), tuple(notes))


def _is_deterministic(model: nn.Module, given: dict[str, Tensor]) -> bool:
    one, two = run(model, given, torch.float64), run(model, given, torch.float64)
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, two, strict=True))


def _own_noise(model: nn.Module, given: dict[str, Tensor], expected: Sequence[Tensor]) -> float:
    """How far a model carries float64's own rounding: its answer to inputs a few ULP away.

    Some networks amplify it without bound (deep ones with saturated gates); of those no two orders
    of the same sums agree, and it is the certificates that prove the blocks.
    """
    difference = Difference()
    near = {name: image * (1 + 2.0**-50) for name, image in given.items()}
    difference.add(expected, run(model, near, torch.float64))
    return difference.error


def moved_by_rounding(tensor: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Numbers in float64, each moved up or down at random by one unit of a dtype's rounding."""
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8)
    return tensor * (1 + torch.finfo(dtype).eps * (2 * signs.double() - 1))


def noise_of_rounding(
    model: nn.Module,
    given: Sequence[dict[str, Tensor]],
    expected: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
) -> list[list[float]]:
    """What rounding to a dtype costs a float64 model: how far each output moves, for each input.

    Every weight and every pixel is moved by one unit of that rounding, up or down at random. A
    fused model, whose weights are others, cannot be nearer to the original than that; where the
    outputs of a network say little of what is behind them (a sigmoid of a large number), it is far.
    """
    generator = torch.Generator().manual_seed(0)
    moved = partial(moved_by_rounding, dtype=dtype, generator=generator)
    near = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*near.parameters(), *near.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(moved(tensor))
    return [
        largest_changes(true, run(near, {n: moved(x) for n, x in g.items()}, torch.float64))
        for g, true in zip(given, expected, strict=True)
    ]


def _algebra(
    exact: nn.Module,
    given: Sequence[dict[str, Tensor]],
    expected: Sequence[Sequence[Tensor]],
    noise: float,
    name: str = "algebra",
) -> Check:
    difference = Difference()
    for g, true in zip(given, expected, strict=True):
        difference.compare(true, partial(run, exact, g, torch.float64))
    limit = max(ALGEBRA_LIMIT, NOISE_FACTOR * noise)
    passed = difference.error <= limit
    detail = f"float64 outputs differ by {difference.error:.1e} of the largest (limit {limit:.0e})"
    detail = difference.failure or detail
    return Check(name, passed, difference.error, limit, difference.absolute, detail=detail)


def _stored(
    fused: nn.Module,
    given: Sequence[dict[str, Tensor]],
    expected: Sequence[Sequence[Tensor]],
    noise: Sequence[Sequence[float]],
    dtype: torch.dtype,
) -> Check:
    difference = Difference()
    stored = copy.deepcopy(fused).double().eval()
    for g, true, own in zip(given, expected, noise, strict=True):
        difference.compare(true, partial(run, stored, g, torch.float64), own)
    error, limit = difference.worst(max(STORED_LIMIT * torch.finfo(dtype).eps, ALGEBRA_LIMIT))
    detail = f"the stored weights, run in float64, differ by {error:.1e} of the largest"
    detail = difference.failure or f"{detail} (at most {limit:.0e})"
    return Check("weights", error <= limit, error, limit, difference.absolute, detail=detail)


def _rounding(
    original: nn.Module,
    fused: nn.Module,
    given: Sequence[dict[str, Tensor]],
    expected: Sequence[Sequence[Tensor]],
    noise: Sequence[Sequence[float]],
    usual: int,
    dtype: torch.dtype,
    tolerance: Tolerance,
) -> Check:
    """The fused model beside the original as it ships.

    A given tolerance holds for the `usual` first inputs; the other ones are far from what a model
    was trained on, where only the largest output is a fair measure.
    """
    difference, own = Difference(tolerance=tolerance), Difference(tolerance=tolerance)
    extremes = Difference()
    for i, (g, true, moved) in enumerate(zip(given, expected, noise, strict=True)):
        before, after = run(original, g, dtype), cache(partial(run, fused, g, dtype))
        rounded = [max(pair) for pair in zip(moved, largest_changes(true, before), strict=True)]
        if i < usual:
            difference.compare(before, after, rounded)
            own.add(true, before)
        extremes.compare(before, after, rounded)
    if not tolerance.is_given:
        difference.measured = extremes.measured
        difference.failure = extremes.failure
    return judge("rounding", difference, tolerance, dtype, own)


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


def has_fresh_statistics(model: nn.Module) -> bool:
    """Whether some BatchNorm was never trained: its mean is 0 and its variance 1 throughout."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        mean, variance = module.running_mean, module.running_var
        if mean is None or variance is None:
            continue
        if not bool(mean.any()) and bool((variance == 1).all()):
            return True
    return False


def awake(model: nn.Module, seed: int = 0) -> nn.Module:
    """A float64 copy whose BatchNorms have random statistics and factors."""
    twin = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.empty_like(like).uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.5, 2.0),
                    (module.weight, 0.2, 0.8),  # on the whole smaller: no layer may explode
                    (module.bias, -0.3, 0.3),
                ):
                    if tensor is not None:
                        tensor.copy_(draw(tensor, low, high))
    return twin
