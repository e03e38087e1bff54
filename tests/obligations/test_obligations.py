"""Every obligation is proved, and every operator of the geometry is needed for it.

Skipped without the extra [proof]. `make prove` is the same by hand, and writes docs/proofs.md.
"""

import pytest

pytest.importorskip("z3")
pytest.importorskip("cvc5")

from acfuse.algebra import geometry
from tests.obligations.mutants import SOURCES, Mutant, marks, mutants
from tests.obligations.obligations import OBLIGATIONS
from tests.obligations.page import PAGE, page
from tests.obligations.verdicts import Claim, Verdict, by_cvc5, by_z3, possible

TEXT = PAGE.read_text(encoding="utf-8")
LEMMAS = {"scaling-keeps-order"}
CHANGES = list(mutants())


@pytest.mark.parametrize("name", OBLIGATIONS)
def test_an_obligation_is_proved_and_the_page_says_so(name: str) -> None:
    claims = list(OBLIGATIONS[name](geometry))
    verdict, found = by_z3(claims)
    assert verdict is Verdict.PROVED, found
    second = by_cvc5(claims)
    assert second is not Verdict.REFUTED
    row = page({name: (len(claims), verdict.value, second.value)}).splitlines()[-1]
    assert row in TEXT.splitlines(), "run `make prove`"


def test_the_page_has_no_other_rows() -> None:
    rows = [line.split("`")[1] for line in TEXT.splitlines() if line.startswith("| `")]
    assert rows == list(OBLIGATIONS)
    assert TEXT.startswith(page({}))


def test_every_obligation_is_named_by_the_code() -> None:
    named = {name for s in SOURCES for names in marks(s).values() for name in names}
    assert named == set(OBLIGATIONS) - LEMMAS


@pytest.mark.parametrize("name", OBLIGATIONS)
def test_no_obligation_is_about_nothing(name: str) -> None:
    """From assumptions that contradict each other, everything would follow."""
    kinds: dict[str, list[Claim]] = {}
    for claim in OBLIGATIONS[name](geometry):
        kinds.setdefault(claim.where, []).append(claim)
    for where, claims in kinds.items():
        assert any(map(possible, claims)), where


@pytest.mark.parametrize("mutant", CHANGES, ids=str)
def test_a_changed_operator_is_refuted_by_what_its_line_names(mutant: Mutant) -> None:
    assert mutant.obligations, "no `# proved:` mark stands on or above this"
    assert any(noticed(mutant, name) for name in mutant.obligations)


def noticed(mutant: Mutant, name: str) -> bool:
    """Whether there is a counterexample, or a path on which the changed code breaks down."""
    try:
        verdict, _ = by_z3(list(OBLIGATIONS[name](mutant.module())))
    except (TypeError, ValueError, KeyError):
        return True
    return verdict is Verdict.REFUTED


def test_the_changes_are_all_that_there_are() -> None:
    """Each function that decides has some, so none is passed over."""
    for source, text in SOURCES.items():
        lines = text.splitlines()
        changed = {mutant.line for mutant in CHANGES if mutant.source == source}
        decided = {line for line in marks(source) if "def " not in lines[line - 1]}
        assert decided - changed == set(), "a mark stands where nothing is decided"
        assert len(changed) > len(decided)
