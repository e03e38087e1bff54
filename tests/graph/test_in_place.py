"""Folds where no forward is rewritten: two layers are exchanged, whatever decides around them."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import acfuse
from sample_models import awake
from tests.graph.fusing import SHAPES, Net, NormAct, assert_same, conv, norm
from tests.proof.proving import certified


def missing(size: int, kernel: int, stride: int) -> int:
    """How much a size lacks for as many windows as there are steps in it."""
    return max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)


def same(x: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    """An image padded so that a step of two halves its size, rounded up."""
    high, wide = x.shape[-2:]
    high = missing(high, layer.kernel_size[0], layer.stride[0])
    wide = missing(wide, layer.kernel_size[1], layer.stride[1])
    return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


class SameConv(nn.Conv2d):
    """A convolution that pads by the size of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = same(x, self)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def padded(run):
    """A forward that decides by the size of its input, and then does something else."""

    def forward(m, x):
        if x.shape[-1] % 2 == 0:
            x = F.pad(x, (0, 1))
        return run(m, x)

    return forward


def folded(model: nn.Module) -> nn.Module:
    """A folded copy that gives the same, each fold of which is proved."""
    for dtype in (torch.float64, torch.float32):
        one = awake(copy.deepcopy(model), 0).to(dtype)
        before = copy.deepcopy(one)
        fused = acfuse.fuse(one, fold_bn=True)
        assert_same(one, fused.model, SHAPES, dtype)
        assert_same(one, before, SHAPES, dtype)
        for block in fused.found:
            assert certified(fused.model, block).fault == ""
    return fused.model


