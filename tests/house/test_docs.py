"""README and docs say what the program does: its output, its commands, its exit codes."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from acfuse import __version__
from acfuse.cli import cli
from acfuse.errors import Exit, Reason
from acfuse.patterns import PATTERNS
from tests.house.following import figures_gone

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shown(command: str) -> str:
    """What README shows below a command."""
    found = re.search(re.escape(f"$ {command}") + r"\n(.*?)```", README, flags=re.DOTALL)
    assert found, f"README does not show {command}"
    return found.group(1)


def test_readme_shows_what_convert_prints(tmp_path: Path) -> None:
    command = "acfuse convert model.pth --model digits.py:AcNet --input-shape 1,1,8,8"
    for name in ("model.pth", "digits.py"):
        shutil.copy(ROOT / "sample_models" / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert figures_gone(done.stdout) == figures_gone(shown(command))


def test_readme_names_the_two_commands_at_its_top() -> None:
    top = README[:1300]
    assert "make demo" in top
    assert "make test" in top


def test_contributing_has_the_pattern_as_it_is() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"```python\nREPVGG = (.*?)\n```", page, flags=re.DOTALL)
    assert code
    source = (ROOT / "acfuse/patterns/repvgg.py").read_text(encoding="utf-8")
    body = re.sub(r"\s+", "", code.group(1)).removesuffix(")").removesuffix(",")
    assert body.replace("Pattern(", "", 1).split("source=")[0] in re.sub(
        r"\s+", "", source
    ).replace('ignore=("nonlinearity","se","post_se"),', "")


@pytest.mark.parametrize("code", list(Exit), ids=lambda c: c.name)
def test_the_page_on_ci_documents_every_exit_code(code: Exit) -> None:
    page = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    table = page.partition("## Exit codes")[2].partition("## ")[0]
    assert re.search(rf"^\| [\d, ]*\b{code.value}\b", table, flags=re.MULTILINE)


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda c: c.name)
def test_every_command_and_option_has_help(command: click.Command) -> None:
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command.name} {parameter.opts}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_a_page_shows_exists_with_its_options(page: Path) -> None:
    blocks = page.read_text(encoding="utf-8").split("```")[1::2]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    for line in lines:
        if not line.startswith("acfuse ") or line.startswith(f"acfuse {__version__}"):
            continue
        _, name, *rest = line.partition(" #")[0].split()
        command: click.Command = cli
        for word in (name, *rest):
            if not isinstance(command, click.Group) or word not in command.commands:
                break
            command = command.commands[word]
        assert command is not cli or name.startswith("-"), line
        known = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
        known |= {"-h", "--help"}
        given = {word.partition("=")[0] for word in (name, *rest) if word.startswith("-")}
        assert given <= known, f"{line}: {given - known}"


def test_architecture_names_every_room() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = {p.name for p in (ROOT / "acfuse").iterdir() if not p.name.startswith(("__", "py"))}
    assert [room for room in sorted(rooms) if f"`{room}" not in text] == []


def test_the_picture_of_the_rooms_is_the_import_contract() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    picture = next(part for part in text.split("```")[1::2] if "[ cli" in part)
    boxes = re.findall(r"\[ ([a-z0-9_| ]+) \]", picture)
    drawn = [{room.strip() for room in box.split("|")} for box in boxes]
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = data["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    stated = [{r.strip().removeprefix("acfuse.") for r in layer.split("|")} for layer in layers]
    assert drawn == stated
    # From each box an arrow leads to the next one: beside it, or down to the next line of boxes.
    lines = [line for line in picture.splitlines() if "[ " in line]
    assert picture.count("-->") == len(boxes) - len(lines)
    assert len(re.findall(r"^ +v$", picture, flags=re.MULTILINE)) == len(lines) - 1


def test_reason_codes_are_distinct_and_numbered() -> None:
    assert len({r.value for r in Reason}) == len(Reason)
    assert all(re.fullmatch(r"ACF2\d\d", r.value) for r in Reason)


def test_every_pattern_has_a_source_and_a_name_of_its_own() -> None:
    assert len({p.name for p in PATTERNS}) == len(PATTERNS)
    assert all(p.source and p.fused for p in PATTERNS)
