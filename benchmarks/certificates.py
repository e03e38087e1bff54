"""What a certificate costs against channels: `python benchmarks/certificates.py [CHANNELS ...]`.

An ACNet block (3x3, 3x1, 1x3, each with BatchNorm) of as many channels in as out. Seconds of CPU
time on one thread, the median of several; and the exponent from one size to the next.
"""

import math
import statistics
import sys
import time

import torch
from torch import nn

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.proof import certify
from acfuse.sources.live import LiveSource
from sample_models import awake
from sample_models.acnet import ACBlock

CHANNELS = (64, 128, 256, 512, 1024)


def seconds(channels: int) -> list[float]:
    """CPU seconds of certificates of one block; of large ones, fewer."""
    model = awake(nn.Sequential(ACBlock(channels, channels, 3, 1, 1)), 0).float()
    fused = LiveSource.of(model).fuse(find_in_module(model, PATTERNS))
    (block,) = fused.found
    stored, taken = fused.stored(block), []
    for _ in range(max(3, 1024 // channels)):
        start = time.process_time()
        certificate = certify(block, stored)
        taken.append(time.process_time() - start)
        assert certificate.passed, certificate.fault
    return taken


def main() -> None:
    """Prints a line for each number of channels."""
    torch.set_num_threads(1)
    seconds(16)  # the first one imports
    before: tuple[int, float] | None = None
    for channels in map(int, sys.argv[1:] or CHANNELS):
        taken = seconds(channels)
        middle = statistics.median(taken)
        line = f"{channels:5} channels {middle:7.3f} s ({min(taken):.3f} to {max(taken):.3f})"
        if before is not None:
            exponent = math.log(middle / before[1]) / math.log(channels / before[0])
            line += f", exponent {exponent:.1f}"
        print(line)
        before = channels, middle


if __name__ == "__main__":
    main()
