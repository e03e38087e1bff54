"""ACNet's block as public repositories write it: other names, other places for BatchNorm and ReLU.

Every docstring says whose layout it is. Where the authors wrote a deploy form, its name is checked;
the others leave the name to whoever fuses.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sample_models import Sample, built, framed, images


def _conv_bn(
    in_channels: int, out_channels: int, kernel: tuple[int, int], groups: int = 1
) -> nn.Sequential:
    pads = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=pads, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))


class ConvBNLayer(nn.Module):
    """A convolution and its BatchNorm, as ``conv`` and ``bn``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        filter_size: tuple[int, int],
        stride: int,
        padding: tuple[int, int],
    ) -> None:
        super().__init__()
        channels = (in_channels, out_channels)
        self.conv = nn.Conv2d(*channels, filter_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class BranchBlock(nn.Module):
    """PaddleSlim's ``ACBlock``, ported: three branches of ``conv`` and ``bn``, added in place.

    Source: PaddlePaddle/PaddleSlim, ``rep/reper/acblock.py``. Deploy form: ``fused_branch``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        k, half = kernel_size, kernel_size // 2
        channels = (in_channels, out_channels)
        self.square_branch = ConvBNLayer(*channels, (k, k), stride, (half, half))
        self.ver_branch = ConvBNLayer(*channels, (k, 1), stride, (half, 0))
        self.hor_branch = ConvBNLayer(*channels, (1, k), stride, (0, half))

    def forward(self, x: Tensor) -> Tensor:
        out = self.square_branch(x)
        out += self.ver_branch(x)
        out += self.hor_branch(x)
        return out


class RepBranchBlock(nn.Module):
    """The ``ACNet`` of a collection of attention and re-parameterization blocks; the square last.

    Source: xmu-xiaoma666/External-Attention-pytorch, ``model/rep/acnet.py``. Deploy: ``brb_rep``.
    """

    def __init__(self, input_channel: int, output_channel: int, groups: int = 1) -> None:
        super().__init__()
        self.activation = nn.ReLU()
        self.brb_3x3 = _conv_bn(input_channel, output_channel, (3, 3), groups)
        self.brb_1x3 = _conv_bn(input_channel, output_channel, (1, 3), groups)
        self.brb_3x1 = _conv_bn(input_channel, output_channel, (3, 1), groups)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.activation(self.brb_1x3(inputs) + self.brb_3x1(inputs) + self.brb_3x3(inputs))


class FlatNet(nn.Module):
    """A super-resolution ACNet without a block class: flat layers, one ReLU for all, in place.

    The sums are also added up over the depth, after the ReLU has changed the first ones in place.
    Source: arXiv:2103.13634, github.com/hellloxiaotian/ACNet.
    """

    def __init__(self, channels: int = 3, features: int = 6) -> None:
        super().__init__()

        def conv(width: int, kernel: tuple[int, int]) -> nn.Sequential:
            pads = (kernel[0] // 2, kernel[1] // 2)
            return nn.Sequential(nn.Conv2d(width, features, kernel, padding=pads, bias=False))

        self.conv1_1 = conv(channels, (1, 3))
        self.conv1_2 = conv(channels, (3, 1))
        self.conv1_3 = conv(channels, (3, 3))
        self.conv2_1 = conv(features, (1, 3))
        self.conv2_2 = conv(features, (3, 1))
        self.conv2_3 = conv(features, (3, 3))
        self.conv3_1 = conv(features, (1, 3))
        self.conv3_2 = conv(features, (3, 1))
        self.conv3_3 = conv(features, (3, 3))
        self.conv4 = nn.Sequential(nn.Conv2d(features, channels, 3, padding=1, bias=False))
        self.ReLU = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.conv1_1(x) + self.conv1_2(x) + self.conv1_3(x)
        x1_relu = self.ReLU(x1)
        x2 = self.conv2_1(x1_relu) + self.conv2_2(x1_relu) + self.conv2_3(x1_relu)
        x2_relu = self.ReLU(x2)
        x3 = self.conv3_1(x2_relu) + self.conv3_2(x2_relu) + self.conv3_3(x2_relu)
        return self.conv4(self.ReLU(x1 + x2 + x3))


class ShadowBlock(nn.Module):
    """Two squares of one size and no thin arm. Source: zhangxin-xd/BPL. Deploy: ``fused_conv``."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        shape = (in_channels, out_channels, kernel_size, stride, padding)
        self.square_conv = nn.Conv2d(*shape, bias=False)
        self.square_bn = nn.BatchNorm2d(out_channels)
        self.shadow_conv = nn.Conv2d(*shape, bias=False)
        self.shadow_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.square_bn(self.square_conv(x)) + self.shadow_bn(self.shadow_conv(x))


class CrossBlock(nn.Module):
    """Biased arms and one BatchNorm after their sum; ``cross_ver`` is the horizontal one.

    Source: nine public copies, misspelt ``squre`` in all of them.
    """

    def __init__(self, in_planes: int, out_planes: int, stride: int = 1) -> None:
        super().__init__()
        planes = (in_planes, out_planes)
        self.squre = nn.Conv2d(*planes, kernel_size=3, padding=1, stride=stride)
        self.cross_ver = nn.Conv2d(*planes, kernel_size=(1, 3), padding=(0, 1), stride=stride)
        self.cross_hor = nn.Conv2d(*planes, kernel_size=(3, 1), padding=(1, 0), stride=stride)
        self.bn = nn.BatchNorm2d(out_planes)
        self.ReLU = nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.ReLU(self.bn(self.squre(x) + self.cross_ver(x) + self.cross_hor(x)))


class AliasedBlock(nn.Module):
    """Every arm is registered twice, so that a state dict holds every tensor twice.

    Source: a public block for mmcv's registry; mmcv's ``ConvModule`` is ``ConvBNLayer`` here.
    """

    def __init__(self, in_ch: int, out_ch: int, aliased: bool = True) -> None:
        super().__init__()
        self.conv_kxk = ConvBNLayer(in_ch, out_ch, (3, 3), 1, (1, 1))
        self.conv_kx1 = ConvBNLayer(in_ch, out_ch, (3, 1), 1, (1, 0))
        self.conv_1xk = ConvBNLayer(in_ch, out_ch, (1, 3), 1, (0, 1))
        self.aliased = aliased
        if aliased:
            self.conv = nn.ModuleList([self.conv_kxk, self.conv_kx1, self.conv_1xk])

    def forward(self, x: Tensor) -> Tensor:
        out = [arm(x) for arm in (self.conv if self.aliased else self.children())]
        result = out[0]
        for other in out[1:]:
            result += other
        return torch.relu(result)


class PlainBlock(nn.Module):
    """The article's convolutions without any BatchNorm, biased or not.

    Source: two public re-implementations for super-resolution.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        super().__init__()
        channels = (in_channels, out_channels)
        self.conv3x3 = nn.Conv2d(*channels, 3, padding=1, bias=bias)
        self.conv1x3 = nn.Conv2d(*channels, (1, 3), padding=(0, 1), bias=bias)
        self.conv3x1 = nn.Conv2d(*channels, (3, 1), padding=(1, 0), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3x3(x) + self.conv1x3(x) + self.conv3x1(x)


class ACBConv2d(nn.Module):
    """The official names, and a choice whether the arms have a BatchNorm. Deploy: ``fused_conv``.

    Source: a public classifier with a Caffe port.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, with_bn: bool) -> None:
        super().__init__()
        channels = (in_channels, out_channels)
        self.with_bn = with_bn
        self.square_conv = nn.Conv2d(*channels, (3, 3), stride, (1, 1), bias=False)
        self.ver_conv = nn.Conv2d(*channels, (3, 1), stride, (1, 0), bias=False)
        self.hor_conv = nn.Conv2d(*channels, (1, 3), stride, (0, 1), bias=False)
        if with_bn:
            self.square_bn = nn.BatchNorm2d(out_channels)
            self.ver_bn = nn.BatchNorm2d(out_channels)
            self.hor_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        square, vertical, horizontal = self.square_conv(x), self.ver_conv(x), self.hor_conv(x)
        if self.with_bn:
            square = self.square_bn(square)
            vertical = self.ver_bn(vertical)
            horizontal = self.hor_bn(horizontal)
        return square + vertical + horizontal


