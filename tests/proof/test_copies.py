"""Models that are hard to copy, wrapped, or of one dtype end in a verdict, and stay as they are."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import acfuse
from tests.proof.verdicts import SHAPE, Block, Body, drawn


class Itself(Body):
    def __deepcopy__(self, memo):
        return self


class Refusing(Body):
    def __deepcopy__(self, memo):
        raise RuntimeError("no copies, please")


class Rebuilt(Block):
    """Forgets the dtype that it has."""

    def __deepcopy__(self, memo):
        twin = type(self)(self.square.in_channels, self.square.out_channels)
        twin.load_state_dict(self.state_dict())
        return twin.train(self.training)


class OfRebuilt(Body):
    def __init__(self):
        super().__init__()
        self.first, self.second = Rebuilt(3, 8), Rebuilt(8, 8)


class WithinFloat(Block):
    def forward(self, x):
        return super().forward(x.float())


class OfPinned(Body):
    def __init__(self):
        super().__init__()
        self.first, self.second = WithinFloat(3, 8), WithinFloat(8, 8)


class Half(Body):
    def features(self, x):
        return super().features(x.half().float())


class Brain(Body):
    def __init__(self):
        super().__init__()
        self.to(torch.bfloat16)

    def features(self, x):
        return super().features(x.bfloat16())


class Cast(Body):
    def features(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().features(x)


def _normed():
    model = drawn(Body)
    nn.utils.weight_norm(model.head)
    return model


def _pruned():
    model = drawn(Body)
    prune.l1_unstructured(model.head, "weight", 0.3)
    return model


def _pruned_within():
    model = drawn(Body)
    prune.l1_unstructured(model.second.square, "weight", 0.3)
    return model


# With how many blocks are fused.
MODELS = {
    "a copy that is itself": (lambda: drawn(Itself), 2),
    "no copy": (lambda: drawn(Refusing), 2),
    "a copy of another dtype": (lambda: drawn(OfRebuilt), 2),
    "blocks that pin a dtype": (lambda: drawn(OfPinned), 2),
    "half": (lambda: drawn(Half), 2),
    "bfloat16": (lambda: drawn(Brain), 2),
    "autocast": (lambda: drawn(Cast), 0),
    "weight_norm": (_normed, 2),
    "pruned": (_pruned, 2),
    "pruned in a block": (_pruned_within, 1),
    "parallel": (lambda: nn.DataParallel(drawn(Body)), 2),
    "compiled": (lambda: torch.compile(drawn(Body)), 2),
    "scripted": (lambda: torch.jit.script(drawn(Body)), 0),
}


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("kind", MODELS)
def test_it_ends_in_a_verdict_and_the_model_stays_as_it_is(kind):
    make, count = MODELS[kind]
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    fused = acfuse.fuse(model)
    assert len(fused.found) == count
    for shapes in ((), (SHAPE,)):
        proofs = acfuse.verify(model, fused.model, *shapes)
        assert proofs.passed, proofs.fault
    after = model.state_dict()
    assert all(v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in after.items())
    assert [module.training for module in model.modules()] == modes


def test_what_is_fused_of_it_is_no_part_of_the_original():
    model = drawn(Itself)
    fused = acfuse.fuse(model).model
    assert not {id(m) for m in model.modules()} & {id(m) for m in fused.modules()}
    assert copy.deepcopy(model) is model
