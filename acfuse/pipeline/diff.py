"""What is different between two files: names, shapes, dtypes, and how far numbers are apart."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor

from acfuse.errors import UsageError
from acfuse.files.detect import is_onnx
from acfuse.files.onnx_cost import all_graphs
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.read import read_tensors
from acfuse.files.records import DEFAULTS, ReadOptions
from acfuse.sources.bare import same_bits
from acfuse.sources.onnx import numbers_of

INTEGERS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32,
            torch.float64: torch.int64}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One tensor, or one thing of a graph, that is not the same in both files.

    `ulp` is the largest distance of two numbers, in steps from one number of the dtype to the next;
    `absolute` the largest |a - b|; `count` how many of `numbers` differ. Without them it is not the
    numbers that differ.
    """

    name: str
    what: str
    ulp: float | None = None
    absolute: float | None = None
    count: int = 0
    numbers: int = 0


@dataclass(frozen=True)
class Compared:
    """Two files side by side: how many tensors both have, and all that differs."""

    tensors: int
    differences: tuple[Difference, ...]


def diff_files(
    first: Path, second: Path, one: ReadOptions = DEFAULTS, other: ReadOptions = DEFAULTS
) -> Compared:
    """What differs between two checkpoints, or between two ONNX files."""
    kinds = is_onnx(first), is_onnx(second)
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"one of {first.name} and {second.name} is an ONNX file, and the other is not: "
            "`acfuse verify ORIGINAL FUSED` compares what they compute."
        )
    if not kinds[0]:
        return diff_tensors(read_tensors(first, one)[1], read_tensors(second, other)[1])
    models = read_onnx(first, one)[0], read_onnx(second, other)[0]
    a, b = (numbers_of(model)[0] for model in models)
    compared = diff_tensors(a, b)
    return Compared(compared.tensors, (*diff_graphs(*models), *compared.differences))


def diff_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Compared:
    """What differs between two sets of tensors, in the order of the first."""
    found = [Difference(name, "only in the first") for name in a if name not in b]
    for name in (name for name in a if name in b):
        found += _difference(name, a[name], b[name])
    found += [Difference(name, "only in the second") for name in b if name not in a]
    return Compared(len(a.keys() & b.keys()), tuple(found))


def _difference(name: str, a: Tensor, b: Tensor) -> Iterator[Difference]:
    if a.shape != b.shape:
        yield Difference(name, f"shape {_sizes(a)} and {_sizes(b)}")
    elif a.dtype != b.dtype:
        kinds = (str(t.dtype).removeprefix("torch.") for t in (a, b))
        distance = _absolute(a.double(), b.double())
        count = int((distance > 0).sum())
        yield Difference(name, " and ".join(kinds), None, _largest(distance), count, a.numel())
    elif not same_bits(a, b):
        distance = _absolute(a.double(), b.double())
        if not a.dtype.is_floating_point:  # of which float64 does not hold the largest
            exact = (a.to(torch.int64) - b.to(torch.int64)).abs().double()
            distance = torch.where(distance < 2**52, exact, distance)
        steps = ulps(a, b) if a.dtype in INTEGERS else None
        ulp = None if steps is None else _largest(steps)
        count = int(((distance > 0) if steps is None else (steps > 0)).sum())
        yield Difference(name, "numbers", ulp, _largest(distance), count, a.numel())


def ulps(a: Tensor, b: Tensor) -> Tensor:
    """How many steps from one number to the next lie between two tensors of one floating dtype.

    Both zeros are the same number, and so are all NaN; a number and NaN are infinitely apart.
    """
    integers = INTEGERS[a.dtype]
    low = torch.iinfo(integers).min

    def place(numbers: Tensor) -> Tensor:
        bits = numbers.contiguous().view(integers).to(torch.int64)
        return torch.where(bits < 0, low - bits, bits)  # the larger the number, the larger

    one, two = place(a), place(b)
    steps = (one.double() - two.double()).abs()
    near = steps < 2**52  # there the difference of integers is exact, and fits
    steps = torch.where(near, (one - two).abs().double(), steps)
    both, either = a.isnan() & b.isnan(), a.isnan() | b.isnan()
    return torch.where(both, 0.0, torch.where(either, math.inf, steps))


def _absolute(a: Tensor, b: Tensor) -> Tensor:
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)


def _largest(numbers: Tensor) -> float:
    return float(numbers.max()) if numbers.numel() else 0.0


def _sizes(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "()"


def diff_graphs(a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[Difference]:
    """What differs between two ONNX graphs, but for their tensors: ends, operators, opsets."""
    for name, one, two in (
        ("opset", _opsets(a), _opsets(b)),
        ("inputs", _ends(a.graph.input), _ends(b.graph.input)),
        ("outputs", _ends(a.graph.output), _ends(b.graph.output)),
    ):
        if one != two:
            yield Difference(name, f"{one} and {two}")
    counts = [Counter(n.op_type for g in all_graphs(m.graph) for n in g.node) for m in (a, b)]
    for kind in sorted(counts[0].keys() | counts[1].keys()):
        if counts[0][kind] != counts[1][kind]:
            yield Difference(kind, f"{counts[0][kind]} nodes and {counts[1][kind]}")


def _opsets(model: onnx.ModelProto) -> str:
    return ", ".join(sorted(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import))


def _ends(values: "list[onnx.ValueInfoProto]") -> str:
    def sizes(value: onnx.ValueInfoProto) -> str:
        dims = value.type.tensor_type.shape.dim
        return ",".join(d.dim_param or str(d.dim_value or "?") for d in dims)

    return ", ".join(f"{value.name}[{sizes(value)}]" for value in values)
