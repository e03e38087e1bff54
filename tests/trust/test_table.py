"""SECURITY.md has a row for each promise that `make trust` measures, and says when it was."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TEXT = (HERE.parents[1] / "SECURITY.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", TEXT, re.MULTILINE))
MEASURED = [path for path in sorted(HERE.glob("test_*.py")) if "\ndef measure(" in path.read_text()]


def promise_of(path: Path) -> str:
    """The first text of the row that a module makes."""
    calls = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
    (row,) = (call for call in calls if ast.unparse(call.func) == "Row")
    return str(ast.literal_eval(row.args[0]))


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_a_promise_stands_in_the_page(path):
    assert ROWS[promise_of(path)].strip()


def test_nothing_falls_short_and_the_date_is_there():
    assert len(MEASURED) >= 11
    assert not [row for row in ROWS.values() if "short" in row]
    assert re.search(r"Measured on 20\d\d-\d\d-\d\d", TEXT)
