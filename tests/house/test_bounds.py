"""The bounds of these tests hold for every order of summation, and no fault hides below them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from sample_models import samples
from tests.bounds import assert_within, differ, gamma, linear_bound, rounding, tensors_of
from tests.graph.fusing import images

WHOLE = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SAMPLES = {name: sample for name, sample in samples().items() if sample.blocks}


def one_altered(amount):
    altered = WHOLE.clone()
    altered[1, 2, 3, 4] += amount
    return altered


def test_what_is_equal_is_within_nothing():
    assert_within(WHOLE, WHOLE.clone(), 0.0)
    assert_within(torch.zeros(3), torch.zeros(3), 0.0)
    assert_within([WHOLE, {"a": WHOLE}], (WHOLE, [WHOLE]), [0.0, 0.0])


@pytest.mark.parametrize(
    "wrong",
    [
        one_altered(1e-8),
        one_altered(float("nan")),
        one_altered(float("inf")),
        WHOLE[:1],  # would broadcast
        WHOLE.transpose(2, 3),
        torch.full_like(WHOLE, float("nan")),
        torch.zeros_like(WHOLE),
    ],
)
def test_what_is_wrong_is_not_within_a_bound(wrong):
    for one, other in ((wrong, WHOLE), (WHOLE, wrong)):
        with pytest.raises(AssertionError):
            assert_within(one, other, 1e-9)
        with pytest.raises(AssertionError):
            assert_within([WHOLE, one], [WHOLE, other], [1.0, 1e-9])


def test_nothing_is_not_compared():
    with pytest.raises(AssertionError):
        assert_within(torch.zeros(2, 0), torch.zeros(2, 0), 0.0)


def running_sum(numbers):
    """One number after the other, as a loop adds them."""
    total = torch.zeros_like(numbers[..., 0])
    for number in numbers.unbind(-1):
        total = total + number
    return total


def sum_of_pairs(numbers):
    """Two halves, each of them added so."""
    while numbers.shape[-1] > 1:
        numbers = numbers[..., ::2] + numbers[..., 1::2]
    return numbers[..., 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_a_sum_in_any_order_is_within_its_bound(dtype, mean):
    products = (torch.randn(500, 64) + mean).to(dtype)
    exact = products.double().sum(-1)
    bound = gamma(64, dtype) * products.double().abs().sum(-1)
    for order in (products, products.flip(-1), products.sort(-1).values):
        for add in (running_sum, sum_of_pairs, lambda numbers: numbers.sum(-1)):
            assert_within(add(order), exact, bound)


def test_what_loses_all_of_its_digits_is_still_within_its_bound():
    """1 + u is 1: all of the small ones are lost, as many times u as there are."""
    u = torch.finfo(torch.float32).eps / 2
    numbers = torch.tensor([1.0] + [u] * 1000)
    lost = float(numbers.double().sum() - running_sum(numbers).double())
    assert lost == pytest.approx(1000 * u)
    assert lost <= gamma(1001, torch.float32) * float(numbers.double().sum())


def test_a_convolution_in_two_parts_is_within_the_bound_of_the_whole():
    layer = nn.Conv2d(64, 8, 3, padding=1)
    image = torch.randn(2, 64, 9, 8) + 10.0
    exact = copy.deepcopy(layer).double()(image.double())
    parts = [
        F.conv2d(image[:, i : i + 8], layer.weight[:, i : i + 8], padding=1)
        for i in range(0, 64, 8)
    ]
    bound = linear_bound(layer, image, dtype=torch.float32)
    assert_within(sum(parts) + layer.bias[:, None, None], exact, bound)
    assert_within(layer(image), exact, bound)
    wrong = copy.deepcopy(layer)
    wrong.weight.data.view(-1)[7] *= 1.01
    assert differ(wrong(image), exact, bound)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(
    ("dtype", "fault"), [(torch.float64, 1e-11), (torch.float32, 1e-3)], ids=["double", "single"]
)
def test_no_fault_in_a_fused_weight_hides_below_the_bound_of_a_network(name, dtype, fault):
    model = SAMPLES[name].build().to(dtype)
    found = find_in_module(model, PATTERNS).found
    fused = fused_copy(model, found)
    (image,) = images(SAMPLES[name].input_shapes[:1], dtype)
    with torch.no_grad():
        expected = model(image)
        fused.get_submodule(found[0].names[0]).weight.mul_(1 + fault)
        given = fused(image)
    assert tensors_of(expected)
    assert differ(given, expected, rounding(model, image, dtype=dtype))
