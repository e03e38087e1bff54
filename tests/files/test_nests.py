"""The nests of training programs: raw and averaged weights are never chosen between silently."""

import collections
import sys

import pytest
import torch

from tests.bounds import assert_within, rounding
from tests.cli.command import refused, run, worked
from tests.cli.nets import Net
from tests.cli.project import CHECKPOINT, fused_tensors, own_module, snapshot, state, trained

RAW, EMA = state(), state(trained(Net(), seed=5))
# What each program writes: the whole, and the keys of the sets of weights in it.
NESTS = {
    "timm": ({"epoch": 3, "arch": "net", "state_dict": RAW, "state_dict_ema": EMA, "metric": 0.9},
             ("state_dict", "state_dict_ema")),
    "torchvision": ({"model": RAW, "model_ema": EMA, "epoch": 3}, ("model", "model_ema")),
    "D-FINE": ({"date": "x", "model": RAW, "ema": {"module": EMA, "updates": 5}},
               ("model", "ema.module")),
    "basicsr": ({"params": RAW, "params_ema": EMA}, ("params", "params_ema")),
    "mmengine": ({"meta": {"seed": 1}, "message_hub": {}, "state_dict": RAW,
                  "ema_state_dict": EMA}, ("state_dict", "ema_state_dict")),
    "teacher": ({"student": RAW, "teacher": EMA}, ("student", "teacher")),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTS)
@pytest.mark.parametrize("which", [0, 1], ids=["raw", "averaged"])
def test_two_sets_of_weights_are_asked_about_and_the_other_one_stays(project, name, which):
    whole, keys = NESTS[name]
    torch.save(whole, "model.pth")
    before = snapshot(project)
    refused(run("convert", "model.pth", *CHECKPOINT), 2, *keys, "--key")
    assert snapshot(project) == before
    worked(run("convert", "model.pth", *CHECKPOINT, "--key", keys[which]))
    fused = fused_tensors(project)
    assert list(fused) == list(whole)
    for number, key in enumerate(keys):
        entry, expected = fused, whole
        for part in key.split("."):
            entry, expected = entry[part], expected[part]
        if number == which:
            assert "first.fused_conv.weight" in entry
            assert torch.equal(entry["head.bias"], expected["head.bias"])
        else:
            assert all(torch.equal(entry[k], expected[k]) for k in expected)
    rest = [k for k in whole if k not in {key.split(".")[0] for key in keys}]
    assert [fused[k] for k in rest] == [whole[k] for k in rest]


@pytest.mark.parametrize(
    "whole",
    [
        {"state_dict": {f"model.{k}": v for k, v in RAW.items()}, "pytorch-lightning_version": "2",
         "callbacks": {}, "optimizer_states": [], "lr_schedulers": [], "hyper_parameters": {}},
        {"meta": {"epoch": 3}, "state_dict": collections.OrderedDict(RAW), "optimizer": {}},
        {"model": RAW, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 1},
    ],
    ids=["lightning", "mmcv", "plain"],
)  # fmt: skip
def test_one_set_of_weights_is_found(project, whole):
    torch.save(whole, "model.pth")
    worked(run("convert", "model.pth", *CHECKPOINT))
    assert list(fused_tensors(project)) == list(whole)


def test_models_that_are_pickled_in_a_nest(project):
    """As ultralytics and YOLOv5 write it: {"model": a module, "ema": another, ...}."""
    flags = ("--allow-class", "nets:Net", "--allow-class", "nets:ACBlock")
    try:
        module = own_module(project)
        raw, ema = trained(module.Net()), trained(module.Net(), seed=5)
        torch.save({"epoch": 1, "model": raw, "ema": ema, "train_args": {"lr": 0.1}}, "model.pth")
    finally:
        sys.modules.pop("nets", None)
    refused(run("convert", "model.pth"), 4, "--allow-class nets:Net")
    shape = ("--input-shape", "1,3,9,7")
    refused(run("convert", "model.pth", *flags, *shape), 2, "model, ema", "--key")
    worked(run("convert", "model.pth", "--no-onnx", *flags, *shape, "--key", "ema"))
    worked(run("verify"))
    try:
        own_module(project)
        whole = torch.load("model.fused.pth", weights_only=False)
    finally:
        sys.modules.pop("nets", None)
    assert list(whole) == ["epoch", "model", "ema", "train_args"]
    assert hasattr(whole["model"].first, "square_conv")
    image = torch.randn(2, 3, 9, 7)
    assert hasattr(whole["ema"].first, "fused_conv")
    with torch.no_grad():
        given, expected = whole["ema"](image), ema(image)
    assert_within(given, expected, rounding(ema, image, dtype=torch.float32))


def test_inspect_asks_as_well(project):
    torch.save({"runs": {"a": RAW, "b": EMA}}, "model.pth")
    refused(run("inspect", "model.pth"), 2, "runs.a, runs.b")
