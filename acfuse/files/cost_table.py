"""What single convolutions cost on some machine: a table that was measured, as JSON.

It is read as any file is: nothing in it is believed before it is checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import exp, log, log2, prod
from pathlib import Path
from typing import Any

from acfuse.errors import InputError
from acfuse.files.opened_file import small_file
from acfuse.system.escape import as_json, one_line, safe
from acfuse.system.limits import parsed_json

SCHEMA_VERSION = 1
BYTES, ROWS, SETTINGS = 2**21, 10_000, 64
LARGEST = 2**20  # of a size: kernel, channels, groups, pixels on an axis
SHORTEST, LONGEST = 1e-12, 1e6  # seconds
NEAREST = 4  # rows that tell what was not measured


@dataclass(frozen=True)
class Work:
    """One convolution for each pixel that it gives: its kernel, and the channels of each group."""

    kernel: tuple[int, int]
    channels: tuple[int, int]  # in, out
    groups: int = 1

    @property
    def multiply_adds(self) -> int:
        return prod(self.kernel) * prod(self.channels) * self.groups

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved alone."""
        return self.groups > 1 and self.channels[0] == 1

    @property
    def place(self) -> tuple[float, ...]:
        """Where it stands among others of its kind, in doublings of kernel and channels."""
        widths = (self.groups * self.channels[1],) if self.is_depthwise else self.channels
        return tuple(map(log2, (*self.kernel, *widths)))


@dataclass(frozen=True)
class Row:
    """What one convolution took: seconds, on one backend, to give `size` times `size` pixels."""

    backend: str
    size: int
    work: Work
    seconds: float

    @property
    def seconds_each(self) -> float:
        """For one multiply-add."""
        return self.seconds / (self.work.multiply_adds * self.size**2)


Setting = tuple[str, int]  # a backend, and a size of images


@dataclass(frozen=True)
class CostTable:
    """What convolutions cost on one machine, on each backend and at each size that was measured."""

    rows: tuple[Row, ...]
    file: Path | None = field(default=None, compare=False)
    _known: dict[tuple[Setting, Work], float | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def settings(self) -> Mapping[Setting, Sequence[Row]]:
        """The rows of each backend and size of images."""
        found: dict[Setting, list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.backend, row.size), []).append(row)
        return found

    def seconds(self, setting: Setting, work: Work) -> float | None:
        """What a convolution takes there; None where nothing of its kind was measured.

        What was not measured takes as long for each multiply-add as what is nearest to it: the
        mean of the nearest rows' logarithms, weighted by 1 / d^2, where d is the distance in
        doublings of kernel and channels.
        """
        key = setting, work
        if key not in self._known:
            self._known[key] = self._predicted(setting, work)
        return self._known[key]

    def _predicted(self, setting: Setting, work: Work) -> float | None:
        same = next((row for row in self.settings[setting] if row.work == work), None)
        if same is not None:
            return same.seconds
        alike = [r for r in self.settings[setting] if r.work.is_depthwise == work.is_depthwise]
        if not alike:
            return None
        apart = [
            (sum((a - b) ** 2 for a, b in zip(row.work.place, work.place, strict=True)), row)
            for row in alike
        ]
        apart.sort(key=lambda pair: pair[0])
        nearest = [pair for pair in apart[:NEAREST] if pair[0] > 0 or pair is apart[0]]
        whole = work.multiply_adds * setting[1] ** 2
        if nearest[0][0] == 0:
            return nearest[0][1].seconds_each * whole
        weights = [1 / squared for squared, _ in nearest]
        logs = [w * log(r.seconds_each) for w, (_, r) in zip(weights, nearest, strict=True)]
        return whole * exp(sum(logs) / sum(weights))

    def has_measured(self, setting: Setting, work: Work) -> bool:
        """Whether a convolution is no larger and no smaller than those that were measured there."""
        alike = [r.work.place for r in self.settings[setting]
                 if r.work.is_depthwise == work.is_depthwise]  # fmt: skip
        ranges = zip(work.place, *alike, strict=True)
        return bool(alike) and all(min(known) <= n <= max(known) for n, *known in ranges)


def read_cost_table(path: Path) -> CostTable:
    """The table of a file. Raises InputError, in one line, for what is none."""
    name = safe(path.name)
    data = small_file(path, BYTES, "a cost table, as `acfuse bench --profile -o` writes it")
    try:
        table = parsed_json(data, name)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {safe(one_line(error))}. {HOW}") from error
    version = table.get("schema_version") if isinstance(table, dict) else None
    if version != SCHEMA_VERSION or isinstance(version, bool) or "costs" not in table:
        raise InputError(f"{name} is no cost table of schema version {SCHEMA_VERSION}. {HOW}")
    rows = table["costs"]
    if not isinstance(rows, list) or not 0 < len(rows) <= ROWS:
        raise InputError(f"{name}: expected 1 to {ROWS:,} costs. {HOW}")
    read = tuple(_row(row, f"{name}: cost {i}") for i, row in enumerate(rows, start=1))
    seen: set[tuple[str, int, Work]] = set()
    for i, row in enumerate(read, start=1):
        if (key := (row.backend, row.size, row.work)) in seen:
            raise InputError(f"{name}: cost {i} is of a convolution that has one already. {HOW}")
        seen.add(key)
    costs = CostTable(read, path)
    if len(costs.settings) > SETTINGS:
        raise InputError(f"{name} has more than {SETTINGS} backends and sizes of images. {HOW}")
    return costs


HOW = "Write one with `acfuse bench --profile -o cost.json`."


def _row(row: Any, where: str) -> Row:
    """A row of a table. Raises InputError for what cannot be one."""
    if not isinstance(row, dict):
        raise InputError(f"{where} is no object. {HOW}")
    names = ("backend", "seconds", "kernel", "channels", "groups", "size")
    fields: list[Any] = [row.get(name) for name in names]
    backend, seconds, kernel, channels, groups, size = fields
    numbers = [kernel, channels, [groups, size]]
    for name, pair in zip(("kernel", "channels", "groups and size"), numbers, strict=True):
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_size, pair)):
            raise InputError(
                f"{where}: its {name} are not whole numbers from 1 to {LARGEST:,}. {HOW}"
            )
    if not isinstance(backend, str) or not 0 < len(backend) <= 64:
        raise InputError(f"{where} has no name of a backend. {HOW}")
    if not (type(seconds) in (int, float) and SHORTEST <= seconds <= LONGEST):  # NaN is neither
        raise InputError(
            f"{where}: its seconds are no number from {SHORTEST:g} to {LONGEST:g}. {HOW}"
        )
    work = Work((kernel[0], kernel[1]), (channels[0], channels[1]), groups)
    return Row(backend, size, work, float(seconds))


def _is_size(number: object) -> bool:
    return type(number) is int and 1 <= number <= LARGEST


def table_json(rows: Sequence[Row], about: Mapping[str, Any]) -> bytes:
    """The bytes of a table's file; `about` says where it was measured, and how."""
    costs = [
        {
            "backend": row.backend,
            "size": row.size,
            "kernel": list(row.work.kernel),
            "channels": list(row.work.channels),
            "groups": row.work.groups,
            "seconds": row.seconds,
        }
        for row in rows
    ]
    return f"{as_json({'schema_version': SCHEMA_VERSION, **about, 'costs': costs})}\n".encode()
