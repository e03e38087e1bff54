"""Each layer record is its torch layer, whatever its settings, and nothing else is accepted."""

from functools import partial

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import nn

from acfuse.algebra import Affine, AvgPool, Conv, Geometry, Pad, batch_norm, identity
from acfuse.errors import NotFusable, Reason
from tests.algebra.compare import assert_same_map, is_same_map
from tests.algebra.reference import BORDERS, image, images, normal, run
from tests.algebra.strategies import axes_counts, channel_counts, seeds
from tests.bounds import differ, rounding

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
PADS = {
    "zeros": {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d},
    "reflect": {1: nn.ReflectionPad1d, 2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d},
    "replicate": {1: nn.ReplicationPad1d, 2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d},
    "circular": {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d},
}


def per_axis(axes, smallest, largest):
    """One whole number for each axis."""
    return st.tuples(*[st.integers(smallest, largest)] * axes)


def randomise(module, seed):
    """Numbers of all kinds instead of those of a fresh module."""
    for place, tensor in enumerate([*module.parameters(), *module.buffers()]):
        if tensor.is_floating_point():
            tensor.data = normal(seed + place, *tensor.shape).to(tensor.dtype)
    if hasattr(module, "running_var") and module.running_var is not None:
        module.running_var.square_().add_(0.1)
    return module.eval()


# --- Conv -------------------------------------------------------------------------------------


@st.composite
def conv_modules(draw):
    """A torch convolution with any settings."""
    axes = draw(axes_counts)
    groups = draw(st.integers(1, 3))
    module = CONVS[axes](
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        draw(per_axis(axes, 1, 4 if axes < 3 else 3)),
        draw(per_axis(axes, 1, 3)),
        draw(per_axis(axes, 0, 3)),
        draw(per_axis(axes, 1, 2)),
        groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(BORDERS)),
        dtype=draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16])),
    )
    return randomise(module, draw(seeds))


def record(module):
    """The layer record of a torch convolution."""
    return Conv(
        module.weight,
        module.bias,
        module.stride,
        tuple((p, p) for p in module.padding),
        module.dilation,
        module.groups,
        module.padding_mode,
    )


@given(conv_modules())
def test_a_convolution_is_its_module(module):
    layer = record(module)
    value = layer.linear()
    exact = module.double()
    for x in images([layer]):
        assert_same_map(value, exact, x)
        assert_same_map(partial(run, layer), exact, x)
    assert value.geometry == layer.geometry
    assert value.kernel.dtype == value.bias.dtype == torch.float64
    assert not value.kernel.requires_grad
    assert not value.bias.requires_grad


@given(conv_modules())
def test_a_convolution_costs_its_weights_for_each_pixel(module):
    assert record(module).multiply_adds == module.weight.numel()


def test_a_convolution_pads_each_side_by_its_own():
    layer = Conv(normal(0, 3, 2, 2, 3), None, (1, 2), ((0, 1), (2, -1)))
    value = layer.linear()
    x = image(2, (5, 6))

    def by_hand(x):
        padded = nn.functional.pad(x, (2, -1, 0, 1))
        return nn.functional.conv2d(padded, layer.weight, stride=(1, 2))

    assert_same_map(value, by_hand, x)
    assert value.pads == layer.pads


def test_a_bias_of_zeros_shifts_nothing():
    weight = normal(0, 3, 2, 1, 1)
    assert not Conv(weight).geometry.shifts
    assert not Conv(weight, torch.zeros(3)).geometry.shifts
    assert Conv(weight, torch.tensor([0.0, 1e-30, 0.0])).geometry.shifts


def test_reading_a_layer_does_not_change_it():
    weight, bias = normal(0, 3, 2, 3, 3), normal(1, 3)
    kept = weight.clone(), bias.clone()
    value = Conv(weight, bias).linear()
    value.affine(3.0, 1.0).then(identity(3))
    assert torch.equal(weight, kept[0])
    assert torch.equal(bias, kept[1])


@pytest.mark.parametrize(("stride", "dilation"), [((0, 1), (1, 1)), ((1, 1), (1, -2))])
def test_a_window_that_no_layer_has_is_refused_with_its_settings(stride, dilation):
    layer = Conv(torch.ones(2, 2, 3, 3), stride=stride, dilation=dilation)
    got = "got 3, 1, 0" if stride[0] == 0 else "got 3, -2, 1"
    with pytest.raises(NotFusable, match=f"stride must be at least 1 .{got}.") as refused:
        layer.linear()
    assert refused.value.code == Reason.WINDOW


