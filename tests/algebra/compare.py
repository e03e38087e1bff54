"""Two maps are the same: what one gives is what the other gives, over the whole output."""

from collections.abc import Callable

from torch import Tensor

from tests.bounds import assert_within, differ, linear_bound

Map = Callable[[Tensor], Tensor]


def assert_same_map(made: Map, layers: Map, image: Tensor) -> None:
    """What was made of some layers gives for this image what they give themselves."""
    given, expected = made(image), layers(image)
    assert given.shape == expected.shape
    assert_within(given, expected, rounding_of(made, layers, image))


def is_same_map(made: Map, layers: Map, image: Tensor) -> bool:
    """Whether it does: the other half of `assert_same_map`."""
    given, expected = made(image), layers(image)
    alike = given.shape == expected.shape
    return alike and not differ(given, expected, rounding_of(made, layers, image))


def rounding_of(made: Map, layers: Map, image: Tensor) -> Tensor:
    """How far rounding may take them apart.

    The layers round twice: as they run, and in the numbers that were made of theirs, which are
    sums of no more products than they compute themselves.
    """
    return linear_bound(made, image) + 2 * linear_bound(layers, image)
