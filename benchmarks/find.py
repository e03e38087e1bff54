"""How long finding, fusing, and running take: `python benchmarks/find.py [TIMM_MODEL ...]`.

Stacks of 10, 100 and 1,000 ACNet blocks show how the time grows, and a DenseNet of 121 layers, each
of which reads all before it, that it grows no faster than what they read. Named models come from
timm, if it is installed, with random weights. Medians of three runs, in seconds of this process's
CPU time.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from acfuse.sources.live import LiveSource

sys.path.insert(0, str(Path(__file__).parents[1]))
from sample_models.acnet import ACBlock
from tests.packages.imports import imported

STACKS = (10, 100, 1000)
DENSE, GROWTH = (6, 12, 24, 16), 32  # the layers of DenseNet-121's blocks


class DenseBlock(nn.Module):
    """Layers of which each reads the channels of all before it, side by side."""

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        wide = 4 * GROWTH
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + i * GROWTH),
                nn.ReLU(),
                nn.Conv2d(channels + i * GROWTH, wide, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
                nn.Conv2d(wide, GROWTH, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x]
        for layer in self.layers:
            parts.append(layer(torch.cat(parts, 1)))
        return torch.cat(parts, 1)


def dense_net() -> nn.Module:
    """DenseNet-121 without its head."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    channels = 64
    for count in DENSE:
        layers.append(DenseBlock(count, channels))
        channels += count * GROWTH
        half = nn.Conv2d(channels, channels // 2, 1, bias=False)
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), half, nn.AvgPool2d(2)]
        channels //= 2
    return nn.Sequential(*layers).eval()


def models() -> Iterator[tuple[str, nn.Module]]:
    """The stacks, or the models that were named."""
    if len(sys.argv) > 1:
        timm = imported("timm")
        for name in sys.argv[1:]:
            yield name, timm.create_model(name).eval()
        return
    for count in STACKS:
        blocks = [nn.Sequential(ACBlock(8, 8, 3, padding=1), nn.ReLU()) for _ in range(count)]
        yield f"{count} blocks", nn.Sequential(*blocks).eval()
    yield "DenseNet-121", dense_net()


def main() -> None:
    """Prints a line for each model."""
    torch.set_num_threads(1)
    for name, model in models():
        find, fuse, run, found = [], [], [], 0
        for _ in range(3):
            start = time.process_time()
            findings = find_in_module(model, PATTERNS)
            middle = time.process_time()
            fused_copy(model, findings.found)
            end = time.process_time()
            LiveSource.of(model).fuse(findings)  # which fuses as well
            find.append(middle - start)
            fuse.append(end - middle)
            run.append(time.process_time() - end - fuse[-1])
            found = len(findings.blocks)
        a, b, c = map(statistics.median, (find, fuse, run))
        print(
            f"{name}: {found} blocks, find {a:.2f} s, fuse {b:.2f} s, run beside the original "
            f"{c:.2f} s (+{100 * c / (a + b):.0f} %)"
        )


main()
