"""The table of `make trust`: what is promised, what was asked for, what was measured."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.trust.forked import Server


@dataclass(frozen=True)
class Row:
    """One promise, measured. `holds` is False where it falls short."""

    promise: str
    asked: str
    measured: str
    holds: bool


# Measures one promise. The scale is how much of the whole measurement is made: 1.0 is all of it,
# the tests take a small part.
Measure = Callable[[Server, float], Row]
