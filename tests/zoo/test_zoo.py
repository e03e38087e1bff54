"""A network is tried from end to end, and docs/models.md and docs/verdicts.md are its results."""

import json

import pytest
import torch
from torch import nn

from benchmarks.zoo import models, trial
from benchmarks.zoo.models import MODELS, Model
from benchmarks.zoo.pages import RESULTS, ROOT, faults_of, pages
from sample_models.acnet import ACBlock


class RepConv(ACBlock):
    """A block whose class has a name that the list knows."""


def small(name, options):
    layers = [RepConv(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1)]
    return nn.Sequential(*layers)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(models._BUILD, "ultralytics", small)
    monkeypatch.setitem(models._CONVERT, "ultralytics", lambda model: model)
    return Model("ultralytics", "small", ((1, 3, 12, 9),))


def test_a_network_is_tried_from_end_to_end(model):
    row = trial.trial(model)
    assert (row["found"], row["present"], row["blocks"]) == (1, 1, 1)
    assert (row["before"], row["after"], row["own"]) == (4, 2, 4)
    assert row["equal"]
    assert row["independent"]["equal"]
    assert row["planted"] == {"fused": True, "untouched": True}
    assert faults_of(row) == []
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize("kind", ["fused", "untouched"])
def test_the_comparison_of_its_own_sees_a_planted_fault(model, kind):
    original = model.build()
    fused = trial.acfuse.fuse(original)
    plant = trial.faults(fused, fused.model)[kind]
    assert trial.independent(model, original, fused.model)["equal"]
    before = {k: t.clone() for k, t in original.state_dict().items()}
    with trial.planted(*plant):
        assert not trial.independent(model, original, fused.model)["equal"]
        after = original.state_dict()
    assert all(torch.equal(after[k], t) for k, t in before.items())
    assert trial.independent(model, original, fused.model)["equal"]


def test_a_wrong_verdict_is_told_from_a_right_one():
    def row(equal, right, caught=True):
        return {
            "equal": equal,
            "fault": "why",
            "independent": {"equal": right},
            "planted": {"fused": caught},
        }

    assert faults_of(row(True, True)) == []
    assert faults_of(row(False, True)) == ["false alarm: why"]
    assert faults_of(row(True, False)) == ["false accept: the networks differ"]
    assert faults_of(row(True, True, caught=False)) == ["false accept: planted in what is fused"]
    assert faults_of(row(False, False)) == ["wrong fusion, which the verdict says: why"]
    assert faults_of({"failed": "why"}) == ["failed: why"]


def test_titles_are_distinct():
    assert len({m.title for m in MODELS}) == len(MODELS)


def test_no_network_is_built_with_a_constant_that_could_hide_a_fault():
    network = models.randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    floats = [t for t in network.state_dict().values() if t.is_floating_point()]
    assert all(not torch.equal(t, torch.full_like(t, t.flatten()[0].item())) for t in floats)


@pytest.mark.parametrize("page", ["models.md", "verdicts.md"])
def test_the_pages_are_what_the_results_give(page):
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == pages(results)[page]


def test_every_result_is_that_of_a_model_on_the_list():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(results) <= {m.title for m in MODELS}


def test_the_list_is_long_enough_and_of_several_packages():
    assert len(MODELS) >= 60
    assert len({m.package for m in MODELS}) >= 5
