"""Networks with names of their own whose branches become one convolution, whatever their form."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from sample_models import awake
from tests.bounds import assert_within, linear_bound, rounding
from tests.graph.fusing import (
    SHAPES,
    Net,
    assert_rounded_once,
    assert_same_bits,
    conv,
    find,
    fused_and_checked,
    images,
    norm,
)
from tests.graph.nets import Block, Named, add, cases, two, weight
from tests.proof.proving import certified


def _added_in_place(m, x):
    y = m.a(x)
    y += m.b(x)
    return y


def _overwritten_later(m, x):
    y = m.a(x) + m.b(x)
    z = y.clone()
    y.add_(1.0)
    return y * z


def _source_overwritten_later(m, x):
    x = torch.relu(x)
    y = m.a(x) + m.b(x)
    x.mul_(2.0)
    return y * x


def _source_overwritten_between(m, x):
    x = torch.relu(x)
    y = m.a(x)
    x.mul_(2.0)  # which is another input, but a linear map of the first
    return y + m.b(x)


def _one_of_three_is_needed(m, x):
    y = m.a(x)
    return torch.relu(y + m.b(x) + m.c(x)) * torch.sigmoid(y)


def _both_parts(m, x):
    y = m.a(x) + m.b(x)
    return torch.relu(y) * torch.sigmoid(y)


def _two_sums(m, x):
    return m.a(x) + m.b(x), m.c(x) + m.d(x)


def _two_sources(m, x):
    z = torch.relu(x)
    return m.a(x) + m.b(x) + m.c(z) + m.d(z)


def _looks_at_shapes(m, x):
    batch, _, _, _ = x.shape
    y = m.a(x)
    torch._assert(y.shape[1] == 4, "channels")
    return (y + m.b(x)).view(batch, -1)


def _batch_norm(m, x, training=False):
    y = F.batch_norm(
        m.a(x), m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias, training, 0.1, 1e-3
    )
    return y + m.b(x)


FUNCTIONAL = {
    "conv2d": two(lambda m, x: F.conv2d(x, m.w, m.v, padding=1) + m.b(x),
                  w=weight(4, 4, 3, 3), v=weight(4)),
    "conv2d_by_name": two(lambda m, x: F.conv2d(input=x, weight=m.w, padding="same") + m.b(x),
                          w=weight(4, 4, 3, 3)),
    "torch_conv2d": two(lambda m, x: torch.conv2d(x, m.w, None, 1, 1) + m.b(x),
                        w=weight(4, 4, 3, 3)),
    "conv2d_of_a_layer": two(lambda m, x: F.conv2d(x, m.a.weight, m.a.bias, padding=1) + m.b(x)),
    "batch_norm": two(_batch_norm, n=norm()),
    "dropout": two(lambda m, x: F.dropout(m.a(x), training=m.training) + m.b(x)),
    "add_with_alpha": two(lambda m, x: torch.add(m.a(x), m.b(x), alpha=2)),
    "add_method": two(lambda m, x: m.a(x).add(m.b(x))),
    "add_in_place": two(lambda m, x: m.a(x).add_(m.b(x))),
    "add_in_place_with_alpha": two(lambda m, x: m.a(x).add_(m.b(x), alpha=-3)),
    "added_in_place": two(_added_in_place),
    "sub": two(lambda m, x: torch.sub(m.a(x), m.b(x))),
    "sub_with_alpha": two(lambda m, x: torch.sub(m.a(x), m.b(x), alpha=0.5)),
    "sub_in_place": two(lambda m, x: m.a(x).sub_(m.b(x))),
    "minus": two(lambda m, x: m.a(x) - m.b(x)),
    "from_a_number": two(lambda m, x: 1 - m.a(x) - m.b(x)),
    "neg": two(lambda m, x: -m.a(x) + m.b(x).neg()),
    "torch_neg": two(lambda m, x: torch.neg(m.a(x) - m.b(x))),
    "python_sum": two(lambda m, x: sum([m.a(x), m.b(x), m.c(x)]), c=conv((1, 3))),
    "divided": two(lambda m, x: m.a(x) / m.g + m.b(x) / 2, g=weight(4, 1, 1)),
}  # fmt: skip

FACTORS = {
    "C11": two(lambda m, x: m.a(x) * m.g + m.b(x), g=weight(4, 1, 1)),
    "1C11": two(lambda m, x: m.g * m.a(x) + m.b(x), g=weight(1, 4, 1, 1)),
    "reshaped": two(lambda m, x: m.g.view(1, -1, 1, 1) * m.a(x) + m.b(x), g=weight(4)),
    "indexed": two(lambda m, x: m.g[:, None, None] * m.a(x) + m.b(x), g=weight(4)),
    "one_number": two(lambda m, x: m.g * m.a(x) + m.b(x),
                      g=nn.Parameter(torch.tensor(0.7)).requires_grad_(False)),
    "plain_number": two(lambda m, x: 0.25 * m.a(x) + m.b(x) * 3),
    "added": two(lambda m, x: m.a(x) + m.g + m.b(x), g=weight(4, 1, 1)),
    "buffer": two(lambda m, x: m.a(x) * m.g + m.b(x), g=torch.rand(4, 1, 1)),
}  # fmt: skip

GEOMETRY = {
    "dilated": two(a=conv(3, 2, dilation=2)),
    "dilated_in_a_larger": two(a=conv(3, 2, dilation=2), b=conv(5)),
    "even": two(a=conv(2, 1), b=conv(4, 2)),
    "even_cropped": two(lambda m, x: m.a(x)[:, :, :-1, :-1] + m.b(x), a=conv(2, 1)),
    "depthwise": two(a=conv(3, groups=4), b=conv(1, groups=4)),
    "groups": two(a=conv(3, groups=2), b=conv(1, groups=4)),
    "strides": two(a=conv(3, stride=(1, 2)), b=conv(1, stride=(1, 2))),
    "same": two(a=conv((3, 5), "same"), b=conv(1)),
    "valid": two(a=conv(3, "valid"), b=conv(3, 0)),
    "reflect": two(a=conv(3, padding_mode="reflect"), b=conv(1)),
    "circular": two(a=conv(3, padding_mode="circular"), b=conv((3, 1), padding_mode="circular")),
    "transposed": two(a=nn.ConvTranspose2d(4, 4, 3, padding=1), b=nn.ConvTranspose2d(4, 4, 1)),
    "transposed_groups": two(a=nn.ConvTranspose2d(4, 4, (3, 2), padding=(1, 0), groups=2),
                             b=conv((3, 2), (1, 1))),
    "identity": two(lambda m, x: m.a(x) + x),
    "identity_norm": two(lambda m, x: m.a(x) + m.n(x), n=norm()),
    "padded": two(lambda m, x: m.a(F.pad(x, (1, 1, 1, 1))) + m.b(x), a=conv(3, 0)),
    "padded_on_one_side": two(lambda m, x: m.a(F.pad(x, (2, 0, 0, 2))) + m.b(x), a=conv(3, 0)),
    "padded_on_one_axis": two(lambda m, x: m.a(F.pad(x, (1, 1))) + m.b(x), a=conv((1, 3), 0)),
    "padded_by_a_layer": two(lambda m, x: m.a(m.p(x)) + m.b(x), a=conv(3, 0), p=nn.ZeroPad2d(1)),
    "reflected_by_a_layer": two(lambda m, x: m.a(m.p(x)) + m.b(m.p(x)), a=conv(3, 0),
                                b=conv(3, 0), p=nn.ReflectionPad2d(1)),
    "cropped_input": two(lambda m, x: m.a(x) + m.b(x[:, :, 1:-1, 1:-1]), a=conv(3, 0)),
    "cropped_arms": two(lambda m, x: m.a(x)[:, :, 1:-1] + m.b(x)[:, :, 1:-1]),
    "cropped_sum": two(lambda m, x: (m.a(x) + m.b(x))[:, :, 1:-1]),
    "norm_before_a_pointwise": two(lambda m, x: m.b(m.n(x)) + m.a(x), n=norm()),
    "norm_after_the_sum": two(lambda m, x: m.n(m.a(x) + m.b(x)), n=norm()),
    "wide_middle": Net(lambda m, x: m.b(m.a(x)), a=conv(1, 0, (4, 64), bias=False),
                       b=conv(3, 1, (64, 4))),
    "wide_middle_and_identity": Net(lambda m, x: x + m.b(m.a(x)), a=conv(1, 0, (4, 64)),
                                    b=conv(1, 0, (64, 4))),
    "padded_first": Net(lambda m, x: m.b(m.a(F.pad(x, (1, 1, 1, 1)))), a=conv(1, 0, (4, 64)),
                        b=conv(3, 0, (64, 4))),
}  # fmt: skip

POOLS = {
    "layer": Net(lambda m, x: m.a(x) + m.p(x), a=conv(3), p=nn.AvgPool2d(3, 1, 1)),
    "function": Net(lambda m, x: m.a(x) + F.avg_pool2d(x, 3, 1, 1), a=conv(3)),
    "default_stride": two(
        lambda m, x: m.a(x) + m.b(F.avg_pool2d(x, 2)), a=conv(2, 0, stride=2)
    ),
    "minus_identity": Net(lambda m, x: m.a(x) + m.p(x) - x, a=conv(3), p=nn.AvgPool2d(3, 1, 1)),
    "does_not_count_what_is_not_there": Net(
        lambda m, x: m.a(x) + m.p(x),
        a=conv(3, 0),
        p=nn.AvgPool2d(3, 1, count_include_pad=False),
    ),
}  # fmt: skip

FORMS = {
    "needed_twice": two(_both_parts),
    "overwritten_later": two(_overwritten_later),
    "source_overwritten_later": two(_source_overwritten_later),
    "source_overwritten_between": two(_source_overwritten_between),
    "shapes": two(_looks_at_shapes),
    "a_dictionary": two(lambda m, x: {"sum": m.a(x) + m.b(x), "input": x}),
    "a_list_of_arms": Net(lambda m, x: sum(arm(x) for arm in m.arms),
                          arms=nn.ModuleList([conv(3), conv(1), nn.Identity()])),
    "a_dictionary_of_arms": Net(lambda m, x: m.arms["p"](x) + m.arms["q"](x),
                                arms=nn.ModuleDict({"p": conv(3), "q": conv(1)})),
    "sequential_arms": two(a=nn.Sequential(conv(3), norm()), b=nn.Sequential(conv(1), norm())),
    "dropout_layer": two(lambda m, x: m.d(m.a(x)) + m.b(x), d=nn.Dropout2d(0.5)),
    "the_same_layer_twice": two(lambda m, x: m.a(x) + m.a(x) + m.b(x)),
    "minus_itself": two(lambda m, x: m.a(x) - m.a(x) + m.b(x)),
    "forward_called_directly": two(lambda m, x: m.a.forward(x) + m.b.forward(x)),
    "synchronised_norm": two(lambda m, x: m.n(m.a(x)) + m.b(x), n=nn.SyncBatchNorm(4)),
}  # fmt: skip

# Weights that the forward computes from parameters alone.
COMPUTED = {
    "weight_norm": two(a=parametrizations.weight_norm(conv(3))),
    "spectral_norm": two(a=parametrizations.spectral_norm(conv(3))),
    "mixed_kernels": two(
        lambda m, x: F.conv2d(x, torch.einsum("oi,ihkw->ohkw", m.t, m.w), padding=1) + m.b(x),
        t=weight(4, 4),
        w=weight(4, 4, 3, 3),
    ),
    "identity_plus_weight": two(
        lambda m, x: m.a(x) + F.conv2d(x, m.w + torch.eye(4, dtype=m.w.dtype)[:, :, None, None]),
        w=weight(4, 4, 1, 1),
    ),
    "softmax_of_factors": two(
        lambda m, x: torch.softmax(m.g, 0)[0] * m.a(x) + torch.softmax(m.g, 0)[1] * m.b(x),
        g=weight(2),
    ),
    "gate": two(lambda m, x: torch.sigmoid(m.g) * m.a(x) + m.b(x), g=weight(4, 1, 1)),
}

_1D = {
    "a": nn.Conv1d(4, 6, 5, padding=2, stride=2, groups=2),
    "b": nn.Conv1d(4, 6, 1, stride=2, groups=2),
}
_3D = {
    "a": nn.Conv3d(4, 6, 3, padding=1),
    "b": nn.Conv3d(4, 6, (1, 1, 3), padding=(0, 0, 1)),
    "c": nn.Sequential(nn.Conv3d(4, 6, 1), nn.BatchNorm3d(6)),
}


@cases(FUNCTIONAL)
def test_a_functional_form_is_read(net):
    fused_and_checked(net)


@cases(FACTORS)
def test_a_factor_for_each_channel_is_taken_up(net):
    fused_and_checked(net)


@cases(GEOMETRY)
def test_kernels_of_any_shape_and_alignment_become_one(net):
    shapes = tuple(s for s in SHAPES if s[2] > 6)
    fused_and_checked(net, shapes=shapes)


@cases(POOLS)
def test_an_average_pool_is_a_convolution(net):
    fused_and_checked(net)


@cases(FORMS)
def test_a_forward_of_any_form_is_read(net):
    fused_and_checked(net)


@cases(COMPUTED)
def test_a_weight_computed_from_parameters_alone_counts_as_its_value(net):
    fused_and_checked(net, single=False)


@cases(COMPUTED)
def test_a_computed_weight_is_rounded_once_too(net):
    assert_rounded_once(net)


def test_signals_and_volumes():
    fused_and_checked(Net(add, **_1D), shapes=((1, 4, 17), (3, 4, 12)))
    volumes = ((1, 4, 5, 6, 7), (3, 4, 4, 5, 3))
    fused_and_checked(Net(lambda m, x: m.a(x) + m.b(x) + m.c(x), **_3D), shapes=volumes)


def test_an_image_without_a_batch_is_an_image():
    fused_and_checked(two(), shapes=((4, 13, 16), (4, 7, 10)))
    fused_and_checked(two(lambda m, x: m.a(x) + x), shapes=((4, 13, 16), (4, 7, 10)))


def test_an_arm_that_is_needed_elsewhere_stays_and_the_others_merge():
    fused_and_checked(two(_one_of_three_is_needed, c=conv((1, 3))), convolutions=2)


def test_several_sums_in_one_forward():
    fused_and_checked(two(_two_sums, c=conv(3), d=conv(1)), blocks=2)


def test_arms_of_each_source_merge():
    fused_and_checked(two(_two_sources, c=conv(3), d=conv(1)), convolutions=2)
    fused_and_checked(two(lambda m, x: m.a(x) + torch.relu(x) + m.b(x)))
    fused_and_checked(two(lambda m, x: m.n(m.a(x) + torch.relu(x) + m.b(x)), n=norm()))


def test_arms_of_another_source_in_front_merge_with_their_biases():
    fused_and_checked(
        two(lambda m, x: m.c(torch.relu(x)) + m.a(x) + m.b(x), c=conv(3)), convolutions=2
    )


def test_nested_blocks_become_one_convolution():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = two()
            self.line = nn.Sequential(conv((1, 3)), norm())
            self.norm = norm()

        def forward(self, x):
            return self.norm(self.inner(x) + self.line(x))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer, self.norm = Mixer(), norm()
            self.gamma = weight(4, 1, 1)

        def forward(self, x):
            return x + self.gamma * (self.mixer(x) - self.norm(x))

    assert list(fused_and_checked(Outer())._modules) == ["fused_conv"]


def test_a_block_called_twice_is_fused_once():
    net = Net(lambda m, x: m.i(torch.relu(m.i(x, 2.0)), scale=2.0), i=Block())
    fused = fused_and_checked(net, convolutions=2)
    assert [k for k in fused.state_dict() if k.endswith("weight")] == ["i.fused_conv.weight"]


def test_a_block_with_two_names_is_fused_once_and_keeps_both():
    block = Block()
    fused = fused_and_checked(
        Net(lambda m, x: m.one(torch.relu(m.two(x))), one=block, two=block), convolutions=2
    )
    assert fused.one is fused.two


def test_layers_that_two_blocks_share():
    one, other = Block(), Block()
    other.small = one.small
    fused_and_checked(
        Net(lambda m, x: m.i(torch.relu(m.j(x))), i=one, j=other), blocks=2, convolutions=2
    )


def test_a_layer_of_a_block_that_has_another_place_as_well():
    block = Block()
    net = Net(lambda m, x: m.head(torch.relu(m.i(x))), i=block, head=block.small)
    fused = fused_and_checked(net, convolutions=2)
    assert isinstance(fused.head, nn.Conv2d)


def test_a_tied_weight_outside_of_the_block_stays():
    block, head = Block(), conv(1)
    head.weight = block.small.weight
    fused_and_checked(
        Net(lambda m, x: m.head(torch.relu(m.i(x))), i=block, head=head), convolutions=2
    )


class Branching(nn.Module):
    """Data decides which way it goes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Block(), conv(1)

    def forward(self, x):
        return self.first(x) if x.mean() > 0 else self.second(x)


