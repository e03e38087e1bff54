"""The tutorial and the how-tos, followed word for word by somebody who has nothing but acfuse."""

import shutil
from pathlib import Path

import pytest

from tests.house.following import ROOT, blocks, follow, is_as_shown, lines_of

TUTORIAL = ROOT / "docs/tutorial.md"
HOW_TO = sorted((ROOT / "docs/how-to").glob("*.md"))
SAMPLES = ("model.pth", "digits.py")


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_every_line_of_a_how_to_works(page: Path, tmp_path: Path) -> None:
    if "`sample_models/`" in page.read_text(encoding="utf-8"):
        for name in SAMPLES:
            shutil.copy(ROOT / "sample_models" / name, tmp_path)
    assert follow(page, tmp_path)


def test_every_line_of_the_tutorial_works(tmp_path: Path) -> None:
    done = follow(TUTORIAL, tmp_path)
    assert len(done) == 7
    printed = {line.text.split()[1]: out for line, out in reversed(done)}
    assert "3 x blocks.*" in printed["inspect"]
    assert "2 -> 1" in printed["inspect"]
    assert printed["convert"].count("\nequal ") == 5
    written = {path.name for path in tmp_path.iterdir()}
    assert {"model.fused.pth", "model.fused.onnx", "model.fused.acfuse.json"} <= written


def test_no_line_of_a_page_is_passed_over() -> None:
    """What looks like a command is one that is run: it stands behind a `$`, or in the text."""
    for page in (TUTORIAL, *HOW_TO):
        for kind, text in blocks(page):
            assert kind in ("", "python", "toml"), page
            assert kind or text.startswith("$ "), f"{page.name}: {text}"


def test_a_code_and_an_output_are_read_from_the_page() -> None:
    first, second = lines_of("$ acfuse verify\n$ acfuse diff a b\nsome\n...\n$ echo $?\n1\n")
    assert (first.text, first.shown, first.code) == ("acfuse verify", "", 0)
    assert (second.text, second.shown, second.code) == ("acfuse diff a b", "some\n...\n", 1)


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("a 0.5\nb\n", "a   0.7\nb\n", True),
        ("a\nb\nc\n", "a\n...\n", True),
        ("a\nb\nc\n", "...\nc\n", True),
        ("a\nb\n", "a\n", False),
        ("a 5\n", "a 6\n", False),
        ("a\n", "...\nb\n", False),
    ],
)
def test_what_is_printed_is_compared(printed: str, shown: str, same: bool) -> None:
    assert is_as_shown(printed, shown) == same
