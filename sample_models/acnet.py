"""The official ACBlock, in both generations, and its cousins on one and three axes.

Source: arXiv:1908.03930 and github.com/DingXiaoH/ACNet: ``acnet/acb.py`` is the current block,
``deprecated/acnet/acnet_builder.py`` the legacy one. The authors' deploy form is ``fused_conv``.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sample_models import Sample, built, framed, images
from sample_models.digits import AcNet

Pair = int | tuple[int, int]


class ACBlock(nn.Module):
    """The current generation: k x k, k x 1 and 1 x k, a BatchNorm each, and their sum.

    An arm whose padding would be negative sees a slice of the input instead. The published
    constructor forgets the dilation when it aligns the arms; this one does not.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: Pair = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        use_affine: bool = True,
        ver: bool = True,
        hor: bool = True,
    ) -> None:
        super().__init__()

        def conv(kernel: tuple[int, int], pads: tuple[int, int]) -> nn.Conv2d:
            channels = (in_channels, out_channels)
            rest: dict[str, Any] = {"groups": groups, "bias": False, "padding_mode": padding_mode}
            return nn.Conv2d(*channels, kernel, stride, pads, dilation, **rest)

        beyond = padding - dilation * (kernel_size // 2)
        self.crop = max(-beyond, 0)
        across = max(beyond, 0)
        self.square_conv = conv((kernel_size, kernel_size), (padding, padding))
        self.square_bn = nn.BatchNorm2d(out_channels, affine=use_affine)
        self.ver_conv = conv((kernel_size, 1), (padding, across)) if ver else None
        self.ver_bn = nn.BatchNorm2d(out_channels, affine=use_affine) if ver else None
        self.hor_conv = conv((1, kernel_size), (across, padding)) if hor else None
        self.hor_bn = nn.BatchNorm2d(out_channels, affine=use_affine) if hor else None

    def forward(self, x: Tensor) -> Tensor:
        result = self.square_bn(self.square_conv(x))
        if self.ver_conv is not None and self.ver_bn is not None:
            tall = x[:, :, :, self.crop : -self.crop] if self.crop else x
            result = result + self.ver_bn(self.ver_conv(tall))
        if self.hor_conv is not None and self.hor_bn is not None:
            wide = x[:, :, self.crop : -self.crop, :] if self.crop else x
            result = result + self.hor_bn(self.hor_conv(wide))
        return result


class CropLayer(nn.Module):
    """Cut as many rows and columns from every edge, either of which may be none."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        if self.rows:
            x = x[:, :, self.rows : -self.rows, :]
        if self.columns:
            x = x[:, :, :, self.columns : -self.columns]
        return x


class LegacyACBlock(nn.Module):
    """The first generation: its arms are 3 x 1 and 1 x 3 in a square of any size.

    What padding cannot align, a crop layer does. A BatchNorm may follow the sum.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: Pair = 1,
        padding: int = 0,
        groups: int = 1,
        use_last_bn: bool = False,
    ) -> None:
        super().__init__()

        def conv(kernel: Pair, pads: Pair) -> nn.Conv2d:
            channels = (in_channels, out_channels)
            return nn.Conv2d(*channels, kernel, stride, pads, groups=groups, bias=False)

        self.square_conv = conv(kernel_size, padding)
        self.square_bn = nn.BatchNorm2d(out_channels)
        beyond = padding - kernel_size // 2  # on an axis where the arm has one tap
        along = beyond + 1  # on the axis where it has three
        crops = beyond < 0
        self.ver_conv_crop_layer = CropLayer(-along, -beyond) if crops else nn.Identity()
        self.ver_conv = conv((3, 1), 0 if crops else (along, beyond))
        self.hor_conv_crop_layer = CropLayer(-beyond, -along) if crops else nn.Identity()
        self.hor_conv = conv((1, 3), 0 if crops else (beyond, along))
        self.ver_bn = nn.BatchNorm2d(out_channels)
        self.hor_bn = nn.BatchNorm2d(out_channels)
        if use_last_bn:
            self.last_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(x))
        vertical = self.ver_bn(self.ver_conv(self.ver_conv_crop_layer(x)))
        horizontal = self.hor_bn(self.hor_conv(self.hor_conv_crop_layer(x)))
        result = square + vertical + horizontal
        return self.last_bn(result) if hasattr(self, "last_bn") else result


