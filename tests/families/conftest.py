"""Puts the tests of one sample together: what they share is computed in one process then."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    zoo = [i for i, item in enumerate(items) if item.path.name == "test_zoo.py"]
    moved = sorted((items[i] for i in zoo), key=_sample)
    for i, item in zip(zoo, moved, strict=True):
        items[i] = item


def _sample(item: pytest.Item) -> str:
    call = getattr(item, "callspec", None)
    return "" if call is None else str(call.params.get("name", ""))
