"""Tries patterns on tensors: where each matches, where it nearly does, and what is wrong there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from acfuse.patterns import Pattern
from acfuse.patterns.expr import Lookup
from acfuse.patterns.match import find_in_tensors
from acfuse.patterns.tensors import presence

USUAL_EPS = 1e-5  # no match depends on it


@dataclass(frozen=True)
class Trial:
    """A place where some of a pattern's layers stand; an empty `why` means that it matches."""

    pattern: str
    where: str
    why: str = ""
    layers: tuple[str, ...] = ()


def trials(tensors: Mapping[str, Tensor], patterns: Sequence[Pattern]) -> list[Trial]:
    """Each place where a pattern matches or nearly does, the best first.

    A near miss has at least two of the pattern's layers, and no better match inside of it.
    """
    return [trial for pattern in patterns for trial in _trials_of(pattern, tensors)]


def _trials_of(pattern: Pattern, tensors: Mapping[str, Tensor]) -> list[Trial]:
    eps = USUAL_EPS if pattern.bn_eps is None else pattern.bn_eps
    findings = find_in_tensors(tensors, (pattern,), eps)
    matched = [Trial(pattern.name, f.where, layers=f.layers) for f in findings.found]
    refused = [
        Trial(pattern.name, r.where, f"{r.why} ({_shapes(pattern, tensors, r.where)})")
        for r in findings.refused
    ]
    seen = {trial.where for trial in (*matched, *refused)}
    near = []
    for where, names in _places(pattern, tensors).items():
        if where not in seen and len(names) > 1:
            look = presence(pattern, tensors, f"{where}." if where else "")
            near.append((-len(names), Trial(pattern.name, where, _missing(pattern, look, where))))
    near.sort(key=lambda pair: pair[0])
    return [*matched, *refused, *(trial for _, trial in near)]


def _places(pattern: Pattern, tensors: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """Every prefix below which names of the pattern have tensors, with these names."""
    places: dict[str, set[str]] = {}
    factors = pattern.factors
    for key in tensors:
        for name in pattern.names:
            ends = (f"{name}.weight", f"{name}.running_mean", *([name] if name in factors else []))
            for end in ends:
                if key == end or key.endswith(f".{end}"):
                    places.setdefault(key[: -len(end)].rstrip("."), set()).add(name)
    return places


def _missing(pattern: Pattern, look: Lookup, where: str) -> str:
    name = pattern.missing(look)
    if not name:
        return "there is nothing to fuse: one convolution, and no branch beside it"
    return f"{name} is missing: there is no {f'{where}.' if where else ''}{name}.weight"


def _shapes(pattern: Pattern, tensors: Mapping[str, Tensor], where: str) -> str:
    prefix = f"{where}." if where else ""
    names = pattern.layers(presence(pattern, tensors, prefix))
    weights = {name: tensors.get(f"{prefix}{name}.weight") for name in names}
    return ", ".join(
        f"{name} {list(weight.shape)}"
        for name, weight in weights.items()
        if weight is not None and weight.ndim > 2
    )
