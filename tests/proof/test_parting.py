"""Traces of programs, and where two of them part."""

import copy

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import acfuse
from acfuse.proof.parting import parting
from acfuse.proof.running import Inputs, named_shapes
from acfuse.proof.trace import CHUNK, Mark, trace_of_model
from acfuse.proof.trace_onnx import trace_of_onnx
from sample_models import awake, samples
from tests.proof.onnx_nets import Network, exported

IMAGE = {"x": torch.randn(2, 3, 15, 18, generator=torch.Generator().manual_seed(0))}


def traced(model, dtype=torch.float64, image=IMAGE):
    return trace_of_model(model, image, dtype)


def parted(model, other, image=IMAGE):
    return parting(traced(model, image=image), traced(other, image=image), torch.float32)


@pytest.mark.parametrize("size", [2, 7, CHUNK - 1, CHUNK, CHUNK + 3])
def test_marks_are_as_far_apart_as_their_values(size):
    generator = torch.Generator().manual_seed(size)
    value = torch.randn(size, generator=generator, dtype=torch.float64)
    other = value.clone()
    other[-1] += 1e-3
    one, two = Mark.of(value), Mark.of(other)
    apart = max(abs(a - b) for a, b in zip(one.sums, two.sums, strict=True))
    # Sums of so many numbers, each rounded.
    rounding = 4 * size * torch.finfo(torch.float64).eps * float(value.abs().sum())
    assert abs(apart - 1e-3) <= rounding
    assert Mark.of(value.reshape(1, -1)).sums == one.sums
    assert Mark.of(value.flip(0)).sums != one.sums


def test_what_is_no_number_or_only_one_has_no_mark():
    assert Mark.of(torch.zeros(())) is None
    assert Mark.of(torch.zeros(1)) is None
    assert Mark.of(torch.zeros(0)) is None


def test_a_trace_keeps_the_steps_with_their_modules_and_settings():
    steps = traced(awake(Network(), 0)).steps
    head = next(step for step in steps if step.where == "head")
    assert (head.operator, head.settings["stride"]) == ("convolution", [2, 2])
    assert [tuple(w.shape) for w in head.weights] == [(5, 8, 3, 3), (5,)]
    assert [s.where for s in steps if s.operator == "convolution"] == [
        "first.square", "first.point", "second.square", "second.point", "head",
    ]  # fmt: skip


class InPlace(nn.Module):
    """Writes over its own values, through views as well."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.factor = 2.0

    def forward(self, x):
        y = self.one(x)
        half = y[:, :2]
        half.mul_(self.factor)
        y.relu_()
        return self.two(y)


def test_what_is_written_over_is_another_value():
    model = awake(InPlace(), 0)
    other = copy.deepcopy(model)
    assert not parted(model, other)
    other.factor = 3.0
    found = parted(model, other)
    assert (found.original.operator, found.other.operator) == ("mul_", "mul_")
    assert found.other.settings == {"other": 3.0} or found.other.settings == {}
    last = copy.deepcopy(model)
    with torch.no_grad():
        last.two.weight[0, 0, 0, 0] += 1
    assert parted(model, last).other.where == "two"


def test_the_model_and_its_hooks_stay_as_they_are():
    model = awake(Network(), 0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.first.train()
    traced(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert next(model.parameters()).dtype == torch.float32


class Two(nn.Module):
    """Two outputs, of which only one can be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return {"left": F.relu(self.left(x)), "right": self.right(x).sigmoid().mean((2, 3))}


def test_only_what_an_output_depends_on_is_looked_at():
    model = awake(Two(), 0)
    other = copy.deepcopy(model)
    other.right.dilation, other.right.padding = (2, 2), (1, 1)
    found = parted(model, other)
    assert (found.original.where, found.other.where) == ("right", "right")


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_a_right_file_parts_nowhere_and_a_wrong_one_at_its_node(dynamo):
    model = awake(Network(), 0)
    file = exported(acfuse.fuse(model).model, dynamo=dynamo)
    exact, rounded = traced(model), traced(model, torch.float32)
    assert not parting(exact, trace_of_onnx(file, IMAGE), torch.float32, rounded)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(file)
    (node,) = (n for n in wrong.graph.node if n.op_type == "LeakyRelu")
    node.attribute[0].f = 0.3
    found = parting(exact, trace_of_onnx(wrong, IMAGE), torch.float32, rounded)
    assert (found.original.operator, found.other.operator) == ("leaky_relu", "LeakyRelu")


@pytest.mark.parametrize("name", list(samples())[::4])
def test_a_fused_sample_parts_nowhere(name):
    sample = samples()[name]
    model, shape = awake(sample.build(), 0), sample.input_shapes[0]
    generator = torch.Generator().manual_seed(1)
    (given,) = named_shapes(model, Inputs(((None, shape),)))
    image = {given: torch.randn(shape, generator=generator)}
    exact, rounded = traced(model, image=image), traced(model, torch.float32, image)
    assert not parting(exact, traced(acfuse.fuse(model).model, image=image), torch.float32, rounded)


class Pooled(nn.Module):
    """Its maxima are all ties but for rounding, so that their places say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.last(F.max_pool2d(self.flat(x) * 1e-9 + 1, 2, 1))


def test_places_that_rounding_chooses_are_no_place_of_another_value():
    model = awake(Pooled(), 0)
    exact, rounded = traced(model), traced(model, torch.float32)
    places = [n for n, mark in exact.marks.items() if mark is not None and mark.is_discrete]
    assert any(exact.marks[n].sums != rounded.marks[n].sums for n in places)
    with torch.no_grad():
        same = copy.deepcopy(model)
        same.last.weight[0, 0] += 1
    found = parting(exact, traced(same), torch.float32, rounded)
    assert (found.original.where, found.other.where) == ("last", "last")
