"""`--fold-bn`: what is left of lone BatchNorms is taken up by the convolution beside it."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from sample_models import awake
from tests.graph.fusing import SHAPES, Net, assert_same, conv, norm
from tests.proof.proving import certified


class NormAct(nn.BatchNorm2d):
    """A norm that brings its activation: many libraries have one."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return self.act(self.drop(x))


def folded(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A folded copy that gives the same, and the BatchNorms that are left."""
    model = awake(copy.deepcopy(model), 0).double()
    findings = find_in_module(model, PATTERNS, folds=True)
    fused = fused_copy(model, findings.found)
    assert_same(model, fused, SHAPES)
    for block in findings.found:
        assert certified(fused, block).fault == ""
    left = [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    return fused, left


@pytest.mark.parametrize(
    ("run", "left"),
    [
        (lambda m, x: torch.relu(m.n(m.a(x))), []),
        (lambda m, x: torch.relu(m.b(m.n(torch.relu(x)))), []),
        (lambda m, x: torch.relu(m.a(m.n(torch.relu(x)))), ["n"]),  # its shift meets zero padding
        (lambda m, x: m.n(torch.relu(m.a(x))), ["n"]),
        (lambda m, x: (lambda y: m.n(y) * torch.sigmoid(y))(m.a(x)), ["n"]),
        (lambda m, x: torch.relu(m.n(m.o(m.a(x)))), []),
        (lambda m, x: torch.relu(m.b(m.n(m.a(x)))), []),
    ],
    ids=["behind", "before", "before_padded", "activation", "shared", "two_norms", "between"],
)
def test_a_batch_norm_is_folded_where_that_is_exact(run, left):
    parts = {"a": conv(3), "b": conv(1), "n": norm(), "o": norm()}
    _, found = folded(Net(run, **parts))
    assert [n for n in found if n != "o"] == left


def test_a_norm_that_brings_its_activation_leaves_the_activation():
    fused, left = folded(Net(lambda m, x: m.n(m.a(x)) + x, a=conv(3), n=NormAct(4)))
    assert left == []
    assert set(fused.state_dict()) == {"a.weight", "a.bias"}
    assert isinstance(fused.get_submodule("n.act"), nn.ReLU)


def test_a_chain_of_norms_with_activations_is_folded():
    fused, left = folded(
        nn.Sequential(conv(3), NormAct(4), conv(1), NormAct(4), conv(3), norm(), nn.Sigmoid())
    )
    assert left == []
    stored = io.BytesIO()
    torch.save(fused, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    image = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    assert torch.equal(again(image), fused(image))


def test_a_norm_of_two_convolutions_serves_both():
    fused, left = folded(
        Net(lambda m, x: m.n(m.a(x)) * m.n(m.b(x)), a=conv(3), b=conv(1), n=NormAct(4))
    )
    assert left == []
    assert set(fused.state_dict()) == {"a.weight", "a.bias", "b.weight", "b.bias"}


def test_a_norm_whose_weight_is_read_elsewhere_keeps_it():
    def run(m, x):
        return m.n(m.a(x)) * m.n.weight.mean()

    fused, _ = folded(Net(run, a=conv(3), n=NormAct(4)))
    assert "n.weight" in fused.state_dict()


def test_a_norm_without_its_convolution_stays_a_call():
    fused, left = folded(Net(lambda m, x: m.n(torch.relu(x)), n=NormAct(4)))
    assert left == ["n"]
    assert isinstance(fused.n, NormAct)


def test_a_fold_beside_a_value_that_is_kept_for_several():
    """Both arms read the value: it is made once, with its BatchNorm in its kernel."""

    def run(m, x):
        y = m.n(m.a(x))
        return m.d(y) + m.o(y)

    parts = {"a": conv(1), "n": norm(), "o": norm(), "d": nn.Conv2d(4, 4, 3, 1, 1, groups=4)}
    _, left = folded(Net(run, **parts))
    assert left == []
