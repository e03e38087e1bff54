"""RepVGG blocks folded as their authors' own script folds them: in the dtype of the weights."""

import torch
from torch import nn
from torch.nn import functional as F

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy

SHAPE = (2, 6, 9, 12)


class Block(nn.Module):
    """RepVGG's: a 3x3, a 1x1 and, where it can be, an identity, each with its BatchNorm."""

    def __init__(self, inside, out, stride=1):
        super().__init__()
        same = inside == out and stride == 1
        self.rbr_identity = nn.BatchNorm2d(out) if same else None
        for name, size in (("rbr_dense", 3), ("rbr_1x1", 1)):
            conv = nn.Conv2d(inside, out, size, stride, size // 2, bias=False)
            arm = nn.Sequential()
            arm.add_module("conv", conv)
            arm.add_module("bn", nn.BatchNorm2d(out))
            setattr(self, name, arm)

    def forward(self, x):
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return F.relu(y if self.rbr_identity is None else y + self.rbr_identity(x))


def network(seed=0, variance=(0.3, 3.0)):
    torch.manual_seed(seed)
    net = nn.Sequential(Block(6, 10, 2), Block(10, 10), nn.Conv2d(10, 5, 1))
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.5)
        norm.running_var.uniform_(*variance)
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.3)
    return net.eval()


def fold(block, eps=None, without=(), turned=False):
    """The authors' own switch_to_deploy, in the dtype of the weights."""
    kernel, bias = 0, 0
    for name in ("rbr_dense", "rbr_1x1", "rbr_identity"):
        arm = getattr(block, name)
        if arm is None or name in without:
            continue
        if isinstance(arm, nn.BatchNorm2d):
            own, norm = torch.eye(arm.num_features).to(arm.weight)[..., None, None], arm
        else:
            own, norm = arm.conv.weight, arm.bn
        own = own.mT if turned else own
        pads = (3 - own.shape[-1]) // 2
        std = (norm.running_var + (norm.eps if eps is None else eps)).sqrt()
        scale = norm.weight / std
        kernel = kernel + F.pad(own * scale[:, None, None, None], [pads] * 4)
        bias = bias + (norm.bias - norm.running_mean * norm.weight / std)
    return kernel.detach(), bias.detach()


def folded(net, trained=None, **mistake):
    """The fused form with the weights that the authors' script gives, of the net or another."""
    found = find_in_module(net, PATTERNS).found
    fused = fused_copy(net, found)
    for block in found:
        layer = fused.get_submodule(block.names[0])
        weight, bias = fold((trained or net).get_submodule(block.where), **mistake)
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    return fused, found
