"""Networks and blocks that several tests of reading a graph begin from."""

import pytest
import torch
from torch import nn

from tests.graph.fusing import Net, conv, norm


def weight(*shape):
    """A parameter of this shape."""
    return nn.Parameter(0.3 * torch.randn(*shape))


def add(m, x):
    """The sum of the arms `a` and `b`."""
    return m.a(x) + m.b(x)


def two(run=add, **parts):
    """A biased 3 x 3 convolution `a` and a 1 x 1 `b` beside whatever else."""
    return Net(run, **({"a": conv(3), "b": conv(1)} | parts))


def cases(networks):
    """Runs a test with each of these networks, by name."""
    return pytest.mark.parametrize("net", networks.values(), ids=list(networks))


class Block(nn.Module):
    """A 3 x 3 and a 1 x 1, and a factor that the caller may give."""

    def __init__(self):
        super().__init__()
        self.wide, self.small = conv(3), conv(1)

    def forward(self, x, scale=1.0):
        return (self.wide(x) + self.small(x)) * scale


class Named(nn.Module):
    """ACNet's official names. What the forward looks at cannot be traced."""

    def __init__(self):
        super().__init__()
        self.square_conv, self.square_bn = conv(3), norm()
        self.ver_conv, self.ver_bn = conv((3, 1)), norm()
        self.hor_conv, self.hor_bn = conv((1, 3)), norm()

    def arms(self, x):
        vertical, horizontal = self.ver_bn(self.ver_conv(x)), self.hor_bn(self.hor_conv(x))
        return self.square_bn(self.square_conv(x)) + vertical + horizontal

    def forward(self, x):
        if x.shape[-1] < 3:
            raise ValueError("too small")
        return self.arms(x)
