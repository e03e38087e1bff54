"""What fusing does to the ranges of weights, block by block, and whether 8 bits would mind."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from acfuse.algebra import Value
from acfuse.errors import NotFusable, Reason
from acfuse.findings import Arm, Block
from acfuse.int8.ranges import NOTHING, WIDE, Ranges, ranges_of
from acfuse.proof.impulses import rows
from acfuse.sources.base import Fused

Named = tuple[str, Tensor]  # a kernel [out, in of a group, *taps], and what it is called


@dataclass(frozen=True)
class BlockRanges:
    """The ranges of a block: before, of the branch that loses most, and of what it became.

    Before is as a branch enters the sum, with its BatchNorm. None where there is no kernel that is
    known: a source that is added as it is, or the layers of a fold that has no branches.
    """

    before: Ranges | None = None
    after: Ranges | None = None

    def to_json(self) -> dict[str, Any]:
        """What a manifest holds of it; thousandths are enough."""
        return {
            name: None if own is None else {n: round(x, 3) for n, x in vars(own).items()}
            for name, own in vars(self).items()
        }

    @classmethod
    def of_json(cls, told: Mapping[str, Any] | None) -> "BlockRanges":
        """It again; of a manifest that holds none, nothing is known."""
        pair = (None if told is None else told[name] for name in ("before", "after"))
        return cls(*(own and Ranges(*(float(own[n]) for n in vars(NOTHING))) for own in pair))

    @property
    def is_wide(self) -> bool:
        """Whether the channels of what it became range too widely to share one grid."""
        return self.after is not None and self.after.is_wide

    @property
    def order(self) -> tuple[bool, float]:
        """By what the worst of several blocks is chosen."""
        return (False, -1.0) if self.after is None else self.after.order


@dataclass(frozen=True)
class Caution:
    """Something that a reader should know of a result that is right; it changes no exit code."""

    code: Reason
    text: str

    def __str__(self) -> str:
        return f"{self.text} [{self.code}]"


def ranges_of_blocks(fused: Fused) -> tuple[BlockRanges, ...]:
    """The ranges of every block, in order. Kernels are made for one block at a time, and let go."""
    return tuple(_of_block(block, fused) for block in fused.found)


def _of_block(block: Block, fused: Fused) -> BlockRanges:
    before = _worst(lambda: kernels_before(block))
    return BlockRanges(before, _worst(lambda: kernels_after(block, fused.stored(block))))


def _worst(kernels: Callable[[], Iterable[Named]]) -> Ranges | None:
    try:
        known = [ranges_of(kernel) for _, kernel in kernels()]
    except NotFusable:  # its numbers do not fit: its certificate says so
        return None
    return max(known, key=lambda ranges: ranges.order, default=None)


def kernels_before(block: Block) -> list[Named]:
    """The branches of a block as they enter its sum: each with its BatchNorm, called by its layers.

    One that is its source as it is has no kernel.
    """
    arms = () if block.arms is None else block.arms().arms
    solid = ((arm, arm.value) for arm in arms if arm.value is not None)
    return [(_name_of(arm), rows(value)) for arm, value in solid]


def kernels_after(block: Block, stored: Sequence[Value | None]) -> list[Named]:
    """What is stored for a block."""
    pairs = zip(block.terms, stored, strict=True)
    return [(term.name or "", rows(value)) for term, value in pairs if value is not None]


def _name_of(arm: Arm) -> str:
    return next((name for name, _, _ in arm.layers if name), arm.source)


def worst_of(blocks: Iterable[BlockRanges]) -> BlockRanges | None:
    """The block of several that loses most afterwards; None where none is known."""
    known = [ranges for ranges in blocks if ranges.after is not None]
    return max(known, key=lambda ranges: ranges.order, default=None)


def in_short(ranges: BlockRanges | None, figure: str = "per_tensor") -> str:
    """One figure before and after: 1.2 -> 3.4."""
    pair = () if ranges is None else (ranges.before, ranges.after)
    figures = [getattr(own, figure) for own in pair if own is not None]
    return " -> ".join(f"{round(number, 1) + 0.0:.1f}" for number in figures)  # no -0.0


FIGURES = {"per_tensor": "8 bits lose", "per_channel": "per channel", "spread": "widest"}


def headings(*, verbose: bool) -> tuple[str, ...]:
    """Of the columns that a table has for ranges."""
    return (*FIGURES.values(),) if verbose else ("8 bits lose",)


def cells(blocks: Iterable[BlockRanges], *, verbose: bool) -> tuple[str, ...]:
    """What stands in them: of several blocks, the figures of the one that loses most."""
    worst = worst_of(blocks)
    return tuple(in_short(worst, figure) for figure in (FIGURES if verbose else ("per_tensor",)))


def in_words(ranges: BlockRanges) -> str:
    """What 8 bits lose of a block, and how widely its channels range."""
    return (
        f"{in_short(ranges)} bits per tensor, {in_short(ranges, 'per_channel')} per channel "
        f"(widest channel {in_short(ranges, 'spread')} times the median one)"
    )


def summary_of(found: Sequence[Block], ranges: Sequence[BlockRanges]) -> str:
    """The block that loses most, in words; "" where no kernel is known."""
    worst = worst_of(ranges)
    if worst is None:
        return ""
    label = next(block.label for block, own in zip(found, ranges, strict=True) if own is worst)
    return f"lose {'most ' if len(found) > 1 else ''}of {label}: {in_words(worst)}"


def cautions_of(
    found: Sequence[Block], ranges: Sequence[BlockRanges], *, is_evened: bool = False
) -> tuple[Caution, ...]:
    """What there is to say of the ranges of all blocks: nothing, or one sentence.

    `is_evened` says that they are as even already as is worth it.
    """
    wide = [(block, own) for block, own in zip(found, ranges, strict=False) if own.is_wide]
    if not wide:
        return ()
    block, worst = max(wide, key=lambda pair: pair[1].after.shared if pair[1].after else 0.0)
    assert worst.after is not None
    told = (
        f"one grid of 8 bits for all channels costs more than {WIDE:g} bits in {len(wide):,} of "
        f"{len(found):,} blocks, most in {block.label} (it loses {worst.after.per_tensor:.1f} bits "
        f"per tensor, {worst.after.per_channel:.1f} per channel): "
        f"{'even the channels out with `acfuse equalize`, or ' * (not is_evened)}quantize per "
        "channel"
    )
    return (Caution(Reason.WIDE_RANGES, told),)
