"""Two ONNX files in onnxruntime: each output by its own scale, and by the original's own noise."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional as F

from acfuse.proof import Inputs, Tolerance
from acfuse.proof.onnx_runtime import compare_files, moved_weights
from acfuse.sources.onnx import fuse_onnx
from acfuse.system.limits import LIMITS
from tests.proof import verdicts
from tests.proof.onnx_faults import put, stored
from tests.proof.onnx_nets import NETS, exported
from tests.proof.verdicts import SHAPE, drawn

INPUTS = Inputs(((None, SHAPE),))


class Rare(verdicts.Body):
    """A map of scores that are all but 0 for what is no text: what a sigmoid leaves of -17."""

    def end(self, y):
        return torch.sigmoid(2 * y - 17)


class Nothing(verdicts.Body):
    """Zeros for every image, beside something else."""

    def end(self, y):
        return F.relu(y - 1e9), y


ENDS = [verdicts.Sigmoid, verdicts.Softmax, verdicts.Gated, verdicts.Argmax, verdicts.TopK]
ENDS += [verdicts.Above, verdicts.Mask, verdicts.Halves, verdicts.Rarely, Rare, Nothing]


def files(kind, seed=0):
    original = exported(drawn(kind, seed))
    fused = fuse_onnx(original)
    assert len(fused.found) >= 2
    return original, fused.model


def verdict(original, fused, tolerance=None):
    return compare_files(original, fused, INPUTS, tolerance or Tolerance(), LIMITS)


@pytest.mark.parametrize("kind", ENDS)
def test_a_right_file_passes_however_it_ends(kind):
    for seed in range(8 if kind in (verdicts.Sigmoid, verdicts.Softmax, Rare) else 3):
        check = verdict(*files(kind, seed))
        assert check.passed, (seed, check.detail)
        assert check.compared


@pytest.mark.parametrize("kind", [end for end in ENDS if end is not verdicts.Gated])
def test_a_wrong_file_does_not(kind):
    original, fused = files(kind)
    wrong = copy.deepcopy(fused)
    put(wrong.graph, "head.weight", lambda a: a * np.float32(1.01))
    assert not verdict(original, wrong).passed


def test_small_scores_that_are_halved_beside_large_boxes_are_seen():
    class Halved(verdicts.Halves):
        def end(self, y):
            boxes, scores = super().end(y).split(4, 1)
            return torch.cat([boxes, scores / 2], 1)

    original, (_, wrong) = exported(drawn(verdicts.Halves)), files(Halved)
    assert not verdict(original, _same_ends(original, wrong)).passed


def _same_ends(original, other):
    """A file whose outputs have the names of another one's."""
    names = {o.name: n.name for o, n in zip(other.graph.output, original.graph.output, strict=True)}
    for node in other.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for output in other.graph.output:
        output.name = names.get(output.name, output.name)
    return other


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_with_an_output_more_or_less_is_seen(number):
    pair = files(verdicts.TopK)
    pair[number].graph.output.pop()
    check = verdict(*pair)
    assert not check.passed
    assert "output" in check.detail


def test_where_all_outputs_are_empty_the_verdict_says_that_nothing_was_compared():
    check = verdict(*files(verdicts.Never))
    assert (check.passed, check.compared) == (True, 0)
    assert check.warning.startswith("nothing was compared: ")


def test_an_output_is_named():
    original, wrong = files(verdicts.TopK)
    put(wrong.graph, "head.weight", lambda a: a * np.float32(1.5))
    assert original.graph.output[0].name in verdict(original, wrong).detail


def test_a_tolerance_is_that_of_every_number():
    original, fused = files(verdicts.Sigmoid)
    assert verdict(original, fused, Tolerance(atol=1e-4)).passed
    put(fused.graph, "head.bias", lambda a: a + np.float32(1e-2))
    check = verdict(original, fused, Tolerance(atol=1e-4))
    assert not check.passed
    assert check.needed[""] >= 1e-2 / 2


@pytest.mark.parametrize("net", NETS)
def test_noise_is_of_weights_and_of_no_other_constant(net):
    model = NETS[net]()
    near = moved_weights(model, 0, 16)
    weights = {"w3", "w1", "b", "head"}
    seen = 0
    for tensor in model.graph.initializer:
        before = numpy_helper.to_array(tensor)
        after = numpy_helper.to_array(stored(near.graph, tensor.name))
        if before.dtype != np.float32 or tensor.name in ("low", "high", "scale"):
            assert np.array_equal(before, after)
        elif tensor.name in weights or before.ndim > 1:
            apart = np.abs(after / before - 1) / np.finfo(np.float32).eps
            assert apart.min() > 14
            assert apart.max() < 18
            seen += 1
    assert seen > 0 or not model.graph.initializer
    onnx.checker.check_model(near)
