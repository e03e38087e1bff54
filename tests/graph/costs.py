"""Tables of costs that no machine was measured for, and a network whose blocks they decide."""

from pathlib import Path

import torch
from torch import Tensor, nn

from acfuse.files.cost_table import CostTable, Row, Work, table_json

SIZE = 14
KERNELS = ((1, 1), (1, 3), (3, 1), (3, 3), (5, 5))
SLOW = {(3, 3): 1.0}  # beside the microseconds of all others


class Crosses(nn.Module):
    """Four branches of three taps: a single 3x3 kernel multiplies less than they do."""

    def __init__(self, channels: int = 4, groups: int = 1) -> None:
        super().__init__()
        settings = {"groups": groups}
        self.a = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), **settings)
        self.b = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), **settings)
        self.c = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), **settings)
        self.d = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), **settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) + self.c(x) + self.d(x)


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
