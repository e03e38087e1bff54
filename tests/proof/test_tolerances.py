"""Tolerances that a user gives: for all outputs, and for some by name."""

from dataclasses import replace

import pytest
import torch

from acfuse.errors import UsageError
from acfuse.options import TOLERANCE
from acfuse.proof.outputs import Check, Difference, Proofs, Tolerance, judge

TRUE = {"['boxes']": torch.linspace(1, 100, 12), "['scores']": torch.linspace(0.1, 1, 6)}


def given(atol=None, rtol=None):
    return Tolerance.given(*(x and TOLERANCE.parse(x) for x in (atol, rtol)))


def verdict(tolerance, boxes=0.0, scores=0.0):
    off = {"['boxes']": boxes, "['scores']": scores}
    difference = Difference(tolerance=tolerance)
    difference.add(TRUE, {name: x + off[name] for name, x in TRUE.items()})
    return judge("rounding", difference, tolerance, torch.float32)


@pytest.mark.parametrize("name", ["boxes", "['boxes']"])
def test_an_output_may_have_its_own(name):
    tolerance = given(f"1e-3,{name}:0.5", "0")
    assert verdict(tolerance, boxes=0.4).passed
    assert verdict(tolerance, scores=5e-4).passed
    assert not verdict(tolerance, boxes=0.6).passed
    assert not verdict(tolerance, scores=2e-3).passed
    assert "of output ['scores']" in verdict(tolerance, scores=2e-3).detail


def test_the_rest_of_a_tolerance_is_as_for_all():
    tolerance = given("1e-3,boxes:0.5", "1e-2")
    assert tolerance.of("['boxes']") == Tolerance(0.5, 1e-2)
    assert tolerance.of("['scores']") == Tolerance(1e-3, 1e-2)


def test_outputs_without_one_are_judged_by_the_largest_number():
    tolerance = given("boxes:50", "0")
    assert given("boxes:50").of("['scores']") == Tolerance()
    assert verdict(replace(tolerance, rtol=None), boxes=40).passed
    off = verdict(given("boxes:50"), boxes=40, scores=1e-3)
    assert not off.passed
    assert "output ['scores']" in off.detail
    assert verdict(given("boxes:50"), boxes=40, scores=1e-6).passed


@pytest.mark.parametrize("tolerance", ["1e-5", "boxes:1e-5,scores:1e-5", "1e-5,boxes:1"])
def test_the_tolerance_that_would_pass_does(tolerance):
    off = {"boxes": 0.25, "scores": 0.125}
    check = verdict(given(tolerance, "0"), **off)
    assert not check.passed
    needed = Proofs(checks=(check,)).fault.split("; atol ")[1].split(" would pass")[0]
    assert verdict(given(needed, "0"), **off).passed


def test_the_tolerance_that_would_pass_is_that_of_all_checks():
    both = {"boxes": 0.25, "scores": 0.125}, {"boxes": 0.5, "scores": 0.0625}
    checks = [verdict(given("1e-5,boxes:1e-5", "0"), **off) for off in both]
    needed = Proofs(checks=tuple(checks)).fault.split("; atol ")[1].split(" would pass")[0]
    assert all(verdict(given(needed, "0"), **off).passed for off in both)
    other = Check("untouched", False, 1.0, 0.0)  # no tolerance helps there
    assert "would pass" not in Proofs(checks=(*checks, other)).fault


def test_a_name_that_is_no_output_is_refused():
    with pytest.raises(UsageError, match="box is no output; the outputs are boxes, scores"):
        verdict(given("box:1e-3"))


@pytest.mark.parametrize(
    "text", ["", "boxes", "boxes:", "-1", "nan", "inf", "1e-3,2e-3", "a:1,a:2"]
)
def test_what_is_no_tolerance_is_refused(text):
    with pytest.raises(ValueError, match=r"expected a number|twice"):
        TOLERANCE.parse(text)
