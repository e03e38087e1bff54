"""What each published block looks like. The registry is the tuple `PATTERNS`, and nothing else.

To add a family: a file with a `Pattern`, its name in the tuple below, and a sample in
`sample_models/`. The tests iterate over both.
"""

from acfuse.patterns.acnet import ACNET
from acfuse.patterns.dbb import DBB
from acfuse.patterns.expr import Pattern, each, layer, maybe, padded, pool, scaled, seq, x
from acfuse.patterns.fastvit import FASTVIT
from acfuse.patterns.large_kernel import LARGE_KERNEL
from acfuse.patterns.mobileone import MOBILEONE
from acfuse.patterns.pplcnet import PPLCNET
from acfuse.patterns.qarepvgg import QAREPVGG
from acfuse.patterns.repoptimizer import REPOPTIMIZER
from acfuse.patterns.repvgg import REPVGG
from acfuse.patterns.repvit import REPVIT
from acfuse.patterns.super_resolution import SUPER_RESOLUTION

PATTERNS: tuple[Pattern, ...] = (
    *ACNET,
    *REPVGG,
    *QAREPVGG,
    *MOBILEONE,
    *FASTVIT,
    *REPVIT,
    *LARGE_KERNEL,
    *DBB,
    *SUPER_RESOLUTION,
    *PPLCNET,
    *REPOPTIMIZER,
)

__all__ = [
    "PATTERNS",
    "Pattern",
    "each",
    "layer",
    "maybe",
    "padded",
    "pool",
    "scaled",
    "seq",
    "x",
]
