"""How long finding and fusing take: `python -m benchmarks.find [--all]`.

Stacks of 10, 100 and 300 ACNet blocks (with --all, 1,000) show with which power of the blocks the
time grows; dense blocks of 12, 24 and 48 layers, each of which reads all before it, that it grows
no faster than what they read. Seconds of CPU time on one thread, each repetition of all sizes:
finding, fusing, and running what is fused beside the original.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.sources.live import LiveSource
from benchmarks.figures import Figure, Target, exponent, told
from sample_models.acnet import ACBlock

STACKS, DENSE = (10, 100, 300), (12, 24, 48)
GROWTH = 32  # channels that each layer of a dense block adds


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


def stack(blocks: int) -> nn.Module:
    """So many ACNet blocks, one behind the other."""
    layers = [nn.Sequential(ACBlock(8, 8, 3, padding=1), nn.ReLU()) for _ in range(blocks)]
    return nn.Sequential(*layers).eval()


def dense(layers: int) -> nn.Module:
    """One dense block behind a convolution."""
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(stem, DenseBlock(layers, 64)).eval()


def channels_read(layers: int) -> float:
    """How many channels the layers of a dense block read, all together."""
    return sum(64 + i * GROWTH for i in range(layers))


def seconds(model: nn.Module) -> float:
    """CPU seconds of finding, fusing and running beside the original."""
    start = time.process_time()
    LiveSource.of(model).fuse(find_in_module(model, PATTERNS))
    return time.process_time() - start


def growth(
    name: str, models: Mapping[int, nn.Module], measure: Callable[[int], float], rounds: int
) -> Figure:
    """The exponent of what `measure` says of a size."""
    seconds(next(iter(models.values())))  # the first one imports
    taken: dict[int, list[float]] = {size: [] for size in models}
    for _ in range(rounds):
        for size, model in models.items():
            taken[size].append(seconds(model))
    sizes = [measure(size) for size in models]
    powers = tuple(exponent(sizes, round_) for round_ in zip(*taken.values(), strict=True))
    raw = {f"{size}, CPU s": times for size, times in taken.items()}
    return Figure(name, Target(high=1.1), powers, raw=raw)


def figures(
    everything: bool = False,
    stacks: Sequence[int] = STACKS,
    layers: Sequence[int] = DENSE,
    rounds: int = 2,
) -> Iterator[Figure]:
    """Both exponents."""
    torch.set_num_threads(1)
    sizes = (*stacks, 1000) if everything else stacks
    name = f"find + fuse, {sizes[0]}..{sizes[-1]} blocks: power"
    yield growth(name, {n: stack(n) for n in sizes}, float, rounds)
    name = f"dense blocks, {layers[0]}..{layers[-1]} layers: power"
    yield growth(name, {n: dense(n) for n in layers}, channels_read, rounds)


if __name__ == "__main__":
    told(figures, __doc__)
