"""ONNX files of every opset that tools take: each is checked, and equal to the original model."""

from dataclasses import replace

import onnx
import pytest
import torch
from torch import nn

from acfuse.errors import NothingToFuse, UsageError
from acfuse.pipeline.convert import convert
from acfuse.pipeline.job import Job
from acfuse.pipeline.manifest import Manifest
from acfuse.pipeline.replay import verify_files
from acfuse.proof import Inputs, Tolerance
from acfuse.proof.onnx_runtime import compare_onnx
from acfuse.proof.original import Original
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
    check = compare_onnx(file.bytes, Original(model, INPUTS), Tolerance())
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
    assert not compare_onnx(file.bytes, Original(model, inputs), Tolerance()).passed


# Weights that are inputs as well.


def _with_weight_inputs(folder):
    """A file in which every weight is the default of an input."""
    file = to_onnx(Block(6, 6).eval(), Inputs(((None, (2, 6, 9, 12)),)), opset=13)
    for tensor in file.model.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        file.model.graph.input.append(value)
    path = folder / "net.onnx"
    onnx.save(file.model, path)
    return Job(path)


def test_weights_that_a_caller_may_give_are_constants_if_the_user_says_so(tmp_path):
    job = _with_weight_inputs(tmp_path)
    with pytest.raises(NothingToFuse, match="--fix-initializers"):
        convert(job)
    done = convert(replace(job, fix_initializers=True))
    assert done.proofs.passed
    assert [v.name for v in onnx.load(job.paths.onnx).graph.input] == ["input"]
    assert any("no inputs any more" in note for note in done.notes)
    assert verify_files(replace(job, fix_initializers=True), job.paths.onnx).proofs.passed
    again = Manifest.meant(next(tmp_path.glob("*.acfuse.json")))
    assert again.job({}).fix_initializers


def test_fixing_what_is_fixed_is_an_error(tmp_path):
    job = _with_weight_inputs(tmp_path)
    convert(replace(job, fix_initializers=True))
    with pytest.raises(UsageError, match="no effect"):
        convert(Job(job.paths.onnx, fix_initializers=True))
    torch.save(Block(6, 6).state_dict(), tmp_path / "x.pth")
    with pytest.raises(UsageError, match="no effect"):
        convert(Job(tmp_path / "x.pth", fix_initializers=True, bn_eps=1e-5))
