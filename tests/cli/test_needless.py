"""A setting that would change nothing for a file is refused: it is never ignored silently."""

import pytest

from tests.cli.command import refused, run
from tests.cli.project import CHECKPOINT, snapshot

OWN = """
[[pattern]]
name = "house"
block = "conv > bn + point > norm"
fused = "fused"
source = "our own code"
"""
LIVE = (["--assume", "repnext/large"], ["--bn-eps", "1e-5"])
ONNX = (
    ["--model", "nets.py:Net"],
    ["--model-args", '{"width": 4}'],
    ["--key", "state_dict"],
    ["--allow-class", "nets:Net"],
    ["--bn-eps", "1e-5"],
    ["--patterns", "own.toml"],
    ["--assume", "repnext/large"],
    ["--device", "cuda"],
)


@pytest.mark.parametrize("setting", LIVE, ids=lambda s: s[0])
def test_of_a_live_model(project, setting):
    before = snapshot(project)
    refused(run("convert", "model.pth", *CHECKPOINT, *setting), 2, setting[0], "no effect")
    assert snapshot(project) == before


@pytest.mark.parametrize("setting", ONNX, ids=lambda s: s[0])
@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_of_an_onnx_file(project, setting, command):
    (project / "own.toml").write_text(OWN)
    (project / "net.onnx").write_bytes(b"\x08\x0a\x12\x06acfuse and the rest does not matter")
    before = snapshot(project)
    refused(run(command, "net.onnx", *setting), 2, setting[0], "no effect")
    assert snapshot(project) == before
