"""ACNet's block in text detectors: an identity arm, and main kernels that are thin themselves.

Source: arXiv:2111.02394 (FAST), github.com/czczup/FAST; its descendants in mindee/doctr and
huggingface/transformers have their own names. Deploy form: ``fused_conv``; transformers has none.
"""

import torch
from torch import Tensor, nn

from sample_models import Sample, built, framed, images

Size = tuple[int, int]


def _conv(
    channels: tuple[int, int], kernel: Size, stride: int, groups: int, dilation: int = 1
) -> nn.Conv2d:
    pads = ((kernel[0] - 1) * dilation // 2, (kernel[1] - 1) * dilation // 2)
    return nn.Conv2d(*channels, kernel, stride, pads, dilation, groups, bias=False)


def _identity(in_channels: int, out_channels: int, stride: int) -> nn.BatchNorm2d | None:
    return nn.BatchNorm2d(in_channels) if in_channels == out_channels and stride == 1 else None


class ACBlock(nn.Module):
    """FAST's ``ACBlock``: the official names, the normalised input where it fits, a ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        channels, rest = (in_channels, out_channels), (stride, groups, dilation)
        self.nonlinearity = nn.ReLU(inplace=True)
        self.square_conv = _conv(channels, (kernel_size, kernel_size), *rest)
        self.square_bn = nn.BatchNorm2d(out_channels)
        self.ver_conv = _conv(channels, (kernel_size, 1), *rest)
        self.hor_conv = _conv(channels, (1, kernel_size), *rest)
        self.ver_bn = nn.BatchNorm2d(out_channels)
        self.hor_bn = nn.BatchNorm2d(out_channels)
        self.rbr_identity = _identity(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(x))
        vertical = self.ver_bn(self.ver_conv(x))
        horizontal = self.hor_bn(self.hor_conv(x))
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(square + vertical + horizontal + identity)


class RepConvLayer(nn.Module):
    """FAST's layer. A 3 x 1 main kernel has no vertical arm, and its horizontal one is 1 x 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        channels, rest = (in_channels, out_channels), (stride, groups)
        tall, wide = kernel_size[0] != 1, kernel_size[1] != 1
        self.nonlinearity = nn.ReLU(inplace=True)
        self.main_conv = _conv(channels, kernel_size, *rest)
        self.main_bn = nn.BatchNorm2d(out_channels)
        self.ver_conv = _conv(channels, (kernel_size[0], 1), *rest) if wide else None
        self.ver_bn = nn.BatchNorm2d(out_channels) if wide else None
        self.hor_conv = _conv(channels, (1, kernel_size[1]), *rest) if tall else None
        self.hor_bn = nn.BatchNorm2d(out_channels) if tall else None
        self.rbr_identity = _identity(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        main = self.main_bn(self.main_conv(x))
        vertical: Tensor | int = 0
        if self.ver_conv is not None and self.ver_bn is not None:
            vertical = self.ver_bn(self.ver_conv(x))
        horizontal: Tensor | int = 0
        if self.hor_conv is not None and self.hor_bn is not None:
            horizontal = self.hor_bn(self.hor_conv(x))
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(main + vertical + horizontal + identity)


class FASTConvLayer(nn.Module):
    """The layer of docTR: the main convolution is ``conv`` and ``bn``.

    Early versions used the identity only beside a vertical arm: with a 3 x 1 kernel
    it is registered and trained nowhere, and fusing it in would be wrong.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: int = 1,
        early: bool = False,
    ) -> None:
        super().__init__()
        channels, rest = (in_channels, out_channels), (stride, 1)
        tall, wide = kernel_size[0] != 1, kernel_size[1] != 1
        self.early = early
        self.hor_conv = _conv(channels, (1, kernel_size[1]), *rest) if tall else None
        self.hor_bn = nn.BatchNorm2d(out_channels) if tall else None
        self.ver_conv = _conv(channels, (kernel_size[0], 1), *rest) if wide else None
        self.ver_bn = nn.BatchNorm2d(out_channels) if wide else None
        self.activation = nn.ReLU(inplace=True)
        self.conv = _conv(channels, kernel_size, *rest)
        self.bn = nn.BatchNorm2d(out_channels)
        self.rbr_identity = _identity(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        total = self.bn(self.conv(x))
        if self.ver_conv is not None and self.ver_bn is not None:
            total = total + self.ver_bn(self.ver_conv(x))
        if self.hor_conv is not None and self.hor_bn is not None:
            total = total + self.hor_bn(self.hor_conv(x))
        if self.rbr_identity is not None and not (self.early and self.ver_bn is None):
            total = total + self.rbr_identity(x)
        return self.activation(total)


class TextNetRepConvLayer(nn.Module):
    """The layer of transformers, whose arms' names are spelt out."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: int = 1
    ) -> None:
        super().__init__()
        channels, rest = (in_channels, out_channels), (stride, 1)
        tall, wide = kernel_size[0] != 1, kernel_size[1] != 1
        self.activation_function = nn.ReLU()
        self.main_conv = _conv(channels, kernel_size, *rest)
        self.main_batch_norm = nn.BatchNorm2d(out_channels)
        self.vertical_conv = _conv(channels, (kernel_size[0], 1), *rest) if wide else None
        self.vertical_batch_norm = nn.BatchNorm2d(out_channels) if wide else None
        self.horizontal_conv = _conv(channels, (1, kernel_size[1]), *rest) if tall else None
        self.horizontal_batch_norm = nn.BatchNorm2d(out_channels) if tall else None
        self.rbr_identity = _identity(in_channels, out_channels, stride)

    def forward(self, hidden: Tensor) -> Tensor:
        outputs = self.main_batch_norm(self.main_conv(hidden))
        if self.vertical_conv is not None and self.vertical_batch_norm is not None:
            outputs = outputs + self.vertical_batch_norm(self.vertical_conv(hidden))
        if self.horizontal_conv is not None and self.horizontal_batch_norm is not None:
            outputs = outputs + self.horizontal_batch_norm(self.horizontal_conv(hidden))
        if self.rbr_identity is not None:
            outputs = outputs + self.rbr_identity(hidden)
        return self.activation_function(outputs)


class TextNet(nn.Module):
    """A stage of transformers' layers with the three main kernels in turn, behind a stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(6)
        kernels: tuple[Size, ...] = ((3, 3), (3, 1), (1, 3))
        layers = [TextNetRepConvLayer(6 if i == 0 else 8, 8, k) for i, k in enumerate(kernels)]
        self.stage = nn.ModuleList(layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = torch.relu(self.stem_norm(self.stem(pixel_values)))
        for layer in self.stage:
            hidden = layer(hidden)
        return hidden


def _in_frame(block: type[nn.Module], a: int, b: int, kernel: Size | int, *rest: int) -> Sample:
    """Give a sample of one block between two convolutions."""
    build = built(lambda: framed(block(a, b, kernel, *rest), a, b))
    named = block is not TextNetRepConvLayer
    return Sample(build, images(3), 1, "acnet", ("body.fused_conv.weight",) if named else ())


SAMPLES = {
    "fast_block": _in_frame(ACBlock, 6, 6, 3),
    "fast_block_stride2": _in_frame(ACBlock, 6, 8, 3, 2),
    "fast_block_k5": _in_frame(ACBlock, 4, 4, 5),
    "fast_block_dilation2": _in_frame(ACBlock, 6, 6, 3, 1, 2),
    "fast_block_groups": _in_frame(ACBlock, 6, 6, 3, 1, 1, 3),
    "fast": _in_frame(RepConvLayer, 6, 6, (3, 3)),
    "fast_tall": _in_frame(RepConvLayer, 6, 6, (3, 1)),
    "fast_wide": _in_frame(RepConvLayer, 6, 8, (1, 3)),
    "fast_stride2": _in_frame(RepConvLayer, 6, 8, (3, 3), 2),
    "fast_oblong": _in_frame(RepConvLayer, 4, 4, (5, 3), 1, 2),
    "doctr": _in_frame(FASTConvLayer, 6, 6, (3, 3)),
    "doctr_tall": _in_frame(FASTConvLayer, 6, 6, (3, 1)),
    "doctr_wide": _in_frame(FASTConvLayer, 6, 8, (1, 3), 2),
    "doctr_unused_identity": Sample(
        built(lambda: framed(FASTConvLayer(6, 6, (3, 1), early=True), 6, 6)),
        images(3),
        1,
        None,
        bare=False,
    ),
    "transformers": _in_frame(TextNetRepConvLayer, 6, 6, (3, 3)),
    "transformers_tall": _in_frame(TextNetRepConvLayer, 6, 8, (3, 1), 2),
    "transformers_wide": _in_frame(TextNetRepConvLayer, 6, 6, (1, 3)),
    "transformers_net": Sample(built(TextNet), images(3), 3, "acnet"),
}
