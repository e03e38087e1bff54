"""The layers that lose most: the one that is to blame, and not those that read its noise."""

import math

import numpy as np
import pytest
from onnx import helper

from acfuse.int8.culprits import culprits
from acfuse.int8.quantized import calibrated, figures_of, in_8_bits
from tests.int8.small import batches, images, model_of, network


def found(model, *, per_channel=False, data=None, **settings):
    data = data or batches()
    ranges = calibrated(model, data)
    return culprits(ranges.model, in_8_bits(ranges, per_channel=per_channel, **settings), data)


@pytest.mark.parametrize("seed", range(5))
def test_a_layer_with_one_channel_of_many_times_the_others_is_named_first(seed):
    """It loses eight bits per tensor; what reads its noise loses none by that."""
    healthy = {c.layer: c.alone for c in found(network(seed=seed))}
    first, *others = found(network(seed=seed, planted=2**8))
    assert first.layer == "second"
    assert (first.operator, first.weight) == ("Conv", "w2")
    assert first.alone < healthy["second"] - 12  # two bits at least
    unharmed = {c.layer: c.alone for c in others if c.layer in ("first", "head")}
    for layer, alone in unharmed.items():  # they are as good as they were
        assert abs(alone - healthy[layer]) < 6
    assert sum(c.share for c in (first, *others)) == pytest.approx(100)


def test_per_channel_the_weight_is_well_and_what_it_gives_is_not():
    """Its large channel has a scale of its own then, but not what is given to the next layer."""
    first, *_ = found(network(planted=2**8), per_channel=True)
    assert (first.layer, first.readers) == ("second", ("third",))
    assert first.share > 50


def test_a_layer_that_is_kept_brings_no_noise_of_its_weight():
    all_of_them = {c.layer: c for c in found(network())}
    without = {c.layer: c for c in found(network(), keep=("second",))}
    assert without["second"].weight == ""
    assert without["second"].alone > all_of_them["second"].alone


def test_one_layer_alone_is_all_that_is_in_8_bits():
    """With a single layer, what it loses alone is what the file loses but for its own output."""
    weight = np.random.default_rng(0).normal(size=(16, 16, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Sigmoid", ["a"], ["out"], name="last"),
    ]
    model = model_of(nodes, {"w": weight}, inputs={"x": ["n", 16, 4, 4]})
    import torch

    data = [{"x": torch.from_numpy(images(8, shape=(16, 4, 4)))}]
    ranges = calibrated(model, data)
    made = in_8_bits(ranges, per_channel=True, keep=("last",))
    alone = {c.layer: c.alone for c in culprits(ranges.model, made, data)}
    whole = figures_of(model, made, data).written[0].decibels
    assert alone["conv"] >= whole - 0.5
    assert math.isfinite(alone["conv"])


def test_two_layers_of_one_weight_are_told_apart():
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(3, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="8_0"),  # a name that is made elsewhere
        helper.make_node("Relu", ["a"], ["8_0_0"]),
        helper.make_node("Conv", ["8_0_0", "w"], ["out"], name="other"),
    ]
    model = model_of(nodes, {"w": weight}, inputs={"x": ["n", 3, 8, 8]})
    assert {c.layer for c in found(model)} == {"8_0", "other"}


def test_what_only_moves_numbers_is_no_culprit():
    assert {c.layer for c in found(network())} == {"first", "second", "third", "head", "pooled"}


def test_a_model_without_a_layer_has_none():
    model = model_of([helper.make_node("Relu", ["x"], ["out"])], {}, inputs={"x": ["n", 3, 8, 8]})
    assert found(model) == ()


def test_halves_are_looked_at_as_well():
    data = [{"x": batch["x"].half()} for batch in batches()]
    assert found(network(dtype=np.float16), data=data)[0].alone > 20
