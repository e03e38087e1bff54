"""How far one program is from another, added up over inputs: signal over noise, and top-1."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from acfuse.errors import InputError
from acfuse.proof.leaves import Leaves, is_discrete
from acfuse.proof.running import Image
from acfuse.system.escape import safe

Answer = Callable[[Image], Leaves]  # what a program gives for inputs, by name


@dataclass(frozen=True)
class Figure:
    """How far one output is from the true one.

    `decibels` is signal over noise, 10 log10(sum b^2 / sum (a - b)^2) over all its numbers:
    infinite where they are the same. `agreement` is for how many of the images, in percent, the
    largest class is the same; None of an output that does not give classes, [N, C] with C > 1.
    """

    output: str
    decibels: float
    agreement: float | None = None


def measured(
    true: Answer, given: Sequence[Answer], data: Sequence[Image]
) -> list[tuple[Figure, ...]]:
    """How far each of the programs is from the true one, at each output of floating numbers.

    One batch is looked at after the other, so that none but its own outputs is in memory. Raises
    InputError where outputs cannot be compared.
    """
    sums: list[dict[str, _Sums]] = [{} for _ in given]
    for image in data:
        expected = true(image)
        counts = {x.shape[0] for x in image.values() if x.ndim}
        for own, answer in zip(sums, given, strict=True):
            result = answer(image)
            for name, value in expected.items():
                if isinstance(value, Tensor) and not is_discrete(value):
                    own.setdefault(name, _Sums()).add(name, value, result.get(name), counts)
    if not all(sums):
        raise InputError(
            "no output of the model is a tensor of floating numbers: there is nothing by which 8 "
            "bits could be judged."
        )
    return [tuple(total.figure(name) for name, total in own.items()) for own in sums]


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise): infinite without noise, and so below zero without a signal."""
    if noise == 0:
        return math.inf
    if signal == 0 or not (math.isfinite(noise) and math.isfinite(signal)):
        return -math.inf
    return 10 * (math.log10(signal) - math.log10(noise))


class _Sums:
    """What is added up of one output."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.same = self.images = 0
        self.gives_classes = True

    def add(self, name: str, b: Tensor, a: object, counts: set[int]) -> None:
        """One more batch: true and given numbers of an output, and of how many images."""
        if not bool(b.isfinite().all()):
            raise InputError(
                f"output {safe(name)} of the float model is not finite for these inputs; expected "
                "inputs on which it works."
            )
        if not isinstance(a, Tensor) or a.shape != b.shape:
            found = tuple(a.shape) if isinstance(a, Tensor) else "no tensor"
            raise InputError(
                f"output {safe(name)} is {found} in 8 bits and {tuple(b.shape)} in float: its size "
                "depends on numbers, and it cannot be compared. Cut the model before what selects."
            )
        exact, noise = b.double(), (a.double() - b.double()).square().sum()
        self.signal += float(exact.square().sum())
        self.noise += float(noise) if bool(noise.isfinite()) else math.inf
        if b.ndim != 2 or b.shape[1] < 2 or b.shape[0] not in counts:
            self.gives_classes = False
        elif self.gives_classes:
            # Where one is no number, none is the largest.
            self.same += int(((a.argmax(1) == b.argmax(1)) & ~a.isnan().any(1)).sum())
            self.images += b.shape[0]

    def figure(self, name: str) -> Figure:
        """What that comes to."""
        has_classes = self.gives_classes and self.images
        agreement = 100 * self.same / self.images if has_classes else None
        return Figure(name, decibels(self.signal, self.noise), agreement)
