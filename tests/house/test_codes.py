"""Every code has its record, whose example is run; docs/codes.md is made of the same records."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acfuse.codes import CODES, EXITS, REASONS, Code
from acfuse.codes.__main__ import page
from acfuse.errors import Exit, Reason

ROOT = Path(__file__).parents[2]
COMMANDS = [code for code in EXITS if code.is_command]
WITHOUT = {Exit.BUG, Exit.LOST, Exit.INTERRUPTED, Exit.TERMINATED}  # no command line gives these


def name_of(code: Code) -> str:
    return code.code.name


def test_every_code_has_one_record_and_every_record_an_example() -> None:
    assert [code.code for code in REASONS] == sorted(Reason, key=lambda code: code.value)
    assert [code.code for code in EXITS] == list(Exit)
    assert {code.code for code in CODES if not code.example} == WITHOUT
    for code in CODES:
        assert code.title
        assert code.meaning.endswith(".")
        assert code.cure.endswith(".")
        assert bool(code.says) == bool(code.example)


@pytest.mark.parametrize("code", REASONS, ids=name_of)
def test_an_example_gives_its_code_and_no_other(
    code: Code,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "example.py"
    path.write_text(code.example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    told = capsys.readouterr().out.rstrip("\n")
    assert told == code.says
    assert set(re.findall(r"ACF\d+", told)) == {code.name}


@pytest.mark.parametrize("code", COMMANDS, ids=name_of)
def test_the_example_of_an_exit_code_ends_so(code: Code, tmp_path: Path) -> None:
    for name in ("model.pth", "digits.py"):
        shutil.copy(ROOT / "sample_models" / name, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    *before, last = map(shlex.split, code.example.splitlines())
    for line in (*before, last):
        program = ["-m", "acfuse"] if line[0] == "acfuse" else []
        done = subprocess.run(
            [sys.executable, *program, *line[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert line is last or done.returncode == 0, done.stderr
    assert done.returncode == code.code
    assert code.says in done.stdout + done.stderr


def test_the_page_is_made_of_the_records() -> None:
    written = (ROOT / "docs/codes.md").read_text(encoding="utf-8")
    assert written == page(), "it is stale: python -m acfuse.codes > docs/codes.md"


def test_no_code_is_spoken_of_that_does_not_exist() -> None:
    texts = [*ROOT.glob("acfuse/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    spoken = {c for path in texts for c in re.findall(r"ACF\d{3}", path.read_text("utf-8"))}
    assert spoken == {reason.value for reason in Reason}


def test_the_page_is_formatted_as_the_source_is() -> None:
    """The formatter reads the programs in pages as well: what it changed would be stale."""
    ruff = Path(sys.executable).parent / "ruff"
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    given = [str(ruff), "format", "--check", "docs/codes.md"]
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
