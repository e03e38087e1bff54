"""RepVGG's block under the names of detectors and libraries.

Every docstring says whose layout it is. Detectors build their BatchNorms with an eps of 1e-3.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sample_models import Sample, built, framed, images


def conv_norm(
    shape: tuple[int, int, int],
    stride: int = 1,
    groups: int = 1,
    norm: str = "bn",
    eps: float = 1e-5,
) -> nn.Sequential:
    """Give a convolution from a to b channels with a k x k kernel, and its BatchNorm."""
    a, b, k = shape
    conv = nn.Conv2d(a, b, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict([("conv", conv), (norm, nn.BatchNorm2d(b, eps=eps))]))


def identity_norm(a: int, b: int, stride: int, eps: float = 1e-5) -> nn.BatchNorm2d | None:
    """Give the BatchNorm of the input, where the input fits to the output."""
    return nn.BatchNorm2d(a, eps=eps) if a == b and stride == 1 else None


class MMPretrainBlock(nn.Module):
    """Source: open-mmlab/mmpretrain. Deploy: ``branch_reparam``, whose forward there loses SE."""

    def __init__(self, a: int, b: int, stride: int = 1, groups: int = 1, se: bool = False) -> None:
        super().__init__()
        self.se_layer = _Gate(b) if se else None
        self.branch_3x3 = conv_norm((a, b, 3), stride, groups, "norm")
        self.branch_1x1 = conv_norm((a, b, 1), stride, groups, "norm")
        self.branch_norm = identity_norm(a, b, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = 0 if self.branch_norm is None else self.branch_norm(x)
        out = self.branch_3x3(x) + self.branch_1x1(x) + y
        return self.act(out if self.se_layer is None else self.se_layer(out))


class _Gate(nn.Module):
    """Squeeze and excitation in one layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class RepConv(nn.Module):
    """Unnamed layers in sequence. Source: WongKinYiu/yolov7, eps 1e-3. Deploy: ``rbr_reparam``."""

    def __init__(self, a: int, b: int, s: int = 1, g: int = 1) -> None:
        super().__init__()
        eps = 1e-3
        self.act = nn.SiLU()
        self.rbr_identity = identity_norm(a, b, s, eps)
        self.rbr_dense = nn.Sequential(*conv_norm((a, b, 3), s, g, eps=eps))
        self.rbr_1x1 = nn.Sequential(*conv_norm((a, b, 1), s, g, eps=eps))

    def forward(self, inputs: Tensor) -> Tensor:
        identity = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return self.act(self.rbr_dense(inputs) + self.rbr_1x1(inputs) + identity)


class HalfFused(nn.Module):
    """YOLOv6 after ``fuse_model``: biased convolutions, and the identity's BatchNorm. eps 1e-3."""

    def __init__(self, a: int, b: int, groups: int = 1) -> None:
        super().__init__()
        self.nonlinearity = nn.ReLU()
        self.rbr_identity = identity_norm(a, b, 1, 1e-3)
        dense = nn.Conv2d(a, b, 3, padding=1, groups=groups)
        self.rbr_dense = nn.Sequential(OrderedDict(conv=dense))
        self.rbr_1x1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(a, b, 1, groups=groups)))

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(self.rbr_dense(x) + self.rbr_1x1(x) + identity)


