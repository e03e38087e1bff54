"""What other tools leave is counted, how wrong they are is seen, and who is missing is named."""

import sys
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

from benchmarks import peer_tools, peers
from benchmarks.peer_nets import NETS, net
from benchmarks.peer_tools import TOOLS, Inapplicable, Result, tried
from benchmarks.picture import picture

SMALL = 2.0**-22  # an error of float32


def test_both_modules_name_the_same_tools_and_networks():
    assert tuple(TOOLS) == peers.TOOLS
    assert tuple(NETS) == peers.NETS
    assert set(peers.PACKAGES) == set(TOOLS) - {"as trained"}


@pytest.mark.parametrize("family", NETS)
def test_acfuse_leaves_one_convolution_a_block(family):
    before, after = (tried(TOOLS[name], NETS[family]) for name in ("as trained", "acfuse"))
    assert before["convolutions"] > after["convolutions"] == 4
    assert 0 < after["error"] < 1 / 2**10, "float32, as every tool"


def test_convolutions_are_counted_as_they_run():
    layer = nn.Conv2d(3, 3, 3)
    twice = nn.Sequential(layer, nn.BatchNorm2d(3), layer, nn.ConvTranspose2d(3, 3, 2)).eval()
    assert peer_tools.run(twice, torch.randn(1, 3, 9, 8), 0.0).convolutions == 3


def test_a_tool_that_is_wrong_has_an_error():
    def wrong(model, given):
        right = peer_tools.as_trained(model, given)
        return Result(right.convolutions, right.output + right.output.max() / 64, 0.0)

    assert tried(wrong, NETS["ACNet"])["error"] > 1 / 128


def raising(error):
    def tool(model, given):
        raise error

    return tool


@pytest.mark.parametrize(
    ("error", "cell"),
    [
        (ValueError("why\nand more"), {"failed": "ValueError: why"}),
        (Inapplicable("no such class"), {"inapplicable": "no such class"}),
    ],
)
def test_what_a_tool_cannot_do_is_said(error, cell):
    assert tried(raising(error), NETS["ACNet"]) == cell


@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim", "onnxoptimizer", "OpenVINO"])
def test_a_tool_that_is_missing_is_skipped_by_its_name(tool, monkeypatch):
    package = peers.PACKAGES[tool]
    monkeypatch.setitem(sys.modules, package, None)
    assert tried(TOOLS[tool], NETS["ACNet"]) == {"skipped": f"{package} is not installed"}


def test_a_tool_has_a_process_of_its_own_and_a_limit():
    here = sys.executable
    assert "not done after 0.001 seconds" in peers.tried("as trained", here, 0.001)["failed"]
    assert "KeyError" in peers.tried("no such tool", here)["failed"]
    cells = peers.tried("as trained", here)["cells"]
    assert {name: cell["convolutions"] for name, cell in cells.items()} == {
        name: sum(isinstance(m, nn.Conv2d) for m in net(make).modules())
        for name, make in NETS.items()
    }


def cell(convolutions, error=SMALL):
    return {"convolutions": convolutions, "error": error, "seconds": 0.5}


@pytest.fixture
def results():
    failed, no_class = {"failed": "TypeError: why"}, {"inapplicable": "no such class"}
    some = dict(zip(peers.NETS, [cell(9), cell(8), failed, no_class, cell(10, 0.25)], strict=True))
    ours = {name: cell(4) for name in peers.NETS}
    tools = {
        "timm": {"cells": some},
        "onnxsim": {"skipped": "onnxsim is not installed"},
        "OpenVINO": {"failed": "not done after 300 seconds"},
        "acfuse": {"cells": ours},
    }
    return {"versions": {"timm": "1.2.3"}, "tools": tools}


def test_the_table_says_all_of_it_in_80_columns(results):
    lines = peers.terminal(results).splitlines()
    assert lines[1].split() == ["timm", "1.2.3", "9", "8", "fails", "-", "10", "2e-01"]
    assert "onnxsim: skipped: onnxsim is not installed" in lines
    assert "OpenVINO: failed: not done after 300 seconds" in lines
    assert "timm, MobileOne: TypeError: why" in lines
    assert max(map(len, lines)) <= 80


def test_the_picture_has_a_bar_for_every_count_and_colours_for_both_backgrounds(results):
    drawn = picture(results)
    root = ET.fromstring(drawn)
    bars = [e for e in root.iter() if e.tag.endswith("rect")]
    assert len(bars) == 3 + len(peers.NETS)
    longest = max(bars, key=lambda bar: int(bar.get("width")))
    assert longest.get("y") == bars[0].get("y"), "ten, in the first row"
    assert "prefers-color-scheme: dark" in drawn
    texts = [e.text for e in root.iter() if e.tag.endswith("text")]
    assert {"timm 1.2.3", "9", "fails", "-"} <= set(texts)
    assert "onnxsim" not in texts
