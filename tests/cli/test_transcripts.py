"""What the commands print, held against transcripts: `cases/*.txt`, one command a file.

A case is the command, its exit code, stdout, and stderr behind a line `--- stderr`. Figures that
depend on the machine stand as `#`, the working directory as `FOLDER`, and a line `...` for any
number of lines. `ACFUSE_WRITE_CASES=1 pytest tests/cli/test_transcripts.py` writes them again.
"""

import os
import re
from pathlib import Path

import pytest

from tests.cli.command import run_line

CASES = sorted((Path(__file__).parent / "cases").glob("*.txt"))


def without_figures(text: str, folder: Path) -> str:
    """The text without what differs from machine to machine, and without its alignment."""
    text = text.replace(str(folder), "FOLDER")
    text = re.sub(r"\b\d+\.\d+(\.\d+)?(e[+-]\d+)?", "#", text)
    text = re.sub(r"[\d,]+ bytes", "# bytes", text)
    text = re.sub(r"\bat \[[\d, ]+\]", "at [#]", text)
    lines = (re.sub(r"(?<=\S)  +", " ", line).rstrip() for line in text.splitlines())
    return "\n".join(lines)


def transcript(line: str, result, folder: Path) -> str:
    parts = [f"$ {line}", f"exit {result.exit_code}", without_figures(result.stdout, folder)]
    if result.stderr:
        parts += ["--- stderr", without_figures(result.stderr, folder)]
    return "\n".join(part for part in parts if part) + "\n"


def matches(expected: str, actual: str) -> bool:
    parts = re.split(r"^\.\.\.\n", expected, flags=re.MULTILINE)
    return re.fullmatch(r"(?:.*\n)*?".join(map(re.escape, parts)), actual) is not None


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_transcript(case, sample, converted):
    expected = case.read_text(encoding="utf-8")
    line = expected.partition("\n")[0].removeprefix("$ ")
    result = sample.results[line] if line in sample.results else run_line(line)
    folder = sample.folder / "work" if line in sample.results else converted
    actual = transcript(line, result, folder)
    if os.environ.get("ACFUSE_WRITE_CASES") and not matches(expected, actual):
        case.write_text(actual, encoding="utf-8")
    if not matches(expected, actual):
        assert actual == expected  # shows the difference


def test_there_are_transcripts():
    assert len(CASES) > 10


def test_a_wildcard_stands_for_whole_lines_only():
    assert matches("a\n...\nb\n", "a\nx\ny\nb\n")
    assert matches("a\n...\nb\n", "a\nb\n")
    assert not matches("a\n...\nb\n", "a\nx b\n")
    assert not matches("a\nb\n", "a\nx\nb\n")
