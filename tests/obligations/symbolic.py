"""Integers that stand for every integer, and the paths that code takes with them.

The geometry's own functions run on an `Int`. Wherever a comparison decides, both answers are tried
that are possible, by running the function again. What comes out is a list of paths: under which
conditions, with what result. Nothing is copied from the code, so nothing can differ from it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import z3

Term = Any  # z3 has no types of its own
PATIENCE = 2_000  # of z3's units of work, for one question of whether a path is possible


class Int:
    """An integer as a term of the solver. Comparing two of them asks the path which way it goes."""

    __slots__ = ("term",)

    def __init__(self, term: Term) -> None:
        self.term = term

    def __add__(self, other: "Int | int") -> "Int":
        return Int(self.term + term(other))

    def __sub__(self, other: "Int | int") -> "Int":
        return Int(self.term - term(other))

    def __mul__(self, other: "Int | int") -> "Int":
        return Int(self.term * term(other))

    def __mod__(self, other: "Int | int") -> "Int":
        return Int(self.term % term(other))

    def __floordiv__(self, other: "Int | int") -> "Int":
        return Int(self.term / term(other))

    def __radd__(self, other: int) -> "Int":
        return Int(other + self.term)

    def __rsub__(self, other: int) -> "Int":
        return Int(other - self.term)

    def __rmul__(self, other: int) -> "Int":
        return Int(other * self.term)

    def __neg__(self) -> "Int":
        return Int(-self.term)

    def __pos__(self) -> "Int":
        return self

    def __lt__(self, other: "Int | int") -> bool:
        return _path().decide(self.term < term(other))

    def __le__(self, other: "Int | int") -> bool:
        return _path().decide(self.term <= term(other))

    def __gt__(self, other: "Int | int") -> bool:
        return _path().decide(self.term > term(other))

    def __ge__(self, other: "Int | int") -> bool:
        return _path().decide(self.term >= term(other))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Int | int) and _path().decide(self.term == term(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return _path().decide(self.term != 0)

    def __hash__(self) -> int:
        return 0  # any two may be equal


def term(value: Int | int) -> Term:
    """The solver's term of either."""
    return value.term if isinstance(value, Int) else z3.IntVal(value)


@dataclass(frozen=True)
class Path:
    """One way through the code: what holds on it, and what was returned or raised."""

    conditions: tuple[Term, ...]
    result: Any


@dataclass
class _Walk:
    """One run: the answers that are given first, and those that were left for later runs."""

    solver: z3.Solver
    given: tuple[bool, ...]
    answers: list[bool] = field(default_factory=list)
    conditions: list[Term] = field(default_factory=list)
    others: list[tuple[bool, ...]] = field(default_factory=list)

    def decide(self, condition: Term) -> bool:
        """Which way this run goes; the other way, if it is possible, is left for another run."""
        condition = z3.simplify(condition)
        if z3.is_true(condition) or z3.is_false(condition):
            return z3.is_true(condition)
        if len(self.answers) < len(self.given):
            answer = self.given[len(self.answers)]
        elif not self._possible(condition):
            answer = False
        else:
            answer = True
            if self._possible(z3.Not(condition)):
                self.others.append((*self.answers, False))
        self.answers.append(answer)
        self.conditions.append(condition if answer else z3.Not(condition))
        self.solver.add(self.conditions[-1])
        return answer

    def _possible(self, condition: Term) -> bool:
        """What the solver does not know counts as possible: a path too many proves no less."""
        return self.solver.check(condition) != z3.unsat


_walks: list[_Walk] = []


def _path() -> _Walk:
    if not _walks:
        raise TypeError("an integer of the solver was compared outside of a path")
    return _walks[-1]


def paths(
    run: Callable[[], Any], assumed: tuple[Term, ...], refusal: type[Exception]
) -> Iterator[Path]:
    """Every way through `run` under what is assumed; a refusal is a result like others."""
    waiting: list[tuple[bool, ...]] = [()]
    solver = z3.SimpleSolver()
    solver.set("rlimit", PATIENCE * 100)
    solver.add(*assumed)
    while waiting:
        solver.push()
        walk = _Walk(solver, waiting.pop())
        _walks.append(walk)
        try:
            result = run()
        except refusal as refused:
            result = refused
        finally:
            _walks.pop()
            solver.pop()
        waiting += walk.others
        yield Path(tuple(walk.conditions), result)
