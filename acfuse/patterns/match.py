"""The blocks of a state dict without its code: by exact keys and shapes, and a pattern's word."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from acfuse.algebra import Conv
from acfuse.errors import NotFusable, Reason, UsageError
from acfuse.files.cost_table import CostTable
from acfuse.findings import Block, Cost, Findings, Refused, Term
from acfuse.graph.times import slower_than, timed
from acfuse.patterns.arms import arms_of
from acfuse.patterns.expr import Lookup
from acfuse.patterns.pattern import Pattern
from acfuse.patterns.states import state_of
from acfuse.patterns.suspects import suspects_in
from acfuse.patterns.tensors import (
    TensorBlock,
    convolutions_among,
    layers_at,
    rebuilt,
    strangers,
    value_of,
)
from acfuse.system.devices import exact_arithmetic
from acfuse.system.memory import trim_heap


class _Candidate(NamedTuple):
    """A place where layers of a pattern stand that could be fused."""

    prefix: str
    pattern: Pattern
    names: list[str]

    @property
    def layers(self) -> list[str]:
        """The full names of its layers."""
        return [self.prefix + name for name in self.names]


def find_in_tensors(
    tensors: Mapping[str, Tensor],
    patterns: Sequence[Pattern],
    bn_eps: float | None = None,
    costs: CostTable | None = None,
    device: torch.device | None = None,
) -> Findings:
    """The blocks of a state dict without its code, by exact keys and shapes.

    By a table of `costs`, none that is slower than its layers. They are multiplied and run on a
    `device`; without one, where the tensors are.

    What the file does not hold comes from the pattern or `bn_eps`, and is listed in the notes.
    Raises UsageError where neither knows the eps.
    """
    candidates = _candidates(tensors, patterns)
    results: dict[str, Block | Refused] = {}
    notes: dict[str, None] = {}
    taken: set[str] = set()
    for candidate in sorted(candidates, key=lambda candidate: candidate.prefix.count(".")):
        prefix, pattern, _ = candidate
        layers = candidate.layers
        if not taken.isdisjoint(layers):  # the block around it has them already
            continue
        eps = bn_eps if bn_eps is not None else pattern.bn_eps
        has_norms = any(f"{name}.running_var" in tensors for name in layers)
        if has_norms and eps is None:
            raise UsageError(
                f"{prefix.rstrip('.') or 'the model'}: {pattern.name} has no usual BatchNorm eps, "
                "and the file does not hold it. Give --bn-eps with the eps of the training code"
                f"{pattern.usual_eps and f' ({pattern.usual_eps})'}."
            )
        result = results[prefix] = _bare_block(tensors, candidate, eps or 0.0, costs, device)
        trim_heap(sum(tensors[f"{n}.weight"].numel() for n in layers if f"{n}.weight" in tensors))
        if isinstance(result, Refused):
            continue
        taken.update(layers)
        if has_norms:
            notes[f"BatchNorm eps {eps:g} ({pattern.name}; a state dict does not hold it)"] = None
        own = [f"{pattern.assumption}, as --assume says"] if pattern.ambiguity else []
        notes |= dict.fromkeys(f"{pattern.name}: {t}" for t in (*own, *pattern.assumptions))
    ordered = [results[c.prefix] for c in candidates if c.prefix in results]
    found = tuple(result for result in ordered if isinstance(result, Block))
    refused = tuple(result for result in ordered if isinstance(result, Refused))
    if found:
        notes["branches are parallel, of one stride, and centred on each other"] = None
    state = state_of(tensors, found, patterns)
    suspects = suspects_in(tensors, {layer for c in candidates for layer in c.layers})
    return Findings(found, refused, tuple(notes), state, suspects)


def _candidates(tensors: Mapping[str, Tensor], patterns: Sequence[Pattern]) -> list[_Candidate]:
    """Every prefix below which a pattern's layers stand, with the pattern that has the most.

    Of two that have as many, it is the one that leaves fewer tensors beside them unexplained.
    """
    best: dict[str, tuple[tuple[int, int], _Candidate]] = {}
    keys = sorted(tensors)

    def below(prefix: str) -> list[str]:
        end = prefix[:-1] + "/" if prefix else ""  # the character behind the dot
        return keys[bisect_left(keys, prefix) : bisect_left(keys, end) if end else None]

    for pattern in patterns:
        suffix = f"{pattern.anchor}.weight"
        for key in tensors:
            prefix = key.removesuffix(suffix)
            if prefix == key or (prefix and not prefix.endswith(".")):
                continue
            names = layers_at(pattern, tensors, prefix)
            rank = len(names), -len(strangers(pattern, names, below(prefix), prefix))
            if names and (prefix not in best or rank > best[prefix][0]):
                best[prefix] = rank, _Candidate(prefix, pattern, names)
    order = {key: i for i, key in enumerate(tensors)}
    found = [candidate for _, candidate in best.values()]
    return sorted(found, key=lambda c: order[f"{c.prefix}{c.pattern.anchor}.weight"])


def _bare_block(
    tensors: Mapping[str, Tensor],
    candidate: _Candidate,
    eps: float,
    costs: CostTable | None = None,
    device: torch.device | None = None,
) -> Block | Refused:
    prefix, pattern, names = candidate
    anchor = tensors[f"{prefix}{pattern.anchor}.weight"]
    dtype, place = anchor.dtype, device or anchor.device
    unknown = strangers(pattern, names, list(tensors), prefix)

    def refused(why: str, code: Reason = Reason.ASSUMPTION) -> Refused:
        return Refused(prefix.rstrip("."), code, why, pattern.name)

    if not dtype.is_floating_point:
        kind = str(dtype).removeprefix("torch.")
        return refused(f"its weights are {kind}, not floating-point numbers", Reason.UNKNOWN_LAYER)
    if unknown:
        parts = "stands beside and may take part" if len(unknown) == 1 else "may take part"
        return refused(f"{', '.join(unknown)} {parts}. Give --model with the code")
    try:
        value, block = value_of(pattern, TensorBlock(tensors, prefix, eps, device=place))
    except NotFusable as refusal:
        if pattern.ambiguity:
            return refused(f"{pattern.ambiguity}. Give --model with the code")
        return refused(refusal.why, refusal.code)
    if pattern.ambiguity and not pattern.is_assumed:
        way = f", or --assume {pattern.name} if {pattern.assumption}" if pattern.assumption else ""
        return refused(f"{pattern.ambiguity}. Give --model with the code{way}")
    if costs is not None:
        layers = [layer for layer in map(block, names) if isinstance(layer, Conv)]
        before = [timed(layer.geometry) for layer in layers]
        slower = slower_than(before, [timed(value.geometry)], costs)
        if slower is not None:
            return refused(str(slower), Reason.SLOWER)
    return Block(
        prefix.rstrip("."),
        pattern.name,
        (Term("x", pattern.fused, lambda: value_of(pattern, block)[0]),),
        dtype,
        Cost((convolutions_among(names, tensors, prefix), 1), (0, value.geometry.multiply_adds)),
        tuple(names),
        lambda: partial(_run, pattern, cache(partial(rebuilt, block)), place),
        arms=partial(arms_of, pattern, block),
    )


def _run(pattern: Pattern, look: Lookup, device: torch.device, image: Tensor) -> Tensor:
    """What the layers of a block make of an image, where they are; it is given on the CPU."""
    with exact_arithmetic(device):
        return pattern.run(look, image.to(device)).cpu()
