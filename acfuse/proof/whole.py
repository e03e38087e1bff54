"""The whole model: whether the algebra is exact, and what rounding costs as it ships."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from acfuse.graph.copies import copied
from acfuse.graph.fx_read import is_norm
from acfuse.proof.leaves import Leaves
from acfuse.proof.noise import Noise, Noises, Responses, noises, own_rounding, responses_of
from acfuse.proof.outputs import (
    ALGEBRA_LIMIT,
    NOISE_FACTOR,
    STORED_LIMIT,
    Check,
    Difference,
    Tolerance,
    concluded,
    judge,
    rounding_limit,
    still,
)
from acfuse.proof.running import (
    Image,
    Inputs,
    floating_dtype,
    images,
    kinds_of,
    named_shapes,
    run,
    variations,
)
from acfuse.system.escape import one_line

FRESH_NOTE = (
    "BatchNorm statistics are fresh (mean 0, variance 1): a weak test, so the algebra was also "
    "checked on a copy with random ones"
)

EXACT, STORED = "float64 outputs", "the stored weights, run in float64,"  # in messages


def compare_models(
    original: nn.Module,
    fused: nn.Module,
    inputs: Inputs,
    tolerance: Tolerance,
    fuse: Callable[[nn.Module], nn.Module],
    fuse_anew: Callable[[nn.Module], nn.Module],
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Check, ...]:
    """The whole model in float64, before and after the weights are rounded, and as it ships.

    `fuse` fuses a float64 copy of the original, nothing rounded: so the algebra is checked for
    itself. Where BatchNorm statistics are fresh, that is done on a copy with random ones as well,
    in which `fuse_anew` finds the blocks for itself. A model that computes in a dtype of its own,
    whatever it is given, is compared in that one alone.
    """
    dtype = floating_dtype(original)
    if any(getattr(part, "training", False) for m in (original, fused) for part in m.modules()):
        # A run changes what those hold.
        original, fused = copied(original), copied(fused)
    tried = list(variations(original, inputs, dtype))
    usual = len(tried)
    if not _is_repeated(original, *tried[0], dtype):
        why = "two runs of the original model on one input differ: nothing can be compared"
        return (Check("repeated", False, math.inf, 0.0, detail=why),)
    tried += _extremes(original, inputs, dtype)
    given, shipped = [image for image, _ in tried], [result for _, result in tried]
    exact, first, why = in_float64(original, given[0])
    true = shipped
    if exact is not None:
        true = [first, *(run(exact, g, torch.float64) for g in given[1:])]
    takes_any, checks = has_nonfinite_weights(original), []

    @cache
    def noise(*, each: bool = False) -> list[Noises]:
        progress("the original's own noise")
        responses = responses_of(original, given, true, dtype, usual, each=each)
        for response, result in zip(responses, shipped, strict=True):
            response.add(result, 1)
        return noises(responses, usual, dtype)

    def measured(compare: Callable[..., Check]) -> Check:
        if (
            exact is not None
        ):  # its own rounding on these inputs is known: that takes no further run
            check = compare(noise=own_rounding(true, shipped, usual, dtype))
            if check.passed:
                return check
        check = compare(noise=noise())
        if check.left_out and not check.passed:  # rounding decides: which rows of several, where
            check = compare(noise=noise(each=True))
        return check

    if exact is None:
        why = f"it could not be run in float64 ({why}), and is compared as it ships alone"
        checks.append(Check("algebra", True, 0.0, 0.0, detail=why, warning=why, compared=0))
    else:
        compared = partial(_in_float64, true=true, dtype=dtype, takes_any=takes_any)
        progress("algebra of the whole model, in float64")
        algebra = partial(compared, "algebra", EXACT, _answers(fuse(exact), given, torch.float64))
        check = algebra(noise=still(true, usual, ALGEBRA_LIMIT), limit=ALGEBRA_LIMIT)
        if not check.passed:
            limit = _algebra_limit(exact, given[0], true[0], noise()[0])
            check = algebra(noise=_steady(noise()), limit=limit)
        checks.append(check)
        if has_fresh_statistics(original):
            checks.append(_with_random_statistics(original, fuse_anew, given[:usual], dtype))
        progress("stored weights, in float64")
        limit = max(STORED_LIMIT * torch.finfo(dtype).eps, ALGEBRA_LIMIT)
        stored = _answers(copied(fused).double(), given, torch.float64)
        weights = partial(compared, "weights", STORED, stored, limit=limit)
        check = weights(noise=still(true, usual, limit))
        checks.append(check if check.passed else measured(weights))
    progress(f"rounding in {str(dtype).removeprefix('torch.')}")
    # A tolerance holds for usual inputs: of others, only the largest output is a fair measure.
    count = usual if tolerance.is_given else len(tried)
    found = _answers(fused, given[:count], dtype)

    def rounding(noise: Sequence[Noises]) -> Check:
        difference = Difference(tolerance=tolerance, takes_any=takes_any)
        own = Difference(tolerance=tolerance) if exact is not None else None
        for i, answer in enumerate(found):
            difference.compare(shipped[i], answer, noise[i])
            if own is not None and i < usual:
                own.add(_wide(true[i]), _wide(shipped[i]), noise[i])
        return judge("rounding", difference, tolerance, dtype, own)

    check = rounding(still(shipped, usual, rounding_limit(dtype)))
    checks.append(check if check.passed else measured(rounding))
    return tuple(checks)


def _answers(
    model: nn.Module, given: Sequence[Image], dtype: torch.dtype
) -> list[Callable[[], Leaves]]:
    """What a model gives for images; each is computed when it is first asked for, and kept."""
    return [cache(partial(run, model, image, dtype)) for image in given]


def _is_repeated(model: nn.Module, given: Image, result: Leaves, dtype: torch.dtype) -> bool:
    again = Difference()
    again.add(result, run(model, given, dtype))
    return not again.failure and again.error == 0


def _extremes(
    model: nn.Module, inputs: Inputs, dtype: torch.dtype
) -> list[tuple[Image, dict[str, Any]]]:
    """Images far from what a model was trained on, where it takes them."""
    shapes = named_shapes(model, inputs)
    kinds = kinds_of(shapes, inputs, model)
    results: list[tuple[Image, dict[str, Any]]] = []
    for mean, scale in ((10.0, 1.0), (0.0, 1e3)):
        image = images(shapes, inputs.seed, kinds, mean=mean, scale=scale)
        try:
            results.append((image, run(model, image, dtype)))
        except Exception:
            continue
    return results


class _Narrowed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether some numbers in float64 become narrower ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read, made = (_floating(values) for values in ((args, kwargs), result))
        if torch.float64 in read and made - {torch.float64}:
            self.by = self.by or str(min(made - {torch.float64}, key=str))
        return result


def _floating(values: Any) -> set[torch.dtype]:
    leaves = _pytree.tree_leaves(values)
    return {x.dtype for x in leaves if isinstance(x, Tensor) and x.is_floating_point()}


def in_float64(model: nn.Module, given: Image) -> tuple[nn.Module | None, dict[str, Any], str]:
    """A copy that computes in float64 throughout, with what it gives; or None, and why not."""
    exact, narrowed = copied(model).double(), _Narrowed()
    try:
        with narrowed:
            result = run(exact, given, torch.float64)
    except Exception as error:
        return None, {}, one_line(error, 200)
    if narrowed.by and floating_dtype(model) != torch.float64:
        return None, {}, f"its forward computes in {narrowed.by}"
    return exact, result, ""


def has_nonfinite_weights(model: nn.Module) -> bool:
    """Whether some weight, or statistic of a BatchNorm, is NaN or Inf."""
    tensors: list[Tensor] = [*model.parameters()]
    tensors += [b for m in model.modules() if is_norm(m) for b in m.buffers(recurse=False)]
    return not all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())


def _steady(noise: Sequence[Noises]) -> list[Noises]:
    """Where outputs are steady, and nothing of how much they move."""
    return [
        {n: Noise(unsteady=own.unsteady, is_lost=own.is_lost) for n, own in each.items()}
        for each in noise
    ]


def _algebra_limit(model: nn.Module, given: Image, true: Leaves, noise: Noises) -> float:
    """What the algebra may be off: some times a model's own answer to inputs a few ULP away.

    Some networks amplify it without bound (deep ones with saturated gates); of those no two orders
    of the same sums agree, and it is the certificates that prove the blocks.
    """
    difference = Difference()
    near = _near(given)
    difference.add(true, run(model, near, torch.float64), _steady([noise])[0])
    return max(ALGEBRA_LIMIT, NOISE_FACTOR * (0.0 if difference.failure else difference.error))


def _near(given: Image) -> Image:
    """Inputs a few units of rounding away, in float64."""
    return {n: x * (1 + 2.0**-50) if x.is_floating_point() else x for n, x in given.items()}


def _in_float64(
    name: str,
    what: str,
    answers: Sequence[Callable[[], Leaves]],
    *,
    true: Sequence[Leaves],
    noise: Sequence[Noises],
    limit: float,
    dtype: torch.dtype,
    takes_any: bool = False,
) -> Check:
    """What a model gives in float64, beside what is expected."""
    difference = Difference(takes_any=takes_any)
    for answer, expected, own in zip(answers, true, noise, strict=True):
        difference.compare(expected, answer, own)
    error, limit, at = difference.worst(limit, torch.finfo(dtype).tiny)
    detail = f"{what} differ by {error:.1e} of the largest (at most {limit:.0e})"
    detail += "" if error <= limit else f", in {at}"
    check = Check(name, error <= limit, error, limit, difference.absolute,
                  detail=difference.failure or detail)  # fmt: skip
    return concluded(check, difference)


def _with_random_statistics(
    model: nn.Module,
    fuse: Callable[[nn.Module], nn.Module],
    given: Sequence[Image],
    dtype: torch.dtype,
) -> Check:
    """The algebra on a copy with random statistics, in which the blocks are found anew."""
    before = randomize_batchnorm(model)
    true = [run(before, g, torch.float64) for g in given]
    answers = _answers(fuse(before), given, torch.float64)
    algebra = partial(_in_float64, "algebra, random statistics", EXACT, answers, true=true,
                      dtype=dtype)  # fmt: skip
    check = algebra(noise=still(true, len(true), ALGEBRA_LIMIT), limit=ALGEBRA_LIMIT)
    if not check.passed:
        responses = [Responses(t) for t in true]
        for g, response in zip(given, responses, strict=True):
            near = _near(g)
            response.add(run(before, near, torch.float64), 4)
        noise = _steady(noises(responses, len(given), torch.float64))
        limit = _algebra_limit(before, given[0], true[0], noise[0])
        check = algebra(noise=noise, limit=limit)
    return replace(check, note=FRESH_NOTE)


def _wide(result: Leaves) -> Leaves:
    """A result with its floating numbers in float64."""
    return {
        n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for n, x in result.items()
    }


def has_fresh_statistics(model: nn.Module) -> bool:
    """Whether some BatchNorm was never trained: its mean is 0 and its variance 1 throughout."""
    for module in model.modules():
        if not is_norm(module):
            continue
        mean, variance = (module._buffers.get(f"running_{n}") for n in ("mean", "var"))
        if mean is None or variance is None:
            continue
        if not bool(mean.any()) and bool((variance == 1).all()):
            return True
    return False


def randomize_batchnorm(model: nn.Module, seed: int = 0) -> nn.Module:
    """A float64 copy whose BatchNorms have random statistics and factors."""
    twin = copied(model).double()
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.empty_like(like).uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in twin.modules():
            if is_norm(module):
                for name, low, high in (
                    ("running_mean", -0.3, 0.3),
                    ("running_var", 0.5, 2.0),
                    ("weight", 0.2, 0.8),  # on the whole smaller: no layer may explode
                    ("bias", -0.3, 0.3),
                ):
                    tensor = getattr(module, name, None)
                    if isinstance(tensor, Tensor):
                        tensor.copy_(draw(tensor, low, high))
    return twin
