"""The ACNet that is converted and run here, and the same network as one would write it by hand."""

from collections.abc import Callable

from torch import nn

from sample_models.acnet import ACBlock

STAGES = (1, 4, 4, 4, 4)
Layer = Callable[[int, int, int], nn.Module]


def build(width: int, block: Layer | None = None) -> nn.Module:
    """An ACNet of 17 blocks, up to 8 * width channels: 64 makes it 76 MB."""
    make = block or (lambda before, channels, stride: ACBlock(before, channels, 3, stride, 1))
    layers: list[nn.Module] = []
    before = 3
    for stage, count in enumerate(STAGES):
        channels = width * 2 ** max(stage - 1, 0)
        for i in range(count):
            layers += [make(before, channels, 2 if i == 0 else 1), nn.ReLU()]
            before = channels
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000)]
    return nn.Sequential(*layers, *head)


def plain(width: int) -> nn.Module:
    """The network that is left: a convolution for each block."""
    return build(width, lambda before, channels, stride: nn.Conv2d(before, channels, 3, stride, 1))
