"""docs/proofs.md, written from the obligations themselves."""

import inspect
from collections.abc import Mapping
from pathlib import Path

from tests.obligations.obligations import OBLIGATIONS

PAGE = Path(__file__).parents[2] / "docs/proofs.md"
HEAD = """# What is proved of the geometry

Whether a sum or a chain of convolutions is one convolution is decided on integers, in
`acfuse/algebra/geometry.py`, and of transposed ones in `adjoint_geometry.py` beside it. `make
prove` runs these functions themselves on integers that stand
for every integer, along every path through them, and asks two solvers (z3, and cvc5 as the second
opinion) whether the answer agrees with what a convolution is: which pixel each tap of each output
reads, and how many outputs there are. What is marked "proved" in these files names its statement
here; a test changes each comparison and operator there, and sees the statement refuted.

A sum of transposed convolutions is the adjoint of a sum of convolutions, and a chain that of a
chain in the other order, whatever the numbers are: so what is proved of those holds for them.

"Exactly if" is both halves: what is accepted is equal, and for what is refused there is an image, a
place and a choice of weights at which no single convolution is. Where a refusal goes further, the
statement calls it a choice.

A window stands there with two or three live taps, which may coincide. Decisions ask for the first
and the last of them; where each is looked at, each is treated alike.

Written by `make prove`. Not covered: the limits on how much memory a window may ask for, what a
layer costs, and the numbers in kernels, which the certificate of each conversion compares.

| obligation | what it states | cases | z3 | cvc5 |
|---|---|---|---|---|
"""


def page(rows: Mapping[str, tuple[int, str, str]]) -> str:
    """The page. `rows`: for each obligation its number of cases, and the verdicts of both."""
    lines = (
        f"| `{name}` | {' '.join((inspect.getdoc(OBLIGATIONS[name]) or '').split())} | {cases} "
        f"| {first} | {second} |\n"
        for name, (cases, first, second) in rows.items()
    )
    return HEAD + "".join(lines)
