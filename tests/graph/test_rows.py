"""Linear layers: convolutions without axes, whose channels are last."""

import warnings

import numpy as np
import onnx
import onnxruntime
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


class Parallel(nn.Module):
    """Two linear branches of one input."""

    shape = (3, 4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 7), nn.Linear(5, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x) - 0.5 * self.b(x))


class Lora(nn.Module):
    """A layer and its stored adapter, `W + s B A`."""

    shape = (2, 3, 16)

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(16, 24)
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w(x) + 0.25 * self.up(self.down(x))


class Written(nn.Module):
    """The same as matrices, and a factor for each channel."""

    shape = (2, 3, 6)

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(6, 9))
        self.gamma = nn.Parameter(torch.rand(9) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.u + torch.matmul(x, self.v)) * self.gamma


class Products(nn.Module):
    """The same as operators of matrices, which take two axes only."""

    shape = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(9, 6))
        self.bias = nn.Parameter(torch.randn(9))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.u, beta=0.5, alpha=-2) + torch.mm(x, self.v.t())


class Normed(nn.Module):
    """A linear layer and a BatchNorm of all rows, as LeViT has them."""

    shape = (2, 3, 5)

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.bn(y.flatten(0, 1)).reshape_as(y)


class Shaped(Normed):
    """The same with the sizes written out."""

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, _ = x.shape
        y = self.bn(self.linear(x).reshape(-1, 7))
        return y.view(batch, rows, 7)


class RepNorm(nn.Module):
    """`BN(x) + alpha x` along the second of three axes. Source: arXiv:2405.11582."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.rand(1) + 0.5)
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return (self.bn(x) + self.alpha * x).transpose(1, 2)


class Slab(nn.Module):
    """A norm of that kind and the linear layer behind it."""

    shape = (2, 4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = RepNorm(6), nn.Linear(6, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class Merge(nn.Module):
    """Norms of rows, each with its factors, before linear layers."""

    shape = (2, 3, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.LayerNorm(8, eps=1e-3), nn.Linear(8, 4, bias=False)
        self.second, self.up = nn.RMSNorm(4), nn.Linear(4, 9)
        for norm in (self.first, self.second):
            nn.init.normal_(norm.weight)
        nn.init.normal_(self.first.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.second(self.down(self.first(x))))


class Around(nn.Module):
    """Some channels go through an activation, the others around it. Source: arXiv:2505.21847."""

    shape = (2, 4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).split([4, 12], dim=-1)
        return self.down(torch.cat([F.gelu(a), b], dim=-1))


class AroundImages(nn.Module):
    """The same of images, by slices."""

    shape = (2, 6, 5, 4)

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(6, 20, 1), nn.Conv2d(20, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.down(torch.cat([F.silu(y[:, :5]), y[:, 5:]], dim=1))


class Head(nn.Module):
    """An image's features, two linear branches and a norm."""

    shape = (3, 3, 9, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.a, self.b, self.bn = nn.Linear(8, 6), nn.Linear(8, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        return F.relu(self.bn(self.a(x) + self.b(x)))


def sequence() -> nn.Module:
    """A head of linear layers with a BatchNorm."""
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


sequence.shape = (4, 5)  # type: ignore[attr-defined]
NETS = [
    Parallel, Lora, Written, Products, Normed, Shaped, Slab, Merge, Around, AroundImages, Head,
    sequence,
]  # fmt: skip


@pytest.mark.parametrize("make", NETS)
def test_linear_layers_are_fused(make):
    torch.manual_seed(0)
    model = awake(make().eval(), 0)
    fused = acfuse.fuse(model, torch.randn(make.shape), fold_bn=True)
    assert fused.found
    assert not any(isinstance(m, nn.BatchNorm1d) for m in fused.model.modules())
    for block in fused.found:
        for exhaustive in (False, True):
            assert certify(block, fused.stored(block), exhaustive=exhaustive).passed
    x = torch.randn(make.shape)
    assert_within(fused.model(x), model(x), rounding(model, x, dtype=torch.float32))


@pytest.mark.parametrize("make", NETS)
def test_every_weight_of_a_linear_block_is_looked_at(make):
    model = awake(make().eval(), 0)
    fused = acfuse.fuse(model, torch.randn(make.shape), fold_bn=True)
    for block in fused.found:
        for i in range(len(block.terms)):
            for name in ("kernel", "bias"):
                stored = fused.stored(block)
                numbers = getattr(stored[i], name)
                nonzero = numbers.abs().flatten().nonzero().flatten().tolist()
                for place in nonzero[:: len(nonzero) // 3 + 1]:
                    number = numbers.view(-1)[place].clone()
                    numbers.view(-1)[place] = 2 * 2.0**-23 * number.abs() + number
                    assert not certify(block, stored).passed
                    numbers.view(-1)[place] = number
        assert certify(block, fused.stored(block)).passed


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "dynamo"])
@pytest.mark.parametrize("make", [Parallel, Lora, Written, Around, Head, sequence])
def test_matrices_of_onnx_files_are_fused(make, dynamo, tmp_path):
    torch.manual_seed(0)
    model, x = awake(make().eval(), 0), torch.randn(make.shape)
    path = tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=dynamo, verbose=False)
    original = onnx.load(path)
    fused = acfuse.fuse_onnx(original, fold_bn=True)
    folded = make is sequence and dynamo  # by the exporter
    assert bool(fused.found) != folded
    for block in fused.found:
        assert certify(block, fused.stored(block)).passed
    assert all(check.passed for check in fused.compare(None, Tolerance()))
    feeds = {original.graph.input[0].name: x.numpy()}
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds)[0]
        for m in (original, fused.model)
    )
    bound = rounding(model, x, dtype=torch.float32)
    assert_within(torch.from_numpy(np.array(after)), torch.from_numpy(np.array(before)), bound)


