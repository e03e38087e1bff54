"""ONNX files of every opset that tools take: each is checked, and equal to the original model."""

import onnx
import pytest
import torch
from torch import nn

from acfuse.proof import Inputs, Tolerance
from acfuse.proof.onnx_runtime import compare_onnx
from acfuse.sources.base import FindOptions
from acfuse.sources.live import LiveSource
from acfuse.targets.onnx_export import to_onnx
from tests.proof.folding import Block


class TwoInputs(nn.Module):
    """Two images, operators whose form changed over the opsets, and two outputs."""

    def __init__(self):
        super().__init__()
        self.block = Block(6, 6)
        self.act = nn.Hardswish()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.pad = nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")

    def forward(self, image, mask):
        first, second = self.block(image).split([2, 4], 1)
        y = self.act(self.pad(torch.cat([second, first], 1))).clamp(0, 6)
        return {"map": self.up(y) * mask, "mean": y.mean((2, 3))}


def _model():
    torch.manual_seed(0)
    return TwoInputs().eval()


INPUTS = Inputs((("image", (2, 6, 9, 12)), ("mask", (2, 1, 18, 24))))


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 17, 18, 22])
def test_a_file_of_each_opset_is_valid_and_equal_at_every_batch(opset):
    model = _model()
    source = LiveSource.of(model)
    fused = source.fuse(source.find(FindOptions()))
    assert len(fused.found) == 1
    file = to_onnx(fused.model, INPUTS, opset=opset)
    assert {o.version for o in file.model.opset_import if o.domain == ""} == {opset}
    assert file.outputs == ("map", "mean")
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in file.model.graph.input] == (
        ["batch", "batch"]
    )
    onnx.checker.check_model(file.model, full_check=True)
    check = compare_onnx(file.bytes, model, INPUTS, Tolerance())
    assert check.passed, check.detail


class BySize(nn.Module):
    """What it does depends on the number of images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) if len(x) > 2 else self.conv(x).relu()


def test_a_way_that_was_fixed_at_one_size_is_seen_at_another():
    inputs, model = Inputs(((None, (2, 3, 9, 12)),)), BySize().eval()
    file = to_onnx(model, inputs, opset=13)
    assert not compare_onnx(file.bytes, model, inputs, Tolerance()).passed
