"""How much a checkpoint may ask for before it is refused. Far above any published one."""

import json
from dataclasses import dataclass
from typing import Any

from acfuse.errors import UnsafeError


@dataclass(frozen=True)
class Limits:
    """Bounds on what a file that nobody checked may cost. --limit NAME=NUMBER sets one."""

    bytes: int = 50 * 10**9  # of a file
    tensors: int = 100_000
    records: int = 50_000  # of a zip file
    operations: int = 1_000_000  # of a pickle: about forty for each tensor
    values: int = 1_000_000  # and containers of them, shared ones counted once
    levels: int = 64  # of containers in one another
    memory: int = 4 * 10**9  # bytes that an ONNX file may take where it is run
    seconds: int = 600  # that one such run may take

    def lift(self, limit: str, number: int) -> str:
        """What a user does about a limit, in words."""
        return f"If you trust it, give --limit {limit}={number}."

    def check(self, limit: str, found: int, name: str) -> None:
        """Raises UnsafeError if there is more in the file `name` than a limit allows."""
        most = getattr(self, limit)
        if found > most:
            raise UnsafeError(
                f"{name} has more than {most:,} {limit}, which no published checkpoint needs. "
                f"{self.lift(limit, max(found, 2 * most))}"
            )


LIMITS = Limits()


def parsed_json(text: bytes, name: str, limits: Limits = LIMITS, **how: Any) -> Any:
    """The data of a JSON file, whose values are counted before each is an object in memory.

    Raises UnsafeError for too many; ValueError or RecursionError for what is no JSON.
    """
    marks = sum(text.count(mark) for mark in (b",", b":", b"[", b"{"))
    limits.check("values", marks, name)
    return json.loads(text.decode("utf-8"), **how)
