"""A model in 8 bits: which weights are taken, what is said of it, and what was tried."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import acfuse
from acfuse.errors import InputError, UsageError
from acfuse.int8.culprits import Culprit
from acfuse.int8.data import Data
from acfuse.int8.figures import Figure
from acfuse.int8.quantized import Figures, figures_of, in_8_bits
from acfuse.pipeline import quantize
from acfuse.pipeline.quantize import Advice, Settings, quantize_model
from acfuse.proof.onnx_runtime import answers_in_onnx
from acfuse.system.limits import LIMITS
from tests.int8.small import batches, images, model_of, network

DATA = Data(tuple(batches()), 24)


def has_7_bits(model):
    whole = [numpy_helper.to_array(t) for t in model.graph.initializer
             if t.name.endswith("_quantized") and t.data_type == onnx.TensorProto.INT8]  # fmt: skip
    return max((int(np.abs(w.astype(int)).max()) for w in whole), default=127) <= 64


def pretend(monkeypatch, *, cuts, eight=(30.0, 10.0), seven=(28.0, 28.0)):
    """A processor on which weights of 8 and of 7 bits give these figures, written and executed."""

    def figures(model, other, data, limits=LIMITS):
        written, executed = seven if has_7_bits(other) else eight
        return Figures((Figure("out", written, 90.0),), (Figure("out", executed, 80.0),))

    monkeypatch.setattr(quantize, "saturates", lambda _: cuts)
    monkeypatch.setattr(quantize, "figures_of", figures)


def told(made):
    return " | ".join(made.notes)


def test_where_sums_saturate_weights_of_7_bits_are_taken(monkeypatch):
    pretend(monkeypatch, cuts=True)
    made = quantize_model(network(), DATA, Settings())
    assert made.reduced
    assert has_7_bits(made.model)
    assert (made.loss.written, made.loss.executed) == (28, 28)
    assert made.otherwise.loss.executed == 10
    assert "with weights of 8 bits, 30.0 dB as written, 10.0 dB executed: " in told(made)
    assert "this processor saturates" in told(made)
    assert "weights of 7 bits were taken, as by --reduce-range: 28.0 dB" in told(made)
    assert "differ still" not in told(made)


def test_weights_of_7_bits_are_not_taken_where_they_lose_more(monkeypatch):
    pretend(monkeypatch, cuts=True, seven=(9.0, 9.0))
    made = quantize_model(network(), DATA, Settings())
    assert not made.reduced
    assert not has_7_bits(made.model)
    assert made.otherwise.loss.executed == 9
    assert "weights of 7 bits lose more, and were not taken: 9.0 dB" in told(made)
    assert "differ still: weights of 8 bits lose less" in told(made)


def test_weights_of_7_bits_can_be_forbidden_and_forced(monkeypatch):
    pretend(monkeypatch, cuts=True)
    made = quantize_model(network(), DATA, Settings(reduce_range=False))
    assert not made.reduced
    assert made.otherwise is None
    assert "differ still: --no-reduce-range forbids weights of 7 bits, and this" in told(made)
    made = quantize_model(network(), DATA, Settings(reduce_range=True))
    assert made.reduced
    assert has_7_bits(made.model)
    assert "saturates" not in told(made)


def test_without_saturation_nothing_is_tried_and_others_are_warned_of(monkeypatch):
    pretend(monkeypatch, cuts=False, eight=(30.0, 29.5))
    made = quantize_model(network(), DATA, Settings())
    assert not made.reduced
    assert made.otherwise is None
    assert "one of x86 without VNNI does, and may give other results" in told(made)


def test_saturation_that_costs_nothing_is_said_all_the_same(monkeypatch):
    pretend(monkeypatch, cuts=True, eight=(30.0, 29.5))
    made = quantize_model(network(), DATA, Settings())
    assert made.otherwise is None
    assert "which costs less than 1 dB on this data" in told(made)


@pytest.mark.parametrize("seven", [(28.0, 20.0), (28.0, 9.0)])
def test_what_is_no_saturation_is_not_called_so(monkeypatch, seven):
    pretend(monkeypatch, cuts=False, seven=seven)
    made = quantize_model(network(), DATA, Settings())
    assert made.reduced == (seven[1] > 10)
    assert "not by saturation, which was looked for and not found here" in told(made)
    assert "differ still" in told(made)
    assert ("what is left is how kernels for integers round" in told(made)) == made.reduced


def of_two(*pairs):
    """The figures of two outputs: written and executed of each."""
    return Figures(*(tuple(map(Figure, "ab", each)) for each in zip(*pairs, strict=True)))


def test_no_output_is_hidden_by_a_worse_one(monkeypatch):
    eight, seven = of_two((9.0, 9.0), (30.0, 10.0)), of_two((8.9, 8.9), (28.0, 28.0))
    monkeypatch.setattr(quantize, "saturates", lambda _: True)
    monkeypatch.setattr(quantize, "figures_of",
                        lambda _, m, **__: seven if has_7_bits(m) else eight)  # fmt: skip
    made = quantize_model(network(), DATA, Settings())
    assert made.reduced
    assert "8 bits, output b has 30.0 dB as written, 10.0 dB executed" in told(made)
    assert "as by --reduce-range: output b has 28.0 dB as written" in told(made)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (((9.0, 9.0), (9.0, 28.0)), ((9.0, 9.1), (9.0, 10.0)), True),
        (((9.0, 5.0), (9.0, 28.0)), ((9.0, 9.0), (9.0, 10.0)), False),
        (((9.0, 9.0), (9.0, 28.0)), ((9.0, 5.0), (9.0, 90.0)), True),
        (((9.0, math.inf), (9.0, 9.0)), ((9.0, math.inf), (9.0, 9.0)), False),
    ],
)
def test_the_worst_output_decides_and_then_all(one, other, expected):
    assert quantize._is_nearer(of_two(*one), of_two(*other)) == expected


def test_figures_that_are_both_exact_are_not_apart(monkeypatch):
    pretend(monkeypatch, cuts=False, eight=(math.inf, 140.0))
    assert quantize_model(network(), DATA, Settings()).otherwise is None
    pretend(monkeypatch, cuts=False, eight=(-math.inf, -math.inf))
    assert quantize_model(network(), DATA, Settings()).otherwise is None


def test_gates_look_at_both_ways_and_at_every_output():
    figures = Figures((Figure("a", 30.0, 99.0), Figure("b", 9.0)), (Figure("a", 20.0, 97.0),) * 1)
    made = quantize.Quantized(onnx.ModelProto(), Settings(), 1, False, False, False, figures, None)
    assert made.missed() == ()
    assert made.missed(9.0, 97.0) == ()
    assert made.missed(25.0) == (
        "output b has 9.0 dB as written, wanted 25",
        "output a has 20.0 dB executed here, wanted 25",
    )
    assert made.missed(None, 98.0) == ("output a agrees in 97.0 % executed here, wanted 98",)
    # What is missed by little is not said to be what is wanted.
    assert made.missed(9.0004, 97.0000001) == (
        "output b has 9.0 dB as written, wanted 9.0004",
        "output a agrees in 97.0 % executed here, wanted 97.0000001",
    )
    assert made.agreement == 97
    near = Figures((Figure("a", 19.996, 2999 / 30),), (Figure("a", 20.0, 100.0),))
    made = quantize.Quantized(onnx.ModelProto(), Settings(), 1, False, False, False, near, None)
    assert made.missed(20.0, 100.0) == (
        "output a has 19.996 dB as written, wanted 20",
        "output a agrees in 99.97 % as written, wanted 100",
    )
    worst = Figures((Figure("a", math.nan),), (Figure("a", math.inf),))
    made = quantize.Quantized(onnx.ModelProto(), Settings(), 1, False, False, False, worst, None)
    assert len(made.missed(0.0)) == 1
    assert made.agreement is None


# ---------------------------------------------------------------------------- the layers


@pytest.fixture(scope="module")
def planted():
    """A network whose second layer has a channel of 2^8 times the others, and its result."""
    model = network(planted=2**8)
    return model, quantize_model(model, DATA, Settings(per_channel=False, reduce_range=True))


def test_the_planted_layer_is_named_first_and_what_helps_was_tried(planted):
    model, made = planted
    assert made.worst[0].layer == "second"
    assert len(made.worst) <= 5
    kept = [a for a in made.advice if a.what == "keep"]
    assert kept
    assert "second" in kept[0].layers
    assert {"equalize"} <= {a.what for a in made.advice}
    for advice in made.advice:
        assert advice.gain >= 1
    again = quantize_model(model, DATA, Settings(False, "minmax", True, kept[0].layers))
    assert made.tried_on == 16
    # The figure was measured on the first images, by the same file.
    few = DATA.first(16).batches
    assert figures_of(model, again.model, few).loss.written >= kept[0].after
    assert min(figures_of(model, made.model, few).loss.written,
               figures_of(model, made.model, few).loss.executed) == pytest.approx(
        kept[0].before)  # fmt: skip


def test_what_was_kept_is_not_advised_again(planted):
    model, _ = planted
    made = quantize_model(model, DATA, Settings(False, "minmax", True, ("second",)))
    assert all("second" not in advice.layers for advice in made.advice)


def test_more_layers_are_kept_only_where_that_is_worth_it():
    def advice(after, *layers):
        return Advice("keep", 10.0, after, layers)

    one, two, three = advice(15.0, "a"), advice(15.5, "a", "b"), advice(17.0, "a", "c")
    found = [one, two, three]
    assert [a for a in found if a.gain >= 1 + quantize._without_some(a, found)] == [one, three]


def test_nothing_is_advised_that_gains_less_than_a_decibel(monkeypatch):
    pretend(monkeypatch, cuts=False, eight=(30.0, 30.0), seven=(30.0, 30.0))
    made = quantize_model(network(), DATA, Settings(per_channel=False))
    assert made.advice == ()
    assert isinstance(made.worst[0], Culprit)


def test_a_layer_that_there_is_not_is_told_with_the_nearest():
    with pytest.raises(UsageError, match="no layer secnd; the nearest are second"):
        quantize_model(network(), DATA, Settings(keep=("secnd",)))


def test_a_layer_may_be_named_by_its_weight_or_its_module():
    model = network()
    for tensor, name in ((model.graph.initializer[1], "body.weight"),):
        for node in model.graph.node:
            node.input[:] = [name if i == tensor.name else i for i in node.input]
        tensor.name = name
    for name in ("second", "body", "body.weight"):
        assert quantize.layers_named(model, (name, "head")) == ("second", "head")
    made = quantize_model(model, DATA, Settings(keep=("body",), reduce_range=True))
    assert made.settings.keep == ("second",)


def test_a_model_that_cannot_be_quantized_is_refused():
    model = model_of([helper.make_node("Softplus", ["x"], ["out"])], {},
                     inputs={"x": ["n", 3, 8, 8]})  # fmt: skip
    with pytest.raises(InputError, match="the model has no layer that onnxruntime's quantizer"):
        quantize_model(model, DATA, Settings())
    done = quantize_model(network(), DATA, Settings(reduce_range=False))
    with pytest.raises(InputError, match="is quantized already"):
        quantize_model(done.model, DATA, Settings())


def test_an_opset_and_inputs_that_the_result_has_not_are_said():
    model = network(opset=11)
    model.graph.input.append(helper.make_tensor_value_info("w2", 1, [8, 8, 3, 3]))
    said = told(quantize_model(model, DATA, Settings(reduce_range=True)))
    assert "the result is of opset 13, as 8 bits need it: the model is of 11" in said
    assert "what has a default is a constant of the result, and no input: w2" in said


def test_values_past_their_range_are_said():
    made = quantize_model(network(), DATA, Settings(calibrate="entropy", reduce_range=True))
    past = {c.layer: c.percent for c in made.clipped}
    for layer, percent in past.items():
        said = f"of what {layer} gives lies past its range" in told(made)
        assert said == (percent > 1)
    made = quantize_model(network(), DATA, Settings(reduce_range=True))
    assert made.clipped == ()


# --------------------------------------------------------------------------- from Python


def test_python_takes_arrays_tensors_files_and_folders(tmp_path):
    model, x = network(), images()
    np.savez(tmp_path / "x.npz", x=x)
    onnx.save(model, tmp_path / "net.onnx")
    expected = acfuse.quantize(model, x, reduce_range=False)
    assert expected.images == 24
    assert [f.output for f in expected.written] == ["out"]
    assert 0 <= expected.agreement <= 100
    given = [torch.from_numpy(x), {"x": x}, tmp_path / "x.npz", str(tmp_path)]
    (tmp_path / "net.onnx").rename(tmp_path.parent / "net.onnx")
    for data in given:
        made = acfuse.quantize(tmp_path.parent / "net.onnx", data, reduce_range=False)
        assert made.loss.written == expected.loss.written
    assert Path(tmp_path).is_dir()


def test_python_s_result_can_be_run():
    made = acfuse.quantize(network(), images(), keep=["head"])
    answer = answers_in_onnx(made.model, LIMITS, True)({"x": torch.from_numpy(images(3))})
    assert answer["out"].shape == (3, 5)


def test_python_is_told_what_is_wrong():
    with pytest.raises(UsageError, match="give real inputs"):
        acfuse.quantize(network())
    with pytest.raises(UsageError, match="not both"):
        acfuse.quantize(network(), images(), random=True)
    with pytest.raises(UsageError, match="expected one of minmax, entropy"):
        acfuse.quantize(network(), images(), calibrate="best")
    with pytest.raises((UsageError, InputError), match=r"object|no array of numbers"):
        acfuse.quantize(network(), {"x": object()})
    assert acfuse.quantize(network(), random=True).is_random


def test_the_given_model_is_not_changed():
    model = network()
    before = model.SerializeToString()
    acfuse.quantize(model, images())
    assert model.SerializeToString() == before


def test_what_is_kept_is_bit_by_bit_the_float_layer():
    model = network()
    ranges = quantize.calibrated(model, DATA.batches)
    kept = in_8_bits(ranges, keep=("first", "second", "third", "head", "pooled"))
    weights = {t.name: t.SerializeToString() for t in model.graph.initializer}
    stored = {t.name: t.SerializeToString() for t in kept.graph.initializer}
    assert weights.items() <= stored.items()
