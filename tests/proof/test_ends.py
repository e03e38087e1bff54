"""The verdict on whole models: what changes for a caller is seen, and rounding is no difference."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import acfuse
from acfuse.proof.leaves import leaves_of
from tests.packages.imports import MissingPackage, imported
from tests.proof import verdicts
from tests.proof.verdicts import SHAPE, drawn

AS_WRITTEN = {"untouched", "program"}  # what is compared without running anything


def fused_of(model):
    fused = acfuse.fuse(model)
    assert len(fused.found) >= 2
    return fused.model


def verified(model, fused, shape=SHAPE):
    return acfuse.verify(model, fused, shape)


def failed(proofs):
    """The checks that fail by what the models give, not by what they are."""
    return {check.name for check in proofs.checks if not check.passed} - AS_WRITTEN


def with_end(kind, /, **changed):
    """The same network, its result made in another way."""
    return type(kind.__name__, (kind,), changed)


def swapped(model, changed):
    """A fused model whose class says another end."""
    wrong = fused_of(model)
    other = drawn(type(model)) if changed is None else changed
    twin = fused_of(other)
    twin.load_state_dict(wrong.state_dict())
    return twin


# What a caller gets.


@pytest.mark.parametrize("kind", [verdicts.Halves, verdicts.Rows])
def test_small_scores_that_are_halved_beside_large_boxes_in_one_tensor_are_seen(kind):
    model = drawn(kind)

    def halved(self, y):
        result = kind.end(self, y).clone()
        result[(..., 4) if kind is verdicts.Rows else (slice(None), 4)] /= 2
        return result

    wrong = swapped(model, drawn(with_end(kind, end=halved)))
    assert verified(model, fused_of(model)).passed
    assert {"weights", "rounding"} <= failed(verified(model, wrong))


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        (verdicts.AsNamed, {"keys": ("scores", "boxes")}),
        (verdicts.AsNamed, {"dtype": torch.int32}),
        (verdicts.AsNamed, {"dtype": torch.float32}),
        (verdicts.AsDataclass, {"factor": 1.001}),
        (verdicts.AsDataclass, {"count": 4}),
        (verdicts.AsDataclass, {"kind": "masks"}),
        (verdicts.Overflow, {"filler": math.nan}),
        (verdicts.Overflow, {"filler": -math.inf}),
        (verdicts.Body, {"end": lambda self, y: (y,)}),
        (verdicts.Argmax, {"end": lambda self, y: y.argmin(1)}),
        (
            verdicts.Mask,
            {"end": lambda self, y: {**verdicts.Mask.end(self, y), "mask": y[:, 1] > 0}},
        ),
    ],
)
def test_what_is_changed_in_a_result_is_seen(kind, changed):
    model = drawn(kind)
    right, wrong = (
        verified(model, fused_of(model)),
        swapped(model, drawn(with_end(kind, **changed))),
    )
    assert right.passed, right.fault
    assert "rounding" in failed(verified(model, wrong))


def test_a_result_is_taken_apart_whatever_holds_it():
    class Slots:
        __slots__ = ("a",)

        def __init__(self):
            self.a = torch.ones(2)

    one = verdicts.Detections(torch.ones(2), 3)
    assert ".boxes" in leaves_of(one)
    assert "[0].boxes" in leaves_of([one])
    assert ".a" in leaves_of(Slots())
    assert leaves_of({"b": 1, "a": 2}) != leaves_of({"a": 2, "b": 1}) or list(
        leaves_of({"b": 1, "a": 2})
    ) != list(leaves_of({"a": 2, "b": 1}))
    circle: list[object] = []
    circle.append(circle)
    assert leaves_of(circle)


# Outside of the blocks, with inputs or without.


def _one_bit(model):
    model.head.bias.data[0] = torch.nextafter(model.head.bias[0].detach(), torch.tensor(9.0))


def _buffer(model):
    model.register_buffer("more", torch.zeros(1))


def _attribute(model):
    model.head.stride = (2, 2)


def _hook(model):
    model.head.register_forward_hook(lambda module, args, result: 2 * result)


def _training(model):
    model.head.train()


def _forward(model):
    model.head.forward = lambda x: x


def _class(model):
    model.head.__class__ = type("Conv2d", (nn.Conv2d,), {"forward": lambda self, x: x})


def _layer(model):
    model.more = nn.ReLU()


@pytest.mark.parametrize(
    "change", [_one_bit, _buffer, _attribute, _hook, _training, _forward, _class, _layer]
)
def test_any_change_outside_of_the_blocks_is_seen_without_inputs(change):
    model = drawn(verdicts.Body)
    right = fused_of(model)
    assert acfuse.verify(model, right).passed
    assert acfuse.verify(model, copy.deepcopy(right)).passed
    change(right)
    proofs = acfuse.verify(model, right)
    assert not proofs.passed
    assert proofs.fault.startswith("untouched: " if change is _one_bit else "program: ")


# Nothing that was compared is no proof.


def test_where_all_outputs_are_empty_the_verdict_says_that_nothing_was_compared():
    model = drawn(verdicts.Never)
    proofs = verified(model, fused_of(model))
    checks = [check for check in proofs.checks if check.name not in AS_WRITTEN]
    assert all(check.compared == 0 for check in checks)
    assert all("nothing was compared" in check.warning for check in checks)
    assert json.dumps([vars(check) for check in checks])


def test_other_inputs_are_tried_until_some_output_is_not_empty():
    model = drawn(verdicts.Rarely)
    proofs = verified(model, fused_of(model))
    assert proofs.passed, proofs.fault
    assert all(check.compared for check in proofs.checks if check.name not in AS_WRITTEN)

    class Moved(verdicts.Rarely):
        def end(self, y):
            return [image * 1.01 for image in super().end(y)]

    assert failed(verified(model, swapped(model, drawn(Moved))))


# Rounding is no difference.

ENDS = [verdicts.Sigmoid, verdicts.Softmax, verdicts.Gated, verdicts.Argmax, verdicts.TopK]
ENDS += [verdicts.Above, verdicts.Mask, verdicts.Pinned, verdicts.PinnedWithin, verdicts.Halves]


@pytest.mark.parametrize("kind", ENDS)
def test_a_right_model_passes_however_it_ends(kind):
    for seed in range(10 if kind in (verdicts.Sigmoid, verdicts.Softmax) else 4):
        model = drawn(kind, seed)
        proofs = verified(model, fused_of(model))
        assert proofs.passed, (seed, proofs.fault)


@pytest.mark.parametrize("kind", ENDS)
def test_one_part_in_ten_thousand_of_a_weight_is_seen_however_a_model_ends(kind):
    model = drawn(kind)
    fused = wrong = fused_of(model)
    for name in ("first.fused_conv.weight", "head.weight"):
        wrong = copy.deepcopy(fused)
        wrong.get_parameter(name).data.view(-1)[3] *= 1.0001
        proofs = verified(model, wrong)
        certificates = [c.where for c in proofs.certificates if not c.passed]
        assert certificates == (["first"] if name.startswith("first") else [])
        unlike = [c.name for c in proofs.checks if not c.passed and c.name in AS_WRITTEN]
        assert unlike == ["untouched", "program"] * (name[0] == "h")


@pytest.mark.parametrize("kind", [verdicts.Pinned, verdicts.PinnedWithin])
def test_a_forward_that_pins_a_dtype_is_compared_in_that_and_says_so(kind):
    model = drawn(kind)
    proofs = verified(model, fused_of(model))
    algebra = next(check for check in proofs.checks if check.name == "algebra")
    assert "could not be run in float64" in algebra.warning
    assert algebra.compared == 0
    wrong = fused_of(model)
    wrong.head.weight.data[0] *= 1.01
    assert "rounding" in failed(verified(model, wrong))


@pytest.mark.parametrize("seed", range(4))
def test_what_rounding_decides_is_counted_and_told(seed):
    class Floor(verdicts.Body):
        def end(self, y):
            return y, (1e4 * y).floor().long()

    model = drawn(Floor, seed)
    proofs = verified(model, fused_of(model))
    assert proofs.passed, proofs.fault
    rounding = proofs.checks[-1]
    assert rounding.left_out > 0
    assert "are not compared" in rounding.detail
    assert rounding.compared > 0


def test_parts_in_training_mode_stay_in_it():
    class Trained(verdicts.Body):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(8)

        def features(self, x):
            return self.head(self.norm(F.relu(self.second(F.relu(self.first(x))))))

    model = drawn(Trained)
    model.norm.train()
    before = copy.deepcopy(model.state_dict())
    fused = acfuse.fuse(model).model
    assert fused.norm.training
    proofs = verified(model, fused)
    assert proofs.passed, proofs.fault
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    fused.norm.eval()
    assert {"weights", "rounding"} <= failed(verified(model, fused))


def test_a_network_of_timm_that_answers_to_rounding_passes():
    try:
        timm = imported("timm")
    except MissingPackage as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    model = timm.create_model("repvit_m0_9").eval()
    proofs = verified(model, acfuse.fuse(model).model, (1, 3, 64, 64))
    assert proofs.passed, proofs.fault
