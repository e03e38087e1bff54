"""`make prove`: proves every obligation of the geometry, and writes docs/proofs.md.

Exits 1 if one is not proved by z3, or refuted by cvc5; then nothing is written.
"""

import sys
from concurrent.futures import ProcessPoolExecutor

from acfuse.algebra import geometry
from tests.obligations.obligations import OBLIGATIONS
from tests.obligations.page import PAGE, page
from tests.obligations.verdicts import Verdict, by_cvc5, by_z3


def prove(name: str) -> tuple[int, Verdict, Verdict, str]:
    """How many cases one has, what z3 and cvc5 say, and a counterexample if there is one."""
    claims = list(OBLIGATIONS[name](geometry))
    first, found = by_z3(claims)
    return len(claims), first, by_cvc5(claims), found


def main() -> int:
    """Proves, tells, and writes."""
    rows, short = {}, False
    with ProcessPoolExecutor(2) as pool:
        for name, row in zip(OBLIGATIONS, pool.map(prove, OBLIGATIONS), strict=True):
            cases, first, second, found = row
            short |= first is not Verdict.PROVED or second is Verdict.REFUTED
            print(f"{name}: {cases} cases, z3 {first}, cvc5 {second} {found}".rstrip())
            rows[name] = cases, first.value, second.value
    if not short:
        PAGE.write_text(page(rows), encoding="utf-8")
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
