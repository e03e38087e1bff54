"""The comparisons of these tests have to fail where something is wrong."""

import pytest
import torch

from tests.algebra.compare import assert_close, assert_same_map
from tests.algebra.reference import normal

WHOLE = normal(0, 2, 3, 4, 5)


def one_altered(amount):
    altered = WHOLE.clone()
    altered[1, 2, 3, 4] += amount
    return altered


def test_equal_is_close():
    assert_close(WHOLE, WHOLE.clone())
    assert_same_map(lambda x: 2 * x, lambda x: x + x, WHOLE)


def test_zeros_are_close_to_zeros():
    assert_close(torch.zeros(3), torch.zeros(3))


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
def test_what_is_wrong_is_not_close(wrong):
    with pytest.raises(AssertionError):
        assert_close(wrong, WHOLE)
    with pytest.raises(AssertionError):
        assert_close(WHOLE, wrong)


def test_nothing_is_not_close():
    with pytest.raises(AssertionError):
        assert_close(torch.zeros(2, 0), torch.zeros(2, 0))
