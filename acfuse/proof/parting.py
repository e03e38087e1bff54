"""Where two programs part: the first step that gives something else, although it reads the same.

The values of one program are looked for in the other, by their numbers, whatever they are called
there. From an output that is nowhere in the other, the search goes back through values that are not
there either; the step that reads nothing but what both have is where they part.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acfuse.proof.trace import Mark, Step, Trace

# How far a value may be from the original's: machine epsilons of its norm, and times what rounding
# does to that very value of the original. Of a program in float64 only the weights are rounded.
EPSILONS, OWN_FACTOR = 32, 16
EPSILONS_EXACT, OWN_FACTOR_EXACT = 4, 4


@dataclass(frozen=True)
class Parting:
    """The first step of each program whose result the other does not have; None: it has all.

    `lacks` says that the other one does at once what the original does after its step, `adds` that
    it does so after a step of its own.
    """

    original: Step | None
    other: Step | None
    lacks: bool = False
    adds: bool = False

    def __bool__(self) -> bool:
        return self.original is not None or self.other is not None


def parting(
    original: Trace, other: Trace, dtype: torch.dtype, rounded: Trace | None = None
) -> Parting:
    """Where another program, with weights of a dtype, leaves the original on the same inputs.

    `rounded` is the original's trace in that dtype, where the other one is in float64: together
    they show what rounding does to each value.
    """
    factors = (EPSILONS_EXACT, OWN_FACTOR_EXACT) if other.is_exact else (EPSILONS, OWN_FACTOR)
    room = _room(original, rounded, factors[0] * torch.finfo(dtype).eps, factors[1])
    ours, theirs = _shared(original.marks, other.marks, room)
    candidates = _first(original, ours), _first(other, theirs)
    for step in candidates[1]:  # where both read the same values, they are the same place
        read = {theirs[value] for value in step.reads if value in theirs}
        for own in candidates[0]:
            if read & set(own.reads):
                lacks = kind_of(step) in _kinds_after(own, original)
                return Parting(own, step, lacks, adds=kind_of(own) in _kinds_after(step, other))
    return _beside(candidates, other)


def _kinds_after(step: Step, trace: Trace) -> set[str]:
    """What is done to what a step gives."""
    return {kind_of(s) for s in trace.steps if set(s.reads) & set(step.gives)}


def _beside(candidates: tuple[Sequence[Step], Sequence[Step]], other: Trace) -> Parting:
    """The first step of each that gives something else, where they read nothing in common."""
    own, step = (next(iter(steps), None) for steps in candidates)
    if own is None or step is None or kind_of(own) == kind_of(step):
        return Parting(own, step)
    # A sum that lacks a branch is one of the original's as well, but not this one.
    makers = [s for s in other.steps if set(s.gives) & set(step.reads)]
    return Parting(own, next((s for s in makers if kind_of(s) == kind_of(own)), step))


def _room(trace: Trace, rounded: Trace | None, limit: float, factor: float) -> dict[int, float]:
    """How far each value of the original may be from what another program gives there.

    One that rounding decides is nowhere.
    """
    room = {
        n: 0.0 if mark.is_discrete else limit * mark.norm
        for n, mark in trace.marks.items()
        if mark is not None
    }
    same = rounded is not None and len(rounded.marks) == len(trace.marks)
    for number, mark in (rounded.marks if rounded is not None and same else {}).items():
        own = trace.marks[number]
        if mark is not None and own is not None and mark.count == own.count:
            apart = max(abs(a - b) for a, b in zip(mark.sums, own.sums, strict=True))
            # Of several places rounding chose another one: that tells nothing of any value.
            is_lost = mark.is_discrete and apart > 0
            room[number] = -1.0 if is_lost else max(room[number], factor * apart)
    return room


def _shared(
    ours: Mapping[int, Mark | None], theirs: Mapping[int, Mark | None], room: Mapping[int, float]
) -> tuple[dict[int, int], dict[int, int]]:
    """For each value that the other program has as well, which one that is; and the other way."""
    of_count: dict[int, list[int]] = {}
    for number, mark in theirs.items():
        if mark is not None:
            of_count.setdefault(mark.count, []).append(number)
    sums = {
        count: np.array([mark.sums for n in numbers if (mark := theirs[n])])
        for count, numbers in of_count.items()
    }
    found: dict[int, int] = {}
    back: dict[int, int] = {}
    for number, mark in ours.items():
        if mark is None or mark.count not in sums:
            continue
        apart = np.abs(sums[mark.count] - np.array(mark.sums)).max(1)
        for place in np.flatnonzero(apart <= room[number]):
            back.setdefault(of_count[mark.count][place], number)
            found.setdefault(number, of_count[mark.count][place])
    return found, back


def _first(trace: Trace, shared: Mapping[int, int]) -> list[Step]:
    """The steps, in order, that give what the other program has not, and read what it has.

    Only those that an output depends on through values that it has not.
    """
    maker = {value: step for step in trace.steps for value in step.gives}
    known = {*shared, *trace.given} | {n for n, mark in trace.marks.items() if mark is None}
    wrong, open_ = set[int](), [value for value in trace.ends if value not in known]
    while open_:
        value = open_.pop()
        if value not in wrong and value in maker:
            wrong.add(value)
            open_ += [read for read in maker[value].reads if read not in known]
    return [
        step
        for step in trace.steps
        if wrong.intersection(step.gives) and known.issuperset(step.reads)
    ]


HARMLESS = ("momentum",)  # of a BatchNorm: it decides nothing of what one run gives

# What the same operator is called in PyTorch and in ONNX, where it is not the same word.
ALIKE: Mapping[str, str] = {
    "_adaptive_avg_pool2d": "averagepool", "addmm": "gemm", "avg_pool2d": "averagepool",
    "cat": "concat", "constant_pad_nd": "pad", "conv": "convolution", "clip": "hardtanh",
    "clamp": "hardtanh", "globalaveragepool": "averagepool", "matmul": "gemm", "mean":
    "averagepool", "max_pool2d_with_indices": "maxpool", "mm": "gemm", "bmm": "gemm",
    "native_batch_norm": "batchnormalization", "reducemean": "averagepool",
    "reflection_pad2d": "pad", "replication_pad2d": "pad", "convtranspose": "convolution",
    "_native_batch_norm_legit": "batchnormalization", "cudnn_batch_norm": "batchnormalization",
    "_native_batch_norm_legit_no_training": "batchnormalization", "_softmax": "softmax",
}  # fmt: skip


def kind_of(step: Step) -> str:
    """What an operator is, whichever program it stands in."""
    name = step.operator.lower().partition(".")[0]
    name = name.removesuffix("_") if not name.startswith("_") else name
    return ALIKE.get(name, name).replace("_", "")


def unlike_settings(original: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first setting in which two steps of one kind differ, in words; "" if none does."""
    for name in (n for n in original if n in other and n not in HARMLESS):
        ours, theirs = _plain(original[name]), _plain(other[name])
        from_behind = name == "dim" and min(ours, theirs) < 0
        if ours != theirs and not from_behind and None not in (ours, theirs):
            if name in ("training", "training_mode") and not ours:
                return "a BatchNorm in training mode: call eval() on the deployed model"
            return f"{name} {theirs}, the original's {ours}: set it to that"
    return ""


def _plain(value: Any) -> Any:
    """A setting so that it can be compared: numbers as ONNX stores them."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return int(value) if isinstance(value, bool) else value


def in_words(found: Parting, names: Sequence[str] = ()) -> str:
    """Where two programs part, for a reader; `names` are the blocks of the original."""
    original, other = found.original, found.other
    block = block_of(original, names) if original is not None else None
    ours = f"the block {block}" if block else "" if original is None else _shown(original)
    if other is None:
        return f"it begins at {ours} of the original, for which there is nothing"
    told = f"it begins at {_shown(other)}"
    told += f", for {ours} of the original" if ours and ours != _shown(other) else ""
    return f"{told}; what it reads is still right"


def block_of(step: Step, names: Sequence[str] | Set[str]) -> str | None:
    """The block in which a step of the original stands, the innermost one."""
    inside = [n for n in names if step.where == n or step.where.startswith(f"{n}.") or not n]
    return max(inside, key=len, default=None)


def _shown(step: Step) -> str:
    return f"{step.where or 'the model itself'} ({step.operator})"
