"""Blocks with something behind the sum, or with factors inside: QARepVGG, RepViT, RepOptimizer.

Source: arXiv:2212.01593 (meituan/YOLOv6, Deci-AI/super-gradients), arXiv:2307.09283
(THU-MIG/RepViT), arXiv:2205.15242 (DingXiaoH/RepOptimizers).
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sample_models import Sample, built, framed, images
from sample_models.repvgg_dialects import conv_norm


class QARepVGGBlock(nn.Module):
    """YOLOv6's: the 1 x 1 and the identity are bare, one BatchNorm behind. eps 1e-3."""

    def __init__(self, a: int, b: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.nonlinearity = nn.ReLU()
        self.rbr_dense = conv_norm((a, b, 3), stride, groups, eps=1e-3)
        self.rbr_1x1 = nn.Conv2d(a, b, 1, stride, groups=groups, bias=False)
        self.rbr_identity = nn.Identity() if a == b and stride == 1 else None
        self.bn = nn.BatchNorm2d(b, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(self.bn(self.rbr_dense(x) + self.rbr_1x1(x) + identity))


class YoloNasBlock(nn.Module):
    """super-gradients': ``alpha`` on the 1 x 1, and a ``rbr_reparam`` that was never trained."""

    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.branch_3x3 = conv_norm((a, b, 3), stride, eps=1e-3)
        self.branch_1x1 = nn.Conv2d(a, b, 1, stride, bias=True)
        self.alpha = nn.Parameter(torch.tensor([0.6]))
        self.identity = nn.Identity() if a == b and stride == 1 else None
        self.post_bn = nn.BatchNorm2d(b, eps=1e-3)
        self.nonlinearity = nn.ReLU()
        self.rbr_reparam = nn.Conv2d(a, b, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch_3x3(x) + self.alpha * self.branch_1x1(x)
        out = out if self.identity is None else out + self.identity(x)
        return self.nonlinearity(self.post_bn(out))


class RepVGGDW(nn.Module):
    """RepViT's: a bare biased 1 x 1 and the input itself, one BatchNorm behind."""

    def __init__(self, ed: int, legacy: bool = False) -> None:
        super().__init__()
        conv = nn.Conv2d(ed, ed, 3, 1, 1, groups=ed, bias=False)
        self.conv = nn.Sequential(OrderedDict(c=conv, bn=nn.BatchNorm2d(ed)))
        small: nn.Module = nn.Conv2d(ed, ed, 1, groups=ed, bias=not legacy)
        if legacy:
            small = nn.Sequential(OrderedDict(c=small, bn=nn.BatchNorm2d(ed)))
        self.conv1 = small
        self.bn = nn.Identity() if legacy else nn.BatchNorm2d(ed)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn((self.conv(x) + self.conv1(x)) + x)


class ScaleLayer(nn.Module):
    """One factor per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(1, -1, 1, 1)


class LinearAddBlock(nn.Module):
    """The hyper-search block of RepOptimizers: a factor on every branch, one BatchNorm behind.

    The ReLU that follows is left to the network around it.
    """

    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.scale_conv = ScaleLayer(b)
        self.conv_1x1 = nn.Conv2d(a, b, 1, stride, bias=False)
        self.scale_1x1 = ScaleLayer(b)
        self.scale_identity = ScaleLayer(b) if a == b and stride == 1 else None
        self.bn = nn.BatchNorm2d(b)

    def forward(self, x: Tensor) -> Tensor:
        out = self.scale_conv(self.conv(x)) + self.scale_1x1(self.conv_1x1(x))
        if self.scale_identity is not None:
            out = out + self.scale_identity(x)
        return self.bn(out)


def _in_frame(
    make: Callable[[], nn.Module], a: int, b: int, family: str, fused: str = "fused_conv", *,
    eps: float | None = None, bare: bool = True, absorbed: tuple[str, ...] = (),
) -> Sample:  # fmt: skip
    build, keys = built(lambda: framed(make(), a, b)), (f"body.{fused}.weight",)
    return Sample(build, images(3), 1, family, keys, "", absorbed, bn_eps=eps, bare=bare)


def _qarep(make: Callable[[], nn.Module], a: int, b: int, assume: str = "") -> Sample:
    absorbed = ("body.alpha", "body.rbr_reparam")
    sample = _in_frame(
        make, a, b, "qarepvgg", "rbr_reparam", eps=1e-3, bare=bool(assume), absorbed=absorbed
    )
    return sample._replace(assume=(assume,) if assume else ())


SAMPLES = {
    "qarepvgg": _qarep(lambda: QARepVGGBlock(6, 6), 6, 6, "qarepvgg"),
    "qarepvgg_wider": _qarep(lambda: QARepVGGBlock(6, 8, 2), 6, 8, "qarepvgg"),
    "qarepvgg_groups": _qarep(lambda: QARepVGGBlock(6, 6, groups=3), 6, 6),
    "qarepvgg_stride2": _qarep(lambda: QARepVGGBlock(6, 6, 2), 6, 6),
    "yolo_nas": _qarep(lambda: YoloNasBlock(6, 6), 6, 6, "qarepvgg/super-gradients"),
    "yolo_nas_wider": _qarep(lambda: YoloNasBlock(6, 8, 2), 6, 8, "qarepvgg/super-gradients"),
    "repvit": _in_frame(lambda: RepVGGDW(6), 6, 6, "repvit"),
    "repvit_legacy": _in_frame(lambda: RepVGGDW(6, legacy=True), 6, 6, "repvit"),
    "repoptimizer": _in_frame(lambda: LinearAddBlock(6, 6), 6, 6, "repoptimizer", eps=1e-5),
    "repoptimizer_wider": _in_frame(lambda: LinearAddBlock(6, 8), 6, 8, "repoptimizer", eps=1e-5),
}
