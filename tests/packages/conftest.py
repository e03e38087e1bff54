"""Each network is built once for all of its tests."""

from typing import NamedTuple

import pytest
from torch import nn

from tests.packages.imports import MissingPackage
from tests.packages.networks import Network


class Case(NamedTuple):
    """A network, as it is built and as its package converts it. No test changes either."""

    network: Network
    model: nn.Module
    own: nn.Module | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the image that it is tested with."""
        return (1, 3, *self.network.size)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    """Skips what needs a package that is not installed."""
    network = request.param
    try:
        model = network.build()
        return Case(network, model, network.converted(model))
    except MissingPackage as missing:
        pytest.skip(str(missing))
