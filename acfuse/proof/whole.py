"""The whole model: whether the algebra is exact, and what rounding costs as it ships."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import repeat

import torch
from torch import Tensor, nn

from acfuse.graph.fx_read import is_norm
from acfuse.proof.outputs import (
    ALGEBRA_LIMIT,
    NOISE_FACTOR,
    STORED_LIMIT,
    Check,
    Difference,
    Tolerance,
    judge,
    largest_changes,
)
from acfuse.proof.running import (
    Inputs,
    floating_dtype,
    images,
    named_shapes,
    noise_of_rounding,
    run,
    variations,
)

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
    in which `fuse_anew` finds the blocks for itself.
    """
    dtype = floating_dtype(original)
    usual = list(variations(original, inputs, dtype))
    shapes = named_shapes(original, inputs)
    given = [*usual, images(shapes, inputs.seed, mean=10.0), images(shapes, inputs.seed, scale=1e3)]
    true = copy.deepcopy(original).double().eval()
    if not _is_deterministic(true, given[0]):
        why = "two runs of the original model on one input differ: nothing can be compared"
        return (Check("repeated", False, math.inf, 0.0, detail=why),)
    expected = [run(true, g, torch.float64) for g in given]
    progress("algebra of the whole model, in float64")
    limit = _algebra_limit(true, given[0], expected[0])
    checks = [_in_float64("algebra", EXACT, fuse(true), given, expected, limit)]
    if has_fresh_statistics(original):
        before = randomize_batchnorm(original)
        truth = [run(before, g, torch.float64) for g in given]
        limit = _algebra_limit(before, given[0], truth[0])
        name = "algebra, random statistics"
        check = _in_float64(name, EXACT, fuse_anew(before), given, truth, limit)
        checks.append(replace(check, note=FRESH_NOTE))
    progress("stored weights, in float64")
    noise = noise_of_rounding(true, given, expected, dtype)
    stored = copy.deepcopy(fused).double().eval()
    limit = max(STORED_LIMIT * torch.finfo(dtype).eps, ALGEBRA_LIMIT)
    checks.append(_in_float64("weights", STORED, stored, given, expected, limit, noise))
    progress(f"rounding in {str(dtype).removeprefix('torch.')}")
    checks.append(_rounding(original, fused, given, expected, noise, len(usual), dtype, tolerance))
    return tuple(checks)


def _is_deterministic(model: nn.Module, given: dict[str, Tensor]) -> bool:
    one, two = run(model, given, torch.float64), run(model, given, torch.float64)
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, two, strict=True))


def _algebra_limit(model: nn.Module, given: dict[str, Tensor], expected: Sequence[Tensor]) -> float:
    """What the algebra may be off: some times a model's own answer to inputs a few ULP away.

    Some networks amplify it without bound (deep ones with saturated gates); of those no two orders
    of the same sums agree, and it is the certificates that prove the blocks.
    """
    difference = Difference()
    near = {name: image * (1 + 2.0**-50) for name, image in given.items()}
    difference.add(expected, run(model, near, torch.float64))
    return max(ALGEBRA_LIMIT, NOISE_FACTOR * difference.error)


def _in_float64(
    name: str,
    what: str,
    model: nn.Module,
    given: Sequence[dict[str, Tensor]],
    expected: Sequence[Sequence[Tensor]],
    limit: float,
    noise: Iterable[Sequence[float]] = repeat(()),
) -> Check:
    """What a model gives in float64, beside what is expected."""
    difference = Difference()
    for g, true, own in zip(given, expected, noise, strict=False):
        difference.compare(true, partial(run, model, g, torch.float64), own)
    error, limit = difference.worst(limit)
    detail = f"{what} differ by {error:.1e} of the largest (at most {limit:.0e})"
    detail = difference.failure or detail
    return Check(name, error <= limit, error, limit, difference.absolute, detail=detail)


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
    twin = copy.deepcopy(model).double()
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
