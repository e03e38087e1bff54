"""Running what was rewritten beside the original shows what reading it missed."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

import acfuse
from acfuse.errors import Reason
from acfuse.graph import fx_modules
from acfuse.proof import witness
from acfuse.proof.witness import Given, difference
from sample_models import awake
from tests.graph.attacks import MODELS, Part, arms
from tests.graph.fusing import Net, conv

IMAGE = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(2))
WRITES = [name for name in MODELS if name.startswith("write_")]


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_a_reader_overlooks_is_seen_by_running(name, monkeypatch):
    """Reader and run are two witnesses: with the first one silenced, the second is enough."""
    model = awake(MODELS[name]().double(), 0)
    monkeypatch.setattr(fx_modules, "write_once", lambda *_: None)
    result = acfuse.fuse(copy.deepcopy(model))
    for shape in ((1, 4, 6, 9), (2, 4, 7, 5)):
        image = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        try:
            expected = model(image.clone())
        except RuntimeError:
            continue
        torch.testing.assert_close(result.model(image.clone()), expected, rtol=1e-11, atol=1e-11)


def _named(m, x):
    y = arms(m, x)
    return {"y": y, "n": 3, "parts": [torch.relu(y), y.argmax(1)]}


def _noting(m, x):
    m.seen = 5
    return arms(m, x)


BASE = {"a": conv(3), "b": conv(1)}
CHANGES = {
    "a number": lambda m, x: {**_named(m, x), "n": 4},
    "its type": lambda m, x: {**_named(m, x), "n": 3.0},
    "a key": lambda m, x: {**_named(m, x), "z": 1},
    "an order": lambda m, x: dict(reversed(_named(m, x).items())),
    "a list": lambda m, x: {**_named(m, x), "parts": tuple(_named(m, x)["parts"])},
    "a dtype": lambda m, x: {**_named(m, x), "y": _named(m, x)["y"].double()},
    "a shape": lambda m, x: {**_named(m, x), "y": _named(m, x)["y"][:1]},
    "values": lambda m, x: {**_named(m, x), "y": _named(m, x)["y"] * 1.001},
    "infinity": lambda m, x: {**_named(m, x), "y": _named(m, x)["y"] / 0},
    "gradients": lambda m, x: {**_named(m, x), "y": _named(m, x)["y"].detach()},
    "integers": lambda m, x: {**_named(m, x), "parts": [_named(m, x)["parts"][0], x[:, 0].long()]},
    "its input": lambda m, x: (_named(m, x), x.add_(1))[0],
    "an attribute": lambda m, x: (_named(m, x), setattr(m, "seen", 5))[0],
    "an error": lambda m, x: _named(m, x[:, :3]),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_call_shows_is_compared(change):
    original = awake(Net(_named, **copy.deepcopy(BASE)), 0)
    other = copy.deepcopy(original)
    other.run = CHANGES[change]
    given = Given((IMAGE,), gradients=True)
    assert difference(original, copy.deepcopy(original), given, _not_needed) == ""
    assert difference(original, other, given, lambda: copy.deepcopy(other).double())


def _not_needed():
    raise AssertionError("nothing looked different")


def test_what_is_left_behind_is_compared_by_value():
    original = awake(Net(_noting, **copy.deepcopy(BASE)), 0)
    other = copy.deepcopy(original)
    assert difference(original, copy.deepcopy(other), Given((IMAGE,)), _not_needed) == ""
    other.run = lambda m, x: (setattr(m, "seen", 6), arms(m, x))[1]
    assert "seen" in difference(copy.deepcopy(original), other, Given((IMAGE,)), _not_needed)


def test_what_the_original_does_not_take_shows_nothing():
    original = awake(Part(), 0)
    assert difference(original, original, Given((IMAGE[:, :3],)), _not_needed) is None


class Caching(nn.Module):
    """Keeps a grid of the size of its last image, and how often it made one."""

    size: tuple[int, ...] = ()
    made = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner = Part()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        if y.shape[-2:] != self.size:
            self.grid, self.size = torch.ones_like(y[:1]), tuple(y.shape[-2:])
            self.made += 1
        return y + self.grid


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_cache_of_sizes_is_the_same_in_each_dtype(dtype):
    inner = awake(Caching(), 0).to(dtype)
    fused = acfuse.fuse(nn.Sequential(inner, Caching().to(dtype)), IMAGE.to(dtype), fold_bn=True)
    assert [block.where for block in fused.found] == ["0.inner", "1.inner"], fused.refused


def test_a_block_that_cannot_be_run_is_refused_until_an_input_is_given():
    """Nothing tells that its image has to be as large as a tensor that it holds."""

    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.place = nn.Parameter(torch.randn(1, 4, 9, 8))
            self.a, self.b = conv(3), conv(1)

        def forward(self, x):
            return torch.relu(arms(self, x) + torch.sigmoid(self.place))

    model = awake(Placed(), 0)
    assert [r.code for r in acfuse.fuse(model).refused] == [Reason.NOT_RUN]
    image = torch.randn(1, 4, 9, 8)
    for example in (image, (image,), {"x": image}):
        assert len(acfuse.fuse(model, example).found) == 1
    assert acfuse.verify(model, acfuse.fuse(model, image).model, (1, 4, 9, 8)).passed


class Head(nn.Module):
    """A block, and a layer of rows that fits one size of images."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.part = Part()
        self.rows = nn.Linear(4 * size * size, 3)

    def forward(self, x):
        return self.rows(torch.relu(self.part(x)).flatten(1))


