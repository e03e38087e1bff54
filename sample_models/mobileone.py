"""MobileOne's block, FastViT's mixer that is made of two, and PP-LCNetV3's layer.

Source: arXiv:2206.04040 and github.com/apple/ml-mobileone; arXiv:2303.14189, apple/ml-fastvit;
huggingface/pytorch-image-models, open-mmlab/mmpretrain, frotms/PaddleOCR2Pytorch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sample_models import Sample, built, framed, images
from sample_models.repvgg_dialects import conv_norm, identity_norm


class MobileOneBlock(nn.Module):
    """The authors' names. Deploy: ``reparam_conv``."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        stride: int = 1,
        groups: int = 1,
        branches: int = 2,
        scale: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        a, b, _ = shape
        self.activation = nn.GELU() if act else nn.Identity()
        self.se = nn.Identity()
        self.rbr_skip = identity_norm(a, b, stride)
        convs = [conv_norm(shape, stride, groups) for _ in range(branches)]
        self.rbr_conv = nn.ModuleList(convs) if branches else None
        self.rbr_scale = conv_norm((a, b, 1), stride, groups) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        total = 0 if self.rbr_scale is None else self.rbr_scale(x)
        if self.rbr_skip is not None:
            total = total + self.rbr_skip(x)
        for conv in self.rbr_conv or ():
            total = total + conv(x)
        return self.activation(self.se(total))


