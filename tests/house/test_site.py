"""The documentation as a site: it is built without a warning, and loads nothing from elsewhere."""

import html
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import acfuse
from acfuse.cli import cli

ROOT = Path(__file__).parents[2]
MISSING = [name for name in ("mkdocs", "material", "mkdocstrings_handlers") if not find_spec(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason="mkdocs is not installed: make docs")
# What a page loads by itself; a link that a reader may follow is none of it.
LOADED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
    r"|url\([\"']?(?:https?:)?//|@import"
)


def built(folder: Path, docs: Path = ROOT / "docs") -> "subprocess.CompletedProcess[str]":
    """Builds the site into a folder, as `make docs` does. With --quiet, no warning would count."""
    settings = folder / "mkdocs.yml"
    settings.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {docs}\nsite_dir: {folder / 'site'}\n"
        f"hooks: ['{ROOT / '.ci/pages.py'}']\n",
        "utf-8",
    )
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", str(settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with every page and link as it should be."""
    folder = tmp_path_factory.mktemp("site")
    done = built(folder)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def words(page: Path) -> str:
    """The text of a page."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text("utf-8")))


def test_every_page_is_there(site: Path) -> None:
    pages = {p.relative_to(ROOT / "docs").with_suffix("") for p in (ROOT / "docs").rglob("*.md")}
    there = {p.relative_to(site).with_suffix("") for p in site.rglob("*.html")}
    assert pages < there
    assert {Path("index"), Path("SECURITY"), Path("CONTRIBUTING"), Path("CHANGELOG")} < there


def test_what_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    wrong = [
        "no_such_page.md",
        "codes.md#acf299",
        "../NO_SUCH_FILE.md",
        "../SECURITY.md#nothing-of-the-kind",
        "img/gone.svg",
        "#no-such-part",
    ]
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    with (docs / "deploy.md").open("a", encoding="utf-8") as page:
        page.writelines(f"\n[gone]({link})\n" for link in wrong)
    (docs / "lost.md").write_text("# No menu has this page\n", "utf-8")
    done = built(tmp_path, docs)
    warned = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert done.returncode != 0
    assert len(warned) == len(wrong) + 1, done.stderr
    for link in wrong:
        assert [line for line in warned if "deploy.md" in line and link.removeprefix("../") in line]
    assert "lost.md" in done.stderr


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    files = [p for p in site.rglob("*") if p.suffix in (".html", ".css")]
    assert len(files) > 20
    assert LOADED.search('<link rel="stylesheet" href="https://fonts.example/css">')
    assert LOADED.search("<script src=//cdn.example/x.js></script>")
    for path in files:
        assert LOADED.search(path.read_text("utf-8")) is None, path
    scripts = "".join(p.read_text("utf-8") for p in site.glob("index.html"))
    assert "unpkg" not in scripts


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    text = words(site / "reference/command-line.html")
    for name, command in cli.commands.items():
        assert f"acfuse {name}" in text
        options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
        assert [o.opts for o in options if not all(flag in text for flag in o.opts)] == []


def test_the_reference_has_every_name_of_the_package(site: Path) -> None:
    page = (site / "reference/python.html").read_text("utf-8")
    written = (ROOT / "docs/reference/python.md").read_text("utf-8")
    for name in acfuse.__all__:
        assert f"::: acfuse.{name}\n" in written
        assert re.search(rf'id="?acfuse\.(\w+\.)*{name}[" >]', page), name
