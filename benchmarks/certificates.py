"""What a certificate costs against channels: `python -m benchmarks.certificates [--all]`.

An ACNet block (3x3, 3x1, 1x3, each with BatchNorm) of as many channels in as out. Seconds of CPU
time on one thread. The exponent is the slope through the logarithms, for each repetition of all
sizes: 64 to 1,024, or with --all to 2,048.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.proof import certify
from acfuse.sources.live import LiveSource
from benchmarks.figures import Figure, Target, exponent, told
from sample_models import awake
from sample_models.acnet import ACBlock

CHANNELS = (64, 128, 256, 512, 1024)
LIMITS = {256: 0.5, 512: 2.0}  # seconds


def made(channels: int) -> tuple[Any, Any]:
    """A block that was found, and what is stored for it."""
    model = awake(nn.Sequential(ACBlock(channels, channels, 3, 1, 1)), 0).float()
    fused = LiveSource.of(model).fuse(find_in_module(model, PATTERNS))
    (block,) = fused.found
    return block, fused.stored(block)


def seconds(block: Any, stored: Any) -> float:
    """CPU seconds of one certificate."""
    start = time.process_time()
    certificate = certify(block, stored)
    taken = time.process_time() - start
    assert certificate.passed, certificate.fault
    return taken


def figures(
    everything: bool = False, channels: Sequence[int] = CHANNELS, rounds: int = 7
) -> Iterator[Figure]:
    """The limits of single sizes, and the exponent of all."""
    torch.set_num_threads(1)
    sizes = (*channels, 2048) if everything else tuple(channels)
    blocks = {size: made(size) for size in sizes}
    seconds(*made(16))  # the first one imports
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size, block in blocks.items():
            taken[size].append(seconds(*block))
    for size, limit in LIMITS.items():
        if size in taken:
            name = f"certificate of {size}x{size}x3x3"
            yield Figure(name, Target(high=limit), tuple(taken[size]), "s")
    powers = [exponent(sizes, round_) for round_ in zip(*taken.values(), strict=True)]
    raw = {f"{size} channels, CPU s": times for size, times in taken.items()}
    name = f"certificate, {sizes[0]}..{sizes[-1]} ch.: power"
    yield Figure(name, Target(high=2.1), tuple(powers), raw=raw)


if __name__ == "__main__":
    told(figures, __doc__)
