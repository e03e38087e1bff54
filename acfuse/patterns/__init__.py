"""What each published block looks like. The registry is the tuple `PATTERNS`, and nothing else.

To add a family: a file with a `Pattern`, its name in the tuple below, and a sample in
`sample_models/`. The tests iterate over both.
"""

from acfuse.patterns.acnet import ACNET
from acfuse.patterns.expr import Pattern, each, maybe, scaled, seq, x
from acfuse.patterns.repvgg import REPVGG

PATTERNS: tuple[Pattern, ...] = (*ACNET, *REPVGG)

__all__ = ["PATTERNS", "Pattern", "each", "maybe", "scaled", "seq", "x"]
