"""How the tests themselves are written: one import root, and no helper inside a test module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MODULES = sorted(TESTS.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})


def name_of(path: Path) -> str:
    return str(path.relative_to(TESTS))


def imports_of(path: Path) -> Iterator[str]:
    """Every name that a module imports, in full; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whence = "." * node.level + (node.module or "")
            yield from (f"{whence}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_whatever_is_imported_from_the_tests_is_a_helper_under_its_one_name(path: Path) -> None:
    ours = {p.stem for p in TESTS.iterdir() if p.is_dir() or p.suffix == ".py"}
    for name in imports_of(path):
        first, *rest = name.split(".")
        assert first, f"{name} is relative: write tests.<folder>.<module>"
        assert first not in ours, f"{name} has a second name: write tests.{name}"
        if first == "tests":
            assert not [part for part in rest if part.startswith("test_")], f"{name} is a test"


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_every_folder_is_a_package_that_says_what_it_is_about(folder: Path) -> None:
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))


def test_every_test_lies_in_the_folder_of_its_topic() -> None:
    assert [path.name for path in TESTS.glob("test_*.py")] == []