@pytest.mark.parametrize("size", [28, 7])
def test_blocks_are_found_before_a_head_of_one_size(size):
    assert len(acfuse.fuse(awake(Head(size), 0)).found) == 1


def test_a_model_is_left_as_it_was():
    model = awake(MODELS["keeps_counter"](), 0)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    acfuse.fuse(model)
    assert model.count == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class Slots:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


def _with(change, **held):
    def build():
        model = Net(lambda m, x: (change(m), arms(m, x))[1], **copy.deepcopy(BASE))
        for name, value in held.items():
            setattr(model, name, value())
        return model

    return build


class Shared(nn.Module):
    """Counts its calls on its class."""

    count = 0

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3), conv(1)

    def forward(self, x):
        type(self).count += 1
        return torch.relu(arms(self, x))


def _draw(m):
    m.draw.random()


def _write(m):
    m.array[0] += 1


def _slot(m):
    m.slot.count += 1


HIDDEN = {
    "a class": Shared,
    "an array": _with(_write, array=lambda: np.zeros(3)),
    "slots": _with(_slot, slot=Slots),
    "an iterator": _with(lambda m: next(m.rows), rows=lambda: iter(range(1000))),
    "a random generator": _with(_draw, draw=lambda: random.Random(1)),
    "a generator of torch": _with(
        lambda m: m.draw.manual_seed(m.draw.initial_seed() + 1),
        draw=lambda: torch.Generator().manual_seed(5),
    ),
}


@pytest.mark.parametrize("where", HIDDEN)
def test_what_a_forward_keeps_out_of_sight_is_seen(where):
    result = acfuse.fuse(awake(HIDDEN[where](), 0))
    assert not result.found
    assert result.refused


ENDS = {
    "an array": lambda y: y.detach().cpu().numpy(),
    "a number": lambda y: {"y": y, "score": y.mean().item()},
    "a list of numbers": lambda y: y.mean((2, 3)).tolist(),
}


@pytest.mark.parametrize("end", ENDS)
def test_results_that_are_no_tensors_may_differ_by_rounding(end):
    model = awake(Net(lambda m, x: ENDS[end](torch.relu(m.body(x))), body=Body()), 0).float()
    fused = acfuse.fuse(model)
    assert [block.where for block in fused.found] == ["body"], fused.refused
    proofs = acfuse.verify(model, fused.model, (1, 4, 9, 7))
    assert proofs.passed, proofs.fault
    wrong = acfuse.fuse(model).model
    wrong.body.fused_conv.bias.data += 0.01
    assert not acfuse.verify(model, wrong, (1, 4, 9, 7)).passed


class Body(nn.Module):
    """Two branches, and a method that is called as authors call their own conversion."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3), conv(1)

    def fuse(self, one, other):
        return one + 2 * other

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_a_method_with_arguments_is_no_conversion_whatever_it_is_called():
    body = awake(Body(), 0).float()
    fused = acfuse.fuse(body).model
    assert fused.fuse(1, 2) == 5


SOURCES = {
    "numpy": (lambda: np.random.default_rng(0), lambda g: g.random()),
    "python": (lambda: random.Random(0), lambda g: g.random()),
    "count": (itertools.count, next),
    "list": (lambda: iter([1, 2, 3]), next),
    "range": (lambda: iter(range(5)), next),
}


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_source_of_numbers_gave_is_seen_in_it(name):
    make, draw = SOURCES[name]
    module = nn.Module()
    module.source = make()
    before = witness._state(module)
    assert witness._state(module) == before
    draw(module.source)
    assert witness._state(module) != before
