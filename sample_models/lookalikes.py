"""Networks in which nothing may be fused, though the names or the shapes say otherwise.

Most bear ACNet's official names, so that a converter that goes by names would be fooled. Each
sample's reason is a word that the refusal has to say.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sample_models import Sample, built, framed, images
from sample_models.acnet_article import ACBlock as ArticleBlock
from sample_models.repvgg import RepVGGBlock


class Arms(nn.Module):
    """The layers of ACNet's block under the official names; what is done with them differs."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        channels = (in_channels, out_channels)
        self.square_conv = nn.Conv2d(*channels, (3, 3), padding=(1, 1), bias=False)
        self.square_bn = nn.BatchNorm2d(out_channels)
        self.ver_conv = nn.Conv2d(*channels, (3, 1), padding=(1, 0), bias=False)
        self.ver_bn = nn.BatchNorm2d(out_channels)
        self.hor_conv = nn.Conv2d(*channels, (1, 3), padding=(0, 1), bias=False)
        self.hor_bn = nn.BatchNorm2d(out_channels)

    def arms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        square = self.square_bn(self.square_conv(x))
        return square, self.ver_bn(self.ver_conv(x)), self.hor_bn(self.hor_conv(x))


class Concatenated(Arms):
    """The arms stand beside each other as channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.arms(x), dim=1)


class ConcatenatedRepVGG(RepVGGBlock):
    """RepVGG's arms, beside each other as channels."""

    def forward(self, inputs: Tensor) -> Tensor:
        assert self.rbr_identity is not None
        arms = (self.rbr_dense(inputs), self.rbr_1x1(inputs), self.rbr_identity(inputs))
        return self.nonlinearity(torch.cat(arms, dim=1))


class Rectified(Arms):
    """Every arm has its ReLU before the sum."""

    def forward(self, x: Tensor) -> Tensor:
        square, vertical, horizontal = self.arms(x)
        return torch.relu(square) + torch.relu(vertical) + torch.relu(horizontal)


class RectifiedArticle(ArticleBlock):
    """The article's names, with a ReLU in every arm instead of one after the sum."""

    def forward(self, x: Tensor) -> Tensor:
        square = self.relu(self.bn3x3(self.conv3x3(x)))
        column = self.relu(self.bn3x1(self.conv3x1(x)))
        return square + column + self.relu(self.bn1x3(self.conv1x3(x)))


class OtherInputs(Arms):
    """Every arm looks at another image."""

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        square, vertical = self.square_bn(self.square_conv(x)), self.ver_bn(self.ver_conv(y))
        return square + vertical + self.hor_bn(self.hor_conv(z))


class ThreeStems(nn.Module):
    """Three views of one image for ``OtherInputs``."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Conv2d(3, 6, 3, padding=1) for _ in range(3))
        self.body = OtherInputs(6, 8)

    def forward(self, image: Tensor) -> Tensor:
        x, y, z = (torch.relu(stem(image)) for stem in self.stems)
        return torch.relu(self.body(x, y, z))


class OneAfterTheOther(Arms):
    """The 1 x 3 follows the 3 x 1 instead of standing beside it, with a ReLU between them."""

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(x))
        column = torch.relu(self.ver_bn(self.ver_conv(x)))
        return square + self.hor_bn(self.hor_conv(column))


class BiasedMiddle(Arms):
    """The 3 x 1 has a bias, and the 1 x 3 that follows it pads with zeros.

    That is one convolution everywhere but at the left and the right edge.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)
        self.ver_conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        del self.ver_bn

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(x))
        return square + self.hor_bn(self.hor_conv(self.ver_conv(x)))


class FourCorners(nn.Module):
    """A convolution whose kernel is drawn anew in every forward. Source: a public ACNet fork."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.channels = (out_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]], dtype=x.dtype)
        kernel = torch.randn(*self.channels, 3, 3, dtype=x.dtype) * mask
        return nn.functional.conv2d(x, kernel, padding=1)


class RandomCorners(Arms):
    """The official block with one more arm, which is different in every forward."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.corner_conv = FourCorners(in_channels, out_channels)
        self.corner_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        corners = self.corner_bn(self.corner_conv(x))
        square, vertical, horizontal = self.arms(x)
        return corners + square + vertical + horizontal


class WithoutStatistics(nn.Module):
    """One arm's BatchNorm keeps no running statistics: in eval, too, it uses the batch's own."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.square_conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.square_bn = nn.BatchNorm2d(out_channels, track_running_stats=False)
        self.hor_conv = nn.Conv2d(in_channels, out_channels, (1, 3), padding=(0, 1), bias=False)
        self.hor_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.square_bn(self.square_conv(x)) + self.hor_bn(self.hor_conv(x))


class InstanceNorms(Arms):
    """The norms have the official names, but normalise every image by its own statistics."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        for name in ("square_bn", "ver_bn", "hor_bn"):
            setattr(self, name, nn.InstanceNorm2d(out_channels, affine=True))

    def forward(self, x: Tensor) -> Tensor:
        square, vertical, horizontal = self.arms(x)
        return square + vertical + horizontal