def test_a_norm_of_the_second_axis_is_not_one_of_the_last():
    """Rows of as many tokens as channels: the BatchNorm is over the tokens."""
    model = awake(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)).eval(), 0)
    fused = acfuse.fuse(model, torch.randn(2, 6, 5), fold_bn=True)
    assert not fused.found
    alone = acfuse.fuse(model, fold_bn=True)  # as a head of one row for each image
    x = torch.randn(4, 5)
    assert_within(alone.model(x), model(x), rounding(model, x, dtype=torch.float32))
    with pytest.raises(AssertionError, match="axes"):
        alone.model(torch.randn(2, 6, 5))


def test_a_sum_of_a_row_and_an_image_is_left():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.a(x) + self.b(x)

    model = Mixed().eval()
    fused = acfuse.fuse(model, torch.randn(2, 3, 4, 5))
    assert not fused.found
    assert any(refused.code == Reason.NOT_PER_CHANNEL for refused in fused.refused)


def test_a_factor_of_more_axes_than_the_rows_is_asserted():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 7), nn.Linear(5, 7)
            self.gamma = nn.Parameter(torch.rand(1, 1, 7) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x) + self.b(x)) * self.gamma

    model = Scaled().eval()
    fused = acfuse.fuse(model, torch.randn(2, 3, 5))
    assert len(fused.found) == 1
    assert len(list(fused.model.parameters())) == 2
    x = torch.randn(2, 3, 5)
    assert_within(fused.model(x), model(x), rounding(model, x, dtype=torch.float32))
    with pytest.raises(AssertionError, match="axes"):
        fused.model(torch.randn(3, 5))  # the original gives it three axes


def test_low_rank_pairs_stay_because_one_matrix_would_be_larger():
    model = nn.Sequential(nn.Linear(32, 2), nn.Linear(2, 32)).eval()
    fused = acfuse.fuse(model, torch.randn(3, 32))
    assert not fused.found
    assert [refused.code for refused in fused.refused] == [Reason.COST]


def test_flattened_rows_of_another_shape_are_not_put_back():
    class Other(Normed):
        def forward(self, x: Tensor, like: Tensor) -> Tensor:
            y = self.linear(x)
            return self.bn(y.flatten(0, 1)).reshape_as(like)

    model = awake(Other().eval(), 0)
    fused = acfuse.fuse(model, (torch.randn(2, 3, 5), torch.randn(3, 2, 7)), fold_bn=True)
    x, like = torch.randn(2, 3, 5), torch.randn(6, 7)
    assert_within(
        fused.model(x, like), model(x, like), rounding(model, x, like, dtype=torch.float32)
    )
    assert fused.model(x, like).shape == (6, 7)


def test_a_norm_that_several_layers_read_keeps_its_factors():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return F.relu(self.a(y)) + F.gelu(self.b(y))

    model = Two().eval()
    assert not acfuse.fuse(model, torch.randn(2, 3, 8), fold_bn=True).found


def test_a_norm_of_several_axes_keeps_its_factors():
    model = nn.Sequential(nn.LayerNorm((3, 8)), nn.Linear(8, 4)).eval()
    assert not acfuse.fuse(model, torch.randn(2, 3, 8), fold_bn=True).found


