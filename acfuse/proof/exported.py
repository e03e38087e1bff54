"""An exported file beside the original model, on several sizes of every free dimension."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from acfuse.errors import UsageError
from acfuse.proof.outputs import Check, Difference, Tolerance, judge
from acfuse.proof.running import Inputs, floating_dtype, images, named_shapes, own_noise, run

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
    difference = Difference(tolerance=tolerance)
    given = [images(sizes, seed) for sizes, seed in _sizes_to_try(shapes, free, inputs)]
    true = [run(original, g, dtype) for g in given]
    noise = own_noise(original, given, true, dtype)
    for answer in answers:
        for g, expected, own in zip(given, true, noise, strict=True):
            difference.add(expected, answer(g), own)
    check = judge(name, difference, tolerance, dtype)
    if math.isfinite(check.error):
        return check
    return Check(check.name, False, check.error, check.limit, detail=f"{runtime} gives NaN or Inf")


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
