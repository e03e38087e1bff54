"""ACNet's block as a widely read article writes it: biased convolutions, the ReLU inside.

Source of the algebra: arXiv:1908.03930. The article's deploy form is ``fusion_conv``.
"""

import torch
from torch import Tensor, nn

from sample_models import Sample, built, framed, images


class ACBlock(nn.Module):
    """A 3 x 3, a 3 x 1 and a 1 x 3 convolution, a BatchNorm each; their sum; a ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()

        def conv(kernel: tuple[int, int], pads: tuple[int, int]) -> nn.Conv2d:
            channels = (in_channels, out_channels)
            return nn.Conv2d(*channels, kernel, stride, pads, groups=groups, bias=bias)

        self.conv3x3 = conv((3, 3), (1, 1))
        self.bn3x3 = nn.BatchNorm2d(out_channels)
        self.conv3x1 = conv((3, 1), (1, 0))
        self.bn3x1 = nn.BatchNorm2d(out_channels)
        self.conv1x3 = conv((1, 3), (0, 1))
        self.bn1x3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        square = self.bn3x3(self.conv3x3(x))
        column = self.bn3x1(self.conv3x1(x))
        row = self.bn1x3(self.conv1x3(x))
        return self.relu(square + column + row)


class ArticleNet(nn.Module):
    """Three of the blocks, a pooling and a linear layer: a whole small classifier."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.layer1 = ACBlock(3, 8)
        self.layer2 = ACBlock(8, 12, stride=2)
        self.layer3 = ACBlock(12, 16, groups=4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


_BODY = ("body.fusion_conv.weight",)

SAMPLES = {
    "net": Sample(
        built(ArticleNet),
        images(3),
        3,
        "acnet",
        tuple(f"layer{i}.fusion_conv.weight" for i in (1, 2, 3)),
    ),
    "alone": Sample(built(lambda: ACBlock(5, 8)), images(5), 1, "acnet", ("fusion_conv.weight",)),
    "no_bias": Sample(
        built(lambda: framed(ACBlock(6, 8, bias=False), 6, 8)), images(3), 1, "acnet", _BODY
    ),
    "stride2": Sample(
        built(lambda: framed(ACBlock(6, 8, stride=2), 6, 8)), images(3), 1, "acnet", _BODY
    ),
    "groups": Sample(
        built(lambda: framed(ACBlock(6, 9, groups=3), 6, 9)), images(3), 1, "acnet", _BODY
    ),
}
