"""The original RepVGG block: 3 x 3, 1 x 1 and, where shapes allow, the normalised input.

Source: arXiv:2101.03697 and github.com/DingXiaoH/RepVGG. The deploy form is ``rbr_reparam``. In the
D2se models a squeeze-and-excitation layer stands between the sum and the ReLU, and must survive.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from sample_models import Sample, built, framed, images
from sample_models.digits import RepVgg


class SEBlock(nn.Module):
    """Squeeze and excitation: every channel is scaled by what the whole image says."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, squeezed, 1)
        self.up = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = nn.functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(torch.relu(self.down(mean))))


class RepVGGBlock(nn.Module):
    """The block of the authors' training form."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        groups: int = 1,
        use_se: bool = False,
    ) -> None:
        super().__init__()

        def conv_bn(kernel: int, pad: int) -> nn.Sequential:
            channels = (in_channels, out_channels)
            conv = nn.Conv2d(*channels, kernel, stride, pad, groups=groups, bias=False)
            return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))

        fits = in_channels == out_channels and stride == 1
        self.nonlinearity = nn.ReLU()
        self.se = SEBlock(out_channels, out_channels // 2) if use_se else nn.Identity()
        self.rbr_identity = nn.BatchNorm2d(in_channels) if fits else None
        self.rbr_dense = conv_bn(3, 1)
        self.rbr_1x1 = conv_bn(1, 0)

    def forward(self, inputs: Tensor) -> Tensor:
        identity = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return self.nonlinearity(self.se(self.rbr_dense(inputs) + self.rbr_1x1(inputs) + identity))


def _in_frame(
    in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, use_se: bool = False
) -> Sample:
    """Give a sample of one block between two convolutions."""

    def make() -> nn.Module:
        block = RepVGGBlock(in_channels, out_channels, stride, groups, use_se)
        return framed(block, in_channels, out_channels)

    return Sample(built(make), images(3), 1, "repvgg", ("body.rbr_reparam.weight",), bn_eps=1e-5)


SAMPLES = {
    "identity": _in_frame(8, 8),
    "identity_alone": Sample(
        built(lambda: RepVGGBlock(6, 6)),
        images(6),
        1,
        "repvgg",
        ("rbr_reparam.weight",),
        bn_eps=1e-5,
    ),
    "stride2": _in_frame(6, 6, stride=2),
    "wider": _in_frame(6, 10),
    "groups": _in_frame(12, 12, groups=3),
    "groups_stride2": _in_frame(8, 12, stride=2, groups=4),
    "depthwise": _in_frame(7, 7, groups=7),
    "se": _in_frame(8, 8, use_se=True),
    "se_stride2": _in_frame(6, 8, stride=2, groups=2, use_se=True),
    "digits": Sample(
        built(RepVgg),
        images(1),
        5,
        "repvgg",
        tuple(
            f"{block}.rbr_reparam.weight"
            for block in ("stage0", "stage1.0", "stage1.1", "stage2.0", "stage2.1")
        ),
        bn_eps=1e-5,
    ),
}
