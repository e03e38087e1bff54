"""Pages that can be followed: their files are written, their lines are run, and what they show.

A block of Python or TOML begins with the name of its file. In the others, a line behind `$ ` is
run, and what stands below it is what it prints: figures may differ, and `...` stands for anything.
A line has to end with 0, unless `$ echo $?` is next, with another code below it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packages.imports import MissingPackage, imported

ROOT = Path(__file__).parents[2]
PACKAGES = ("transformers", "ultralytics")
ASKED = "echo $?"
# How a program is run where a page needs a package, as the tests of packages run it.
IN_PACKAGE = """
import runpy, sys
from tests.packages.imports import imported, undisturbed
package, kind, name, *rest = sys.argv[1:]
imported(package)
sys.argv[:] = [name, *rest]
sys.path[0] = ""
with undisturbed():
    run = {"module": runpy.run_module, "file": runpy.run_path}[kind]
    run(name, run_name="__main__")
"""


@dataclass(frozen=True)
class Line:
    """A line of a page: what it does, what the page says that it prints, and with which code."""

    text: str
    shown: str
    code: int


def blocks(page: Path) -> list[tuple[str, str]]:
    """The blocks of a page: (language, text)."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def lines_of(block: str) -> Iterator[Line]:
    """The lines of a block that are to be run."""
    parts = [part.partition("\n") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    for i, (text, _, shown) in enumerate(parts):
        if text != ASKED:
            asked = i + 1 < len(parts) and parts[i + 1][0] == ASKED
            yield Line(text, shown, int(parts[i + 1][2]) if asked else 0)


def figures_gone(text: str) -> list[str]:
    """The text without what differs between machines: figures, sizes and padding."""
    text = re.sub(r"\d+\.\d+e[+-]\d+|\d+\.\d+", "#", text)
    text = re.sub(r"\([\d,]+ bytes\)", "(# bytes)", text)
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def is_as_shown(printed: str, shown: str) -> bool:
    """Whether a program printed what a page shows."""
    wanted = re.escape("\n".join(figures_gone(shown))).replace(r"\.\.\.", ".*")
    return re.fullmatch(wanted, "\n".join(figures_gone(printed)), re.DOTALL) is not None


def package_of(page: Path) -> str | None:
    """The package that a page is about. Skips the test where it is not installed."""
    name = next((p for p in PACKAGES if f"from {p}" in page.read_text(encoding="utf-8")), None)
    if name is not None:
        try:
            imported(name)
        except MissingPackage as missing:
            pytest.skip(str(missing))
    return name


def follow(page: Path, folder: Path) -> list[tuple[Line, str]]:
    """Does what a page says, in a folder. Gives each line with what it printed."""
    package = package_of(page)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACFUSE_")}
    environment["PYTHONPATH"] = str(ROOT)
    done = []
    for kind, text in blocks(page):
        if kind in ("python", "toml"):
            name = re.match(r"# (\S+)\n", text)
            assert name, text
            (folder / name[1]).write_text(text, encoding="utf-8")
            continue
        for line in lines_of(text):
            ran = subprocess.run(
                [*started(line.text, package)],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            said = f"{line.text}\n{ran.stdout}{ran.stderr}"
            assert ran.returncode == line.code, said
            assert "Traceback" not in ran.stderr, said
            assert not line.shown or is_as_shown(ran.stdout, line.shown), said
            done.append((line, ran.stdout))
    return done


def started(line: str, package: str | None) -> list[str]:
    """How a line of a page is run by this Python."""
    program, *arguments = line.split()
    assert program in ("acfuse", "python"), line
    if package is not None:
        what = ["module", "acfuse"] if program == "acfuse" else ["file"]
        return [sys.executable, "-c", IN_PACKAGE, package, *what, *arguments]
    how = ["-m", "acfuse"] if program == "acfuse" else ["-W", "error::FutureWarning"]
    return [sys.executable, *how, *arguments]