class TimmBlock(nn.Module):
    """timm's names. Deploy: ``reparam_conv``."""

    def __init__(self, a: int, b: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.identity = identity_norm(a, b, stride)
        self.conv_kxk = nn.ModuleList([conv_norm((a, b, 3), stride, groups) for _ in range(3)])
        self.conv_scale = conv_norm((a, b, 1), stride, groups)
        self.attn = nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        total = self.conv_scale(x)
        if self.identity is not None:
            total = total + self.identity(x)
        for conv in self.conv_kxk:
            total = total + conv(x)
        return self.act(self.attn(total))


class MMPretrainBlock(nn.Module):
    """mmpretrain's names. Deploy: ``branch_reparam``."""

    def __init__(self, a: int, b: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        convs = [conv_norm((a, b, 3), stride, groups, "norm") for _ in range(2)]
        self.branch_conv_list = nn.ModuleList(convs)
        self.branch_scale = conv_norm((a, b, 1), stride, groups, "norm")
        self.branch_norm = identity_norm(a, b, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch_scale(x)
        if self.branch_norm is not None:
            out = out + self.branch_norm(x)
        for branch in self.branch_conv_list:
            out = out + branch(x)
        return self.act(out)


class RepMixer(nn.Module):
    """x + gamma * (mixer(x) - norm(x)): a minus and a factor. Deploy: ``reparam_conv``."""

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        shape = (dim, dim, kernel_size)
        self.norm = MobileOneBlock(shape, groups=dim, branches=0, scale=False, act=False)
        self.mixer = MobileOneBlock(shape, groups=dim, act=False)
        self.layer_scale = nn.Parameter(torch.randn(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))


class LayerScale2d(nn.Module):
    """timm's factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TimmOneBlock(TimmBlock):
    """timm's block as a part of its mixer: with or without branches, and no activation."""

    def __init__(self, dim: int, branches: bool) -> None:
        super().__init__(dim, dim, 1, dim)
        self.act = nn.Identity()  # type: ignore[assignment]
        if not branches:
            self.conv_kxk = nn.ModuleList()
            del self.conv_scale
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        assert self.identity is not None
        return super().forward(x) if self.branches else self.identity(x)


class TimmRepMixer(nn.Module):
    """timm's names for the mixer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = TimmOneBlock(dim, branches=False)
        self.mixer = TimmOneBlock(dim, branches=True)
        self.layer_scale = LayerScale2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale(self.mixer(x) - self.norm(x))


class LearnableAffine(nn.Module):
    """One factor and one shift for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.3]))
        self.bias = nn.Parameter(torch.tensor([-0.4]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias


class LearnableRepLayer(nn.Module):
    """PP-LCNetV3's: a learned factor behind the sum, an activation unless the stride is 2."""

    def __init__(self, shape: tuple[int, int, int], stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        a, b, k = shape
        self.stride = stride
        self.identity = identity_norm(a, b, stride)
        self.conv_kxk = nn.ModuleList([conv_norm(shape, stride, groups) for _ in range(3)])
        self.conv_1x1 = conv_norm((a, b, 1), stride, groups) if k > 1 else None
        self.lab = LearnableAffine()
        self.act = nn.Sequential(nn.Hardswish(), LearnableAffine())

    def forward(self, x: Tensor) -> Tensor:
        out = 0 if self.identity is None else self.identity(x)
        for conv in self.conv_kxk:
            out = out + conv(x)
        if self.conv_1x1 is not None:
            out = out + self.conv_1x1(x)
        out = self.lab(out)
        return self.act(out) if self.stride != 2 else out


class RepDepthwiseSeparable(nn.Module):
    """PP-LCNetV2's: depthwise kernels of 5, 3 and 1, then a pointwise one. Deploy: ``dw_conv``."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.dw_conv_list = nn.ModuleList([conv_norm((dim, dim, k), 1, dim) for k in (5, 3, 1)])
        self.dw_act = nn.ReLU()
        self.pw_conv = conv_norm((dim, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.dw_conv_list[0](x)
        for i, dw_conv in enumerate(self.dw_conv_list):
            if i > 0:
                out = out + dw_conv(x)
        return self.pw_conv(self.dw_act(out))


def _in_frame(
    make: Callable[[], nn.Module],
    a: int,
    b: int,
    fused: str,
    family: str = "mobileone",
    **more: Any,
) -> Sample:
    build, keys = built(lambda: framed(make(), a, b)), (f"body.{fused}.weight",)
    return Sample(build, images(3), 1, family, keys, **more)


GAMMA = ("body.layer_scale",)

SAMPLES = {
    "apple": _in_frame(lambda: MobileOneBlock((6, 6, 3)), 6, 6, "reparam_conv"),
    "apple_depthwise": _in_frame(
        lambda: MobileOneBlock((6, 6, 3), 1, 6, branches=4), 6, 6, "reparam_conv"
    ),
    "apple_pointwise": _in_frame(
        lambda: MobileOneBlock((6, 8, 1), scale=False), 6, 8, "reparam_conv"
    ),
    "apple_stride2": _in_frame(
        lambda: MobileOneBlock((6, 6, 7), 2, 3, branches=1), 6, 6, "reparam_conv"
    ),
    "timm": _in_frame(lambda: TimmBlock(6, 6, groups=6), 6, 6, "reparam_conv"),
    "timm_stride2": _in_frame(lambda: TimmBlock(6, 8, 2, 2), 6, 8, "reparam_conv"),
    "mmpretrain": _in_frame(lambda: MMPretrainBlock(6, 6, 1, 3), 6, 6, "branch_reparam"),
    "mmpretrain_stride2": _in_frame(lambda: MMPretrainBlock(6, 8, 2), 6, 8, "branch_reparam"),
    "repmixer": _in_frame(
        lambda: RepMixer(6), 6, 6, "reparam_conv", "repmixer", assume=("repmixer",), absorbed=GAMMA
    ),
    "repmixer_k7": _in_frame(
        lambda: RepMixer(4, 7),
        4,
        4,
        "reparam_conv",
        "repmixer",
        assume=("repmixer",),
        absorbed=GAMMA,
    ),
    "repmixer_timm": _in_frame(
        lambda: TimmRepMixer(6), 6, 6, "reparam_conv", "repmixer", assume=("repmixer/timm",)
    ),
    "pplcnet": _in_frame(
        lambda: LearnableRepLayer((6, 6, 3), 1, 6), 6, 6, "reparam_conv", "pplcnet", bare=False
    ),
    "pplcnet_stride2": _in_frame(
        lambda: LearnableRepLayer((6, 6, 5), 2, 6), 6, 6, "reparam_conv", "pplcnet", bare=False
    ),
    "pplcnet_v2": _in_frame(lambda: RepDepthwiseSeparable(6, 8), 6, 8, "dw_conv", "pplcnet"),
    # Without a 1 x 1 beside it, its layers bear the names of timm's MobileOne.
    "pplcnet_pointwise": Sample(
        built(lambda: framed(LearnableRepLayer((6, 8, 1)), 6, 8)), images(3), 1, None, bare=False
    ),
}
