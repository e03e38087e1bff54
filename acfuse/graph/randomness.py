"""Whether random numbers are drawn."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

RANDOM_FUNCTIONS = {"rand", "randn", "randint", "rand_like", "randn_like", "randint_like",
                    "randperm", "bernoulli", "bernoulli_", "multinomial", "normal", "normal_",
                    "uniform_", "poisson", "trunc_normal_", "exponential_"}  # fmt: skip


@contextmanager
def watched_randomness() -> Iterator[Callable[[], bool]]:
    """Tells at its end if random numbers were drawn; gives the generators back as they were."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    found: list[bool] = []

    def drawn() -> bool:
        if not found:
            numpy_now = tuple(np.random.get_state())
            found.append(
                not torch.equal(torch.get_rng_state(), before[0])
                or random.getstate() != before[1]
                or not all(map(np.array_equal, numpy_now, tuple(before[2])))
            )
        return found[0]

    try:
        yield drawn
    finally:
        if drawn():
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            np.random.set_state(before[2])
