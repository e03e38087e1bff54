"""Proofs of fused models whose parts a test has at hand: an original, a fused form, blocks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acfuse.findings import Block, Findings
from acfuse.pipeline.convert import prove
from acfuse.proof import Certificate, Inputs, Proofs, Tolerance, certify
from acfuse.sources.live import LiveFused, LiveSource, stored_in


def certified(fused: nn.Module, block: Block) -> Certificate:
    """What is stored for a block in a fused model, against the layers of the original."""
    return certify(block, stored_in(fused, block))


def as_fused(original: nn.Module, fused: nn.Module, found: Sequence[Block]) -> LiveFused:
    """Any model as the fused form of another."""
    return LiveFused(Findings(tuple(found), ()), fused, LiveSource.of(original))


def proved(
    original: nn.Module,
    fused: nn.Module,
    found: Sequence[Block],
    inputs: Inputs | None,
    tolerance: Tolerance,
) -> Proofs:
    """Every proof of a fused model."""
    return prove(as_fused(original, fused, found), inputs, tolerance)


def diagnosed(original: nn.Module, fused: nn.Module, block: Block) -> str:
    """What a block of a fused model looks like."""
    return as_fused(original, fused, [block]).diagnose(block)


def further(numbers: Tensor, channel: int, steps: int) -> None:
    """The largest number of a channel, so many units of the last place further from zero."""
    flat = numbers[channel].reshape(-1)
    place = int(flat.abs().argmax())
    for _ in range(steps):
        away = torch.tensor(math.inf).copysign(flat[place])
        flat[place] = torch.nextafter(flat[place], away)
