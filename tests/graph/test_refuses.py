"""Networks in which nothing may be fused, or only a part: each with the reason that is expected."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from acfuse.errors import Reason
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from acfuse.sources.onnx import fuse_onnx
from sample_models import awake, samples
from tests.bounds import assert_within, rounding
from tests.graph.fusing import (
    SHAPES,
    Net,
    assert_same,
    assert_same_bits,
    assert_unchanged,
    conv,
    find,
    fused_and_checked,
    images,
    norm,
    refused,
    run_convolutions,
    same_bits,
    state_of,
)
from tests.graph.nets import Block, Named, add, cases, two, weight
from tests.graph.onnx_files import exported

LOOKALIKES = {name: sample for name, sample in samples().items() if not sample.blocks}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_lookalike_is_refused_with_its_reason_and_left_equal(name):
    sample = LOOKALIKES[name]
    model = sample.build()
    before = state_of(model)
    findings = find_in_module(model, PATTERNS)
    assert findings.found == ()
    assert any(sample.reason in refusal.why for refusal in findings.refused), findings.refused
    copied = fused_copy(model, findings.found)
    assert_unchanged(model, before)
    assert_same_bits(model, copied, sample.input_shapes)
    nameless = find_in_module(model, ())
    assert nameless.found == ()
    assert any(sample.reason in refusal.why for refusal in nameless.refused)


def _needed_by_the_caller(m, x):
    y = m.a(x)
    return torch.relu(y + m.b(x)), y


def _needed_beside(m, x):
    y = m.a(x)
    return torch.relu(y + m.b(x)) * torch.sigmoid(y)


SHARED = {
    "returned": two(_needed_by_the_caller),
    "read_beside": two(_needed_beside),
}


@cases(SHARED)
def test_a_value_that_something_else_needs_is_not_computed_twice(net):
    refused(net)
    assert run_convolutions(net, torch.zeros(1, 4, 5, 6)) == 2


def _relu_in_place(m, x):
    y = m.a(x)
    m.act(y)
    return y + m.b(x)


def _function_in_place(m, x):
    y = m.a(x)
    F.relu(y, inplace=True)
    return y + m.b(x)


def _method_in_place(m, x):
    y = m.a(x)
    y.clamp_(min=0)
    return y + m.b(x)


def _through_a_view(m, x):
    y = m.a(x)
    y[:, :, 1:-1].zero_()
    return y + m.b(x)


def _through_a_channel(m, x):
    y = m.a(x)
    y[:, 0].mul_(2.0)
    return y + m.b(x)


def _by_a_child(m, x):
    y = m.a(x)
    m.child(y)
    return y + m.b(x)


def _by_a_sequential(m, x):
    y = m.a(x)
    m.act(y)
    return y + m.b(x)


IN_PLACE = {
    "layer": (two(_relu_in_place, act=nn.ReLU(inplace=True)), Reason.ACTIVATION),
    "sequential": (two(_by_a_sequential, act=nn.Sequential(nn.ReLU(True))), Reason.ACTIVATION),
    "function": (two(_function_in_place), Reason.ACTIVATION),
    "method": (two(_method_in_place), Reason.ACTIVATION),
    "view": (two(_through_a_view), Reason.IN_PLACE),
    "channel": (two(_through_a_channel), Reason.IN_PLACE),
    "child": (two(_by_a_child, child=Net(lambda m, x: x.add_(1.0))), None),
}


@pytest.mark.parametrize(("net", "code"), IN_PLACE.values(), ids=list(IN_PLACE))
def test_an_arm_that_is_overwritten_in_place_counts_as_what_it_became(net, code):
    refused(net, *([code] if code else []))


def test_an_item_that_is_set_stops_the_forward_that_does_it():
    def run(m, x):
        y = m.a(x)
        y[:, :, 0] = 0
        return y + m.b(x)

    assert any("item" in why for why in refused(two(run), Reason.UNTRACEABLE))


HOOKS = {
    "forward": (lambda m: m.register_forward_hook, lambda m, i, o: o * 2),
    "pre": (lambda m: m.register_forward_pre_hook, lambda m, i: (i[0] * 2,)),
}


def _hooked(hook, place):
    register, function = HOOKS[hook]
    register(place)(function)


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_an_arm_or_a_block_are_not_lost(hook):
    arm = two()
    _hooked(hook, arm.a)
    refused(arm, Reason.HOOKS)
    block = Net(lambda m, x: m.i(x), i=two())
    _hooked(hook, block.i)
    refused(block, Reason.HOOKS)
    line = two(a=nn.Sequential(conv(3), norm()))
    _hooked(hook, line.a)
    refused(line, Reason.HOOKS)
    within = two(a=nn.Sequential(conv(3), norm()))
    _hooked(hook, within.a[1])
    refused(within, Reason.HOOKS)
    root = two()
    _hooked(hook, root)
    refused(root, Reason.HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_around_a_block_stay_and_it_is_fused(hook):
    for place in (lambda net: net, lambda net: net.s, lambda net: net.s[1]):
        net = Net(lambda m, x: m.s(x), s=nn.Sequential(two(), nn.ReLU()))
        _hooked(hook, place(net))
        fused_and_checked(net)


def test_a_module_that_is_called_in_two_ways_is_left():
    net = Net(lambda m, x: m.i(torch.relu(m.i(x, scale=2.0))), i=Block())
    (why,) = refused(net)
    assert "several ways" in why
    assert run_convolutions(net, torch.zeros(1, 4, 5, 6)) == 4


def test_a_forward_that_data_decide_cannot_be_read():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(3), conv(1)

        def forward(self, x):
            return self.a(x) + self.b(x) if x.mean() > 0 else self.b(x)

    refused(Branching(), Reason.UNTRACEABLE)
    (refusal,) = find(Branching().eval()).refused
    assert refusal.why == "its forward has data-dependent control flow"


class HiddenRelu(Named):
    """The names of a pattern, sizes looked at, and an activation that no layer shows."""

    def forward(self, x):
        list(range(x.shape[-1]))  # cannot be read
        return torch.relu(self.arms(x))


class HiddenArm(Named):
    """A further layer under a name that the pattern does not know."""

    def __init__(self):
        super().__init__()
        self.extra = conv(1)

    def forward(self, x):
        list(range(x.shape[-1]))
        return self.arms(x) + self.extra(x)


class OtherForLarger(Named):
    """An activation for images of some sizes."""

    def forward(self, x):
        return torch.relu(self.arms(x)) if x.shape[-1] > 10 else self.arms(x)


def test_a_block_with_a_pattern_s_names_must_compute_what_the_pattern_says():
    for block in (HiddenRelu, OtherForLarger):
        refused(block())
        refused(Net(lambda m, x: m.i(x), i=block()))
    # Not what the pattern says either, yet one convolution: whoever reads the forward may fuse it.
    model = awake(HiddenArm().double(), 0)
    findings = find(model)
    fused = fused_copy(model, findings.found)
    for image in images(SHAPES):
        assert_within(fused(image), model(image), rounding(model, image))


FACTORS = {
    "bare_C": (lambda m, x: m.a(x) * m.g + m.b(x), weight(4), Reason.NOT_PER_CHANNEL),
    "rows": (lambda m, x: m.a(x) * m.g + m.b(x), weight(4, 6, 1), Reason.NOT_PER_CHANNEL),
    "columns": (lambda m, x: m.a(x) * m.g + m.b(x), weight(1, 4), Reason.NOT_PER_CHANNEL),
    "images": (lambda m, x: m.a(x) * m.g + m.b(x), weight(3, 1, 1, 1), Reason.NOT_PER_CHANNEL),
    "bare_C_added": (lambda m, x: m.a(x) + m.g + m.b(x), weight(4), Reason.NOT_PER_CHANNEL),
    "bare_C_below": (lambda m, x: m.a(x) / m.g + m.b(x), weight(4), Reason.NOT_PER_CHANNEL),
    "input": (lambda m, x: m.a(x) * x.mean() + m.b(x), weight(4), Reason.ACTIVATION),
    "activation": (lambda m, x: m.a(x) * torch.sigmoid(x) + m.b(x), weight(4), Reason.ACTIVATION),
    "inverse": (lambda m, x: 1 / m.a(x) + m.b(x), weight(4), Reason.ACTIVATION),
    "rounded": (
        lambda m, x: torch.div(m.a(x), 2, rounding_mode="floor") + m.b(x),
        weight(4),
        Reason.ACTIVATION,
    ),
}


@pytest.mark.parametrize(("run", "factor", "code"), FACTORS.values(), ids=list(FACTORS))
def test_a_factor_that_is_not_one_for_each_channel_is_refused(run, factor, code):
    refused(two(run, g=factor), code, shapes=((3, 4, 6, 4), (3, 4, 6, 4)))


def test_a_bare_factor_really_is_another_map():
    # [C] broadcasts over the width: with C columns it runs, and is no factor per channel.
    net = awake(two(FACTORS["bare_C"][0], g=weight(4)).double(), 0)
    other = copy.deepcopy(net)
    other.run = lambda m, x: m.a(x) * m.g[:, None, None] + m.b(x)
    image = images([(2, 4, 5, 4)])[0]
    with torch.no_grad():
        assert float((net(image) - other(image)).abs().max()) > 1e-2


def _kernel_of_the_input(m, x):
    return F.conv2d(x, m.w * x.mean(), padding=1) + m.b(x)


def _random_kernel(m, x):
    return F.conv2d(x, m.w + torch.rand_like(m.w), padding=1) + m.b(x)


def _random_factor(m, x):
    return m.a(x) + m.b(x) * torch.rand(1, 4, 1, 1, dtype=x.dtype)


def _random_branch(m, x):
    return m.a(x) + m.b(x) if torch.rand(()) < 0.5 else m.a(x)


def _noise(m, x):
    return m.a(x) + m.b(x) + 0.1 * torch.randn_like(x)


RANDOM = {
    "kernel": two(_random_kernel, w=weight(4, 4, 3, 3)),
    "factor": two(_random_factor),
    "branch": two(_random_branch),
    "noise": two(_noise),
    "dropout": two(lambda m, x: F.dropout(m.a(x), 0.5, True) + m.b(x)),
}


@cases(RANDOM)
def test_what_is_drawn_at_random_is_refused(net):
    refused(net, Reason.RANDOM)


def test_a_kernel_that_the_input_decides_is_refused():
    refused(two(_kernel_of_the_input, w=weight(4, 4, 3, 3)), Reason.ACTIVATION)


def test_a_dropout_or_norm_in_training_mode_is_refused():
    model = awake(two(lambda m, x: m.d(m.n(m.a(x))) + m.b(x), d=nn.Dropout(), n=norm()), 0)
    assert len(find(model).blocks) == 1
    for name, code in (("n", Reason.STATISTICS), ("d", Reason.RANDOM)):
        other = copy.deepcopy(model)
        getattr(other, name).train()
        findings = find(other)
        assert findings.found == ()
        assert code in [r.code for r in findings.refused]


def _statistics_of_the_batch(m, x):
    return F.batch_norm(m.a(x), None, None, training=True) + m.b(x)


def _pool(**settings):
    return Net(lambda m, x: m.a(x) + m.p(x), a=conv(3), p=nn.AvgPool2d(3, 1, 1, **settings))


LAYERS = {
    "no_statistics": (two(_statistics_of_the_batch), Reason.STATISTICS),
    "own_statistics": (
        two(lambda m, x: m.n(m.a(x)) + m.b(x), n=nn.BatchNorm2d(4, track_running_stats=False)),
        Reason.STATISTICS,
    ),
    "group_norm": (two(lambda m, x: m.n(m.a(x)) + m.b(x), n=nn.GroupNorm(2, 4)), Reason.ACTIVATION),
    "relu": (two(lambda m, x: torch.relu(m.a(x)) + m.b(x)), Reason.ACTIVATION),
    "max_pool": (
        two(lambda m, x: F.max_pool2d(m.a(x), 3, 1, 1) + m.b(x)),
        Reason.ACTIVATION,
    ),
    "padding_not_counted": (_pool(count_include_pad=False), Reason.POOLING),
    "ceil_mode": (_pool(ceil_mode=True), Reason.POOLING),
    "divisor": (_pool(divisor_override=4), Reason.POOLING),
    "padded_with_ones": (
        two(lambda m, x: m.a(F.pad(x, (1, 1, 1, 1), value=1.0)) + m.b(x), a=conv(3, 0)),
        Reason.BORDERS,
    ),
    "padded_channels": (
        two(lambda m, x: m.a(F.pad(x, (1, 1, 1, 1, 0, 1))) + m.b(x), a=conv(3, 0, (5, 4))),
        Reason.CHANNELS,
    ),
    "borders": (
        two(a=conv(3, padding_mode="reflect"), b=conv((3, 1), padding_mode="circular")),
        Reason.BORDERS,
    ),
    "concatenated": (two(lambda m, x: torch.cat([m.a(x), m.b(x)], 1)), Reason.CONCATENATED),
    "a_batch_of_them": (two(lambda m, x: m.a(x)[:1] + m.b(x)[:1]), Reason.ACTIVATION),
    "every_other_channel": (two(lambda m, x: m.a(x)[:, ::2] + m.b(x)[:, ::2]), Reason.ACTIVATION),
    "some_rows": (two(lambda m, x: m.a(x)[:, :, :4] + m.b(x)[:, :, :4]), Reason.ACTIVATION),
    "biased_middle": (
        Net(lambda m, x: m.b(m.a(x)), a=conv(1, 0, (4, 64)), b=conv(3, 1, (64, 4))),
        Reason.PADDED_MIDDLE,
    ),
    "one_channel": (two(b=conv(1, 0, (4, 1))), Reason.CHANNELS),
    "dense_over_depthwise": (two(a=conv(3, groups=4), b=conv(1)), Reason.COST),
    "dilated_over_dense": (two(a=conv(3, 2, dilation=2), b=conv(3)), Reason.COST),
    "cast": (two(lambda m, x: m.a(x) + m.b(x.half().to(x.dtype))), Reason.ACTIVATION),
}


@pytest.mark.parametrize(("net", "code"), LAYERS.values(), ids=list(LAYERS))
def test_what_is_not_one_convolution_is_refused(net, code):
    refused(net, code)


def test_outputs_that_only_broadcast_to_one_size_are_refused():
    sizes = two(b=conv((7, 10), 0))
    refused(sizes, Reason.SIZES, shapes=((2, 4, 7, 10),))
    strides = two(a=conv(3, stride=(1, 2)), b=conv(1, stride=(2, 1)))
    refused(strides, Reason.STRIDES, shapes=((2, 4, 1, 1),))
    channels = Net(lambda m, x: m.a(x) + x, a=conv(3, 1, (1, 4)))
    refused(channels, Reason.CHANNELS, shapes=((2, 1, 7, 10),))


def test_a_residual_that_only_broadcasts_stays_beside_what_is_fused():
    net = two(lambda m, x: m.a(x) + m.b(x) + x, a=conv(3, 0), b=conv(3, 0))
    fused_and_checked(net, shapes=((2, 4, 3, 3),))


# Plain networks, written as their authors do: there is nothing to win.


class BasicBlock(nn.Module):
    """A residual block: conv, norm, ReLU, conv, norm, and the input or its 1 x 1 convolution."""

    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 1, (inside, outside), stride=stride, bias=False), norm(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(3, 1, (outside, outside), bias=False), norm(8)
        self.downsample = None
        if stride != 1 or inside != outside:
            line = conv(1, 0, (inside, outside), stride=stride, bias=False)
            self.downsample = nn.Sequential(line, norm(8))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class InvertedResidual(nn.Module):
    """MobileNetV2's: expand, depthwise, and a linear projection that the next one expands again."""

    def __init__(self, inside, outside, stride, expand):
        super().__init__()
        middle = inside * expand
        self.use_res_connect = stride == 1 and inside == outside
        self.conv = nn.Sequential(
            nn.Sequential(
                conv(1, 0, (inside, middle), bias=False), nn.BatchNorm2d(middle), nn.ReLU6(True)
            ),
            nn.Sequential(
                conv(3, 1, (middle, middle), stride=stride, groups=middle, bias=False),
                nn.BatchNorm2d(middle),
                nn.ReLU6(True),
            ),
            conv(1, 0, (middle, outside), bias=False),
            nn.BatchNorm2d(outside),
        )

    def forward(self, x):
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """Depthwise 7 x 7, LayerNorm, two linear layers, a factor for each channel, the input."""

    def __init__(self, channels):
        super().__init__()
        self.dwconv = conv(7, 3, (channels, channels), groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.pwconv1, self.act = nn.Linear(channels, 4 * channels), nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = weight(channels)

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class DenseLayer(nn.Module):
    """DenseNet's: everything before it, concatenated, then norm, ReLU, conv, twice."""

    def __init__(self, inside, growth):
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inside), nn.ReLU(inplace=True)
        self.conv1 = conv(1, 0, (inside, 2 * growth), bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(2 * growth), nn.ReLU(inplace=True)
        self.conv2 = conv(3, 1, (2 * growth, growth), bias=False)

    def forward(self, features):
        x = torch.cat(features, 1)
        x = self.conv1(self.relu1(self.norm1(x)))
        return self.conv2(self.relu2(self.norm2(x)))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([DenseLayer(4 + 3 * i, 3) for i in range(3)])

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class Inception(nn.Module):
    """Branches beside each other as channels."""

    def __init__(self):
        super().__init__()
        self.branch1 = nn.Sequential(conv(1), norm(), nn.ReLU())
        self.branch2 = nn.Sequential(conv(1), norm(), nn.ReLU(), conv(3), norm(), nn.ReLU())
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(1), norm(), nn.ReLU())

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.pool(x)], 1)


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.reduce, self.expand = conv(1, 0, (4, 2)), conv(1, 0, (2, 4))

    def forward(self, x):
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