def norms(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "settings"),
    [((4, 6), {"stride": 2}), ((4, 8), {"groups": 2, "stride": (2, 1)}), ((4, 4), {"groups": 4})],
    ids=["stride", "groups", "depthwise"],
)
def test_a_convolution_that_decides_how_to_pad_takes_up_the_norm(channels, settings, bias):
    one = SameConv(*channels, (3, 5), bias=bias, **settings)
    fused = folded(Net(lambda m, x: torch.relu(m.n(m.a(x))), a=one, n=norm(channels[1])))
    assert type(fused.a) is SameConv
    assert type(fused.n) is nn.Identity
    assert [*fused.state_dict()] == ["a.weight", "a.bias"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_forward_that_decides_keeps_its_convolution_which_takes_up_the_norm(bias):
    one = conv((3, 1), 0, (4, 6), stride=(2, 1), groups=2, bias=bias)
    fused = folded(Net(padded(lambda m, x: torch.relu(m.n(m.a(x)))), a=one, n=norm(6)))
    assert [*fused.state_dict()] == ["a.weight", "a.bias"]
    assert type(fused) is Net


class Prelu(NormAct):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.PReLU(channels)


@pytest.mark.parametrize("kind", [NormAct, Prelu])
def test_a_norm_that_brings_its_activation_leaves_the_activation(kind):
    one = SameConv(4, 4, 3, stride=2)
    fused = folded(Net(lambda m, x: m.n(m.a(x)) * 2, a=one, n=kind(4)))
    assert norms(fused) == []
    assert isinstance(fused.get_submodule("n.act"), type(kind(4).act))
    stored = io.BytesIO()
    torch.save(fused.n, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    image = torch.randn(2, 4, 7, 9)
    assert torch.equal(again(image.clone()), fused.n(image.clone()))


def test_folds_of_both_kinds_stand_beside_each_other():
    def run(m, x):
        return torch.relu(m.o(m.b(torch.relu(m.n(m.a(x))))))

    fused = folded(Net(run, a=SameConv(4, 4, 3), n=norm(), b=conv(3), o=NormAct(4)))
    assert norms(fused) == []


def test_a_pair_that_is_called_twice_is_folded_once():
    def run(m, x):
        return torch.relu(m.n(m.a(x))) + torch.relu(m.n(m.a(x * 2)))

    fused = folded(Net(padded(run), a=conv(), n=norm()))
    assert norms(fused) == []


def test_nobody_is_told_that_what_is_folded_could_not_be_read():
    model = awake(Net(padded(lambda m, x: torch.relu(m.n(m.a(x)))), a=conv(), n=norm()), 0)
    assert [r.where for r in acfuse.fuse(model, fold_bn=True).refused] == []
    assert [r.where for r in acfuse.fuse(model).refused] == [""]


def test_a_fold_in_place_is_verified_and_a_wrong_one_is_seen():
    model = awake(Net(padded(lambda m, x: torch.relu(m.n(m.a(x)))), a=conv(), n=norm()), 0)
    fused = acfuse.fuse(model, fold_bn=True).model
    assert acfuse.verify(model, fused, SHAPES[0], fold_bn=True).passed
    with torch.no_grad():
        fused.a.bias[2] += 1e-4
    proofs = acfuse.verify(model, fused, SHAPES[0], fold_bn=True)
    assert not proofs.passed


def gated(m, y):
    return m.n(y) * torch.sigmoid(y)


def skips(m, x):
    y = m.a(x)
    return torch.relu(m.n(y) if x.shape[-2] > 8 else y)


def asks_the_norm(m, x):
    y = m.n(m.a(x))
    return torch.relu(y) if isinstance(m.n, nn.BatchNorm2d) else y


def asks_the_bias(m, x):
    y = m.n(m.a(x))
    return torch.relu(y) if m.a.bias is None else y


def asks_the_mode(m, x):
    y = m.a(x)
    return torch.relu(y if torch.is_autocast_enabled() else m.n(y))


def asks_what_it_is_given(m, x):
    y = m.a(x)
    return torch.relu(m.n(y) if isinstance(x, torch.Tensor) else y)


class Scaled(SameConv):
    """Scales what the convolution gives: its bias as well as its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.bias.mean()


class Standardized(SameConv):
    """A convolution with the weight, without its mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(same(x, self), weight, self.bias, self.stride)


class Deaf(SameConv):
    """Has no use for a bias, whether there is one or not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(same(x, self), self.weight, None, self.stride)


class Asking(SameConv):
    """Pads in another way where it has a bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.bias is None else x + 1
        return super().forward(x)


class Weighing(SameConv):
    """Reads its weight for what it convolves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.weight.mean())


def plain(m, x):
    return torch.relu(m.n(m.a(x)))


class Frozen(nn.Module):
    """A norm of four buffers, written out where there are gradients, with another eps by `off`."""

    def __init__(self, channels: int, off: float = 0.0) -> None:
        super().__init__()
        self.eps, self.off = 1e-5, off
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.linspace(0.5, 1.5, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.requires_grad:
            known = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(x, *known, training=False, eps=self.eps)
        scale = self.weight * (self.running_var + self.eps + self.off).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1).to(x.dtype) + shift.reshape(1, -1, 1, 1).to(x.dtype)


def test_a_norm_that_decides_how_to_compute_the_same_is_folded():
    fused = folded(Net(plain, a=conv(channels=(4, 6), groups=2, stride=2), n=Frozen(6)))
    assert type(fused.n) is nn.Identity
    assert [*fused.state_dict()] == ["a.weight", "a.bias"]


def test_a_norm_that_computes_something_else_with_gradients_stays():
    model = Net(plain, a=conv(), n=Frozen(4, off=1e-6)).double()
    assert type(acfuse.fuse(model, fold_bn=True).model.n) is Frozen


class Two(Net):
    """A norm that is skipped, if the caller says so."""

    def forward(self, x: torch.Tensor, skip: bool = False) -> torch.Tensor:
        x = F.pad(x, (0, 1)) if x.shape[-1] % 2 == 0 else x
        return torch.relu(self.a(x) if skip else self.n(self.a(x)))


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda m, args, result: result * 2)
    return layer


REFUSED = {
    "read_twice": (padded(lambda m, x: gated(m, m.a(x))), conv(), norm()),
    "norm_of_another": (padded(lambda m, x: m.n(m.a(x)) + m.n(torch.relu(x))), conv(), norm()),
    "weight_read": (padded(lambda m, x: m.n(m.a(x)) * m.a.weight.mean()), conv(), norm()),
    "mean_read": (padded(lambda m, x: m.n(m.a(x)) * m.n.running_mean.mean()), conv(), norm()),
    "skipped": (padded(skips), conv(), norm()),
    "activation": (padded(lambda m, x: m.n(torch.relu(m.a(x)))), conv(), norm()),
    "overwritten": (padded(lambda m, x: m.n(m.a(x).relu_())), conv(), norm()),
    "asks_the_norm": (padded(asks_the_norm), conv(), norm()),
    "asks_the_bias": (padded(asks_the_bias), conv(bias=False), norm()),
    "asks_eps": (padded(lambda m, x: m.n(m.a(x)) * m.n.eps), conv(), norm()),
    "asks_the_mode": (padded(asks_the_mode), conv(), norm()),
    "asks_what_it_is_given": (padded(asks_what_it_is_given), conv(), norm()),
    "hook_of_the_convolution": (padded(plain), hooked(conv()), norm()),
    "hook_of_the_norm": (padded(plain), conv(), hooked(norm())),
    "no_statistics": (padded(plain), conv(), nn.BatchNorm2d(4, track_running_stats=False)),
    "weight_norm": (padded(plain), nn.utils.parametrizations.weight_norm(conv()), norm()),
    "same": (padded(plain), conv(padding="same"), norm()),
    "scaled": (plain, Scaled(4, 4, 3), norm()),
    "standardized": (plain, Standardized(4, 4, 3), norm()),
    "deaf": (plain, Deaf(4, 4, 3, bias=False), norm()),
    "deaf_with_bias": (plain, Deaf(4, 4, 3), norm()),
    "asking": (plain, Asking(4, 4, 3, bias=False), norm()),
    "weighing": (plain, Weighing(4, 4, 3), norm()),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_to_be_a_pair_stays(name):
    run, one, other = REFUSED[name]
    assert_untouched(Net(run, a=one, n=other))


def test_an_argument_that_skips_the_norm_keeps_it():
    assert_untouched(Two(plain, a=conv(), n=norm()))


def test_a_layer_that_a_plain_list_holds_as_well_stays():
    model = Net(padded(lambda m, x: torch.relu(m.n(m.held[0](x)))), a=conv(), n=norm())
    model.held = [model.a]
    assert_untouched(model)


def test_a_layer_that_another_forward_calls_stays():
    inner = Net(padded(plain), a=conv(), n=norm())
    assert_untouched(Net(lambda m, x: m.inner(x).mean() + m.inner.a(x), inner=inner), "inner.n")
    assert_untouched(Net(lambda m, x: m.inner(x).mean() + m.inner.n(x), inner=inner), "inner.n")


def test_a_convolution_of_two_names_stays():
    """One of two modules that share it calls another norm behind it."""
    one, other = (Net(padded(plain), a=conv(), n=norm()) for _ in range(2))
    other.a = one.a
    assert_untouched(Net(lambda m, x: m.one(x) + m.other(x), one=one, other=other), "one.n")


def assert_untouched(model: nn.Module, left: str = "n") -> None:
    """Folding leaves the norm, and gives the same."""
    model = awake(copy.deepcopy(model), 0).double()
    fused = acfuse.fuse(model, fold_bn=True).model
    assert type(fused.get_submodule(left)) is nn.BatchNorm2d
    assert_same(model, fused)
