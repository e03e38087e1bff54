"""What comes from a file is shown as text, in every kind of document."""

import html
import json
import re
import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acfuse.text import safe

FORMS = ("terminal", "markdown", "html", "xml", "json", "ci")
NAMES = (
    "conv.weight",
    "",
    " ",
    "::error file=a::gone",
    "  ::set-output name=a::b",
    "##[error]gone",
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


def check(name: str, form: str) -> None:
    text = safe(name, form)
    assert is_shown(text)
    assert not text.lstrip().startswith("::")
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


def test_there_are_fifty_names():
    assert len(NAMES) >= 50


def test_what_is_plain_stays_as_it_is():
    for form in FORMS:
        assert safe("stage1 conv3x3", form) == "stage1 conv3x3"
