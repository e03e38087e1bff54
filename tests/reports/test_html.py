"""The page: whole, alone, readable without colours, and without a way out."""

import base64
import hashlib
import re
from dataclasses import replace

import pytest

from acfuse.reports.html import as_html
from acfuse.reports.page import SCRIPT, STYLE
from acfuse.reports.record import report_of
from acfuse.reports.render import report_of_run
from tests.reports.runs import Page, bare, report
from tests.waiting import processor_seconds


def page_of(shown=None) -> Page:
    return Page(as_html(shown or report()))


def test_nothing_is_loaded_from_elsewhere():
    page = page_of()
    for tag, attrs in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not {"src", "srcset", "action", "style", "ping", "xlink:href"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        assert attrs.get("href", "#").startswith("#")
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    assert not re.search(r"fetch|XMLHttp|import|innerHTML|eval|Function", SCRIPT)


def test_the_policy_allows_this_style_and_this_script_alone():
    (policy,) = [
        meta["content"]
        for meta in page_of().all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for name, text in (("style-src", STYLE), ("script-src", SCRIPT)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    (script,) = re.findall(r"<script>(.*?)</script>", as_html(report()), flags=re.DOTALL)
    assert script == SCRIPT


def test_what_it_says_stands_in_it():
    shown = report()
    words = page_of().words
    assert shown.verdict in words
    for row in shown.rows:
        assert words.count(row.where) >= 3  # the strip, its card and the table
        assert f"{row.error:.1e}" in words
    for line in shown.lines:
        assert line.words in words
    for file in shown.files:
        assert file.sha256 in words
    assert f"{shown.speed_up:.2f} times" in words
    assert "the ratio of multiply-adds, nothing measured" in words


def test_every_picture_says_in_words_what_it_shows():
    pictures = page_of().all("svg")
    assert len(pictures) == 5 * (3 + 1 + 2) + 1  # kernels, an error and ranges; the histogram
    for picture in pictures:
        assert picture["role"] == "img"
        assert len(picture["aria-label"]) > 10


def test_tables_are_tables_to_a_screen_reader():
    page = page_of()
    assert {head["scope"] for head in page.all("th")} == {"col", "row"}
    columns = [head for head in page.all("th") if head["scope"] == "col"]
    assert all(head["aria-sort"] == "none" for head in columns)
    buttons = page.all("button")
    assert len(buttons) == len(columns)
    assert all(button["type"] == "button" for button in buttons)
    assert len(page.all("caption")) == len(page.all("table"))
    assert page.all("a", "skip")[0]["href"] == "#main"
    assert page.all("label")[0]["for"] == page.all("input")[0]["id"]
    assert page.all("html")[0]["lang"] == "en"


def test_every_link_leads_somewhere():
    page = page_of()
    places = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(places)) == len(places)
    assert {attrs["href"][1:] for attrs in page.all("a")} <= set(places)


def test_each_cell_of_the_strip_says_what_happened_without_its_colour():
    data = {**report().data, "refused": [{"where": "gate", "pattern": None, "code": "ACF209",
                                          "why": "it is not linear"}]}  # fmt: skip
    pictures = replace(report().pictures, kept=("head",))
    words = page_of(report_of(data, pictures)).words
    assert "gate: refused, with the reason below." in words
    assert "head: kept as it is." in words
    assert "features.0.acb: fused into one convolution." in words
    assert "it is not linear" in words


def test_what_is_not_equal_is_seen_first():
    certificate = {**report().data["found"][1]["certificate"], "fault": "3 weights are wrong"}
    found = [dict(row) for row in report().data["found"]]
    found[1]["certificate"] = certificate
    fault = "features.1.acb: 3 weights are wrong"
    data = {**report().data, "found": found, "passed": False, "fault": fault}
    page = page_of(report_of({**data, "diagnosis": "another eps"}, report().pictures))
    assert page.words.index(f"Not equal: {fault}") < page.words.index("The network")
    assert "another eps" in page.words
    assert len(page.all("a", "failed")) == 1
    assert page.all("p", "no")
    assert not page.all("p", "yes")


def test_a_manifest_alone_has_no_pictures_and_says_so():
    page = page_of(report_of(report().data))
    assert "only a run has them at hand" in page.words
    assert "give --report to" in page.words
    assert not [svg for svg in page.all("svg") if "tap" in svg["aria-label"]]


def test_without_an_input_no_speed_up_is_claimed():
    words = page_of(report_of_run(bare())).words
    assert "not known: it takes the code and --input-shape" in words


def many(count: int):
    """The sample's report as if it had so many blocks."""
    pictures = report().pictures
    rows = [{**report().data["found"][i % 5], "where": f"stage.{i}.acb"} for i in range(count)]
    blocks = tuple(pictures.blocks[i % 5] for i in range(count))
    return report_of({**report().data, "found": rows}, replace(pictures, blocks=blocks))


def test_two_hundred_blocks_are_a_small_page_and_a_quick_one():
    with processor_seconds(2.0):
        text = as_html(many(200))
    assert len(text.encode()) < 2_000_000
    assert len(Page(text).all("section", "block")) == 200


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 has it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(theme):
    given = re.findall(r":root\{(.*?)\}", STYLE, flags=re.DOTALL)[theme]
    colours = dict(re.findall(r"--(\w+):(#\w+)", given))
    kinds = ("fused", "folded", "assumed", "refused", "kept", "bad")
    pairs = [(text, back) for text in ("ink", "soft", "link", "good", "bad")
             for back in ("bg", "card")]  # fmt: skip
    pairs += [("ink", "wash"), ("soft", "wash"), *(("on", kind) for kind in kinds)]
    for text, back in pairs:
        light, dark = sorted((luminance(colours[c]) for c in (text, back)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {back}"
