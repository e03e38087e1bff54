"""An exported file beside the original model, on several sizes of every free dimension."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from acfuse.errors import InputError, UsageError
from acfuse.proof.leaves import Leaves
from acfuse.proof.noise import Noises, noises, own_rounding, responses_of
from acfuse.proof.outputs import Check, Difference, Tolerance, judge, rounding_limit, still
from acfuse.proof.running import Image, Inputs, floating_dtype, images, kinds_of, named_shapes, run
from acfuse.proof.whole import has_nonfinite_weights, in_float64
from acfuse.system.escape import one_line

DYNAMIC_DIMS = {"none": (), "batch": (0,), "hw": (2, 3), "all": (0, 2, 3)}
Answer = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


def dynamic_dims(shapes: Mapping[str, tuple[int, ...]], dynamic: str) -> dict[str, list[int]]:
    """Which dimensions of each input --dynamic leaves free."""
    if dynamic not in DYNAMIC_DIMS:
        raise UsageError(f"--dynamic {dynamic}: expected one of {', '.join(DYNAMIC_DIMS)}.")
    return {n: [i for i in DYNAMIC_DIMS[dynamic] if i < len(s)] for n, s in shapes.items()}


def compared(
    name: str,
    runtime: str,
    answers: Iterable[Answer],
    original: nn.Module,
    inputs: Inputs,
    tolerance: Tolerance,
    dynamic: str,
) -> Check:
    """What answers to images, each in turn, against the original model, on all sizes to try."""
    shapes, dtype = named_shapes(original, inputs), floating_dtype(original)
    free = dynamic_dims(shapes, dynamic)
    takes_any = has_nonfinite_weights(original)
    kinds = kinds_of(shapes, inputs, original)
    given = [images(sizes, seed, kinds) for sizes, seed in _sizes_to_try(shapes, free, inputs)]
    shipped = [_shipped(original, g, dtype, dynamic) for g in given]
    found = [[answer(g) for g in given] for answer in answers]

    def verdict(noise: Sequence[Noises]) -> Check:
        difference = Difference(tolerance=tolerance, takes_any=takes_any)
        for each in found:
            for result, other, own in zip(shipped, each, noise, strict=True):
                tensors = {n: x for n, x in result.items() if isinstance(x, Tensor)}
                if len(other) == len(tensors):
                    difference.add(tensors, dict(zip(tensors, other, strict=True)), own)
                else:
                    difference.fail(f"{runtime} gives {len(other)} outputs, not {len(tensors)}")
        check = judge(name, difference, tolerance, dtype)
        if math.isfinite(check.error):
            return check
        why = difference.failure or f"{runtime} gives NaN or Inf"
        return replace(check, passed=False, detail=why)

    usual = max(1, inputs.samples)
    check = verdict(still(shipped, usual, rounding_limit(dtype)))
    if check.passed:
        return check
    exact, first, _ = in_float64(original, given[0])
    if exact is None:
        return verdict(_noise(original, given, shipped, shipped, usual, dtype))
    # Its own rounding on the usual inputs takes the fewest runs, and is most often enough.
    true = [first, *(run(exact, g, torch.float64) for g in given[1:usual])]
    check = verdict(own_rounding([*true, *shipped[usual:]], shipped, usual, dtype))
    if check.passed:
        return check
    true += [run(exact, g, torch.float64) for g in given[usual:]]
    return verdict(_noise(original, given, true, shipped, usual, dtype))


def _shipped(model: nn.Module, given: Image, dtype: torch.dtype, dynamic: str) -> Leaves:
    """What the original gives. Raises InputError where it does not take a size that is free."""
    try:
        return run(model, given, dtype)
    except Exception as error:
        sizes = ", ".join(f"{n} {','.join(map(str, x.shape))}" for n, x in given.items())
        raise InputError(
            f"the model cannot take an input of this shape ({sizes}), which --dynamic {dynamic} "
            f"asks for: {one_line(error, 160)}. Give --dynamic none."
        ) from error


def _noise(
    model: nn.Module,
    given: Sequence[Image],
    true: Sequence[Leaves],
    shipped: Sequence[Leaves],
    usual: int,
    dtype: torch.dtype,
) -> list[Noises]:
    """How far rounding moves what the original itself gives."""
    responses = responses_of(model, given, true, dtype, usual)
    for response, result in zip(responses, shipped, strict=True):
        response.add(result, 1)
    return noises(responses, usual, dtype)


def _sizes_to_try(
    shapes: Mapping[str, tuple[int, ...]], free: Mapping[str, list[int]], inputs: Inputs
) -> Iterator[tuple[dict[str, tuple[int, ...]], int]]:
    """The given sizes with several seeds, then two others of each free axis."""
    for sample in range(max(1, inputs.samples)):
        yield dict(shapes), inputs.seed + sample
    if any(free.values()):
        more = {0: 2, 2: 1, 3: 4}
        for factor in (1, 2):
            yield (
                {
                    n: tuple(d + factor * more[i] if i in free[n] else d for i, d in enumerate(s))
                    for n, s in shapes.items()
                },
                inputs.seed,
            )
