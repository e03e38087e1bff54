"""What state a checkpoint is in: to train, fused, half fused, or both at once.

Told from all tensors of a block, never from one key. Where the branches are all there, they are
the truth: some authors store a fused tensor beside them, which is out of date during training.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acfuse.algebra import Value, lower
from acfuse.errors import NotFusable
from acfuse.findings import Block
from acfuse.patterns.pattern import Pattern

COMMON = {"conv"}  # any convolution may have this name: it is no evidence
ENOUGH = 100  # weights of which the distribution can be told
ROUNDING = 16  # units in the last place that another program's fusion may be off


@dataclass(frozen=True)
class Deployed:
    """Blocks that are one convolution already, and the BatchNorm that some authors keep behind."""

    fused: str
    families: tuple[str, ...]
    where: tuple[str, ...]
    norm: str = ""

    def __str__(self) -> str:
        *others, last = self.families
        families = f"{', '.join(others)} or {last}" if others else last
        kept = f", each with a BatchNorm behind it ({self.norm})" if self.norm else ""
        return f"the deploy form of {families}: {len(self.where)} {self.fused}{kept}"


def deployed(tensors: Mapping[str, Tensor], patterns: Sequence[Pattern]) -> tuple[Deployed, ...]:
    """The blocks that are in their deploy form: the fused convolution, and none of its branches."""
    by_name: dict[str, list[Pattern]] = {}
    for pattern in patterns:
        if pattern.fused not in COMMON.union(pattern.names):
            by_name.setdefault(pattern.fused, []).append(pattern)
    states = []
    for fused, known in by_name.items():
        anchors = {p.anchor for p in known}
        where = [
            prefix
            for prefix in _prefixes(tensors, fused)
            if not any(f"{prefix}{anchor}.weight" in tensors for anchor in anchors)
        ]
        if where:
            families = tuple(dict.fromkeys(p.family for p in known))
            states.append(Deployed(fused, families, tuple(where), _norm_behind(tensors, where)))
    return tuple(states)


def _prefixes(tensors: Mapping[str, Tensor], fused: str) -> Iterable[str]:
    """Where a convolution of that name stands, with its bias: a fused one always has one."""
    for key, tensor in tensors.items():
        path = key.removesuffix(f"{fused}.weight")
        found = path != key and (not path or path.endswith("."))
        if found and tensor.ndim > 2 and f"{path}{fused}.bias" in tensors:
            yield path


def _norm_behind(tensors: Mapping[str, Tensor], where: Sequence[str]) -> str:
    """QARepVGG's last BatchNorm, which YOLOv6 keeps to calibrate and super-gradients may keep."""
    return next(
        (n for n in ("bn", "post_bn") if all(f"{p}{n}.running_mean" in tensors for p in where)), ""
    )


def is_half_fused(pattern: Pattern, patterns: Sequence[Pattern]) -> bool:
    """Whether a pattern is another one's layers without its BatchNorms, which were taken up."""
    own = set(pattern.names)
    return any(own < set(p.names) for p in patterns if p.fused == pattern.fused)


def difference_of_stored(
    tensors: Mapping[str, Tensor], name: str, multiply: Callable[[], Value], dtype: torch.dtype
) -> float | None:
    """How much a fused convolution that lies beside its branches differs from them.

    None where there is none or where it is theirs, but for rounding; infinity for another shape.
    Relative to the largest weight.
    """
    weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    if weight is None or bias is None:
        return None
    try:
        exact = lower(multiply().on_cpu(), torch.float64)
    except NotFusable:
        return None
    if weight.shape != exact.weight.shape or bias.shape != exact.bias.shape:
        return float("inf")
    pairs = ((weight.cpu(), exact.weight), (bias.cpu(), exact.bias))
    scale = max(float(true.abs().max()) for _, true in pairs)
    worst = max(float((stored.double() - true).abs().max()) for stored, true in pairs)
    return None if worst <= ROUNDING * torch.finfo(dtype).eps * scale else worst / (scale or 1.0)


def is_untrained(weight: Tensor, bias: Tensor) -> bool:
    """Whether a convolution holds what torch initialises one with, so that no training reached it.

    That is uniform between plus and minus 1 / sqrt(fan in), and so is the bias. Of uniform numbers
    the mean size is half of the bound, with a deviation of bound / sqrt(12 n). Six of these are
    allowed; kernels that were trained, fused or altered have most of their numbers near 0, or some
    beyond the bound.
    """
    count, bound = weight.numel(), weight[0].numel() ** -0.5 if weight.numel() else 0.0
    if count < ENOUGH or not (weight.is_floating_point() and bias.is_floating_point()):
        return False
    sizes, limit = weight.double().abs() / bound, 1 + torch.finfo(weight.dtype).eps
    if not bool((sizes <= limit).all() and (bias.double().abs() <= bound * limit).all()):
        return False
    return bool(bias.any()) and abs(float(sizes.mean()) - 0.5) <= 6 * (12 * count) ** -0.5


def state_of(
    tensors: Mapping[str, Tensor], found: Sequence[Block], patterns: Sequence[Pattern]
) -> tuple[str, ...]:
    """What had been fused before, in whole or in part, beside the blocks that were found."""
    messages = [f"already in {done}" for done in deployed(tensors, patterns)]
    for pattern in patterns:
        count = sum(block.pattern == pattern.name for block in found)
        if count and is_half_fused(pattern, patterns):
            messages.append(f"half fused: {count} {pattern.name}, which had BatchNorms before")
    differences: dict[str, float] = {}
    untrained: list[str] = []
    for block in found:
        for term, name in zip((s for s in block.terms if s.name), block.names, strict=True):
            if term.multiply is not None and term.name not in block.layers:
                worst = difference_of_stored(tensors, name, term.multiply, block.dtype)
                if worst is None:
                    continue
                if is_untrained(tensors[f"{name}.weight"], tensors[f"{name}.bias"]):
                    untrained.append(name)
                else:
                    differences[name] = worst
    if untrained:
        messages.append(
            f"both forms: {_fused(untrained)} as torch initialises one, and was never trained: "
            f"that is usual, and it is computed from the branches ({untrained[0]})"
        )
    if differences:
        name = max(differences, key=differences.__getitem__)
        messages.append(
            f"both forms: {_fused(differences)} not what these give: never trained, out of date or "
            f"altered. It is computed from the branches ({name}: off by {differences[name]:.1e} of "
            "the largest weight)"
        )
    return tuple(messages)


def _fused(names: Collection[str]) -> str:
    """How many fused convolutions, as the beginning of a sentence on each of them."""
    if len(names) == 1:
        return "1 fused convolution beside its branches is"
    return f"each of {len(names)} fused convolutions beside their branches is"
