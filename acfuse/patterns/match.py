"""The blocks of a state dict without its code: by exact keys and shapes, and a pattern's word."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from torch import Tensor

from acfuse.errors import NotFusable, Reason, UsageError
from acfuse.findings import Block, Cost, Findings, Refused, Term
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
from acfuse.system.memory import trim_heap


def find_in_tensors(
    tensors: Mapping[str, Tensor], patterns: Sequence[Pattern], bn_eps: float | None = None
) -> Findings:
    """The blocks of a state dict without its code, by exact keys and shapes.

    What the file does not hold comes from the pattern or `bn_eps`, and is listed in the notes.
    Raises UsageError where neither knows the eps.
    """
    candidates = _candidates(tensors, patterns)
    results: dict[str, Block | Refused] = {}
    notes: dict[str, None] = {}
    taken: set[str] = set()
    for prefix, pattern in sorted(candidates, key=lambda candidate: candidate[0].count(".")):
        layers = [prefix + name for name in layers_at(pattern, tensors, prefix)]
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
        result = results[prefix] = _bare_block(tensors, prefix, pattern, eps or 0.0)
        trim_heap(sum(tensors[f"{n}.weight"].numel() for n in layers if f"{n}.weight" in tensors))
        if isinstance(result, Refused):
            continue
        taken.update(layers)
        if has_norms:
            notes[f"BatchNorm eps {eps:g} ({pattern.name}; a state dict does not hold it)"] = None
        claims = (f"{pattern.assumption}, as --assume says",) if pattern.ambiguity else ()
        notes |= dict.fromkeys(f"{pattern.name}: {t}" for t in (*claims, *pattern.assumptions))
    ordered = [results[prefix] for prefix, _ in candidates if prefix in results]
    found = [result for result in ordered if isinstance(result, Block)]
    refused = [result for result in ordered if isinstance(result, Refused)]
    if found:
        notes["branches are parallel, of one stride, and centred on each other"] = None
    state = state_of(tensors, found, patterns)
    known = {p + name for p, pattern in candidates for name in layers_at(pattern, tensors, p)}
    suspects = suspects_in(tensors, known)
    return Findings(tuple(found), tuple(refused), tuple(notes), state, suspects)


def _candidates(
    tensors: Mapping[str, Tensor], patterns: Sequence[Pattern]
) -> list[tuple[str, Pattern]]:
    """Every prefix below which a pattern's layers stand, with the pattern that has the most.

    Of two that have as many, it is the one that leaves fewer tensors beside them unexplained.
    """
    best: dict[str, tuple[tuple[int, int], Pattern]] = {}
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
                best[prefix] = rank, pattern
    order = {key: i for i, key in enumerate(tensors)}
    first = {p: order[f"{p}{pattern.anchor}.weight"] for p, (_, pattern) in best.items()}
    return [(p, best[p][1]) for p in sorted(best, key=first.__getitem__)]


def _bare_block(
    tensors: Mapping[str, Tensor], prefix: str, pattern: Pattern, eps: float
) -> Block | Refused:
    names = layers_at(pattern, tensors, prefix)
    dtype = tensors[f"{prefix}{pattern.anchor}.weight"].dtype
    unknown = strangers(pattern, names, list(tensors), prefix)

    def refused(why: str, code: Reason = Reason.ASSUMPTION) -> Refused:
        return Refused(prefix.rstrip("."), code, why, pattern.name)

    if not dtype.is_floating_point:
        kind = str(dtype).removeprefix("torch.")
        return refused(f"its weights are {kind}, not floating-point numbers", Reason.UNKNOWN_LAYER)
    if unknown:
        return refused(
            f"{', '.join(unknown)} stands beside and may take part. Give --model with the code"
        )
    try:
        value, block = value_of(pattern, TensorBlock(tensors, prefix, eps))
    except NotFusable as refusal:
        if pattern.ambiguity:
            return refused(f"{pattern.ambiguity}. Give --model with the code")
        return refused(refusal.why, refusal.code)
    if pattern.ambiguity and not pattern.is_assumed:
        way = f", or --assume {pattern.name} if {pattern.assumption}" if pattern.assumption else ""
        return refused(f"{pattern.ambiguity}. Give --model with the code{way}")
    return Block(
        prefix.rstrip("."),
        pattern.name,
        (Term("x", pattern.fused, lambda: value_of(pattern, block)[0]),),
        dtype,
        Cost((convolutions_among(names, tensors, prefix), 1), (0, value.geometry.multiply_adds)),
        tuple(names),
        lambda: lambda image: pattern.run(lambda name: rebuilt(block, name), image),
    )
