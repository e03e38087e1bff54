"""How much a checkpoint may ask for before it is refused. Far above any published one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what a file that nobody checked may cost."""

    records: int = 200_000  # of a zip file
    operations: int = 1_000_000  # of a pickle: about forty for each tensor
    nodes: int = 1_000_000  # containers and values, shared ones counted once
    depth: int = 64  # of containers in one another


LIMITS = Limits()
