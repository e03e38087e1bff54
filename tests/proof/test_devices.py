"""Models on another device: fused there, proved there, and the same to the last bit.

A device that computes on the CPU, but mixes with it no more than a GPU, stands for one. On a GPU
itself the same is done where there is one: there, numbers agree as far as rounding lets them.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import acfuse
from sample_models import samples
from tests.cli import nets
from tests.proof.elsewhere import OWN, tensors_of

SAMPLES = samples()
NAMES = (
    "acnet/reflect", "acnet/groups_stride21", "acnet/shared", "acnet_textnet/fast_block",
    "acnet_wild/aliased", "added_input/repghost", "behind_the_sum/repoptimizer",
    "large_kernel/fastvit", "mobileone/apple_depthwise", "mobileone/pplcnet", "padded_middle/dbb",
    "padded_middle/fmen", "repvgg/se", "repvgg_dialects/timm", *OWN,
)  # fmt: skip
HAS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


def _elsewhere(*arguments):
    command = [sys.executable, "-m", "tests.proof.elsewhere", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_on_a_device_all_is_found_fused_and_proved_as_on_the_cpu():
    assert _elsewhere(*NAMES) == {name: [] for name in NAMES}


@pytest.mark.parametrize("plant", ["identity", "images", "results"])
def test_what_is_left_on_the_cpu_shows_on_a_device(plant):
    found = _elsewhere("repvgg/identity", "--plant", plant)
    assert found["repvgg/identity"] != []


def test_a_conversion_on_a_device_writes_the_same_files(tmp_path):
    shutil.copy(nets.__file__, tmp_path / "nets.py")
    torch.manual_seed(0)
    torch.save(nets.Net().state_dict(), tmp_path / "model.pth")
    found = _elsewhere("--convert", tmp_path)
    assert found == {"files": ["model.fused.onnx", "model.fused.pth"], "different": []}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_fused_model_moves_as_a_whole(name, dtype):
    """All its numbers are parameters and buffers, which `.to()` takes along."""
    sample = SAMPLES.get(name) or OWN[name]
    fused = acfuse.fuse(sample.build()).model
    kept = [
        f"{path}.{key}"
        for path, module in fused.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
    assert kept == []
    moved = fused.to(dtype)
    floating = [t for t in tensors_of(moved).values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {dtype}
    image = torch.randn(sample.input_shapes[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert moved(image.to(dtype)).dtype == dtype
    ghost = fused.to("meta")
    assert all(t.is_meta for t in tensors_of(ghost).values())
    assert ghost(image.to("meta", dtype)).is_meta


@HAS_CUDA
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_models_are_fused_and_proved(name):
    sample = SAMPLES.get(name) or OWN[name]
    shape, model = sample.input_shapes[0], sample.build().cuda()
    fused = acfuse.fuse(model).model
    assert {t.device.type for t in tensors_of(fused).values()} == {"cuda"}
    assert acfuse.verify(model, fused, shape).passed
    assert acfuse.verify(sample.build(), fused, shape).passed
    with torch.no_grad():
        for layer in fused.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(1.01)
    assert not acfuse.verify(model, fused, shape).passed


@HAS_CUDA
def test_a_conversion_on_a_gpu_writes_what_the_cpu_verifies(tmp_path):
    shutil.copy(nets.__file__, tmp_path / "nets.py")
    torch.save(nets.Net().state_dict(), tmp_path / "model.pth")
    how = {"model": f"{tmp_path / 'nets.py'}:Net", "input_shape": (1, 3, 17, 20)}
    done = acfuse.convert(tmp_path / "model.pth", device="cuda", **how)
    assert done.proofs.passed
    tensors = torch.load(Path(done.job.paths.checkpoint), weights_only=True)
    assert {t.device.type for t in tensors.values()} == {"cpu"}
