from collections.abc import Iterator

import pytest

from tests.trust.forked import Server, server


@pytest.fixture(scope="session")
def forks() -> Iterator[Server]:
    """A server of quick runs, one for all tests of a worker."""
    with server() as running:
        yield running
