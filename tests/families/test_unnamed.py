"""Families that no pattern names: what the algebra makes of them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from acfuse.verify import certify
from sample_models import awake


def depthwise(c: int, size: tuple[int, int], bias: bool = True) -> nn.Conv2d:
    """A depthwise convolution that keeps the size."""
    return nn.Conv2d(c, c, size, padding=(size[0] // 2, size[1] // 2), groups=c, bias=bias)


class RepCPE(nn.Module):
    """FastViT's position encoding. Source: apple/ml-fastvit."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pe = depthwise(dim, (7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.pe(x) + x


class RepGhostModule(nn.Module):
    """Source: ChengpengChen/RepGhost. With `plain`, the input itself is a branch as well."""

    def __init__(self, dim: int, plain: bool = False) -> None:
        super().__init__()
        self.primary_conv = nn.Sequential(
            nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU()
        )
        self.fusion_conv = nn.ModuleList([nn.Identity() for _ in range(1 + plain)])
        norms = [nn.BatchNorm2d(dim), nn.Identity()]
        self.fusion_bn = nn.ModuleList(norms[: 1 + plain])
        self.cheap_operation = nn.Sequential(depthwise(dim, (3, 3), False), nn.BatchNorm2d(dim))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary_conv(x)
        out = self.cheap_operation(x)
        for conv, norm in zip(self.fusion_conv, self.fusion_bn, strict=True):
            out = out + norm(conv(x))
        return self.relu(out)


class RepDWConvM(nn.Module):
    """Squares, oblongs, and thin ones after each other. Source: suous/RepNeXt."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_7_7 = depthwise(dim, (7, 7))
        self.conv_5_3, self.conv_3_5 = depthwise(dim, (5, 3)), depthwise(dim, (3, 5))
        self.conv_7_w = depthwise(dim, (1, 7), False)
        self.conv_7_h = depthwise(dim, (7, 1), False)
        self.conv_5_w = depthwise(dim, (1, 5), False)
        self.conv_5_h = depthwise(dim, (5, 1), False)

    def forward(self, x: Tensor) -> Tensor:
        thin = self.conv_7_h(self.conv_7_w(x)) + self.conv_5_h(self.conv_5_w(x))
        return self.conv_7_7(x) + self.conv_5_3(x) + self.conv_3_5(x) + thin


class ComputedKernel(nn.Module):
    """As ECB and OREPA in eval mode: a convolution whose kernel is made of other tensors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.k0 = nn.Parameter(torch.randn(2 * dim, dim, 1, 1))
        self.k1 = nn.Parameter(torch.randn(dim, 2 * dim, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, F.conv2d(self.k1, self.k0.permute(1, 0, 2, 3)), padding=1)


@pytest.mark.parametrize(
    "block",
    [
        lambda: RepCPE(6),
        lambda: RepGhostModule(6),
        lambda: RepGhostModule(6, plain=True),
        lambda: RepDWConvM(4),
    ],
    ids=["repcpe", "repghost", "repghost_plain", "repnext_large"],
)
def test_a_family_without_a_pattern_is_fused_by_algebra(block):
    model = awake(block(), 0)
    (found,) = find_in_module(model, PATTERNS).blocks
    assert found.pattern is None
    certificate = certify(model, fused_copy(model, (found,)), found)
    assert certificate.passed, certificate.fault
    assert certificate.ulp <= 0.51


def test_a_convolution_with_a_computed_kernel_is_no_block():
    assert not find_in_module(awake(ComputedKernel(4), 0), PATTERNS).blocks
