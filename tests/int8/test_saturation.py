"""What is cut off: sums of products, as a probe sees it, and values past their range."""

import pytest
import torch

from acfuse.int8 import saturation
from acfuse.int8.quantized import calibrated, in_8_bits
from acfuse.int8.saturation import clipped, saturates
from acfuse.proof.onnx_runtime import answers_in_onnx
from acfuse.proof.trace_onnx import values_of
from acfuse.system.limits import LIMITS
from tests.int8.small import batches, network


def test_as_written_the_probe_gives_all_of_its_sum():
    model, true = saturation._probe()
    image = {"x": torch.full((1, 16, 4, 4), 255.0)}
    given = answers_in_onnx(model, LIMITS, False)(image)["y"]
    assert torch.equal(given, torch.full_like(given, true))


@pytest.mark.parametrize(("factor", "expected"), [(1.0, False), (0.504, True)])
def test_half_of_a_sum_is_saturation_and_all_of_it_is_none(monkeypatch, factor, expected):
    _, true = saturation._probe()
    answer = {"y": torch.full((1, 16, 4, 4), factor * true)}
    monkeypatch.setattr(saturation, "answers_in_onnx", lambda *_: lambda _: answer)
    assert saturates() == expected


def test_this_processor_is_asked_and_answers_the_same_every_time():
    assert saturates() == saturates()


def test_nothing_is_cut_off_of_what_the_ranges_come_from():
    ranges = calibrated(network(), batches())
    assert clipped(ranges.model, in_8_bits(ranges), batches()) == ()


def test_what_lies_past_a_range_is_counted_by_the_layer_that_gives_it():
    ranges = calibrated(network(), batches())
    larger = [{"x": 2 * batch["x"]} for batch in batches()]
    found = {one.layer: one.percent for one in clipped(ranges.model, in_8_bits(ranges), larger)}
    images = torch.cat([batch["x"] for batch in batches()])
    step = (images.max() - images.min()) / 255
    past = (2 * images > images.max() + step / 2) | (2 * images < images.min() - step / 2)
    # The zero of a grid is a whole number: its ends may be half a step elsewhere.
    edge = ((2 * images - images.max()).abs() < 1.5 * step) | (
        (2 * images - images.min()).abs() < 1.5 * step
    )
    assert found["x"] == pytest.approx(100 * float(past.double().mean()),
                                       abs=100 * float(edge.double().mean()))  # fmt: skip
    assert found["x"] > 0
    makers = {out: node.name for node in ranges.model.graph.node for out in node.output}
    r1 = [v for batch in larger for n, v in values_of(ranges.model, batch) if n == "r1"]
    own = torch.cat([v for batch in batches() for n, v in values_of(ranges.model, batch)
                     if n == "r1"])  # fmt: skip
    assert found[makers["r1"]] > 0
    assert float(torch.cat(r1).max()) > float(own.max())
    assert [*found.values()] == sorted(found.values(), reverse=True)