class ACBlock1d(nn.Module):
    """A cousin for signals: five taps, three and one, under the official names."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        rest: dict[str, Any] = {"stride": stride, "groups": groups, "bias": False}
        self.square_conv = nn.Conv1d(in_channels, out_channels, 5, padding=2, **rest)
        self.square_bn = nn.BatchNorm1d(out_channels)
        self.ver_conv = nn.Conv1d(in_channels, out_channels, 3, padding=1, **rest)
        self.ver_bn = nn.BatchNorm1d(out_channels)
        self.hor_conv = nn.Conv1d(in_channels, out_channels, 1, **rest)
        self.hor_bn = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(x))
        return square + self.ver_bn(self.ver_conv(x)) + self.hor_bn(self.hor_conv(x))


class ACBlock3d(nn.Module):
    """A cousin for volumes: 3 x 3 x 3, one column along the depth, one slice across it."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()

        def conv(kernel: tuple[int, int, int], pads: tuple[int, int, int]) -> nn.Conv3d:
            return nn.Conv3d(in_channels, out_channels, kernel, stride, pads, bias=False)

        self.square_conv = conv((3, 3, 3), (1, 1, 1))
        self.square_bn = nn.BatchNorm3d(out_channels)
        self.ver_conv = conv((3, 1, 1), (1, 0, 0))
        self.ver_bn = nn.BatchNorm3d(out_channels)
        self.hor_conv = conv((1, 3, 3), (0, 1, 1))
        self.hor_bn = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(x))
        return square + self.ver_bn(self.ver_conv(x)) + self.hor_bn(self.hor_conv(x))


class Twice(nn.Module):
    """One block that is called twice: fused once, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=(2, 1), padding=1)
        self.body = ACBlock(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.relu(self.body(torch.relu(self.body(x))))


class Strangers(nn.Module):
    """A block among layers whose names contain ``hor_``, ``ver_`` and ``square_`` by chance."""

    least_square_weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.anchor_conv = nn.Conv2d(3, 6, 3, padding=1)
        self.cover_bn = nn.BatchNorm2d(6)
        self.body = ACBlock(6, 8, 3, padding=1)
        self.recover_conv = nn.Conv2d(8, 6, 1)
        self.author_bias = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.register_buffer("least_square_weights", torch.rand(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.cover_bn(self.anchor_conv(x)))
        y = torch.relu(self.recover_conv(torch.relu(self.body(x))))
        return x * torch.sigmoid(y * self.least_square_weights + self.author_bias)


def with_eps(model: nn.Module, eps: float) -> nn.Module:
    """Set every BatchNorm's eps after construction, as detectors do: no state dict tells it."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = eps
    return model


def _in_frame(block: Callable[..., nn.Module], *channels_and_size: int, **settings: Any) -> Sample:
    """Give a sample of one block, built with these arguments, between two convolutions."""
    a, b = channels_and_size[:2]
    build = built(lambda: framed(block(*channels_and_size, **settings), a, b))
    return Sample(build, images(3), 1, "acnet", ("body.fused_conv.weight",))


def _alone(block: Callable[..., nn.Module], *channels_and_size: int, **settings: Any) -> Sample:
    """Give a sample where the block is the whole network."""
    build = built(lambda: block(*channels_and_size, **settings))
    shapes = images(channels_and_size[0])
    return Sample(build, shapes, 1, "acnet", ("fused_conv.weight",))


def _before_relu(block: Callable[[], nn.Module], shapes: tuple[tuple[int, ...], ...]) -> Sample:
    """Give a sample of one block, as ``body``, and a ReLU."""
    build = built(lambda: nn.Sequential(OrderedDict(body=block(), relu=nn.ReLU())))
    return Sample(build, shapes, 1, "acnet", ("body.fused_conv.weight",))


_BODY = ("body.fused_conv.weight",)