# --- Pad --------------------------------------------------------------------------------------


@given(st.data(), axes_counts, channel_counts, st.sampled_from(BORDERS))
def test_a_pad_is_its_module(data, axes, channels, border):
    pads = tuple(data.draw(per_axis(2, 0, 3)) for _ in range(axes))
    layer = Pad(channels, pads, border)
    module = PADS[border][axes]([n for both in reversed(pads) for n in both])
    for x in images([layer]):
        assert_same_map(layer.linear(), module, x)
        assert_same_map(partial(run, layer), module, x)
    assert layer.linear().geometry == layer.geometry


@pytest.mark.parametrize("border", BORDERS)
def test_a_negative_pad_crops(border):
    x = image(2, (6, 7))
    crop = Pad(2, ((-1, -2), (0, -1)), border).linear()
    assert torch.equal(crop(x), x[:, :, 1:-2, :-1])
    half = Pad(2, ((-1, 2), (2, 0)), border).linear()
    whole = Pad(2, ((0, 2), (2, 0)), border).linear()
    assert torch.equal(half(x), whole(x)[:, :, 1:])


# --- AvgPool ----------------------------------------------------------------------------------


@given(st.data(), axes_counts, channel_counts)
def test_an_average_pool_is_its_module(data, axes, channels):
    size = data.draw(per_axis(axes, 1, 4))
    stride = data.draw(per_axis(axes, 1, 3))
    padding = tuple(data.draw(st.integers(0, n // 2)) for n in size)
    counts = data.draw(st.booleans())
    module = POOLS[axes](size, stride, padding, count_include_pad=counts)
    pads = tuple((p, p) for p in padding)
    layer = AvgPool(channels, size, stride, pads, count_include_pad=counts)
    if any(padding) and not counts:
        event("refused")
        with pytest.raises(NotFusable) as refused:
            layer.linear()
        assert refused.value.code == Reason.POOLING
        return
    event("accepted")
    for x in images([layer], beyond=2 * max(padding)):  # torch's own wants a side of a kernel
        assert_same_map(layer.linear(), module, x)
        assert_same_map(partial(run, layer), module, x)
    assert layer.linear().geometry == layer.geometry


POOL = AvgPool(2, (3, 3), (2, 2), ((1, 1), (1, 1)))
REFUSED_POOLS = [
    (
        AvgPool(2, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    ),
    (
        AvgPool(2, (3, 3), (2, 2), ((1, 1), (1, 1)), ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    ),
    (  # this one is a convolution, but not of taps 1/area; no block is known that has it
        AvgPool(2, (3, 3), (2, 2), ((1, 1), (1, 1)), divisor_override=5),
        nn.AvgPool2d(3, 2, 1, divisor_override=5),
    ),
]


@pytest.mark.parametrize(("layer", "module"), REFUSED_POOLS)
def test_a_pool_of_another_divisor_is_refused(layer, module):
    for ask in (layer.check, lambda: layer.geometry, layer.linear):
        with pytest.raises(NotFusable) as refused:
            ask()
        assert refused.value.code == Reason.POOLING
        assert "average pooling" in refused.value.why
    value = POOL.linear()
    others = (image(2, (6, 8)), image(2, (7, 9)))
    assert not all(is_same_map(value, module, x) for x in others)


@pytest.mark.parametrize(
    "module",
    [nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(3, 2, 1, ceil_mode=True)],
)
def test_a_pool_of_a_changing_divisor_is_no_convolution(module):
    """On a white image, what each sum is divided by shows; one kernel would divide all alike."""
    white = torch.ones(1, 1, 6, 6, dtype=torch.float64)
    sums = nn.AvgPool2d(3, 2, 1, ceil_mode=module.ceil_mode, divisor_override=1)(white)
    divisors = (sums / module(white)).flatten()
    assert len(set(divisors.round(decimals=6).tolist())) > 1


# --- BatchNorm --------------------------------------------------------------------------------


def norm_of(module, training=False):
    """What the algebra reads of a BatchNorm."""
    return batch_norm(
        module.weight,
        module.bias,
        module.running_mean,
        module.running_var,
        module.eps,
        training=training,
    )


@given(
    axes_counts,
    channel_counts,
    seeds,
    st.booleans(),
    st.sampled_from([1e-5, 1e-3, 0.1]),
    st.sampled_from([torch.float64, torch.float32, torch.float16]),
)
def test_a_batch_norm_is_its_module(axes, channels, seed, affine, eps, dtype):
    module = randomise(NORMS[axes](channels, eps=eps, affine=affine, dtype=dtype), seed)
    norm = norm_of(module)
    assert norm.scale.dtype == norm.shift.dtype == torch.float64
    assert not norm.scale.requires_grad
    assert not norm.shift.requires_grad
    x = image(channels, (5, 4, 3)[:axes])
    assert_same_map(norm.of(identity(channels, axes)), module.double(), x)


def test_a_batch_norm_behind_a_convolution_scales_it():
    norm = randomise(nn.BatchNorm2d(4, dtype=torch.float64), 3)
    layer = Conv(normal(0, 4, 3, 3, 2), normal(1, 4), pads=((1, 1), (1, 0)))
    value = norm_of(norm).of(layer.linear())
    for x in images([layer]):
        assert_same_map(value, lambda x: norm(run(layer, x)), x)


def test_a_batch_norm_in_training_mode_is_refused():
    module = randomise(nn.BatchNorm2d(2, momentum=0.0, dtype=torch.float64), 0).train()
    with pytest.raises(NotFusable) as refused:
        norm_of(module, training=module.training)
    assert refused.value.code == Reason.STATISTICS
    one, other = image(2, (4, 5)), image(2, (4, 5)) + 1.0
    assert_depends_on_the_batch(module, one[:1], other[:1])


def test_a_batch_norm_without_statistics_is_refused():
    module = nn.BatchNorm2d(2, track_running_stats=False, dtype=torch.float64).eval()
    with pytest.raises(NotFusable) as refused:
        norm_of(module)
    assert refused.value.code == Reason.STATISTICS
    for missing in ("running_mean", "running_var"):
        module = nn.BatchNorm2d(2)
        setattr(module, missing, None)
        with pytest.raises(NotFusable):
            norm_of(module)
    module = nn.BatchNorm2d(2, track_running_stats=False, dtype=torch.float64).eval()
    assert_depends_on_the_batch(module, image(2, (4, 5))[:1], normal(9, 1, 2, 4, 5))


def assert_depends_on_the_batch(module, one, other):
    """An image gives something else when another one stands beside it: no convolution does so."""
    alone = module(one)
    beside = module(torch.cat([one, other]))[:1]
    assert differ(beside, alone, rounding(module, one))


# --- Affine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("affine", "shifts", "channels"),
    [
        (Affine(), False, None),
        (Affine(2.0), False, None),
        (Affine(2.0, 1e-30), True, None),
        (Affine(normal(0, 3)), False, 3),
        (Affine(normal(0, 3), torch.zeros(3)), False, 3),
        (Affine(1.0, normal(0, 3)), True, 3),
        (Affine(nn.Parameter(normal(0, 3)), nn.Parameter(normal(1, 3))), True, 3),
        (Affine(torch.tensor(2.0), torch.tensor(0.0)), False, None),
    ],
)
def test_an_affine_scales_and_shifts(affine, shifts, channels):
    assert affine.shifts == shifts
    assert affine.channels == channels
    x = image(3, (4, 5))
    value = affine.of(identity(3))
    scale, shift = (torch.as_tensor(v).detach().double() for v in (affine.scale, affine.shift))
    assert_same_map(value, lambda x: scale.reshape(-1, 1, 1) * x + shift.reshape(-1, 1, 1), x)
    assert value.geometry.shifts == shifts
    assert affine.of(identity(3).geometry) == value.geometry


def test_an_affine_of_other_channels_is_refused():
    affine = Affine(normal(0, 3))
    for value in (identity(4), identity(4).geometry):
        with pytest.raises(NotFusable) as refused:
            affine.of(value)
        assert refused.value.code == Reason.CHANNELS
    assert isinstance(affine.of(identity(3).geometry), Geometry)
