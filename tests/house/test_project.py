"""What stands at the top of the repository agrees: versions, links, targets, floors, text."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

import acfuse

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
FOLDERS = ("acfuse", "tests", "docs", "benchmarks", "sample_models", ".ci")
SUFFIXES = (".py", ".md", ".toml", ".txt", ".sh", ".cff", ".yaml")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def script(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, f".ci/{name}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_is_one_version() -> None:
    cited = re.search(r"^version: (\S+)$", text_of("CITATION.cff"), flags=re.MULTILINE)
    assert cited
    assert cited.group(1) == acfuse.__version__
    assert acfuse.__version__ in text_of("CHANGELOG.md")
    assert metadata("acfuse")["Version"] == acfuse.__version__
    assert "version" not in tomllib.loads(text_of("pyproject.toml"))["project"]


def test_the_newest_changes_stand_first() -> None:
    headings = re.findall(r"^## \[(.+?)\]", text_of("CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"


def test_the_license_is_the_one_that_is_declared() -> None:
    declared = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert declared["license"] == "MIT"
    for name in declared["license-files"]:
        assert text_of(name).startswith("MIT License")
    assert "\nlicense: MIT\n" in text_of("CITATION.cff")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"])
def test_readme_links_the_files_beside_it(name: str) -> None:
    assert f"]({name})" in text_of("README.md")


def test_make_help_lists_every_target() -> None:
    makefile = text_of("Makefile")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert targets
    listed = re.findall(r'@echo "make ([\w-]+) ', makefile)
    assert {*listed, "help", "clean"} == set(targets.group(1).split())


def test_the_floors_are_those_of_pyproject_and_of_the_record() -> None:
    floors = dict(line.split("==") for line in script("floors.py").stdout.splitlines())
    declared = tomllib.loads(text_of("pyproject.toml"))["project"]["dependencies"]
    assert {f"{name}>={version}" for name, version in floors.items()} >= set(declared)
    record = text_of("CONTRIBUTING.md").partition("## The lowest versions")[2]
    assert [name for name, version in floors.items() if f"{name} {version}" not in record] == []


def test_hooks_run_what_is_here_and_fetch_nothing() -> None:
    hooks = text_of(".pre-commit-config.yaml")
    assert set(re.findall(r"repo: (\S+)", hooks)) == {"local"}
    assert set(re.findall(r"language: (\S+)", hooks)) == {"system"}


def test_text_is_as_the_hook_wants_it() -> None:
    files = [*ROOT.iterdir(), *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*"))]
    texts = [p for p in files if p.suffix in SUFFIXES or p.name in ("Makefile", "LICENSE")]
    assert len(texts) > 200
    done = script("check_text.py", *texts)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.md", "one\ntwo", "does not end with one newline"),
        ("a.md", "one\n\n", "does not end with one newline"),
        ("a.py", "x = 1 \ny = 2\n", "a.py:1: spaces at the end of the line"),
        ("a.toml", "[x\n", "a.toml: "),
    ],
)
def test_the_hook_finds_what_is_wrong(tmp_path: Path, name: str, text: str, fault: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    done = script("check_text.py", path)
    assert done.returncode == 1
    assert fault in done.stdout
