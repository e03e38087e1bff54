"""How the tests themselves are written: where, with which imports, and what they never judge by.

One import root, and no helper inside a test module. No bound that was measured on some machine, and
no clock.
"""

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


SMALL = 1e-3  # a smaller number that something has to stay below is a bound on rounding
CLOSE = {"allclose", "isclose", "assert_allclose", "assert_close", "assert_almost_equal"}
CLOCKS = {"monotonic", "perf_counter", "time", "monotonic_ns", "perf_counter_ns", "time_ns"}
MAY_READ_A_CLOCK = {"trust/__main__.py", "trust/forked.py"}  # to tell how long it took


def is_bound(limit: ast.expr) -> bool:
    """Whether this is a small number, or a number times something that rounding gave."""
    return any(
        (isinstance(node, ast.Constant) and type(node.value) is float and 0 < node.value < SMALL)
        or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and is_factor(node))
        for node in ast.walk(limit)
    )


def is_factor(product: ast.BinOp) -> bool:
    words = ast.unparse(product).lower()
    numbers = [isinstance(n, ast.Constant) for n in (product.left, product.right)]
    return any(numbers) and any(word in words for word in ("own", "noise", "rounding", "error"))


def measured_bounds(source: str) -> list[str]:
    """Asserted comparisons that some machine's rounding was measured for.

    Bounds come from tests.bounds: `assert_within(given, expected, rounding(model, image))`.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assert):
            continue
        denied = [n.operand for n in ast.walk(node) if isinstance(n, ast.UnaryOp)]
        for part in ast.walk(node.test):
            called = getattr(part, "func", None)
            if isinstance(part, ast.Call) and getattr(called, "attr", "") in CLOSE:
                if part not in denied:
                    found.append(ast.unparse(part))
            elif isinstance(part, ast.Compare):
                pairs = zip(part.ops, part.comparators, strict=True)
                limits = [c for op, c in pairs if isinstance(op, ast.Lt | ast.LtE)]
                found += [ast.unparse(part)] if any(map(is_bound, limits)) else []
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_bound_on_rounding_was_measured(path: Path) -> None:
    assert measured_bounds(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "assert error <= 2 * own",
        "assert error <= own.max() * 1.5",
        "assert relative(a, b) < 1e-5",
        "assert float((a - b).abs().max()) <= 1e-11 * scale",
        "assert 0 < rounding.error < 1e-5",
        "assert torch.allclose(a, b, atol=1e-6)",
    ],
)
def test_a_measured_bound_would_be_noticed(line: str) -> None:
    assert measured_bounds(line)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_judged_by_a_clock(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    waits = [k.value for call in calls for k in call.keywords if k.arg in ("timeout", "deadline")]
    given = {ast.unparse(value) for value in waits}
    assert given <= {"HANG", "None"}, "a limit only ends what hangs: tests.waiting.HANG"
    read = {ast.unparse(call.func) for call in calls} & {f"time.{name}" for name in CLOCKS}
    assert not read or name_of(path) in MAY_READ_A_CLOCK