SAMPLES = {
    "k3": _in_frame(ACBlock, 6, 8, 3, padding=1),
    "k3_alone": _alone(ACBlock, 6, 10, 3, padding=1),
    "k3_p0": _in_frame(ACBlock, 6, 8, 3, padding=0),
    "k3_p0_alone": _alone(ACBlock, 4, 5, 3, padding=0, stride=2),
    "k3_p2": _in_frame(ACBlock, 8, 6, 3, padding=2),
    "stride2": _in_frame(ACBlock, 6, 8, 3, padding=1, stride=2),
    "stride12": _in_frame(ACBlock, 6, 8, 3, padding=1, stride=(1, 2)),
    "groups": _in_frame(ACBlock, 6, 9, 3, padding=1, groups=3),
    "groups_stride21": _alone(ACBlock, 8, 4, 3, padding=1, groups=2, stride=(2, 1)),
    "depthwise": _in_frame(ACBlock, 8, 8, 3, padding=1, groups=8),
    "depthwise_doubled": _in_frame(ACBlock, 5, 10, 3, padding=1, groups=5),
    "k5": _in_frame(ACBlock, 4, 6, 5, padding=2),
    "k5_p1": _in_frame(ACBlock, 4, 6, 5, padding=1),
    "k5_p1_stride2": _alone(ACBlock, 4, 6, 5, padding=1, stride=2),
    "k5_p4": _alone(ACBlock, 4, 6, 5, padding=4),
    "k7": _in_frame(ACBlock, 4, 6, 7, padding=3)._replace(
        input_shapes=(*images(3), (2, 3, 3, 5))  # smaller than the kernel
    ),
    "dilation2": _in_frame(ACBlock, 6, 8, 3, padding=2, dilation=2),
    "dilation2_stride2": _alone(ACBlock, 6, 8, 3, padding=2, dilation=2, stride=2, groups=2),
    "reflect": _in_frame(ACBlock, 6, 8, 3, padding=1, padding_mode="reflect"),
    "reflect_k5_stride2": _alone(
        ACBlock, 4, 6, 5, padding=2, padding_mode="reflect", stride=(2, 1)
    ),
    "circular": _in_frame(ACBlock, 6, 8, 3, padding=1, padding_mode="circular"),
    "replicate": _in_frame(ACBlock, 6, 8, 3, padding=1, padding_mode="replicate", groups=2),
    "no_affine": _in_frame(ACBlock, 6, 8, 3, padding=1, use_affine=False),
    "eps": Sample(
        built(lambda: framed(with_eps(ACBlock(6, 8, 3, padding=1), 1e-3), 6, 8)),
        images(3),
        1,
        "acnet",
        _BODY,
        bare=False,  # fusing with 1e-5 would be wrong, and no tensor says so
    ),
    "ver_only": _in_frame(ACBlock, 6, 8, 3, padding=1, hor=False),
    "hor_only": _in_frame(ACBlock, 6, 8, 3, padding=1, ver=False, stride=(1, 2)),
    "shared": Sample(built(Twice), images(3), 1, "acnet", _BODY),
    "strangers": Sample(built(Strangers), images(3), 1, "acnet", _BODY),
    "one_axis": _before_relu(
        lambda: ACBlock1d(4, 6, stride=2, groups=2), ((1, 4, 17), (3, 4, 12), (1, 4, 9))
    ),
    "three_axes": _before_relu(
        lambda: ACBlock3d(3, 4, stride=(1, 2, 1)),
        ((1, 3, 5, 8, 7), (3, 3, 4, 5, 6), (1, 3, 3, 4, 9)),
    ),
    "legacy_k3": _in_frame(LegacyACBlock, 6, 8, 3, padding=1),
    "legacy_k3_p0": _in_frame(LegacyACBlock, 6, 8, 3, padding=0),
    "legacy_k5": _in_frame(LegacyACBlock, 4, 6, 5, padding=2, stride=2),
    "legacy_k5_p1": _in_frame(LegacyACBlock, 4, 6, 5, padding=1),
    "legacy_k5_p0": _alone(LegacyACBlock, 4, 6, 5, padding=0),
    "legacy_k7": _in_frame(LegacyACBlock, 4, 6, 7, padding=3, groups=2),
    "last_bn": _in_frame(LegacyACBlock, 6, 8, 3, padding=1, use_last_bn=True),
    "last_bn_alone": _alone(LegacyACBlock, 4, 6, 5, padding=1, use_last_bn=True),
    "digits": Sample(
        built(AcNet),
        images(1),
        5,
        "acnet",
        tuple(f"features.{i}.acb.fused_conv.weight" for i in range(5)),
    ),
}