PLAIN = {
    "resnet": nn.Sequential(
        conv(3, 1, (4, 8), bias=False),
        norm(8),
        nn.ReLU(inplace=True),
        BasicBlock(8, 8),
        BasicBlock(8, 8, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ),
    "mobilenetv2": nn.Sequential(
        InvertedResidual(4, 6, 1, 6),
        InvertedResidual(6, 6, 1, 6),
        InvertedResidual(6, 8, 2, 6),
        conv(1, 0, (8, 32), bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(inplace=True),
    ),
    "convnext": nn.Sequential(
        conv(2, 0, (4, 8), stride=2), ChannelsFirstNorm(8), ConvNextBlock(8), ConvNextBlock(8)
    ),
    "densenet": Dense(),
    "inception": Inception(),
    "squeeze_excite": SqueezeExcite(),
    "vgg": nn.Sequential(conv(3), norm(), nn.ReLU(), conv(3), nn.ReLU(), nn.MaxPool2d(2)),
}


@cases(PLAIN)
def test_a_plain_network_is_left_as_it_is(net):
    model = awake(copy.deepcopy(net).double(), 0)
    findings = find(model)
    assert findings.found == ()
    copied = fused_copy(model, findings.found)
    assert_same_bits(model, copied)
    assert list(copied.state_dict()) == list(model.state_dict())
    assert all(same_bits(v, model.state_dict()[k]) for k, v in copied.state_dict().items())


@cases({k: v for k, v in PLAIN.items() if k in ("resnet", "vgg", "inception")})
def test_a_lone_norm_is_a_fold_and_no_block(net):
    model = awake(copy.deepcopy(net).double(), 0)
    folds = find_in_module(model, PATTERNS, folds=True)
    assert folds.blocks == ()
    assert folds.found
    fused = fused_copy(model, folds.found)
    assert_same(model, fused)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    image = images(SHAPES)[0]
    assert run_convolutions(fused, image) == run_convolutions(model, image)


def test_names_are_no_evidence():
    # ACNet's official names on layers that are used one after the other, and the other way round.
    refused(Net(lambda m, x: m.hor_conv(torch.relu(m.ver_conv(torch.relu(m.square_conv(x))))),
                square_conv=conv(3), square_bn=norm(), ver_conv=conv((3, 1)), ver_bn=norm(),
                hor_conv=conv((1, 3)), hor_bn=norm()), Reason.NOT_CONFIRMED)  # fmt: skip
    fused_and_checked(Net(add, hor_conv=conv(3), a=conv(3), b=conv(1)))


def _behind_an_activation(m, x):
    y = m.a(x) + torch.relu(m.b(x))
    return m.c(y) + F.avg_pool2d(m.d(y), 3, 1, 1, count_include_pad=False)


def test_the_reason_is_what_stands_in_the_arms_and_not_in_front_of_them():
    parts = {"a": conv(3), "b": conv(1), "c": conv(3), "d": conv(1)}
    net = Net(_behind_an_activation, **parts)
    first, second = refused(net, Reason.ACTIVATION, Reason.POOLING)
    assert "relu" in first
    assert "pooling" in second
    float64 = awake(copy.deepcopy(net).double(), 0)
    left = fuse_onnx(exported(float64, 1)).refused
    assert [r.code for r in left] == [Reason.ACTIVATION, Reason.POOLING]


def _residual(m, x):
    y = m.a(x)
    return y + m.c(torch.relu(m.b(y)))


def _residual_behind_a_block(m, x):
    y = m.a(x) + m.b(x)
    return y + m.d(torch.relu(m.c(y)))


@pytest.mark.parametrize(("run", "blocks"), [(_residual, 0), (_residual_behind_a_block, 1)])
def test_the_body_of_a_residual_block_is_no_branch_of_what_it_is_added_to(run, blocks):
    net = Net(run, a=conv(3), b=conv(1), c=conv(3), d=conv(3))
    found = find(net)
    assert (len(found.found), found.refused) == (blocks, ())


def test_branches_of_a_block_that_an_activation_parts_are_named_with_their_sum():
    def run(m, x):
        y = torch.relu(x)
        return y + m.a(y) + m.c(torch.relu(m.b(y)))

    (refusal,) = find(Net(run, a=conv(3), b=conv(1), c=conv(3))).refused
    assert refusal.code == Reason.ACTIVATION
    assert refusal.place == "the model's own forward at add_1"


def test_a_sum_that_is_doubled_many_times_is_explained_once():
    def run(m, x):
        y = x
        for _ in range(60):
            y = y + y
        return y, m.a(x)

    refused(two(run))
