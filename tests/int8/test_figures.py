"""Signal over noise and agreement: of known errors, of rounding by theory, and of odd outputs."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from acfuse.errors import InputError
from acfuse.int8.figures import decibels, measured
from acfuse.int8.grids import reads_of
from acfuse.int8.quantized import calibrated, figures_of, in_8_bits, loss_of, quantized
from acfuse.proof.onnx_runtime import answers_in_onnx
from acfuse.system.limits import LIMITS
from tests.int8.small import LABELS, batches, model_of, network


def one(true, given, image=None):
    """The figures of programs that give these tensors, whatever they are given."""
    data = [image or {"x": torch.zeros(len(true["y"]), 1)}]
    return measured(lambda _: true, [lambda _: given], data)[0]


def test_a_tenth_of_the_size_is_twenty_decibels():
    true = {"y": torch.full((4, 1), 10.0)}
    (figure,) = one(true, {"y": true["y"] + 1})
    assert figure.decibels == pytest.approx(20)
    assert figure.agreement is None


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1.0, 0.0, math.inf),
        (0.0, 0.0, math.inf),
        (0.0, 1.0, -math.inf),
        (1.0, math.inf, -math.inf),
        (math.inf, 1.0, -math.inf),
        (1e300, 1e-300, 6000.0),
    ],
)
def test_no_figure_divides_by_zero(signal, noise, expected):
    assert decibels(signal, noise) == pytest.approx(expected)


def test_noise_is_added_up_over_batches():
    answers = iter([torch.tensor([[3.0]]), torch.tensor([[4.0]])])
    wrong = iter([torch.tensor([[3.0]]), torch.tensor([[4.5]])])
    data = [{"x": torch.zeros(1, 1)}] * 2
    ((figure,),) = measured(lambda _: {"y": next(answers)}, [lambda _: {"y": next(wrong)}], data)
    assert figure.decibels == pytest.approx(20)  # 25 over 0.25


def test_agreement_counts_the_images_of_the_same_largest_class():
    true = torch.eye(4)
    (figure,) = one({"y": true}, {"y": true[[0, 1, 2, 0]]})
    assert figure.agreement == 75
    assert figure.decibels == pytest.approx(10 * math.log10(4 / 2))


@pytest.mark.parametrize("shape", [(4, 1), (4, 3, 2), (4,), (7, 3)])
def test_what_gives_no_classes_has_no_agreement(shape):
    image = {"x": torch.zeros(4, 1)}
    (figure,) = one({"y": torch.ones(shape)}, {"y": torch.ones(shape)}, image)
    assert (figure.decibels, figure.agreement) == (math.inf, None)


def test_what_is_not_finite_in_8_bits_is_infinitely_far():
    (figure,) = one({"y": torch.ones(2, 1)}, {"y": torch.tensor([[1.0], [math.nan]])})
    assert figure.decibels == -math.inf


def test_an_image_of_which_a_class_is_no_number_does_not_agree():
    true = torch.eye(4)[[0, 0, 1, 2]]
    given = true.clone()
    given[0, 0] = given[1, 3] = math.nan  # torch takes the first for the largest
    (figure,) = one({"y": true}, {"y": given})
    assert figure.agreement == 50


def test_outputs_that_cannot_be_compared_are_refused():
    ones = torch.ones(2, 1)
    with pytest.raises(InputError, match="y of the float model is not finite"):
        one({"y": ones * math.nan}, {"y": ones})
    with pytest.raises(InputError, match=r"y is \(1, 1\) in 8 bits and \(2, 1\) in float"):
        one({"y": ones}, {"y": ones[:1]})
    with pytest.raises(InputError, match="y is no tensor in 8 bits"):
        one({"y": ones}, {})
    with pytest.raises(InputError, match="no output of the model is a tensor of floating numbers"):
        one({"y": ones.long()}, {"y": ones.long()})


def test_labels_are_left_to_the_output_that_they_come_from():
    model = network(outputs=LABELS)
    figures = figures_of(model, quantized(model, batches()), batches())
    assert [f.output for f in figures.written] == ["out"]
    assert figures.written[0].agreement is not None


def test_a_model_beside_itself_loses_nothing():
    assert loss_of(network(), network(), batches()).written == math.inf


@pytest.mark.parametrize(("reduce_range", "levels"), [(False, 127), (True, 64)])
def test_weights_lose_what_rounding_loses_by_theory(reduce_range, levels):
    """step^2 / 12 for each weight: that is 6.02 dB for each bit."""
    generator = np.random.default_rng(0)
    weight = generator.uniform(-1, 1, (64, 64, 1, 1)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["out"], name="conv")
    model = model_of([node], {"w": weight}, inputs={"x": ["n", 64, 2, 2]})
    image = {"x": torch.from_numpy(generator.normal(size=(8, 64, 2, 2)).astype(np.float32))}
    made = in_8_bits(calibrated(model, [image]), per_channel=True, reduce_range=reduce_range)
    (stored,) = [r.numbers for r in reads_of(made)["conv"] if r.numbers is not None]
    largest = np.abs(weight.astype(np.float64)).reshape(64, -1).max(1)
    noise = np.square(stored.astype(np.float64) - weight)
    expected = np.square(largest / levels).mean() / 12
    # (e^2) of an e that is even in a step has the deviation sqrt(1/80 - 1/144) step^2, and the mean
    # of n of them that over sqrt(n). Six of these are exceeded once in a thousand million cases.
    deviation = math.sqrt(1 / 80 - 1 / 144) * 12 / math.sqrt(weight.size)
    assert abs(float(noise.mean()) / expected - 1) < 6 * deviation
    db = decibels(float(np.square(weight, dtype=np.float64).sum()), float(noise.sum()))
    assert abs(db - 10 * math.log10(4 * levels**2)) < 1  # a uniform weight: R^2 / 3 over it


def by_hand(x, weight, step):
    """The layer below in whole numbers: rounded to even, and cut off at 8 bits."""
    sums = np.einsum("oi,nihw->nohw", weight, x)
    assert np.abs(sums).max() < 2**24  # so that float32 has each of them exactly
    return np.clip(np.rint(sums / step), -128, 127) * step


def test_as_written_every_value_is_a_float_between_its_roundings():
    """Sums of whole numbers below 2^24 are exact in float32: the file gives what is computed."""
    generator = np.random.default_rng(0)
    weight = generator.integers(-127, 128, (16, 32))
    x = generator.integers(-128, 128, (4, 32, 3, 3))
    step = 2048.0
    stored = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.int8),
        "w": weight.astype(np.int8).reshape(16, 32, 1, 1),
        "step": np.array(step, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "one", "zero"], ["kernel"]),
        helper.make_node("Conv", ["d", "kernel"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "step", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "step", "zero"], ["out"]),
    ]
    model = model_of(nodes, stored, inputs={"x": [4, 32, 3, 3]})
    image = {"x": torch.from_numpy(x.astype(np.float32))}
    written = answers_in_onnx(model, LIMITS, False)(image)["out"].numpy()
    assert np.array_equal(written, by_hand(x, weight, step))


def test_names_of_outputs_are_those_of_the_file():
    model = network(outputs={"out": onnx.TensorProto.FLOAT, "r2": onnx.TensorProto.FLOAT})
    figures = figures_of(model, quantized(model, batches()), batches())
    assert [f.output for f in figures.executed] == ["out", "r2"]
    assert [f.agreement is None for f in figures.executed] == [False, True]
