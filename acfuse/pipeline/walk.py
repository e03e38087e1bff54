"""One block step by step: its branches, where each one's taps lie in the sum, biases, result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch

from acfuse.algebra import Adjoint, LinearConv, Value, lower
from acfuse.errors import UsageError
from acfuse.findings import Arm, Arms, Block, Findings, Refused, place_of
from acfuse.graph.arms import in_words
from acfuse.pipeline.convert import certified, logged, opened
from acfuse.pipeline.job import Job
from acfuse.pipeline.ranges import BlockRanges, ranges_of_blocks
from acfuse.proof import Certificate
from acfuse.sources.base import Progress, silent

WIDEST = 33  # places of a window that is drawn


@dataclass(frozen=True)
class Walk:
    """How a block becomes one convolution of each of its sources.

    `results` are these convolutions in words, by their names; `biases` those of the first channel:
    of each branch, and of what is behind their sum.
    """

    block: Block
    arms: Arms
    results: tuple[tuple[str, str], ...]
    bias: float | None
    certificate: Certificate | None
    ranges: BlockRanges


def walk(job: Job, name: str, progress: Progress = silent) -> Walk | tuple[Refused, ...]:
    """A block by its name, or why what is there was refused. Raises UsageError for other names."""
    progress = logged(progress)
    source = opened(job, progress)
    progress("finding blocks")
    findings = source.find(job.find_options)
    block = next((b for b in findings.found if name in (b.label, b.where, *b.names)), None)
    if block is None:
        return _refused(findings, name)
    progress(f"certificate of {block.label}")
    fused = source.fuse(replace(findings, found=(block,), refused=()))
    if not fused.found:  # it does something else when it is run
        return fused.refused
    values = [(term, term.value) for term in block.terms]
    solid = [(term, value) for term, value in values if value is not None]
    return Walk(
        block,
        block.arms() if block.arms is not None else Arms(()),
        tuple((term.name or "", in_words(lower(value, torch.float64))) for term, value in solid),
        sum(float(value.bias[0]) for _, value in solid),
        next(iter(certified(fused, progress)), None),
        next(iter(ranges_of_blocks(fused)), BlockRanges()),
    )


def _names(refused: Refused) -> tuple[str, ...]:
    """By what a reader may ask for a refusal."""
    return (refused.where or "the model", place_of(refused.where), refused.place, refused.value)


def _refused(findings: Findings, name: str) -> tuple[Refused, ...]:
    refused = tuple(r for r in findings.refused if name in _names(r))
    if refused:
        return refused
    known = [b.label for b in findings.found] + [place_of(r.where) for r in findings.refused]
    close = get_close_matches(name, known, cutoff=0.3)
    hint = f" Did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""
    raise UsageError(f"there is no block {name!r}.{hint} `acfuse inspect -v` lists them all.")


def drawn(arms: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    """For each branch, which taps of the window of the sum it holds: lines of # and dots.

    () where there is no window to be drawn: of linear layers, and of very large ones. A window of
    three axes is drawn slice by slice.
    """
    solid = [_kernel(arm.value) for arm in arms]
    ranks = {len(kernel.geometry.axes) for kernel in solid if kernel is not None}
    for kernel in solid:
        others = [k for k in solid if k is not None]
        if kernel is None or len(ranks) != 1 or ranks == {0}:
            yield ()
            continue
        grown = _grown(kernel, others)
        taps = grown.kernel.flatten(0, 1).abs().amax(0) > 0
        yield tuple(_lines(taps)) if max(taps.shape) <= WIDEST else ()


def _kernel(value: Value | None) -> LinearConv | None:
    return value.of if isinstance(value, Adjoint) else value


def _grown(kernel: LinearConv, others: Sequence[LinearConv]) -> LinearConv:
    """A kernel with empty taps around it, as many as the others need beside it."""
    more = []
    for own, *beside in zip(kernel.geometry.axes, *(k.geometry.axes for k in others), strict=True):
        before = max(axis.before for axis in beside) - own.before
        more.append((before, max(axis.after for axis in beside) - own.after))
    return kernel.grow(more)


def _lines(taps: torch.Tensor) -> Iterator[str]:
    if taps.ndim > 2:
        for i, part in enumerate(taps):
            yield from ([""] if i else [])
            yield from _lines(part)
        return
    for row in taps.reshape(-1, taps.shape[-1]).tolist():
        yield "".join("#" if tap else "." for tap in row)
