"""No correct fusion is called wrong, whatever the network ends in, and no wrong one right."""

import copy

import pytest
import torch
from torch import nn

import acfuse
from sample_models import awake
from sample_models.acnet import ACBlock

SHAPE = (1, 3, 24, 20)
TAILS = {
    "plain": lambda x: x,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(1),
    "argmax": lambda x: x.argmax(1),
    "mask": lambda x: x > 0,
    "pixels": lambda x: (x.sigmoid() * 255).to(torch.uint8),
    "boxes above a threshold": lambda x: x.flatten()[x.flatten() > 0.5],
    "boxes that never are": lambda x: x.flatten()[x.flatten() > 1e6],
    "scores beside large boxes": lambda x: torch.cat([x * 1e4, x.sigmoid()], 1),
    "best scores": lambda x: x.flatten(1).topk(3).values,
    "by name": lambda x: {"a": x, "n": 3},
}


class Tailed(nn.Module):
    """Two blocks, a head, and what follows."""

    def __init__(self, tail):
        super().__init__()
        self.a, self.b = ACBlock(3, 8, 3, padding=1), ACBlock(8, 8, 3, padding=1)
        self.head, self.tail = nn.Conv2d(8, 5, 1), tail

    def forward(self, x):
        return self.tail(self.head(torch.relu(self.b(torch.relu(self.a(x))))))


def _times(model, path, factor):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_parameter(path).mul_(factor)
    return changed


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tail", TAILS)
def test_a_right_fusion_passes_and_one_part_in_ten_thousand_fails(tail, seed):
    model = awake(Tailed(TAILS[tail]), seed)
    fused = acfuse.fuse(model).model
    proofs = acfuse.verify(model, fused, SHAPE)
    assert proofs.passed, proofs.fault
    for path in ("a.fused_conv.weight", "head.weight", "head.bias"):
        wrong = _times(fused, path, 1.0001)
        assert not acfuse.verify(model, wrong, SHAPE).passed
        assert not acfuse.verify(model, wrong).passed


def test_what_nothing_was_compared_of_is_said():
    model = awake(Tailed(TAILS["boxes that never are"]), 0)
    proofs = acfuse.verify(model, acfuse.fuse(model).model, SHAPE)
    assert any("nothing was compared" in check.warning for check in proofs.checks)
