"""Large depthwise kernels with small, crossed or dilated ones beside them.

Source: arXiv:2203.06717 (DingXiaoH/RepLKNet-pytorch; apple/ml-fastvit), arXiv:2207.03620
(VITA-Group/SLaK), arXiv:2311.15599 (AILab-CVC/UniRepLKNet).
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from sample_models import Sample, built, framed, images

PAIRED = {5: ((3, 1), (3, 2)), 7: ((5, 1), (3, 2), (3, 3)), 9: ((5, 1), (5, 2), (3, 3), (3, 4))}


def _conv_bn(channels: int, size: tuple[int, int], stride: int) -> nn.Sequential:
    pads = (size[0] // 2, size[1] // 2)
    conv = nn.Conv2d(channels, channels, size, stride, pads, groups=channels, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels)))


class ReparamLargeKernelConv(nn.Module):
    """RepLKNet's, as in FastViT, where the activation is lost. Deploy: ``lkb_reparam``."""

    def __init__(self, channels: int, kernel_size: int, small_kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.activation = nn.GELU()
        self.lkb_origin = _conv_bn(channels, (kernel_size, kernel_size), stride)
        self.small_conv = _conv_bn(channels, (small_kernel, small_kernel), stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.lkb_origin(x) + self.small_conv(x)
        self.activation(out)
        return out


class TimmLargeKernel(nn.Module):
    """timm's names in FastViT; None holds the place of the fused convolution, ``reparam_conv``."""

    def __init__(self, channels: int, kernel_size: int, small_kernel: int) -> None:
        super().__init__()
        self.reparam_conv: nn.Module | None = None
        self.large_conv = _conv_bn(channels, (kernel_size, kernel_size), 2)
        self.small_conv = _conv_bn(channels, (small_kernel, small_kernel), 2)
        self.se = nn.Identity()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        if self.reparam_conv is not None:
            return self.act(self.se(self.reparam_conv(x)))
        out = self.large_conv(x)
        if self.small_conv is not None:
            out = out + self.small_conv(x)
        return self.act(self.se(out))


class DecomposedKernel(nn.Module):
    """SLaK's: tall and wide, with names as of adapters, and no square of that size."""

    def __init__(self, channels: int, kernel_size: int, small_kernel: int) -> None:
        super().__init__()
        self.LoRA1 = _conv_bn(channels, (kernel_size, small_kernel), 1)
        self.LoRA2 = _conv_bn(channels, (small_kernel, kernel_size), 1)
        self.small_conv = _conv_bn(channels, (small_kernel, small_kernel), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.LoRA1(x) + self.LoRA2(x) + self.small_conv(x)


class DilatedReparamBlock(nn.Module):
    """UniRepLKNet's: the deploy form has the name of the large branch, ``lk_origin``."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        rest = {"groups": channels, "bias": False}
        self.lk_origin = nn.Conv2d(channels, channels, kernel_size, 1, kernel_size // 2, **rest)
        self.origin_bn = nn.BatchNorm2d(channels)
        self.paired = PAIRED[kernel_size]
        for k, r in self.paired:
            pad = r * (k - 1) // 2
            conv = nn.Conv2d(channels, channels, k, 1, pad, dilation=r, **rest)
            self.add_module(f"dil_conv_k{k}_{r}", conv)
            self.add_module(f"dil_bn_k{k}_{r}", nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.origin_bn(self.lk_origin(x))
        for k, r in self.paired:
            conv, norm = getattr(self, f"dil_conv_k{k}_{r}"), getattr(self, f"dil_bn_k{k}_{r}")
            out = out + norm(conv(x))
        return out


def _in_frame(make: Callable[[], nn.Module], width: int, family: str, fused: str) -> Sample:
    build, keys = built(lambda: framed(make(), width, width)), (f"body.{fused}.weight",)
    return Sample(build, images(3), 1, family, keys)


SAMPLES = {
    "replknet": _in_frame(lambda: ReparamLargeKernelConv(4, 13, 5), 4, "replknet", "lkb_reparam"),
    "fastvit": _in_frame(lambda: ReparamLargeKernelConv(4, 7, 3, 2), 4, "replknet", "lkb_reparam"),
    "fastvit_timm": _in_frame(lambda: TimmLargeKernel(4, 7, 3), 4, "replknet", "reparam_conv"),
    "slak": _in_frame(lambda: DecomposedKernel(4, 7, 5), 4, "slak", "lkb_reparam"),
    "unireplknet_k5": _in_frame(lambda: DilatedReparamBlock(4, 5), 4, "unireplknet", "lk_origin"),
    "unireplknet_k7": _in_frame(lambda: DilatedReparamBlock(4, 7), 4, "unireplknet", "lk_origin"),
    "unireplknet_k9": _in_frame(lambda: DilatedReparamBlock(4, 9), 4, "unireplknet", "lk_origin"),
}
