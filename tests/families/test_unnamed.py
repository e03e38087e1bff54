"""Families that no pattern names: what the algebra makes of them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import acfuse
from acfuse.errors import Reason
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS, Pattern
from acfuse.patterns.notation import parse
from sample_models import awake
from sample_models.padded_middle import BNAndPadLayer
from tests.families.unnamed import COSTLY, PLAIN, UNNAMED
from tests.proof.proving import certified


class ComputedKernel(nn.Module):
    """As ECB and OREPA in eval mode: a convolution whose kernel is made of other tensors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.k0 = nn.Parameter(torch.randn(2 * dim, dim, 1, 1))
        self.k1 = nn.Parameter(torch.randn(dim, 2 * dim, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, F.conv2d(self.k1, self.k0.permute(1, 0, 2, 3)), padding=1)


def said(family):
    """What docs/families.md says of a family."""
    return next(row for row in UNNAMED if row.family == family)


def test_a_convolution_with_a_computed_kernel_is_no_block():
    assert not find_in_module(awake(ComputedKernel(4), 0), PATTERNS).blocks
    assert said("ECB, EDBB").live == said("OREPA").live == PLAIN


def conv_bn(a: int, b: int, size: tuple[int, int]) -> nn.Sequential:
    pads = (size[0] // 2, size[1] // 2)
    return nn.Sequential(nn.Conv2d(a, b, size, padding=pads, bias=False), nn.BatchNorm2d(b))


class RepConvBlock(nn.Module):
    """Seven kinds of branches, each with its BatchNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        sizes = ((3, 3), (1, 1), (1, 3), (3, 1))
        self.convs = nn.ModuleList([conv_bn(dim, dim, size) for size in sizes])
        self.chain = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), conv_bn(dim, dim, (3, 3)))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(dim))
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        out = self.chain(x) + self.pool(x) + self.norm(x)
        for conv in self.convs:
            out = out + conv(x)
        return F.relu(out)


class ExpandedConv(nn.Module):
    """ExpandNets: wide in the middle, padded at the front."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(a, 4 * a, 1, padding=1), nn.Conv2d(4 * a, 4 * b, 3), nn.Conv2d(4 * b, b, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x))


class CollapsibleBlock(nn.Module):
    """SESR: a wide 3x3, a thin 1x1, and the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, 8 * dim, 3, padding=1, bias=False)
        self.squeeze = nn.Conv2d(8 * dim, dim, 1)
        self.act = nn.PReLU(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.squeeze(self.expand(x)) + x)


class SpikeRepConv(nn.Module):
    """A 1x1, a padding BatchNorm, a depthwise 3x3, a 1x1, a BatchNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(dim, dim, 3, groups=dim, bias=False)
        last = nn.Sequential(depthwise, nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        first = nn.Conv2d(dim, dim, 1, bias=False)
        self.body = nn.Sequential(first, BNAndPadLayer(1, dim), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize(
    ("family", "build"),
    [
        ("RepConvBlock with seven kinds of branches", lambda: RepConvBlock(6)),
        ("SESR, ExpandNets, overparam, mnncompress", lambda: ExpandedConv(4, 6)),
        ("SESR, ExpandNets, overparam, mnncompress", lambda: CollapsibleBlock(4)),
    ],
)
def test_a_block_that_no_pattern_names_is_one_convolution_by_algebra(family, build):
    assert "by algebra" in said(family).live
    model = awake(build(), 0)
    fused = acfuse.fuse(model)
    (found,) = fused.found
    assert found.pattern is None
    assert found.convolutions[1] == 1
    certificate = certified(fused.model, found)
    assert certificate.passed, certificate.fault


def test_a_block_whose_one_convolution_would_cost_more_stays():
    model = awake(SpikeRepConv(16), 0)
    assert not acfuse.fuse(model).found
    text = "pad as body.2.0 > body.0 > body.1.bn > body.2.0 > body.2.1 > body.2.2"
    own = Pattern("spike", parse(text), "rep", "")
    (refused,) = acfuse.fuse_tensors(model.state_dict(), patterns=(own,)).refused
    assert refused.code == Reason.COST
    assert said("Spike-Driven Transformer's RepConv")[1:3] == (COSTLY, COSTLY)
