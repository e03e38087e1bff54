"""Two networks for the handwritten digits of scikit-learn: 8 x 8 grey images, values 0 to 1.

``AcNet`` is built of ACNet's block (arXiv:1908.03930), ``RepVgg`` of RepVGG's (arXiv:2101.03697),
with the official attribute names. Both take images of other sizes, too.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn


class ACBlock(nn.Module):
    """ACNet: 3 x 3, 3 x 1 and 1 x 3, a BatchNorm each, and their sum."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()

        def conv(kernel: tuple[int, int], pads: tuple[int, int]) -> nn.Conv2d:
            channels = (in_channels, out_channels)
            return nn.Conv2d(*channels, kernel, stride, pads, groups=groups, bias=False)

        self.square_conv = conv((3, 3), (1, 1))
        self.square_bn = nn.BatchNorm2d(out_channels)
        self.ver_conv = conv((3, 1), (1, 0))
        self.ver_bn = nn.BatchNorm2d(out_channels)
        self.hor_conv = conv((1, 3), (0, 1))
        self.hor_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(x))
        return square + self.ver_bn(self.ver_conv(x)) + self.hor_bn(self.hor_conv(x))


class RepVGGBlock(nn.Module):
    """RepVGG: 3 x 3 and 1 x 1, a BatchNorm each, the normalised input where it fits, and a ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()

        def conv_bn(kernel: int) -> nn.Sequential:
            channels, pad = (in_channels, out_channels), kernel // 2
            conv = nn.Conv2d(*channels, kernel, stride, pad, groups=groups, bias=False)
            return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))

        fits = in_channels == out_channels and stride == 1
        self.nonlinearity = nn.ReLU()
        self.rbr_identity = nn.BatchNorm2d(in_channels) if fits else None
        self.rbr_dense = conv_bn(3)
        self.rbr_1x1 = conv_bn(1)

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(self.rbr_dense(x) + self.rbr_1x1(x) + identity)


class AcNet(nn.Module):
    """Five ACNet blocks and a linear layer: 1 x 8 x 8 images to the scores of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        blocks = (
            ACBlock(1, 16),
            ACBlock(16, 24, stride=2),
            ACBlock(24, 24, groups=2),
            ACBlock(24, 32, stride=2),
            ACBlock(32, 32, groups=4),
        )
        stages = (nn.Sequential(OrderedDict(acb=block, relu=nn.ReLU())) for block in blocks)
        self.features = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(image)), 1))


class RepVgg(nn.Module):
    """Five RepVGG blocks and a linear layer: 1 x 8 x 8 images to the scores of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stage0 = RepVGGBlock(1, 16)
        self.stage1 = nn.Sequential(RepVGGBlock(16, 24, stride=2), RepVGGBlock(24, 24, groups=2))
        self.stage2 = nn.Sequential(RepVGGBlock(24, 32, stride=2), RepVGGBlock(32, 32))
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stage2(self.stage1(self.stage0(image)))
        return self.linear(torch.flatten(self.gap(features), 1))