def test_one_forward_that_cannot_be_read_does_not_stop_the_others():
    net = Net(lambda m, x: m.i(torch.relu(m.d(x))), i=Block(), d=Branching())
    fused_and_checked(net, blocks=2, convolutions=2)


class NamedWithTail(Named):
    def __init__(self):
        super().__init__()
        self.nonlinearity = nn.ReLU()

    def forward(self, x):
        return self.nonlinearity(super().forward(x))


@pytest.mark.parametrize("block", [Named, NamedWithTail])
def test_a_block_that_a_pattern_knows_is_fused_although_it_looks_at_sizes(block):
    fused_and_checked(block())
    fused_and_checked(Net(lambda m, x: torch.relu(m.i(x)), i=block()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_fused_model_has_the_dtype_of_the_original(dtype):
    model = awake(two(lambda m, x: m.n(m.a(x)) + m.b(x), n=norm()), 0).to(dtype)
    findings = find(model)
    fused = fused_copy(model, findings.found)
    assert {p.dtype for p in fused.parameters()} == {dtype}
    assert certified(fused, findings.found[0]).fault == ""
    with torch.no_grad():
        for image in images(SHAPES, dtype):
            true = copy.deepcopy(model).double()(image.double())
            assert_within(fused(image), true, linear_bound(fused.fused_conv, image, dtype=dtype))


@torch.no_grad()
def test_a_model_in_training_mode_is_read_as_in_eval_mode_by_the_package():
    import acfuse

    model = awake(two(lambda m, x: m.n(m.a(x)) + m.b(x), n=norm()).double(), 0)
    expected = fused_copy(model, find(model).found)
    model.train()
    fused = acfuse.fuse(model)
    assert model.training
    assert len(fused.found) == 1
    assert not fused.model.training
    assert_same_bits(expected, fused.model)


def test_a_stretch_of_very_many_linear_steps_is_planned_in_parts():
    """As one, each step would be looked at for each before it: a file of 100 kB took minutes."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            for _ in range(1_203):
                x = -x
            return torch.relu(self.one(x) + self.two(x))

    model = Net().double().eval()
    findings = find_in_module(model, PATTERNS)
    assert len(findings.blocks) == 1
    fused = fused_copy(model, findings.found)
    image = torch.randn(2, 3, 9, 6, dtype=torch.float64)
    assert_within(fused(image), model(image), rounding(model, image))


@pytest.mark.parametrize("one", [1, 1.0])
@pytest.mark.parametrize(
    "neutral",
    [
        lambda m, y: m.one * y,
        lambda m, y: y * m.one,
        lambda m, y: torch.mul(m.one, y),
        lambda m, y: torch.mul(m.g, y) / m.one,
        lambda m, y: (1 - m.one) + y,
        lambda m, y: y - (1 - m.one),
    ],
)
def test_a_factor_that_changes_nothing_may_stand_on_either_side(neutral, one):
    model = two(lambda m, x: torch.relu(neutral(m, m.a(x)) + m.b(x)), g=torch.ones(()))
    model.one = one
    fused_and_checked(model)


def test_a_stored_factor_of_one_may_stand_on_either_side():
    for forward in (lambda m, x: m.g * m.a(x) + m.b(x), lambda m, x: m.a(x) * m.g + m.b(x)):
        fused_and_checked(two(forward, g=nn.Parameter(torch.ones(()))))


def test_a_long_chain_of_residuals_before_a_block_is_looked_at_once():
    def run(m, x):
        for _ in range(60):
            x = x + torch.relu(x) / 4  # two ways back from each: 2 ** 60 in all
        torch._assert(x.shape[1] == 4, "channels")
        return m.a(x) + m.b(x)

    fused_and_checked(two(run))


class Pair(nn.Module):
    """Gives two values, which a Sequential around it gives as well."""

    def forward(self, x):
        return torch.relu(x), x


@pytest.mark.parametrize("inner", [Pair(), nn.Sequential(Pair())])
def test_what_a_container_gives_is_not_a_tensor_for_certain(inner):
    def run(m, x):
        y = m.i(x)
        y = y[0] if isinstance(y, tuple) else y
        return m.a(y) + m.b(y)

    fused_and_checked(two(run, i=inner), blocks=0, convolutions=2)