class OuterBatchNorm(nn.Module):
    """The parent of ``ACBConv2d``: one more BatchNorm after the block, and a PReLU."""

    def __init__(self, inplanes: int, planes: int, stride: int, with_bn: bool) -> None:
        super().__init__()
        self.conv1 = ACBConv2d(inplanes, planes, stride, with_bn)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.PReLU(planes)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))


class InlinedBasicBlock(nn.Module):
    """A residual block whose first convolution has two more arms: no module of its own to replace.

    Source: a public change-detection network (STDN).
    """

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.ver_conv_crop_layer = nn.Identity()
        self.hor_conv_crop_layer = nn.Identity()
        self.ver_conv = nn.Conv2d(inplanes, planes, (3, 1), stride, (1, 0), bias=False)
        self.hor_conv = nn.Conv2d(inplanes, planes, (1, 3), stride, (0, 1), bias=False)
        self.ver_bn = nn.BatchNorm2d(planes)
        self.hor_bn = nn.BatchNorm2d(planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            shortcut = nn.Conv2d(inplanes, planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x))
        out = out + self.ver_bn(self.ver_conv(self.ver_conv_crop_layer(x)))
        out = out + self.hor_bn(self.hor_conv(self.hor_conv_crop_layer(x)))
        out = self.bn2(self.conv2(self.relu(out)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def _in_frame(
    make: Callable[[], nn.Module], a: int, b: int, fused: str = "", pattern: str | None = "acnet"
) -> Sample:
    """Give a sample of one block, from a to b channels, between two convolutions."""
    keys = (f"body.{fused}.weight",) if fused else ()
    build = built(lambda: framed(make(), a, b))
    return Sample(build, images(3), 1, pattern, keys, bare=pattern is not None)


def _alone(make: Callable[[], nn.Module], channels: int, fused: str = "") -> Sample:
    """Give a sample where the block is the whole network."""
    return Sample(built(make), images(channels), 1, "acnet", (f"{fused}.weight",) if fused else ())


SAMPLES = {
    "branch": _in_frame(lambda: BranchBlock(6, 8, 3, stride=1), 6, 8, "fused_branch"),
    "branch_k5_stride2": _alone(lambda: BranchBlock(4, 6, 5, stride=2), 4, "fused_branch"),
    "brb": _in_frame(lambda: RepBranchBlock(6, 8), 6, 8, "brb_rep"),
    "brb_groups": _alone(lambda: RepBranchBlock(6, 9, groups=3), 6, "brb_rep"),
    "flat": Sample(built(FlatNet), images(3), 3, None, bare=False),
    "shadow": _in_frame(lambda: ShadowBlock(6, 8, 3, 1, padding=1), 6, 8, "fused_conv"),
    "shadow_k5_stride2": _alone(lambda: ShadowBlock(4, 6, 5, 2, padding=1), 4, "fused_conv"),
    "squre": _in_frame(lambda: CrossBlock(6, 8), 6, 8),
    "squre_stride2": _alone(lambda: CrossBlock(5, 8, stride=2), 5),
    "aliased": _in_frame(lambda: AliasedBlock(6, 8), 6, 8, pattern=None),
    "kxk": _in_frame(lambda: AliasedBlock(6, 8, aliased=False), 6, 8),
    "plain": _in_frame(lambda: PlainBlock(6, 8, bias=False), 6, 8),
    "plain_bias": _alone(lambda: PlainBlock(5, 8, bias=True), 5),
    "outer_bn": _in_frame(lambda: OuterBatchNorm(6, 8, 1, True), 6, 8, "conv1.fused_conv"),
    "outer_bn_only": _in_frame(lambda: OuterBatchNorm(6, 8, 2, False), 6, 8, "conv1.fused_conv"),
    "inlined": _in_frame(lambda: InlinedBasicBlock(6, 6), 6, 6, pattern=None),
    "inlined_stride2": _in_frame(lambda: InlinedBasicBlock(6, 8, 2), 6, 8, pattern=None),
}
