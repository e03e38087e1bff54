"""Forwards that cannot be read are captured: frames become pads, and what decides is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from acfuse.errors import Reason
from acfuse.rewrite import fused_copy
from sample_models import awake
from tests.graph.fusing import Net, assert_same, conv, find, fused_and_checked, norm, refused

PADS = ((1, 1), (1, 1))
ODD = ((0, 2), (3, 1))


def zero_of(m):
    """What the norm makes of zero, in arithmetic of its own."""
    factor = m.n.weight / torch.sqrt(m.n.running_var + m.n.eps)
    return (m.n.bias - m.n.running_mean * factor).view(1, -1, 1, 1)


def into_constants(x, border, pads):
    (top, bottom), (left, right) = pads
    height, width = x.shape[2:]
    size = *x.shape[:2], top + height + bottom, left + width + right
    out = border.expand(*size).clone()
    out[:, :, top : top + height, left : left + width] = x
    return out


def into_nothing(x, border, pads):
    (top, bottom), (left, right) = pads
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, channels, top + height + bottom, left + width + right)
    out[:, :, :, :] = border
    out[:, :, top : top + height, left : left + width] = x
    return out


def over_a_pad(x, border, pads):
    (top, bottom), (left, right) = pads
    out = F.pad(x, (left, right, top, bottom))
    if top:
        out[:, :, 0:top, :] = border
    if bottom:
        out[:, :, -bottom:, :] = border
    if left:
        out[:, :, :, 0:left] = border
    if right:
        out[:, :, :, -right:] = border
    return out


def row_by_row(x, border, pads):
    (top, bottom), (left, right) = pads
    out, row = F.pad(x, (left, right, top, bottom)), border[:, :, 0]
    for i in (*range(top), *range(-bottom, 0)):
        out[:, :, i] = row
    for i in (*range(left), *range(-right, 0)):
        out[..., i] = row
    return out


def side_by_side(x, border, pads):
    (top, bottom), (left, right) = pads
    batch, channels, height, _ = [*x.shape]
    beside = [border.expand(batch, channels, height, n) for n in (left, right) if n]
    x = torch.cat([*beside[: left > 0], x, *beside[left > 0 :]], 3)
    above = [border.expand(batch, channels, n, x.shape[3]) for n in (top, bottom) if n]
    return torch.cat([*above[: top > 0], x, *above[top > 0 :]], dim=-2)


WAYS = [into_constants, into_nothing, over_a_pad, row_by_row, side_by_side]


def framed(way, pads=PADS, border=zero_of, **second):
    """A thin convolution and a norm, framed, and a wide convolution; beside it a plain one."""
    (top, bottom), (left, right) = pads

    def run(m, x):
        beside = F.pad(m.a(x), (left, right, top, bottom)) if second else m.a(x)
        return m.c(way(m.n(m.b(x)), border(m), pads)) + m.d(beside if second else x)

    size = tuple(1 + sum(pair) for pair in pads)
    parts = {"b": conv(1, bias=False), "n": norm(), "c": conv(size, 0, **second)}
    return Net(run, a=nn.Identity(), d=conv(size, 0, **second) if second else conv(1), **parts)


@pytest.mark.parametrize("pads", [PADS, ODD, ((2, 0), (0, 0))])
@pytest.mark.parametrize("way", WAYS)
def test_a_frame_of_what_zero_becomes_is_a_pad(way, pads):
    fused_and_checked(framed(way, pads))


@pytest.mark.parametrize("way", WAYS)
def test_so_it_is_with_groups_and_strides(way):
    fused_and_checked(framed(way, ODD, groups=2, stride=(2, 1)))


@pytest.mark.parametrize("axes", [1, 3])
def test_so_it_is_on_other_axes(axes):
    kinds = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}[axes]

    def run(m, x):
        zero = m.n(torch.zeros_like(x[:1, :, *[slice(1)] * axes]))
        out = zero.expand(*x.shape[:2], *(n + 2 for n in x.shape[2:])).clone()
        out[:, :, *[slice(1, -1)] * axes] = m.n(x)
        return m.a(out) + m.b(x)

    net = Net(run, a=kinds[0](4, 4, 3), b=kinds[0](4, 4, 1), n=kinds[1](4))
    fused_and_checked(net, shapes=[(2, 4, *(7, 10, 5)[:axes])])


def test_an_image_in_a_frame_may_be_used_without_it():
    def run(m, x):
        wide = m.b(x)
        return m.c(over_a_pad(wide, m.b.bias.view(1, -1, 1, 1), PADS)) + m.d(wide)

    fused_and_checked(Net(run, b=conv(1), c=conv(3, 0), d=conv(1)))


def test_two_frames_and_kernels_that_are_no_layers():
    def run(m, x):
        wide, zero = F.conv2d(x, m.k, m.l), m.l.view(1, -1, 1, 1)
        once = over_a_pad(wide, zero, PADS)
        return m.c(once) + m.d(over_a_pad(once, zero, PADS)) + m.e(wide)

    kernel, bias = torch.randn(6, 4, 1, 1), torch.randn(6)
    layers = {n: conv(k, 0, channels=(6, 4)) for n, k in (("c", 3), ("d", 5), ("e", 1))}
    fused_and_checked(Net(run, k=nn.Parameter(kernel), l=nn.Parameter(bias), **layers))


def test_a_frame_of_zeros_is_a_pad_of_zeros():
    def run(m, x):
        out = torch.zeros(x.shape[0], 4, x.shape[2] + 2, x.shape[3] + 2, dtype=x.dtype)
        out[:, :, 1:-1, 1:-1] = x
        return m.a(out) + m.b(x)

    fused_and_checked(Net(run, a=conv(3, 0), b=conv(1)))


def test_a_crop_by_a_size_is_a_crop():
    def run(m, x):
        *_, height, width = [*x.shape]
        return m.a(x) + m.b(x[:, :, 1 : height - 1, 2 : width - 2])

    fused_and_checked(Net(run, a=conv((3, 5), 0), b=conv(1)))


def test_an_activation_behind_a_captured_sum_stays():
    def run(m, x):
        return m.act(F.relu(m.a(x) + m.c(over_a_pad(m.n(x), zero_of(m), PADS))))

    net = Net(run, a=conv(3), c=conv(3, 0), n=norm(), act=nn.PReLU(4))
    fused_and_checked(net)


# What a border is not.


def nearly(m):
    return zero_of(m) * (1 + 1e-6)


def of_one_channel(m):
    return torch.cat([zero_of(m)[:, :1], torch.zeros_like(zero_of(m)[:, 1:])], 1)


def a_number(m):
    return torch.full_like(zero_of(m), 0.25)


def rounded(m):
    return zero_of(m).bfloat16().to(m.n.weight.dtype)


@pytest.mark.parametrize("border", [nearly, of_one_channel, a_number, rounded])
@pytest.mark.parametrize("way", WAYS)
def test_a_border_of_another_value_is_none(way, border):
    right, wrong = (awake(framed(way, border=b).double(), 0) for b in (zero_of, border))
    wrong.load_state_dict(right.state_dict())
    image = torch.randn(2, 4, 7, 10, dtype=torch.float64)
    with torch.no_grad():
        assert float((right(image) - wrong(image)).abs().max()) > 1e-9
    refused(framed(way, border=border), Reason.UNTRACEABLE)


def without_a_corner(x, border, pads):
    out = over_a_pad(x, border, pads)
    out[:, :, 0:1, 0:1] = 0
    return out


def on_one_side(x, border, pads):
    out = F.pad(x, (1, 1, 1, 1))
    out[:, :, 0:1, :] = border
    return out


def into_the_image(x, border, pads):
    out = over_a_pad(x, border, pads)
    out[:, :, 0:2, :] = border
    return out


def in_the_middle(x, border, pads):
    out = over_a_pad(x, border, pads)
    out[:, :, 3:4, 3:4] = border
    return out


def every_other_row(x, border, pads):
    out = over_a_pad(x, border, pads)
    out[:, :, ::2] = border
    return out


def of_one_image(x, border, pads):
    out = over_a_pad(x, border, pads)
    out[0, :, 0:1] = 0
    return out


def of_some_channels(x, border, pads):
    out = over_a_pad(x, border, pads)
    out[:, 1:2, 0:1] = 0
    return out


def moved(x, border, pads):
    out = F.pad(x, (1, 1, 1, 1))
    out[:, :, :-2] = border
    out[:, :, 2:, 1:-1] = x
    return out


NO_FRAMES = [without_a_corner, on_one_side, into_the_image, in_the_middle, every_other_row,
             of_one_image, of_some_channels, moved]  # fmt: skip


@pytest.mark.parametrize("way", NO_FRAMES)
def test_what_is_written_elsewhere_is_no_frame(way):
    refused(framed(way), Reason.UNTRACEABLE)


def test_what_was_never_written_is_no_border():
    def with_a_hole(x, border, pads):
        out = x.new_empty(x.shape[0], x.shape[1], x.shape[2] + 2, x.shape[3] + 2)
        out[:, :, 1:-1, 1:-1] = x
        return out

    assert find(awake(framed(with_a_hole), 0)).found == ()


# What a forward must not decide by.


def _tiles(m, x):
    size = int(x.shape[2])
    if size <= 32:
        return m.a(x) + m.b(x)
    parts = [x[:, :, i : i + 32] for i in range(0, size, 32)]
    return torch.cat([m.a(part) + m.b(part) for part in parts], 2)


def _of_one_image(m, x):
    [*map(int, m.a.kernel_size)], hash(x)
    return torch.relu(m.a(x) + m.b(x)) if x.shape[0] == 1 else m.a(x) + m.b(x)


def _of_none(m, x):
    height, width = x.shape[2:]
    return x if height * width == 0 else m.a(x) + m.b(x)


def _of_no_images(m, x):
    _, *_ = x.shape
    return x if x.numel() == 0 else m.a(x) + m.b(x)


def _by_its_width_in_words(m, x):
    *_, width = [*x.shape]
    return torch.relu(m.a(x) + m.b(x)) if f"{width}" == "9" else m.a(x) + m.b(x)


def _looked_up(m, x):
    return {16: torch.relu}.get(x.shape[3], lambda y: y)(m.a(x) + m.b(x))


def _by_its_channels(m, x):
    _, channels, *_ = x.shape
    return m.a(x) + m.b(x) if channels == 4 else m.a(x)


def _by_its_memory(m, x):
    _, *_ = x.shape
    return m.a(x) + m.b(x) if x.is_contiguous() else m.a(x)


def _by_its_dtype(m, x):
    _, *_ = x.shape
    return m.a(x) + m.b(x) if x.dtype != torch.float16 else m.a(x)


def _by_its_numbers(m, x):
    _, *_ = x.shape
    return m.a(x) + m.b(x) if x.mean() > 0 else m.a(x)


def _row_by_row(m, x):
    rows = [m.a(row) + m.b(row) for row in x.split(4, 2)]
    return torch.cat(rows, 2)


def _squeezed(m, x):
    _, *_ = x.shape
    return m.a(x) + m.b(x) if x.squeeze().ndim == 4 else m.a(x)


def _squeezed_by_a_child(m, x):
    _, *_ = x.shape
    return m.a(x) + m.b(x) if m.q(x).ndim == 4 else m.a(x)


def _channel_by_channel(m, x):
    _, *_ = x.shape
    kernel = m.a.weight[:1, :1]
    return torch.cat([F.conv2d(part, kernel, padding=1) + part for part in x.split(1, 1)], 1)


def _caught(m, x):
    try:
        height = int(x.shape[2])
    except Exception:
        height = 0
    return torch.relu(m.a(x) + m.b(x)) if height > 32 else m.a(x) + m.b(x)


DECIDING = [_tiles, _of_one_image, _of_none, _of_no_images, _by_its_width_in_words, _looked_up,
            _by_its_channels, _by_its_memory, _by_its_dtype, _by_its_numbers, _row_by_row,
            _squeezed, _squeezed_by_a_child, _channel_by_channel, _caught]  # fmt: skip


@pytest.mark.parametrize("run", DECIDING)
def test_a_forward_that_decides_by_its_input_is_refused(run):
    squeezes = Net(lambda m, x: x.squeeze(0))
    refused(Net(run, a=conv(3), b=conv(1), q=squeezes), Reason.UNTRACEABLE)


def test_a_forward_that_tiles_large_images_is_refused_at_64_pixels():
    net = awake(Net(_tiles, a=conv(3), b=conv(1)).double(), 0)
    fused = fused_copy(net, find(net).found)
    assert_same(net, fused, [(1, 4, 64, 40)])
    whole = net.a, net.b
    image = torch.randn(1, 4, 64, 40, dtype=torch.float64)
    with torch.no_grad():
        assert float((net(image) - sum(layer(image) for layer in whole)).abs().max()) > 0.1


# What a forward must not leave behind.


def _keeps_it(m, x):
    _, *_ = x.shape
    m.last = m.a(x) + m.b(x)
    return m.last


ELSEWHERE = []


def _keeps_it_elsewhere(m, x):
    _, *_ = x.shape
    ELSEWHERE.append(m.a(x))
    return ELSEWHERE[-1] + m.b(x)


def _counts(m, x):
    _, *_ = x.shape
    m.seen.append(1)
    return m.a(x) + m.b(x)


def _writes_a_buffer(m, x):
    _, *_ = x.shape
    m.total.add_(1)
    return m.a(x) + m.b(x)


def _writes_its_input(m, x):
    x[:, :, 0:1] = 0
    return m.a(x) + m.b(x)


def _draws(m, x):
    _, *_ = x.shape
    return m.a(x) + m.b(x) + torch.rand_like(x)


@pytest.mark.parametrize(
    "run", [_keeps_it, _keeps_it_elsewhere, _counts, _writes_a_buffer, _writes_its_input, _draws]
)
def test_a_forward_that_leaves_something_behind_is_refused(run):
    net = Net(run, a=conv(3), b=conv(1), total=torch.zeros(()))
    net.seen = []
    refused(net)
    assert net.seen == []
    assert not hasattr(net, "last")


def test_parts_that_are_written_through_a_view_count_as_what_they_became():
    def run(m, x):
        y = m.a(x)
        part = y[:, :, 0:1]
        part.mul_(2)
        return y + m.b(x)

    refused(Net(run, a=conv(3), b=conv(1)))


def test_a_captured_block_survives_being_copied():
    net = awake(framed(over_a_pad).double(), 0)
    fused = copy.deepcopy(fused_copy(net, find(net).found))
    assert_same(net, fused)
