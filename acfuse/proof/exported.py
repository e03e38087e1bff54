"""An exported file beside the original model, on several sizes of every free dimension."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from acfuse.errors import InputError, UsageError
from acfuse.proof.leaves import Leaves
from acfuse.proof.noise import Noises
from acfuse.proof.original import Original, Shapes
from acfuse.proof.outputs import Check, Difference, Tolerance, judge, rounding_limit
from acfuse.proof.running import Image, larger, other_batch
from acfuse.proof.whole import judged_by_noise
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
    original: Original,
    tolerance: Tolerance,
    dynamic: str,
) -> Check:
    """What answers to images, each in turn, against the original model, on all sizes to try."""
    others = [original.image(shapes) for shapes in _other_shapes(original.shapes, dynamic)]
    given = [*original.given, *{id(image): image for image in others}.values()]
    shipped = [_shipped(original, image, dynamic) for image in given]
    found = [[answer(image) for image in given] for answer in answers]

    def verdict(noise: Sequence[Noises]) -> Check:
        difference = Difference(tolerance=tolerance, takes_any=original.takes_any)
        for each in found:
            for result, other, own in zip(shipped, each, noise, strict=True):
                tensors = {n: x for n, x in result.items() if isinstance(x, Tensor)}
                if len(other) == len(tensors):
                    difference.add(tensors, dict(zip(tensors, other, strict=True)), own)
                else:
                    difference.fail(f"{runtime} gives {len(other)} outputs, not {len(tensors)}")
        check = judge(name, difference, tolerance, original.dtype)
        if math.isfinite(check.error):
            return check
        why = difference.failure or f"{runtime} gives NaN or Inf"
        return replace(check, passed=False, detail=why)

    limit = rounding_limit(original.dtype)
    return judged_by_noise(verdict, original, given, len(given), limit)


def _shipped(original: Original, image: Image, dynamic: str) -> Leaves:
    """What the original gives. Raises InputError where it does not take a size that is free."""
    try:
        return original.shipped(image)
    except Exception as error:
        sizes = ", ".join(f"{n} {','.join(map(str, x.shape))}" for n, x in image.items())
        raise InputError(
            f"the model cannot take an input of this shape ({sizes}), which --dynamic {dynamic} "
            f"asks for: {one_line(error, 160)}. Give --dynamic none."
        ) from error


def _other_shapes(shapes: Shapes, dynamic: str) -> Iterator[Shapes]:
    """Further sizes of each free axis, larger ones among them, and of all axes together.

    What was exported is none of them: an axis of size 1 is exported with 2.
    """
    free = dynamic_dims(shapes, dynamic)

    def changed(by: Shapes) -> dict[str, tuple[int, ...]]:
        return {
            n: tuple(by[n][i] if i in free[n] else d for i, d in enumerate(shape))
            for n, shape in shapes.items()
        }

    if any(0 in axes for axes in free.values()):
        yield changed(other_batch(shapes))
        yield changed({n: (s[0] + 2, *s[1:]) if s else s for n, s in shapes.items()})
    if any(axes != [0] and axes for axes in free.values()):
        yield changed(larger(shapes))
        yield changed({n: tuple(d + 4 + i for i, d in enumerate(s)) for n, s in shapes.items()})