class TimmBlock(nn.Module):
    """Source: huggingface/pytorch-image-models, ``RepVggBlock``. Deploy: ``reparam_conv``."""

    def __init__(self, a: int, b: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.identity = identity_norm(a, b, stride)
        self.conv_kxk = conv_norm((a, b, 3), stride, groups)
        self.conv_1x1 = conv_norm((a, b, 1), stride, groups)
        self.attn = nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.identity is None:
            return self.act(self.attn(self.conv_1x1(x) + self.conv_kxk(x)))
        total = self.conv_1x1(x) + self.conv_kxk(x)
        return self.act(self.attn(total + self.identity(x)))


class DetrBlock(nn.Module):
    """Source: lyuwenyu/RT-DETR, ``RepVggBlock``. Deploy: ``conv``, beside the branches."""

    def __init__(self, a: int, b: int, stale: bool = False) -> None:
        super().__init__()
        self.conv1 = conv_norm((a, b, 3), norm="norm")
        self.conv2 = conv_norm((a, b, 1), norm="norm")
        self.act = nn.SiLU()
        if stale:  # converted once, and trained on
            self.conv = nn.Conv2d(a, b, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv1(x) + self.conv2(x))


class RepConvN(nn.Module):
    """Source: WongKinYiu/yolov9, and ultralytics with a normalised identity. Deploy: ``conv``."""

    def __init__(self, a: int, b: int, s: int = 1, g: int = 1, bn: bool = False) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.bn = identity_norm(a, b, s, 1e-3) if bn else None
        self.conv1 = conv_norm((a, b, 3), s, g, eps=1e-3)
        self.conv2 = conv_norm((a, b, 1), s, g, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.bn is None else self.bn(x)
        return self.act(self.conv1(x) + self.conv2(x) + identity)


class PPYoloEBlock(nn.Module):
    """A learned factor on the 1 x 1. Source: PaddlePaddle/PaddleDetection. Deploy: ``conv``."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_norm((a, b, 3)), conv_norm((a, b, 1))
        self.alpha = nn.Parameter(torch.tensor([1.7]))
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv1(x) + self.alpha * self.conv2(x))


class Conv2(nn.Module):
    """Bare convolutions, one BatchNorm behind. Source: ultralytics. Deploy: ``conv``."""

    def __init__(self, a: int, b: int, s: int = 1, g: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(a, b, 3, s, 1, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(b, eps=1e-3)
        self.act = nn.SiLU()
        self.cv2 = nn.Conv2d(a, b, 1, s, groups=g, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x) + self.cv2(x)))


class RepVGGDW(nn.Module):
    """A depthwise 7 x 7 and 3 x 3. Source: THU-MIG/yolov10. Deploy: ``conv``."""

    def __init__(self, ed: int) -> None:
        super().__init__()
        self.conv = conv_norm((ed, ed, 7), 1, ed, eps=1e-3)
        self.conv1 = conv_norm((ed, ed, 3), 1, ed, eps=1e-3)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) + self.conv1(x))


def _in_frame(
    make: Callable[[], nn.Module],
    a: int,
    b: int,
    fused: str,
    eps: float | None = None,
    **more: Any,
) -> Sample:
    """Give a sample of one block, from a to b channels, between two convolutions."""
    build, keys = built(lambda: framed(make(), a, b)), (f"body.{fused}.weight",)
    return Sample(build, images(3), 1, "repvgg", keys, bn_eps=eps, **more)


def _assumed(
    dialect: str, make: Callable[[], nn.Module], a: int, b: int, eps: float | None = None
) -> Sample:
    """Give a sample whose names may as well be those of layers in sequence."""
    absorbed = ("body.alpha",) if dialect == "ppyoloe" else ()
    assume = (f"repvgg/{dialect}",)
    return _in_frame(make, a, b, "conv", eps, assume=assume, absorbed=absorbed)


SAMPLES = {
    "mmpretrain": _in_frame(lambda: MMPretrainBlock(6, 6), 6, 6, "branch_reparam"),
    "mmpretrain_groups": _in_frame(lambda: MMPretrainBlock(6, 6, 1, 3), 6, 6, "branch_reparam"),
    "mmpretrain_se": _in_frame(
        lambda: MMPretrainBlock(6, 8, 2, 2, se=True), 6, 8, "branch_reparam"
    ),
    "yolov7": _in_frame(lambda: RepConv(6, 6), 6, 6, "rbr_reparam", 1e-3),
    "yolov7_groups": _in_frame(lambda: RepConv(8, 8, g=4), 8, 8, "rbr_reparam", 1e-3),
    "yolov7_depthwise": _in_frame(lambda: RepConv(6, 6, g=6), 6, 6, "rbr_reparam", 1e-3),
    "yolov7_stride2": _in_frame(lambda: RepConv(6, 8, 2), 6, 8, "rbr_reparam", 1e-3),
    "half_fused": _in_frame(lambda: HalfFused(6, 6, 2), 6, 6, "rbr_reparam", 1e-3),
    "half_fused_wider": _in_frame(lambda: HalfFused(6, 8), 6, 8, "rbr_reparam", 1e-3),
    "timm": _in_frame(lambda: TimmBlock(6, 6, 1, 3), 6, 6, "reparam_conv"),
    "timm_stride2": _in_frame(lambda: TimmBlock(6, 8, 2), 6, 8, "reparam_conv"),
    "detr": _assumed("detr", lambda: DetrBlock(6, 6), 6, 6),
    "yolov9": _assumed("yolov9", lambda: RepConvN(6, 6), 6, 6, 1e-3),
    "yolov9_stride2": _assumed("yolov9", lambda: RepConvN(6, 8, 2, 2), 6, 8, 1e-3),
    "ultralytics": _assumed("yolov9", lambda: RepConvN(6, 6, bn=True), 6, 6, 1e-3),
    "ppyoloe": _assumed("ppyoloe", lambda: PPYoloEBlock(6, 6), 6, 6),
    "conv2": _assumed("conv2", lambda: Conv2(6, 8), 6, 8),
    "conv2_stride2": _assumed("conv2", lambda: Conv2(6, 6, 2, 3), 6, 6),
    "yolov10": _in_frame(lambda: RepVGGDW(6), 6, 6, "conv"),
}
