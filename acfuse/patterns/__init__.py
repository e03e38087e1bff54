"""What each published block looks like. The registry is the tuple `PATTERNS`, and nothing else.

`known_patterns` adds those of plug-ins and of the user's own files.

To add a family: a file with a `Pattern`, its name in the tuple below, and a sample in
`sample_models/`. The tests iterate over both.
"""

from collections.abc import Iterable
from pathlib import Path

from acfuse.errors import InputError
from acfuse.patterns.acnet import ACNET
from acfuse.patterns.dbb import DBB
from acfuse.patterns.expr import each, layer, maybe, padded, pool, scaled, seq, x
from acfuse.patterns.fastvit import FASTVIT
from acfuse.patterns.large_kernel import LARGE_KERNEL
from acfuse.patterns.mobileone import MOBILEONE
from acfuse.patterns.pattern import Pattern
from acfuse.patterns.pplcnet import PPLCNET
from acfuse.patterns.qarepvgg import QAREPVGG
from acfuse.patterns.registry import assumed, plug_ins
from acfuse.patterns.repghost import REPGHOST
from acfuse.patterns.repnext import REPNEXT
from acfuse.patterns.repoptimizer import REPOPTIMIZER
from acfuse.patterns.repvgg import REPVGG
from acfuse.patterns.repvit import REPVIT
from acfuse.patterns.super_resolution import SUPER_RESOLUTION
from acfuse.patterns.toml_files import read_patterns
from acfuse.system.escape import safe

PATTERNS: tuple[Pattern, ...] = (
    *ACNET, *REPVGG, *QAREPVGG, *MOBILEONE, *FASTVIT, *REPVIT, *REPGHOST, *REPNEXT, *LARGE_KERNEL,
    *DBB, *SUPER_RESOLUTION, *PPLCNET, *REPOPTIMIZER,
)  # fmt: skip


def known_patterns(
    files: Iterable[str | Path] = (), assume: Iterable[str] = ()
) -> tuple[Pattern, ...]:
    """The patterns of these files, of plug-ins, then acfuse's own: the first of equals is taken.

    `assume` names those of which the user says that they hold where tensors alone do not decide.
    Raises InputError for a file or plug-in that cannot be used, and for two patterns of one name;
    UsageError for a pattern that cannot be assumed.
    """
    read = [pattern for path in files for pattern in read_patterns(Path(path))]
    patterns = (*read, *plug_ins(), *PATTERNS)
    known: dict[str, Pattern] = {}
    for pattern in patterns:
        other = known.setdefault(pattern.name, pattern)
        if other is not pattern:
            raise InputError(
                f"two patterns are called {pattern.name!r}: one of {safe(other.owner)}, one of "
                f"{safe(pattern.owner)}. Rename yours."
            )
    return assumed(patterns, assume)


__all__ = [
    "PATTERNS", "Pattern", "each", "known_patterns", "layer", "maybe", "padded", "pool", "scaled",
    "seq", "x",
]  # fmt: skip
