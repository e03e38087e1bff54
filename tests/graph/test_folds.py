"""`--fold-bn`: what is left of lone BatchNorms is taken up by the convolution beside it."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import acfuse
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from sample_models import awake
from tests.bounds import assert_within, rounding
from tests.graph.fusing import SHAPES, Net, NormAct, assert_same, conv, norm
from tests.proof.proving import certified


def folded(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A folded copy that gives the same, and the BatchNorms that are left."""
    model = awake(copy.deepcopy(model), 0).double()
    findings = find_in_module(model, PATTERNS, folds=True)
    fused = fused_copy(model, findings.found)
    assert_same(model, fused, SHAPES)
    for block in findings.found:
        assert certified(fused, block).fault == ""
    left = [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    return fused, left


class Inside(nn.Module):
    """A convolution that stands in a list of a module of its own."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList([conv(1, 0, (4, 2), bias=False)])
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts[0](x)


def test_a_convolution_in_a_list_of_a_module_keeps_its_place() -> None:
    gain = nn.Parameter(torch.rand(2, 1, 1))
    fused, _ = folded(Net(lambda m, x: m.g * m.a(x), a=Inside(), g=gain))
    assert [n for n, m in fused.named_modules() if isinstance(m, nn.Conv2d)] == ["a.parts.0"]


def test_two_convolutions_of_a_fold_stand_side_by_side() -> None:
    up = nn.ConvTranspose2d(2, 2, 1, 2, bias=False)

    class Arm(Inside):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.parts[0](x))

    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.c(m.n(torch.relu(m.b(x)) + m.a(torch.relu(x))))

    parts = {"a": Arm(up=up), "b": nn.ConvTranspose2d(4, 2, 1, 2), "n": norm(2)}
    fused, left = folded(Net(run, c=conv(1, 0, (2, 2)), **parts))
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in fused.modules()) == 2
    assert left == []


@pytest.mark.parametrize(
    ("run", "left"),
    [
        (lambda m, x: torch.relu(m.n(m.a(x))), []),
        (lambda m, x: torch.relu(m.b(m.n(torch.relu(x)))), []),
        (lambda m, x: torch.relu(m.a(m.n(torch.relu(x)))), ["n"]),  # its shift meets zero padding
        (lambda m, x: m.n(torch.relu(m.a(x))), ["n"]),
        (lambda m, x: (lambda y: m.n(y) * torch.sigmoid(y))(m.a(x)), ["n"]),
        (lambda m, x: torch.relu(m.n(m.o(m.a(x)))), []),
        (lambda m, x: torch.relu(m.b(m.n(m.a(x)))), []),
    ],
    ids=["behind", "before", "before_padded", "activation", "shared", "two_norms", "between"],
)
def test_a_batch_norm_is_folded_where_that_is_exact(run, left):
    parts = {"a": conv(3), "b": conv(1), "n": norm(), "o": norm()}
    _, found = folded(Net(run, **parts))
    assert [n for n in found if n != "o"] == left


def test_a_norm_that_brings_its_activation_leaves_the_activation():
    fused, left = folded(Net(lambda m, x: m.n(m.a(x)) + x, a=conv(3), n=NormAct(4)))
    assert left == []
    assert set(fused.state_dict()) == {"a.weight", "a.bias"}
    assert isinstance(fused.get_submodule("n.act"), nn.ReLU)


def test_a_chain_of_norms_with_activations_is_folded():
    fused, left = folded(
        nn.Sequential(conv(3), NormAct(4), conv(1), NormAct(4), conv(3), norm(), nn.Sigmoid())
    )
    assert left == []
    stored = io.BytesIO()
    torch.save(fused, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    image = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    assert torch.equal(again(image), fused(image))


def test_a_norm_of_two_convolutions_serves_both():
    fused, left = folded(
        Net(lambda m, x: m.n(m.a(x)) * m.n(m.b(x)), a=conv(3), b=conv(1), n=NormAct(4))
    )
    assert left == []
    assert set(fused.state_dict()) == {"a.weight", "a.bias", "b.weight", "b.bias"}


def test_a_norm_whose_weight_is_read_elsewhere_keeps_it():
    def run(m, x):
        return m.n(m.a(x)) * m.n.weight.mean()

    fused, _ = folded(Net(run, a=conv(3), n=NormAct(4)))
    assert "n.weight" in fused.state_dict()


def test_a_norm_without_its_convolution_stays_a_call():
    fused, left = folded(Net(lambda m, x: m.n(torch.relu(x)), n=NormAct(4)))
    assert left == ["n"]
    assert isinstance(fused.n, NormAct)


def test_a_fold_beside_a_value_that_is_kept_for_several():
    """Both arms read the value: it is made once, with its BatchNorm in its kernel."""

    def run(m, x):
        y = m.n(m.a(x))
        return m.d(y) + m.o(y)

    parts = {"a": conv(1), "n": norm(), "o": norm(), "d": nn.Conv2d(4, 4, 3, 1, 1, groups=4)}
    _, left = folded(Net(run, **parts))
    assert left == []


class Separable(nn.Module):
    """A depthwise convolution and a pointwise one, called one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.point = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.point(self.deep(x))


class NormActConv(nn.Module):
    """A norm with an activation, and a convolution behind it (DPN, DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = NormAct(4), conv(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


class Around(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.inner(x))


def _with_two_readers(m, x):
    y = m.a(x)
    return torch.relu(m.n(y)) + y


ACROSS = {
    "behind a module": (Around(Separable(), norm(), nn.ReLU()), 0),
    "twice": (Around(Separable(), norm(), nn.ReLU(), Separable(), norm()), 0),
    "deeper": (Around(Net(lambda m, x: torch.relu(m.n(m.a(m.b(x)))), a=Separable(),
                          b=nn.ReLU(), n=norm())), 0),
    "nested": (Net(lambda m, x: torch.relu(m.n(m.a(x))), a=Net(lambda m, x: m.s(torch.relu(x)),
                   s=Separable()), n=norm()), 0),
    "next module": (Around(NormActConv(), NormActConv(), NormActConv()), 1),
    "norm in the next": (Around(NormActConv(), Net(lambda m, x: torch.relu(m.n(x)), n=norm())), 1),
    "two readers": (Net(_with_two_readers, a=Separable(), n=norm()), 1),
    "called twice": (Net(lambda m, x: torch.relu(m.n(m.a(torch.relu(m.a(x))))), a=Separable(),
                         n=norm()), 1),
}  # fmt: skip


@pytest.mark.parametrize(("net", "left"), ACROSS.values(), ids=list(ACROSS))
def test_a_norm_is_folded_across_the_border_of_a_module(net, left):
    fused, norms = folded(net)
    assert sum(1 for m in fused.modules() if isinstance(m, nn.BatchNorm2d)) == len(norms) == left
    before = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    assert sum(isinstance(m, nn.Conv2d) for m in fused.modules()) == before


def test_a_module_that_was_read_in_place_keeps_its_class_and_the_names_of_its_layers():
    fused, _ = folded(Around(Separable(), norm(), nn.ReLU()))
    assert isinstance(fused.inner[0], Separable)
    assert {"inner.0.deep.weight", "inner.0.point.weight"} <= fused.state_dict().keys()


class Undecided(nn.Module):
    """A forward that cannot be read, and calls sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(conv(3), norm(), nn.ReLU())
        self.second = nn.Sequential(conv(1), nn.Sequential(norm(), nn.ReLU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if x.abs().max() > 1e6:
            x = x * 0.5
        return self.second(x)


class Apart(Undecided):
    """Of large images it takes sequences apart, where nobody could read it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if int(x.shape[-1]) > 64:
            return self.first[0](x) + self.second[1](self.second[0](x))
        return self.second(x)


def test_sequences_that_an_unreadable_forward_calls_are_folded():
    fused, left = folded(Undecided())
    assert left == []
    assert type(fused.first) is nn.Sequential


@pytest.mark.parametrize("net", [Undecided, Apart])
def test_a_sequence_is_folded_where_all_that_calls_it_is_known(net):
    model = awake(net(), 0)
    fused = acfuse.fuse(model, fold_bn=True)
    assert bool(fused.found) == (net is Undecided)
    for width in (8, 70):
        image = torch.randn(2, 4, 9, width)
        assert_within(fused.model(image), model(image), rounding(model, image, dtype=image.dtype))


class Features(nn.Module):
    """A module that it calls before a norm, and by itself for whoever wants its features."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.norm = Separable(), norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.block(x)))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_module_that_was_read_in_place_is_not_called_alone():
    model, image = awake(Features(), 0), torch.randn(2, 4, 9, 8)
    fused = acfuse.fuse(model, fold_bn=True).model
    bound = rounding(model, image, dtype=image.dtype)
    for twin in (fused, copy.deepcopy(fused), torch.jit.script(fused)):
        assert_within(twin(image), model(image), bound)
    with pytest.raises(RuntimeError, match="cannot be called alone"):
        fused.features(image)
    assert acfuse.verify(model, fused, (2, 4, 9, 8), fold_bn=True).passed


class Peeks(Undecided):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if x.shape[1] == 4:
            return x + self.first[0](x)
        return torch.sigmoid(x) + float(x.sum())


def test_a_layer_that_is_used_alone_as_well_is_not_doubled_by_a_fold():
    model = awake(Peeks(), 0)
    findings = find_in_module(model, PATTERNS, folds=True)
    assert not any(b.where.startswith("first") or "first" in b.layers for b in findings.found)


def _sizes(model: nn.Module) -> tuple[int, int]:
    """Its convolutions, and the numbers that it stores."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    kinds = (nn.Conv2d, nn.AvgPool2d)
    return sum(isinstance(m, kinds) for m in model.modules()), sum(t.numel() for t in tensors)


def _each_with_its_own(m, x):
    for bn in (m.n, m.o, m.p):
        x = torch.relu(bn(m.a(x)))
    return x


def _each_of_one_kernel(m, x):
    for bn in (m.n, m.o, m.p):
        x = torch.relu(bn(F.conv2d(x, m.a.weight, padding=1)))
    return x


NORMS = {"n": norm(), "o": norm(), "p": norm()}
GROWING = {
    "pool": Net(lambda m, x: torch.relu(m.p(m.a(x))), a=conv(1), p=nn.AvgPool2d(2)),
    "strided": Net(lambda m, x: torch.relu(m.b(m.a(x))), a=nn.Conv2d(4, 8, 1),
                   b=nn.Conv2d(8, 4, 1, stride=2)),
    "factors": Net(lambda m, x: m.a(torch.relu(torch.relu(x) * m.g + m.h)), a=conv(3),
                   g=nn.Parameter(torch.rand(4, 1, 1)), h=nn.Parameter(torch.rand(4, 1, 1))),
    "shared layer": Net(_each_with_its_own, a=conv(3), **NORMS),
    "shared kernel": Net(_each_of_one_kernel, a=conv(3), **NORMS),
}  # fmt: skip


@pytest.mark.parametrize("net", GROWING.values(), ids=list(GROWING))
def test_nothing_grows_by_being_fused(net):
    model = awake(copy.deepcopy(net), 0)
    for folds in (False, True):
        fused = acfuse.fuse(model, fold_bn=folds)
        before, after = _sizes(model), _sizes(fused.model)
        assert after[0] <= before[0]
        assert after[1] <= before[1]
    if net in (GROWING["pool"], GROWING["shared layer"], GROWING["shared kernel"]):
        assert fused.found == ()
        assert fused.refused or net is GROWING["factors"]
