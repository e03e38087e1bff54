"""The whole model: whether the algebra is exact, and what rounding costs as it ships."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from acfuse.errors import Reason
from acfuse.graph.copies import copied
from acfuse.graph.fx_read import is_norm
from acfuse.proof.leaves import Leaves
from acfuse.proof.noise import Noise, Noises, Responses, noises
from acfuse.proof.original import Original, is_trained
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
from acfuse.proof.running import Image, run

FRESH_NOTE = (
    "BatchNorm statistics are fresh (mean 0, variance 1): a weak test, so the algebra was also "
    f"checked on a copy with random ones [{Reason.FRESH_STATISTICS}]"
)

EXACT, STORED = "float64 outputs", "the stored weights, run in float64,"  # in messages


def compare_models(
    original: Original,
    fused: nn.Module,
    tolerance: Tolerance,
    fused_exactly: Callable[[], nn.Module],
    fuse_anew: Callable[[nn.Module], nn.Module],
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Check, ...]:
    """The whole model in float64, before and after the weights are rounded, and as it ships.

    `fused_exactly` gives the fused model in float64, nothing rounded: so the algebra is checked for
    itself. Where BatchNorm statistics are fresh, that is done on a copy with random ones as well,
    in which `fuse_anew` finds the blocks for itself. A model that computes in a dtype of its own,
    whatever it is given, is compared in that one alone.
    """
    if is_trained(fused):  # a run changes what it holds
        fused = copied(fused)
    progress("the original model")
    shown = [*original.given, *original.of_other_sizes, *original.showing_more]
    if not _is_repeated(original):
        why = "two runs of the original model on one input differ: nothing can be compared"
        return (Check("repeated", False, math.inf, 0.0, detail=why),)
    checks = []
    if original.why_not_exact:
        why = f"it could not be run in float64 ({original.why_not_exact}), and is compared as it "
        why += "ships alone"
        checks.append(Check("algebra", True, 0.0, 0.0, detail=why, warning=why, compared=0))
    else:
        # What another batch shows, it shows as it ships as well. Of the models in float64, one at a
        # time is in memory.
        for image in (*shown, *original.far):
            original.true(image)
        original.forget_exact()
        progress("algebra of the whole model, in float64")
        checks.append(_algebra(original, shown, fused_exactly()))
        if has_fresh_statistics(original.model):
            checks.append(_with_random_statistics(original, fuse_anew, shown))
        progress("stored weights, in float64")
        checks.append(_weights(original, shown, copied(fused).double()))
    progress(f"rounding in {str(original.dtype).removeprefix('torch.')}")
    checks.append(_rounding(original, [*shown, *original.of_other_batches], fused, tolerance))
    return tuple(checks)


def _algebra(original: Original, shown: Sequence[Image], fused: nn.Module) -> Check:
    """What is fused in float64, nothing rounded."""
    given, usual = [*shown, *original.far], len(shown)
    true = [original.true(image) for image in given]
    algebra = partial(
        _in_float64,
        name="algebra",
        what=EXACT,
        answers=_answers(fused, given, torch.float64),
        true=true,
        dtype=original.dtype,
        takes_any=original.takes_any,
    )
    check = algebra(still(true, usual, ALGEBRA_LIMIT), limit=ALGEBRA_LIMIT)
    if check.passed:
        return check
    noise = original.noise(given, usual)
    limit = _algebra_limit(original.exact, given[0], true[0], noise[0])
    original.forget_exact()
    return algebra(_steady(noise), limit=limit)


def _weights(original: Original, shown: Sequence[Image], stored: nn.Module) -> Check:
    """The weights as they are stored, in float64."""
    given = [*shown, *original.far]
    limit = max(STORED_LIMIT * torch.finfo(original.dtype).eps, ALGEBRA_LIMIT)
    verdict = partial(
        _in_float64,
        name="weights",
        what=STORED,
        answers=_answers(stored, given, torch.float64),
        true=[original.true(image) for image in given],
        limit=limit,
        dtype=original.dtype,
        takes_any=original.takes_any,
    )
    return judged_by_noise(verdict, original, given, len(shown), limit)


def _rounding(
    original: Original, shown: Sequence[Image], fused: nn.Module, tolerance: Tolerance
) -> Check:
    """The fused model as it ships."""
    # A tolerance holds for usual inputs: of others, only the largest output is a fair measure.
    given = shown if tolerance.is_given else [*shown, *original.far]
    found = _answers(fused, given, original.dtype)

    def verdict(noise: Sequence[Noises]) -> Check:
        difference = Difference(tolerance=tolerance, takes_any=original.takes_any)
        own = None if original.why_not_exact else Difference(tolerance=tolerance)
        for i, (image, answer) in enumerate(zip(given, found, strict=True)):
            shipped = original.shipped(image)
            usual = difference.absolute  # of an image far from that it tells nobody anything
            difference.compare(shipped, answer, noise[i])
            if i >= len(shown) and not difference.failure:
                difference.absolute = usual
            if own is not None and i < len(original.given):
                own.add(_wide(original.true(image)), _wide(shipped), noise[i])
        return judge("rounding", difference, tolerance, original.dtype, own)

    limit = rounding_limit(original.dtype)
    return judged_by_noise(verdict, original, given, len(shown), limit)


def judged_by_noise(
    verdict: Callable[[Sequence[Noises]], Check],
    original: Original,
    given: Sequence[Image],
    usual: int,
    limit: float,
) -> Check:
    """A verdict, by no more measurements of the original's own noise than it takes to pass.

    First there is no noise but the `limit`, then that which what was run shows anyway, and then
    that of further runs. The `usual` images, near what a model was trained on, are the first.
    """
    measures: list[Callable[[], Sequence[Noises]]] = [
        lambda: still([original.shipped(image) for image in given], usual, limit),
        lambda: original.own_rounding(given, usual),
        lambda: original.noise(given, usual),
        # Where rounding decides, it matters which rows of several it decides, and where.
        lambda: original.noise(given, usual, each=True),
    ]
    if original.why_not_exact:
        del measures[1]
    *measures, last = measures
    for measure in measures:
        check = verdict(measure())
        if check.passed:
            return check
    return verdict(last()) if check.left_out else check


def _answers(
    model: nn.Module, given: Sequence[Image], dtype: torch.dtype
) -> list[Callable[[], Leaves]]:
    """What a model gives for images; each is computed when it is first asked for, and kept."""
    return [cache(partial(run, model, image, dtype)) for image in given]


def _is_repeated(original: Original) -> bool:
    again, image = Difference(), original.given[0]
    again.add(original.shipped(image), run(original.model, image, original.dtype))
    return not again.failure and again.error == 0


def _steady(noise: Sequence[Noises]) -> list[Noises]:
    """Where outputs are steady, and nothing of how much they move."""
    return [
        {n: Noise(unsteady=own.unsteady, is_lost=own.is_lost) for n, own in each.items()}
        for each in noise
    ]


def _algebra_limit(exact: nn.Module, given: Image, true: Leaves, noise: Noises) -> float:
    """What the algebra may be off: some times a model's own answer to inputs a few ULP away.

    Some networks amplify it without bound (deep ones with saturated gates); of those no two orders
    of the same sums agree, and it is the certificates that prove the blocks.
    """
    difference, near = Difference(), _near(given)
    difference.add(true, run(exact, near, torch.float64), _steady([noise])[0])
    return max(ALGEBRA_LIMIT, NOISE_FACTOR * (0.0 if difference.failure else difference.error))


def _near(given: Image) -> Image:
    """Inputs a few units of rounding away, in float64."""
    return {n: x * (1 + 2.0**-50) if x.is_floating_point() else x for n, x in given.items()}


def _in_float64(
    noise: Sequence[Noises],
    *,
    name: str,
    what: str,
    answers: Sequence[Callable[[], Leaves]],
    true: Sequence[Leaves],
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
    original: Original, fuse: Callable[[nn.Module], nn.Module], given: Sequence[Image]
) -> Check:
    """The algebra on a copy with random statistics, in which the blocks are found anew."""
    before, dtype = randomize_batchnorm(original.model), original.dtype
    true = [run(before, g, torch.float64) for g in given]
    answers = _answers(fuse(before), given, torch.float64)
    algebra = partial(_in_float64, name="algebra, random statistics", what=EXACT, answers=answers,
                      true=true, dtype=dtype)  # fmt: skip
    check = algebra(still(true, len(true), ALGEBRA_LIMIT), limit=ALGEBRA_LIMIT)
    if not check.passed:
        responses = [Responses(t) for t in true]
        for g, response in zip(given, responses, strict=True):
            near = _near(g)
            response.add(run(before, near, torch.float64), 4)
        noise = _steady(noises(responses, len(given), torch.float64))
        limit = _algebra_limit(before, given[0], true[0], noise[0])
        check = algebra(noise, limit=limit)
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
        return torch.empty_like(like, device="cpu").uniform_(low, high, generator=generator)

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
