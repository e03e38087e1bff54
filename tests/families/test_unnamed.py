"""Families that no pattern names: what the algebra makes of them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from sample_models import awake


class ComputedKernel(nn.Module):
    """As ECB and OREPA in eval mode: a convolution whose kernel is made of other tensors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.k0 = nn.Parameter(torch.randn(2 * dim, dim, 1, 1))
        self.k1 = nn.Parameter(torch.randn(dim, 2 * dim, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, F.conv2d(self.k1, self.k0.permute(1, 0, 2, 3)), padding=1)


def test_a_convolution_with_a_computed_kernel_is_no_block():
    assert not find_in_module(awake(ComputedKernel(4), 0), PATTERNS).blocks
