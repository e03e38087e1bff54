"""Tables of costs that no machine was measured for, and a block about which they decide."""

from pathlib import Path

import torch

from acfuse.files.cost_table import CostTable, Row, Work, table_json
from tests.cli.crosses import Crosses

SIZE = 14
KERNELS = ((1, 1), (1, 3), (3, 1), (3, 3), (5, 5))
SLOW = {(3, 3): 1.0}  # beside the microseconds of all others


def crosses(channels: int = 4, groups: int = 1) -> Crosses:
    torch.manual_seed(0)
    return Crosses(channels, groups).eval()


def planted(
    seconds: dict[tuple[int, int], float], *, groups: int = 1, backend: str = "eager"
) -> CostTable:
    """A table in which a kernel takes `seconds[kernel]`, and a microsecond for each tap else.

    All convolutions have four channels, or are depthwise of so many.
    """
    channels = (4, 4) if groups == 1 else (1, 1)
    rows = []
    for kernel in KERNELS:
        taken = seconds.get(kernel, 1e-6 * kernel[0] * kernel[1])
        rows.append(Row(backend, SIZE, Work(kernel, channels, groups), taken))
    return CostTable(tuple(rows))


def written(path: Path, *tables: CostTable) -> Path:
    """A file with the rows of some tables."""
    path.write_bytes(table_json([row for table in tables for row in table.rows], {}))
    return path
