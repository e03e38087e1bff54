"""Asks solvers whether a statement holds for all integers: z3, and cvc5 on the same text."""

from dataclasses import dataclass
from enum import StrEnum

import cvc5
import z3

from tests.obligations.symbolic import Term

Z3_WORK = (
    20_000_000  # z3's units of work for one statement: about ten seconds, on any machine alike
)
CVC5_WORK = 200_000  # cvc5's, for a few of them
FEW = 16


class Verdict(StrEnum):
    """What a solver says of a statement."""

    PROVED = "proved"
    REFUTED = "refuted"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Claim:
    """Wherever all of `given` hold, `holds` does; `where` says which of the cases this is."""

    where: str
    given: tuple[Term, ...]
    holds: Term

    @property
    def denial(self) -> Term:
        """What a counterexample satisfies."""
        return z3.And(*self.given, z3.Not(self.holds))


def by_z3(claims: list[Claim]) -> tuple[Verdict, str]:
    """z3's verdict on all of them; of the first that it doesn't prove, a counterexample if any."""
    for claim in claims:
        solver = z3.SimpleSolver()
        solver.set("rlimit", Z3_WORK)
        solver.add(claim.denial)
        answer = solver.check()
        if answer == z3.sat:
            model = solver.model()
            found = sorted(f"{name}={model[name]}" for name in model.decls())
            return Verdict.REFUTED, f"{claim.where}: {', '.join(found)}"
        if answer != z3.unsat:
            return Verdict.UNKNOWN, claim.where
    return Verdict.PROVED, ""


def by_cvc5(claims: list[Claim]) -> Verdict:
    """cvc5's verdict on the text that z3 writes, a few claims at once."""
    few = [claims[first : first + FEW] for first in range(0, len(claims), FEW)]
    return max(map(_cvc5, few), key=list(Verdict).index)


def _cvc5(claims: list[Claim]) -> Verdict:
    writer = z3.Solver()
    writer.add(z3.Or(*(claim.denial for claim in claims)))
    second = cvc5.Solver()
    second.setOption("rlimit-per", str(CVC5_WORK))
    parser = cvc5.InputParser(second)
    text = "(set-logic ALL)\n" + writer.to_smt2()
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, text, "claims")
    answer = ""
    while not (command := parser.nextCommand()).isNull():
        answer += command.invoke(second, parser.getSymbolManager())
    words = {"unsat": Verdict.PROVED, "sat": Verdict.REFUTED}
    return words.get(answer.strip(), Verdict.UNKNOWN)


def possible(claim: Claim) -> bool:
    """Whether there is a case that the claim is about."""
    solver = z3.SimpleSolver()
    solver.set("rlimit", Z3_WORK)
    solver.add(*claim.given)
    return solver.check() == z3.sat
