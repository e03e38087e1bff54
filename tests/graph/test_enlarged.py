"""Sums and 1x1 convolutions around what makes images larger and changes no pixel."""

import warnings

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import acfuse
from acfuse.errors import Reason
from acfuse.proof import Tolerance
from acfuse.proof.certificate import certify
from sample_models import awake
from tests.bounds import assert_within, rounding
from tests.graph.onnx_files import answers


class Shuffled(nn.Module):
    """Two branches, each with its pixel shuffle, a norm and a 1x1 behind their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(3, 20, 1)
        self.shuffle, self.bn, self.last = nn.PixelShuffle(2), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.a(x)) + F.pixel_shuffle(self.b(x), 2)
        return F.relu(self.last(self.bn(y)))


class Copied(nn.Module):
    """The same with copies of pixels, another number of them on each axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.up, self.bn, self.last = (
            nn.Upsample(scale_factor=(2, 3)),
            nn.BatchNorm2d(5),
            nn.Conv2d(5, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.a(x)) + F.interpolate(self.b(x), scale_factor=(2.0, 3.0))
        return F.relu(self.last(self.bn(y)))


class Grouped(nn.Module):
    """A convolution in groups behind two shuffles, one in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, (3, 1), padding=(1, 0)), nn.Conv2d(3, 64, 1)
        self.last = nn.Conv2d(4, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.a(x) - self.b(x), 2)
        return F.relu(self.last(F.pixel_shuffle(y, 2)))


@pytest.mark.parametrize("make", [Shuffled, Copied, Grouped])
def test_branches_are_added_before_they_are_made_larger(make):
    torch.manual_seed(0)
    model = awake(make().eval(), 0)
    fused = acfuse.fuse(model)
    (block,) = fused.found
    assert block.convolutions == (3, 1)
    assert sum(isinstance(m, nn.Conv2d) for m in fused.model.modules()) == 1
    x = torch.randn(2, 3, 6, 7)
    assert_within(fused.model(x), model(x), rounding(model, x, dtype=torch.float32))
    for exhaustive in (False, True):
        assert certify(block, fused.stored(block), exhaustive=exhaustive).passed
    (stored,) = fused.stored(block)
    place = int(stored.kernel.abs().argmax())
    stored.kernel.view(-1)[place] *= 1 + 2.0**-21
    assert not certify(block, [stored]).passed


def test_a_fault_before_it_is_made_larger_is_told():
    model = awake(Shuffled().eval(), 0)
    fused = acfuse.fuse(model)
    with torch.no_grad():
        fused.model.get_parameter(f"{fused.found[0].names[0]}.weight").mul_(1 + 2.0**-12)
    proofs = acfuse.verify(model, fused.model, (2, 3, 6, 7))
    assert not proofs.passed
    assert "weights are wrong" in proofs.fault


def test_different_images_are_not_added_before_they_are_made_larger():
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            up = F.interpolate(self.a(x), scale_factor=2) + F.interpolate(self.b(y), scale_factor=2)
            return F.relu(up)

    model = Pyramid().eval()
    images = torch.randn(2, 3, 6, 7), torch.randn(2, 3, 6, 7)
    fused = acfuse.fuse(model, images)
    assert not fused.found
    assert [refused.code for refused in fused.refused] == [Reason.INPUTS]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest-exact"])
def test_what_mixes_pixels_is_left(mode):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            first, second = (
                F.interpolate(c(x), scale_factor=2, mode=mode) for c in (self.a, self.b)
            )
            return F.relu(first + second)

    assert not acfuse.fuse(Mixed().eval(), torch.randn(2, 3, 6, 7)).found


def test_a_convolution_of_more_than_a_pixel_does_not_pass():
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.last = nn.Conv2d(3, 20, 1), nn.Conv2d(5, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.last(F.pixel_shuffle(self.a(x), 2)))

    fused = acfuse.fuse(Wide().eval(), torch.randn(2, 3, 6, 7))
    assert not fused.found
    assert any("pixel shuffle" in refused.why for refused in fused.refused)


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "dynamo"])
@pytest.mark.parametrize("make", [Shuffled, Grouped])
def test_a_depth_to_space_of_a_file_is_a_pixel_shuffle(make, dynamo, tmp_path):
    torch.manual_seed(0)
    model, image = awake(make().eval(), 0), torch.randn(2, 3, 6, 7)
    path = tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (image,), path, dynamo=dynamo, verbose=False)
    original = onnx.load(path)
    fused = acfuse.fuse_onnx(original)
    (block,) = fused.found
    assert block.convolutions[1] == 1
    assert certify(block, fused.stored(block)).passed
    assert all(check.passed for check in fused.compare(None, Tolerance()))
    (before,), (after,) = answers(original, image), answers(fused.model, image)
    assert_within(after, before, rounding(model, image, dtype=torch.float32))
    (shuffle, *_) = [n for n in fused.model.graph.node if n.op_type == "DepthToSpace"]
    mode = next(a for a in shuffle.attribute if a.name == "mode")
    mode.s = b"DCR"
    assert not all(check.passed for check in fused.compare(None, Tolerance()))