class AveragePool(nn.Module):
    """A pooling arm that does not count its padding: its divisor changes at the edge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.square_conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.square_bn = nn.BatchNorm2d(channels)
        self.avg = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.avg_bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.square_bn(self.square_conv(x)) + self.avg_bn(self.avg(x))


class PooledArms(Arms):
    """The thin arms look at the input through such poolings."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        rest: dict[str, Any] = {"stride": 1, "count_include_pad": False}
        self.ver_pool = nn.AvgPool2d((1, 3), padding=(0, 1), **rest)
        self.hor_pool = nn.AvgPool2d((3, 1), padding=(1, 0), **rest)

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(x))
        vertical = self.ver_bn(self.ver_conv(self.ver_pool(x)))
        return square + vertical + self.hor_bn(self.hor_conv(self.hor_pool(x)))


class OtherStrides(Arms):
    """Strides of 1, 2 and 3, whose outputs agree in size only for a 6 x 6 map: all are 4 x 4."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        channels = (in_channels, out_channels)
        self.square_conv = nn.Conv2d(*channels, (3, 3), bias=False)
        self.ver_conv = nn.Conv2d(*channels, (3, 1), stride=2, padding=(2, 1), bias=False)
        self.hor_conv = nn.Conv2d(*channels, (1, 3), stride=3, padding=(2, 3), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        square, vertical, horizontal = self.arms(x)
        return square + vertical + horizontal


class DSConv(nn.Module):
    """A depthwise and a pointwise convolution with a ReLU between them."""

    def __init__(self, channels: tuple[int, int], kernel: tuple[int, int]) -> None:
        super().__init__()
        pads, groups = (kernel[0] // 2, kernel[1] // 2), channels[0]
        self.DConv = nn.Conv2d(groups, groups, kernel, padding=pads, groups=groups)
        self.act = nn.ReLU()
        self.PConv = nn.Conv2d(*channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.PConv(self.act(self.DConv(x)))


class SeparableArms(Arms):
    """Every convolution is a depthwise-separable pair. Source: a public YOLOv5 fork."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        for name, kernel in {"square": (3, 3), "ver": (3, 1), "hor": (1, 3)}.items():
            setattr(self, f"{name}_conv", DSConv((in_channels, out_channels), kernel))

    def forward(self, x: Tensor) -> Tensor:
        square, vertical, horizontal = self.arms(x)
        return square + vertical + horizontal


class Gated(Arms):
    """Every arm has a weight, and the weights are computed from the image."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.gate = nn.Linear(in_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.softmax(self.gate(x.mean(dim=(2, 3))), dim=1)[:, :, None, None]
        square, vertical, horizontal = self.arms(x)
        return gate[:, 0:1] * square + gate[:, 1:2] * vertical + gate[:, 2:3] * horizontal


def _resized() -> nn.Module:
    """Put ``OtherStrides`` behind a resize to the one size at which its arms agree."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 6, 3, padding=1),
            stem_relu=nn.ReLU(),
            resize=nn.Upsample(size=(6, 6)),
            body=OtherStrides(6, 8),
            relu=nn.ReLU(),
        )
    )


def _refused(make: Callable[[], nn.Module], reason: str = "") -> Sample:
    return Sample(built(make), images(3), 0, None, reason=reason, bare=False)


SAMPLES = {
    "concatenated": _refused(lambda: framed(Concatenated(6, 8), 6, 24), "concatenated"),
    "concatenated_repvgg": _refused(
        lambda: framed(ConcatenatedRepVGG(6, 6), 6, 18), "concatenated"
    )._replace(bn_eps=1e-5),
    "rectified": _refused(lambda: framed(Rectified(6, 8), 6, 8), "activation"),
    "rectified_article": _refused(lambda: framed(RectifiedArticle(6, 8), 6, 8), "activation"),
    "other_inputs": _refused(ThreeStems, "inputs"),
    "sequential": _refused(lambda: framed(OneAfterTheOther(8, 8), 8, 8), "activation"),
    "biased_middle": _refused(lambda: framed(BiasedMiddle(8), 8, 8), "bias"),
    "random_corners": _refused(lambda: framed(RandomCorners(6, 8), 6, 8), "random"),
    "without_statistics": _refused(lambda: framed(WithoutStatistics(6, 8), 6, 8), "statistics"),
    "instance_norms": _refused(lambda: framed(InstanceNorms(6, 8), 6, 8)),
    "average_pool": _refused(lambda: framed(AveragePool(8), 8, 8), "padding"),
    "pooled_arms": _refused(lambda: framed(PooledArms(6, 8), 6, 8), "padding"),
    "other_strides": _refused(_resized, "step"),
    "separable_arms": _refused(lambda: framed(SeparableArms(6, 8), 6, 8), "activation"),
    "gated": _refused(lambda: framed(Gated(6, 8), 6, 8)),
}
