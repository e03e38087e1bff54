"""Blocks with chains of convolutions, padded at their beginning or with what stands for zero.

A border that is written in place is captured, and found to be a pad of what the layers read.
SPAN's published forward is one convolution in eval mode; the one here is that of its branches.

Source: arXiv:2103.13425 (DingXiaoH/DiverseBranchBlock), arXiv:2311.12770 (hongyuanyu/SPAN),
arXiv:2204.08397 (NJU-Jet/FMEN).
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sample_models import Sample, built, framed, images


class BNAndPadLayer(nn.Module):
    """A BatchNorm whose border is what it makes of zero."""

    def __init__(self, pad_pixels: int, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.pad_pixels = pad_pixels

    def forward(self, x: Tensor) -> Tensor:
        return bordered(self.bn, x, self.pad_pixels)


class OldBNAndPadLayer(nn.BatchNorm2d):
    """The same, as a BatchNorm itself: other keys."""

    def __init__(self, pad_pixels: int, channels: int) -> None:
        super().__init__(channels)
        self.pad_pixels = pad_pixels

    def forward(self, x: Tensor) -> Tensor:
        return bordered(super().forward, x, self.pad_pixels)


def bordered(norm: Callable[[Tensor], Tensor], x: Tensor, pad: int) -> Tensor:
    """Write a norm's constant border around its map, in place."""
    inner, zero = norm(x), norm(torch.zeros_like(x[:1, :, :1, :1]))
    height, width = x.shape[2:]
    out = zero.expand(*inner.shape[:2], height + 2 * pad, width + 2 * pad).clone()
    out[:, :, pad : pad + height, pad : pad + width] = inner
    return out


class IdentityBasedConv1x1(nn.Conv2d):
    """A 1 x 1 convolution that stores its difference from the identity, grouped as it is."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, channels, 1, groups=groups, bias=False)
        width = channels // groups
        self.id_tensor = torch.zeros(channels, width, 1, 1)
        for i in range(channels):
            self.id_tensor[i, i % width] = 1

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight + self.id_tensor.to(self.weight)
        return nn.functional.conv2d(x, kernel, groups=self.groups)


class DiverseBranchBlock(nn.Module):
    """Four branches, two of them chains; what is there depends on the groups."""

    def __init__(
        self,
        a: int,
        b: int,
        kernel_size: int = 3,
        groups: int = 1,
        *,
        inner: int = 0,
        old: bool = False,
    ) -> None:
        super().__init__()
        k, pad, padding = kernel_size, kernel_size // 2, OldBNAndPadLayer if old else BNAndPadLayer
        rest = {"groups": groups, "bias": False}
        self.nonlinear = nn.Identity()

        def conv_bn(size: int) -> nn.Sequential:
            conv = nn.Conv2d(a, b, size, padding=size // 2, **rest)
            return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(b)))

        self.dbb_origin = conv_bn(k)
        self.dbb_avg = nn.Sequential()
        if groups < b:
            self.dbb_avg.add_module("conv", nn.Conv2d(a, b, 1, **rest))
            self.dbb_avg.add_module("bn", padding(pad, b))
            self.dbb_avg.add_module("avg", nn.AvgPool2d(k, 1))
            self.dbb_1x1 = conv_bn(1)
        else:
            self.dbb_avg.add_module("avg", nn.AvgPool2d(k, 1, pad))
        self.dbb_avg.add_module("avgbn", nn.BatchNorm2d(b))
        self.dbb_1x1_kxk = nn.Sequential()
        if inner:
            self.dbb_1x1_kxk.add_module("conv1", nn.Conv2d(a, inner, 1, **rest))
        else:
            self.dbb_1x1_kxk.add_module("idconv1", IdentityBasedConv1x1(a, groups))
        self.dbb_1x1_kxk.add_module("bn1", padding(pad, inner or a))
        self.dbb_1x1_kxk.add_module("conv2", nn.Conv2d(inner or a, b, k, **rest))
        self.dbb_1x1_kxk.add_module("bn2", nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        out = self.dbb_origin(x)
        if hasattr(self, "dbb_1x1"):
            out = out + self.dbb_1x1(x)
        return self.nonlinear(out + self.dbb_avg(x) + self.dbb_1x1_kxk(x))


class Conv3XC(nn.Module):
    """Thin, wide, thin, and a 1 x 1 beside; ``eval_conv`` is what was fused some time ago."""

    def __init__(self, a: int, b: int, gain: int = 2) -> None:
        super().__init__()
        self.sk = nn.Conv2d(a, b, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(a, a * gain, 1), nn.Conv2d(a * gain, b * gain, 3), nn.Conv2d(b * gain, b, 1)
        )
        self.eval_conv = nn.Conv2d(a, b, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.pad(x, (1, 1, 1, 1))) + self.sk(x)


class RRRB(nn.Module):
    """Residual in residual in residual: the wide map is bordered by its bias."""

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__()
        wide = channels * ratio
        self.expand_conv = nn.Conv2d(channels, wide, 1)
        self.fea_conv = nn.Conv2d(wide, wide, 3)
        self.reduce_conv = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.expand_conv(x)
        out = self.fea_conv(bordered(self.expand_conv, x, 1)) + wide
        return self.reduce_conv(out) + x


def _in_frame(make: Callable[[], nn.Module], a: int, b: int, family: str, fused: str) -> Sample:
    build, keys = built(lambda: framed(make(), a, b)), (f"body.{fused}.weight",)
    if family == "conv3xc":
        return Sample(build, images(3), 1, family, keys, absorbed=("body.eval_conv",))
    return Sample(build, images(3), 1, family, keys)


def _dbb(a: int, b: int, kernel_size: int = 3, groups: int = 1, **more: int) -> Sample:
    def make() -> nn.Module:
        inner, old = more.get("inner", 0), bool(more.get("old"))
        return DiverseBranchBlock(a, b, kernel_size, groups, inner=inner, old=old)

    return _in_frame(make, a, b, "dbb", "dbb_reparam")


SAMPLES = {
    "dbb": _dbb(6, 6),
    "dbb_wider": _dbb(6, 8, 5),
    "dbb_inner": _dbb(6, 8, inner=4),
    "dbb_groups": _dbb(6, 6, 3, 3),
    "dbb_depthwise": _dbb(6, 6, 3, 6),
    "dbb_old": _dbb(6, 6, old=1),
    "span": _in_frame(lambda: Conv3XC(4, 6), 4, 6, "conv3xc", "eval_conv"),
    "span_same": _in_frame(lambda: Conv3XC(4, 4), 4, 4, "conv3xc", "eval_conv"),
    "fmen": _in_frame(lambda: RRRB(4), 4, 4, "rrrb", "rep_conv"),
}
