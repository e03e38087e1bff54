"""What comes from a file is shown as text, in every kind of document."""

import html
import json
import re
import tempfile
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acfuse.system.escape import safe
from tests.trust.forked import Server
from tests.trust.rows import Row

SECONDS = 40
PARTS = {"rbr_dense.conv": (3, 3), "rbr_1x1.conv": (1, 1)}
FORMS = ("terminal", "markdown", "html", "xml", "json", "ci")
NAMES = (
    "conv.weight",
    "",
    " ",
    "::error file=a::gone",
    "  ::set-output name=a::b",
    "##[error]gone",
    "a ##[set-env name=a]b",
    "##vso[task.setvariable variable=a]b",
    "##teamcity[a]",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://evil\x07link\x1b]8;;\x07",
    "\r\n::warning::x",
    "a\nb",
    "a\tb",
    "\x00",
    "\x07",
    "\x7f",
    "\x85",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2066a\u2069",
    "\u200f",
    "\ufeff",
    "\u2028",
    "[link=http://evil]a[/link]",
    "[/oops]",
    "[bold]a",
    "<script>alert(1)</script>",
    "<img src=x onerror=a()>",
    "</td></table>",
    "<!-- ",
    "-->",
    "]]>",
    "<![CDATA[",
    "&lt;b&gt;",
    "&#60;b&#62;",
    "' onload='a",
    '" x="',
    "[a](http://evil)",
    "![a](http://evil/x.png)",
    "|a|b|",
    "```\n# h",
    "`a`",
    "<http://evil>",
    "http://evil.example",
    "@everyone",
    "#1",
    "~~a~~",
    "***",
    "a:b",
    "%0A::error::x",
    "\\x1b",
    "\udcff",
    "\U000e0041",
    "a" * 500,
)


def is_shown(text: str) -> bool:
    """Whether nothing in a text is a control character, or turns the text around."""
    odd = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}
    return not any(unicodedata.category(c) in odd for c in text)


def is_command(line: str) -> bool:
    """Whether a CI system may take a line as a command."""
    return line.lstrip().startswith("::") or re.search(r"##\w*\[", line) is not None


def check(name: str, form: str) -> None:
    text = safe(name, form)
    assert is_shown(text)
    assert not is_command(text)
    if form == "json":
        shown = json.loads(f'"{text}"')
        assert safe(shown) == safe(name)
    if form == "html":
        assert not set("<>\"'`") & set(text)
        assert html.unescape(text).replace(":\\x3a", "::") == safe(name).replace(":\\x3a", "::")
    if form == "xml":
        (element,) = ElementTree.fromstring(f'<a b="{text}"><c>{text}</c></a>')
        assert len(element) == 0
        assert (element.text or "") == html.unescape(text)
    if form == "markdown":
        assert not re.search(r"[\\`*_\[\]()<>|!~@.]", text.replace(":\\x3a", ""))
        assert "://" not in text
    if form == "ci":
        assert "::" not in text
        assert not re.search("%(?![0-9A-F]{2})", text)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_is_text(name, form):
    check(name, form)


@pytest.mark.parametrize("form", FORMS)
@given(st.text())
def test_any_name_is_text(form, name):
    check(name, form)


def is_told_safely(forks: Server, folder: Path, name: str) -> bool:
    """Whether a file whose keys begin with a name is told of in plain text, and in JSON."""
    (folder / "it.pth").unlink(missing_ok=True)
    block = {f"{name}.{part}.weight": torch.ones(2, 2, *size) for part, size in PARTS.items()}
    torch.save(block, folder / "it.pth")
    for args in (
        ["inspect", "it.pth"],
        ["inspect", "it.pth", "--format", "json"],
        ["convert", "it.pth", "--force"],
    ):
        ended = forks.run(*args, folder=folder)
        if ended.exit not in (0, 3, 5):
            return False
        lines = [*ended.stdout.splitlines(), *ended.stderr.splitlines()]
        # Of a message's own words, only line ends and the spaces of its columns are no letters.
        if not ended.is_clean or not all(is_shown(line) for line in lines):
            return False
        if any(map(is_command, lines)):
            return False
    return True


def measure(forks: Server, scale: float) -> Row:
    """Writes every name in every kind of document, and reads files that are full of them."""
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for n, name in enumerate(NAMES):
            for form in FORMS:
                try:
                    check(name, form)
                except AssertionError:
                    faults.append(f"{name!r} in {form}")
            chosen = n % max(round(1 / scale), 1) == 0 and "\udcff" not in name
            if chosen and not is_told_safely(forks, Path(folder), name):
                faults.append(f"{name!r} in a file")
    return Row(
        "hostile names x output formats",
        "50 x 6, no control character, link, tag or workflow command alive",
        f"{len(NAMES)} x {len(FORMS)}, and as the keys of files: {len(faults)} alive"
        + (f" ({faults[0]})" if faults else ""),
        not faults,
    )


def test_names_of_files_are_text(forks):
    row = measure(forks, 0.2)
    assert row.holds, row.measured


def test_there_are_fifty_names():
    assert len(NAMES) >= 50


def test_what_is_plain_stays_as_it_is():
    for form in FORMS:
        assert safe("stage1 conv3x3", form) == "stage1 conv3x3"
