"""Numbers of every size: folded in float64, rounded once, and refused where they do not fit."""

import pytest
import torch

import acfuse
from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, fused_tensors, snapshot, state

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def cast(tensors, dtype):
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_fold_is_that_of_float64_rounded_once(dtype):
    tensors = cast(state(), dtype)
    exact = acfuse.fuse_tensors(cast(tensors, torch.float64)).tensors
    fused = acfuse.fuse_tensors(tensors).tensors
    for name, tensor in fused.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, exact[name].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_and_statistics_in_float(dtype):
    """As mixed-precision training leaves it: the fused weight has the dtype of the weights."""
    tensors = {k: v.to(dtype) if "conv.weight" in k else v for k, v in state().items()}
    fused = acfuse.fuse_tensors(tensors).tensors
    exact = acfuse.fuse_tensors(cast(tensors, torch.float64)).tensors
    assert fused["first.fused_conv.weight"].dtype == dtype
    assert torch.equal(fused["first.fused_conv.weight"], exact["first.fused_conv.weight"].to(dtype))


@pytest.mark.parametrize("flags", [CHECKPOINT, ("--no-onnx",)], ids=["with code", "bare"])
def test_a_weight_beyond_half_names_its_tensor_and_what_to_do(project, flags):
    tensors = cast(state(), torch.float16)
    tensors["second.hor_bn.running_var"].fill_(1e-7)
    tensors["second.hor_conv.weight"].fill_(300.0)
    torch.save(tensors, "model.pth")
    before = snapshot(project)
    result = run("convert", "model.pth", *flags)
    refused(result, 3, "second.fused_conv", "weight", "float16", "bfloat16 or float32")
    assert snapshot(project) == before
    torch.save(cast(tensors, torch.bfloat16), "model.pth")
    worked(run("convert", "model.pth", "--no-onnx"))
    assert fused_tensors(project)["second.fused_conv.weight"].abs().max() > 65504


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_dtype_goes_through_a_file_bit_by_bit(project, suffix):
    import safetensors.torch

    others = {
        f"others.{str(d).removeprefix('torch.')}": torch.arange(5).to(d)
        for d in (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
                  torch.bool, torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.float8_e5m2)
    }  # fmt: skip
    others |= {"others.none": torch.zeros(0, 3), "others.one": torch.tensor(2.5)}
    whole = {**state(), **others}
    name = f"model{suffix}"
    torch.save(whole, name) if suffix == ".pth" else safetensors.torch.save_file(whole, name)
    worked(run("convert", name, "--no-onnx"))
    fused = (
        fused_tensors(project)
        if suffix == ".pth"
        else safetensors.torch.load_file("model.fused.safetensors")
    )
    for key, tensor in others.items():
        assert fused[key].dtype == tensor.dtype
        assert fused[key].shape == tensor.shape
        assert torch.equal(fused[key].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