@pytest.mark.parametrize("make", NETS)
def test_a_fused_network_of_rows_is_verified_and_a_changed_one_is_not(make):
    torch.manual_seed(0)
    model = awake(make().eval(), 0)
    fused = acfuse.fuse(model, torch.randn(make.shape), fold_bn=True)
    proofs = acfuse.verify(model, fused.model, make.shape, fold_bn=True)
    assert proofs.passed, proofs.fault
    for name in fused.found[0].names:
        fused.model.get_submodule(name).weight.data.view(-1)[0] *= 1 + 2.0**-18
    assert not acfuse.verify(model, fused.model, make.shape, fold_bn=True).passed


@pytest.mark.parametrize("channels", [65, 150])
def test_matrices_of_many_channels_are_certified_by_random_rows(channels):
    torch.manual_seed(0)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(channels, 70), nn.Linear(channels, 70, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x) + self.b(x))

    fused = acfuse.fuse(Wide().eval(), torch.randn(3, channels))
    (block,) = fused.found
    (stored,) = fused.stored(block)
    assert certify(block, [stored]).passed
    stored.kernel[41, channels - 1] *= 1 + 2.0**-21
    assert not certify(block, [stored]).passed


class Matrices(nn.Module):
    """Products that torch has for rows of two axes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)
        self.w, self.v = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(7, 4))
        self.b = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.mm(x, self.w) + torch.addmm(self.b, x, self.w, beta=0.5, alpha=2)
        return (y + self.linear(x)).mm(self.v)


def test_a_product_of_matrices_takes_no_other_rows():
    model = Matrices().double().eval()
    fused = acfuse.fuse(model)
    assert len(fused.found) == 1
    x = torch.randn(3, 5, dtype=torch.float64)
    assert_within(fused.model(x), model(x), rounding(model, x, dtype=torch.float64))
    for shape in ((5,), (2, 3, 5)):
        other = torch.randn(shape, dtype=torch.float64)
        for either in (model, fused.model):
            with pytest.raises((RuntimeError, AssertionError)):
                either(other)


class Reshaped(nn.Module):
    """Flattened rows that are put into another shape than they had."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.first, self.linear, self.bn = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.last, self.extra = nn.Linear(6, 6), nn.Parameter(torch.randn(1, 7, 6))
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        u = self.first(x)
        match self.shape:
            case "two sizes":
                return (self.bn(self.linear(u).flatten(0, 1)).reshape(x.shape[0], -1),)
            case "four sizes":
                y = self.bn(self.linear(u).flatten(0, 1))
                return (y.reshape(x.shape[0], x.shape[1], x.shape[2], -1),)
            case "before a constant":
                v = u + self.extra  # of more rows, where x has one for each image
                y = self.bn(self.linear(v).flatten(0, 1))
                return y.reshape(u.shape[0], u.shape[1], -1), self.last(F.relu(v))
        v = self.linear(u)  # the shape is that of what is not among what it is made from
        return self.bn(self.last(v).flatten(0, 1)).reshape_as(u), v


@pytest.mark.parametrize("shape", ["two sizes", "four sizes", "before a constant", "of another"])
def test_only_what_puts_flattened_rows_back_undoes_that(shape):
    model = awake(Reshaped(shape).double().eval(), 0)
    fused = acfuse.fuse(model, torch.randn(2, 7, 6, dtype=torch.float64), fold_bn=True)
    assert all(block.names != ("linear",) for block in fused.found)
    read = shape in ("before a constant", "of another")  # the others are no reshape that is known
    assert {refused.code for refused in fused.refused} == ({Reason.SIZES} if read else set())
    for rows in (1, 7):
        x = torch.randn(2, rows, 6, dtype=torch.float64)
        assert_within(fused.model(x), model(x), rounding(model, x, dtype=torch.float64))


@pytest.mark.parametrize("make", [Parallel, Normed, Around])
def test_linear_blocks_of_a_fused_model_are_certified(make):
    model = awake(make().eval(), 0)
    fused = acfuse.fuse(model, fold_bn=True)
    proofs = acfuse.verify(model, fused.model, make.shape, fold_bn=True)
    assert proofs.passed
    assert len(proofs.certificates) == len(fused.found) > 0
    layer = fused.model.get_submodule(fused.found[-1].names[-1])
    with torch.no_grad():
        layer.weight[0, 0] += 1
    failed = acfuse.verify(model, fused.model, fold_bn=True)
    assert not all(certificate.passed for certificate in failed.certificates)
