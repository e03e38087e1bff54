"""Relatives of ACNet's block in depthwise networks: RepNeXt's and SLaK's.

RepNeXt's arms are parallel at stride 1, and at stride 2 two of them form a chain: the same names
and the same shapes. SLaK's names look like low-rank adapters, and its authors never fuse it.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from sample_models import Sample, built, framed, images


class RepDWConvS(nn.Module):
    """RepNeXt's small mixer: 3 x 3, 1 x 3, 3 x 1 and a dilated 2 x 2, all without BatchNorm.

    Source: arXiv:2406.16004, github.com/suous/RepNeXt.
    """

    def __init__(self, in_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        rest: dict[str, Any] = {"groups": in_channels}
        chained = stride != 1
        channels = (in_channels, in_channels)
        self.conv_3_3 = nn.Conv2d(*channels, 3, stride, 1, **rest)
        self.conv_3_w = nn.Conv2d(*channels, (1, 3), (1, stride), (0, 1), bias=not chained, **rest)
        self.conv_3_h = nn.Conv2d(*channels, (3, 1), (stride, 1), (1, 0), bias=not chained, **rest)
        self.conv_2_2 = nn.Conv2d(*channels, 2, stride, 1, dilation=2, **rest)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return self.conv_3_3(x) + self.conv_3_h(x) + self.conv_3_w(x) + self.conv_2_2(x)
        return self.conv_3_3(x) + self.conv_3_h(self.conv_3_w(x)) + self.conv_2_2(x)


class RepDWConvM(nn.Module):
    """RepNeXt's large mixer: squares, oblongs, and thin ones after each other, without a bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()

        def depthwise(height: int, width: int, bias: bool = True) -> nn.Conv2d:
            pads = (height // 2, width // 2)
            return nn.Conv2d(dim, dim, (height, width), padding=pads, groups=dim, bias=bias)

        self.conv_7_7 = depthwise(7, 7)
        self.conv_5_3, self.conv_3_5 = depthwise(5, 3), depthwise(3, 5)
        self.conv_7_w, self.conv_7_h = depthwise(1, 7, False), depthwise(7, 1, False)
        self.conv_5_w, self.conv_5_h = depthwise(1, 5, False), depthwise(5, 1, False)

    def forward(self, x: Tensor) -> Tensor:
        thin = self.conv_7_h(self.conv_7_w(x)) + self.conv_5_h(self.conv_5_w(x))
        return self.conv_7_7(x) + self.conv_5_3(x) + self.conv_3_5(x) + thin


class RepNextMixer(nn.Module):
    """The mixer in its place: a BatchNorm and an activation follow."""

    def __init__(self, in_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.token_mixer = RepDWConvS(in_channels, stride)
        self.norm = nn.BatchNorm2d(in_channels)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.token_mixer(x)))


class ReparamLargeKernelConv(nn.Module):
    """SLaK's large kernel as two oblong ones and a small square, a BatchNorm each.

    Source: arXiv:2207.03620, github.com/VITA-Group/SLaK.
    """

    def __init__(self, channels: int, kernel_size: int, small_kernel: int) -> None:
        super().__init__()

        def conv_bn(height: int, width: int) -> nn.Sequential:
            pads = (height // 2, width // 2)
            rest: dict[str, Any] = {"padding": pads, "groups": channels, "bias": False}
            conv = nn.Conv2d(channels, channels, (height, width), **rest)
            return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels)))

        self.LoRA1 = conv_bn(kernel_size, small_kernel)
        self.LoRA2 = conv_bn(small_kernel, kernel_size)
        self.small_conv = conv_bn(small_kernel, small_kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.LoRA1(x) + self.LoRA2(x) + self.small_conv(x)


SAMPLES = {
    "repnext": Sample(
        built(lambda: framed(RepNextMixer(8), 8, 8)),
        images(3),
        1,
        "repnext",
        ("body.token_mixer.conv_3_3.weight",),
        assume=("repnext",),
    ),
    "repnext_alone": Sample(
        built(lambda: RepDWConvS(5)), images(5), 1, "repnext", assume=("repnext",)
    ),
    "repnext_large": Sample(
        built(lambda: framed(RepDWConvM(4), 4, 4)),
        images(3),
        1,
        "repnext",
        ("body.conv_7_7.weight",),
        assume=("repnext/large",),
    ),
    "repnext_stride2": Sample(
        built(lambda: framed(RepNextMixer(8, stride=2), 8, 8)), images(3), 1, None, bare=False
    ),
    "slak": Sample(
        built(lambda: framed(ReparamLargeKernelConv(6, 9, 5), 6, 6)),
        images(3),
        1,
        None,
        bare=False,
    ),
}
