"""Comparisons that assert: the largest error over the whole output, never a mean."""

from collections.abc import Callable

import torch
from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, measured by the largest value of the two. NaN stays NaN."""
    actual, expected = actual.detach().double(), expected.detach().double()
    error = (actual - expected).abs().max()
    scale = torch.maximum(actual.abs().max(), expected.abs().max())
    return float(error / scale) if error != 0 else 0.0


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Both have the same shape, hold no NaN or Inf, and differ by rounding only."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    assert actual.numel(), "nothing to compare"
    error = relative_error(actual, expected)
    assert error <= tolerance, f"differs by {error:.1e} of the largest value"


def assert_same_map(
    a: Callable[[Tensor], Tensor],
    b: Callable[[Tensor], Tensor],
    image: Tensor,
    tolerance: float = 1e-10,
) -> None:
    """Both give the same for this image."""
    assert_close(a(image), b(image), tolerance)
