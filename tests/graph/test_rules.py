"""Each rule gives what torch's own operator gives, for drawn arguments, or refuses them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from acfuse.algebra import Conv, identity
from acfuse.errors import NotFusable
from acfuse.graph.images import Image
from acfuse.graph.rules import RULES, apply
from acfuse.graph.steps import ChannelSlice, ConvStep, PerChannel
from tests.bounds import assert_within, rounding

CHANNELS = 4
SIZES = {1: (11,), 2: (9, 12), 3: (6, 7, 5)}
aten = torch.ops.aten


def image(rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(2, CHANNELS, *SIZES[rank], generator=generator, dtype=torch.float64)


def weights(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def carried_out(rule: Any, x: Tensor) -> Tensor:
    """What a rule says of an image, by the algebra."""
    if rule is None:
        return x
    if isinstance(rule, ConvStep):
        layer = rule.layer
        layer = layer if isinstance(layer, Conv) else replace(layer, channels=CHANNELS)
        return layer.linear()(x)
    if isinstance(rule, PerChannel):
        return rule.by.of(identity(CHANNELS, x.ndim - 2))(x)
    assert isinstance(rule, ChannelSlice)
    return x[:, [*rule.channels(CHANNELS)]]


def check(name: str, operator: Any, rank: int, *args: Any, part: int | None = None, **named: Any):
    """A rule is refused, or gives what the operator gives."""
    x = image(rank)
    try:
        rule, images = apply(name, Image("x", rank, CHANNELS), *args, **named)
        rule = rule if part is None else rule(part)
    except NotFusable as refusal:
        event(f"{name}: refused ({refusal.code})")
        return
    assert [i.value for i in images] == ["x"]

    def expected(image: Tensor) -> Tensor:
        made = operator(image, *args, **named)
        return made if part is None else made[part]

    try:
        true = expected(x)
    except (RuntimeError, IndexError):  # what torch cannot run, nothing is equal to
        event(f"{name}: not run")
        return
    if true.numel() == 0:  # nothing is left of this image: of a larger one, something is
        event(f"{name}: empty")
        return
    event(f"{name}: equal")
    assert_within([carried_out(rule, x)], [true], rounding(expected, x))


def each(rank: int, numbers: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    """One number for all axes, or one for each."""
    return numbers | st.lists(numbers, min_size=rank, max_size=rank)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch copies the image for some
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2, 3]))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    stride = data.draw(each(rank, st.integers(1, 2)))
    dilation = data.draw(each(rank, st.integers(1, 2)))
    padding = data.draw(each(rank, st.integers(0, 2)) | st.sampled_from(["same", "valid"]))
    bias = data.draw(st.sampled_from([None, weights(8)]))
    weight = weights(8, CHANNELS // groups, *kernel)
    operator = getattr(torch, f"conv{rank}d")
    check(f"conv{rank}d", operator, rank, weight, bias, stride, padding, dilation, groups)


@given(st.data())
def test_transposed_convolutions(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2, 3]))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    stride, padding = (
        data.draw(st.sampled_from([1, 1, 2])),
        data.draw(each(rank, st.integers(0, 1))),
    )
    weight, bias = weights(CHANNELS, 2, *kernel), data.draw(st.sampled_from([None, "bias"]))
    given_bias = None if bias is None else weights(2 * groups)
    operator = getattr(torch, f"conv_transpose{rank}d")
    check(f"conv_transpose{rank}d", operator, rank, weight, given_bias, stride, padding, 0, groups)


@given(st.data())
def test_average_pools(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2, 3]))
    size = data.draw(each(rank, st.integers(1, 3)))
    stride = data.draw(st.just([]) | each(rank, st.integers(1, 2)))
    padding = data.draw(each(rank, st.integers(0, 1)))
    flags = data.draw(st.tuples(st.booleans(), st.booleans()))
    operator = getattr(aten, f"avg_pool{rank}d")
    check(f"avg_pool{rank}d", operator, rank, size, stride, padding, *flags)


@given(st.data())
def test_pads(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2, 3]))
    mode = data.draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
    count = data.draw(st.integers(1, rank + 1)) if mode == "constant" else rank
    low = -2 if mode == "constant" else 0
    amounts = data.draw(st.lists(st.integers(low, 2), min_size=2 * count, max_size=2 * count))
    value = data.draw(st.sampled_from([None, 0.0, 1.5]))
    check("pad", F.pad, rank, amounts, mode, value if mode == "constant" else None)


@given(st.data())
def test_arithmetic_with_constants(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2, 3]))
    name = data.draw(st.sampled_from(["add", "sub", "mul", "div", "rsub"]))
    shape = data.draw(st.sampled_from([(), (CHANNELS,), (CHANNELS, *[1] * rank),
                                       (1, CHANNELS, *[1] * rank), (1,) * (rank + 2)]))  # fmt: skip
    other = data.draw(st.sampled_from([2, -0.5, 1, 0]) | st.just(weights(*shape)))
    check(name, getattr(torch, name), rank, other)
    check("neg", torch.neg, rank)


@given(st.data())
def test_batch_norms(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2, 3]))
    some = st.sampled_from([None, weights(CHANNELS)])
    weight, bias = data.draw(some), data.draw(some)
    statistics = weights(CHANNELS), weights(CHANNELS).abs() + 0.1
    training = data.draw(st.booleans())
    args = (weight, bias, *statistics, training, 0.1, 1e-3, False)
    check("batch_norm", torch.batch_norm, rank, *args)


@given(st.data())
def test_channels_in_parts(data: st.DataObject) -> None:
    rank, dim = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.integers(-4, 4))
    part = data.draw(st.integers(0, 3))
    count = data.draw(st.integers(1, 4))
    check("chunk", torch.chunk, rank, count, dim, part=part)
    sizes = data.draw(st.sampled_from([count, [1, 3], [2, 1, 1]]))
    check("split", torch.split, rank, sizes, dim, part=part)


@given(st.data())
def test_slices(data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([1, 2, 3]))
    bound = st.none() | st.integers(-3, 6)
    start, stop = data.draw(bound), data.draw(bound)
    dim, step = data.draw(st.integers(-5, 4)), data.draw(st.sampled_from([1, 1, 2]))
    check("slice", aten.slice, rank, dim, start, stop, step)
    whole = slice(None)
    index = data.draw(st.sampled_from([
        (whole, slice(start, stop)), (..., slice(start, stop)), (whole, whole, slice(start, stop)),
        slice(start, stop), (0,), (whole, 1), (..., slice(1, -1), slice(start, stop)),
    ]))  # fmt: skip
    check("getitem", lambda x, i: x[i], rank, index)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_depends_on_the_input_where_it_must_not_is_refused(name: str) -> None:
    x = Image("x", 2, CHANNELS)
    with pytest.raises(NotFusable):
        apply(name, x, x, x, x)
