"""The page in a real browser: quiet, alone, as wide as the screen, and at work.

It takes playwright (`pip install 'acfuse[browser]'`) and a Chromium, which ACFUSE_TEST_CHROMIUM may
name.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from acfuse.reports.html import as_html
from acfuse.reports.record import report_of
from tests.reports.runs import report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("ACFUSE_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

LONG = "stage." + "very_long_name_of_a_block." * 8 + "acb"
HOSTILE = "<img src=http://example.org/x onerror=document.title='gone'>"


def shown() -> str:
    """A page with everything on it: twelve blocks, one of them wrong, refusals, long names."""
    rows = [
        {**report().data["found"][i % 5], "where": f"stage.{i}.acb", "convolutions": [i + 2, 1]}
        for i in range(10)
    ]
    certificate = {**rows[3]["certificate"], "fault": "3 of 160 weights are wrong"}
    rows[3] = {**rows[3], "certificate": certificate}
    rows += [{**rows[0], "where": LONG}, {**rows[0], "where": HOSTILE}]
    refused = {"where": "gate", "pattern": None, "code": "ACF209", "why": "silu is not linear"}
    pictures = replace(
        report().pictures,
        blocks=tuple(report().pictures.blocks[i % 5] for i in range(12)),
        kept=("stem", "head"),
    )
    fault = "stage.3.acb: 3 of 160 weights are wrong"
    data = {**report().data, "found": rows, "refused": [refused], "passed": False, "fault": fault}
    return as_html(report_of(data, pictures))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Root has no sandbox in a container; the page is our own.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(shown(), encoding="utf-8")
    return path.as_uri()


class Seen:
    """A page, and what it said and asked for since it was opened."""

    def __init__(self, browser: Any, address: str, width: int, theme: str) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        size = {"width": width, "height": 800}
        self.page = browser.new_page(viewport=size, color_scheme=theme)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)


@pytest.fixture(params=[390, 1280])
def width(request):
    return request.param


@pytest.fixture(params=["light", "dark"])
def theme(request):
    return request.param


@pytest.fixture
def seen(browser, address, width, theme) -> Iterator[Seen]:
    seen = Seen(browser, address, width, theme)
    yield seen
    seen.page.close()


def rows(seen, table="Blocks") -> list[str]:
    """The first cells of the rows of a table that can be seen."""
    where = f'[aria-label="{table}"] tbody tr:not([hidden]) > :first-child'
    return seen.page.locator(where).all_inner_texts()


def test_nothing_is_said_and_nothing_is_asked_for(seen, address):
    seen.page.fill("#filter", "stage")
    seen.page.locator("th button").first.click()
    assert seen.said == []
    assert seen.asked == [address]
    assert "report" in seen.page.title()


def test_the_page_is_as_wide_as_the_screen(seen, width):
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('main > *, .block > *, .strip li')].filter(e => "
    wide += "e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))"
    assert seen.page.evaluate(wide) == []


def test_the_theme_is_the_systems(seen, theme):
    colour = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    parts = [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (max(parts) < 64) == (theme == "dark")
    assert (min(parts) > 192) == (theme == "light")


def test_a_table_sorts_by_its_numbers_in_both_directions(seen):
    assert rows(seen)[:3] == ["stage.0.acb", "stage.1.acb", "stage.2.acb"]
    head = seen.page.locator('[aria-label="Blocks"] th', has_text="before").first
    head.locator("button").focus()
    seen.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert rows(seen)[-1] == "stage.9.acb"  # 11 of 12: by number, not by text
    seen.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert rows(seen)[0] == "stage.9.acb"
    seen.page.locator('[aria-label="Blocks"] th', has_text="error").locator("button").click()
    cells = '[aria-label="Blocks"] tbody td:nth-child(7)'
    errors = [float(text) for text in seen.page.locator(cells).all_inner_texts()]
    assert errors == sorted(errors)  # 1.0e-15 behind 2.7e-16
    assert errors[0] < errors[-1]
    name = seen.page.locator('[aria-label="Blocks"] th').first
    name.locator("button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert name.get_attribute("aria-sort") == "ascending"
    assert rows(seen)[1:3] == ["stage.0.acb", "stage.1.acb"]


def test_one_field_filters_everything(seen):
    seen.page.fill("#filter", "STAGE.7")
    assert rows(seen) == ["stage.7.acb"]
    assert seen.page.locator(".block:visible").count() == 1
    assert "1 of" in seen.page.locator("#shown").inner_text()
    seen.page.fill("#filter", "acf209")
    assert rows(seen) == []
    assert rows(seen, "Refused") == ["gate"]
    seen.page.fill("#filter", "")
    assert len(rows(seen)) == 12
    assert seen.page.locator("#shown").inner_text() == ""


def test_the_keyboard_reaches_the_result_first_and_then_everything(seen):
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.className") == "skip"
    assert seen.page.locator(".skip").bounding_box()["x"] >= 0
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.closest('.verdict') !== null")
    seen.page.keyboard.press("Enter")
    assert seen.page.locator(".block:target h3").inner_text() == "stage.3.acb"
    seen.page.locator(".strip a").first.focus()
    seen.page.keyboard.press("Enter")
    assert seen.page.locator(".block:target h3").inner_text() == "stage.0.acb"


def test_what_is_not_equal_is_seen_without_scrolling(seen):
    verdict = seen.page.locator(".verdict")
    assert "Not equal: stage.3.acb" in verdict.inner_text()
    box = verdict.bounding_box()
    assert box["y"] + box["height"] <= 800


def test_pictures_are_drawn(seen):
    drawn = seen.page.locator(".maps svg").first.bounding_box()
    assert drawn["width"] == pytest.approx(60)
    fill = "getComputedStyle(document.querySelector('.heat path.h7')).fill"
    assert seen.page.evaluate(fill) != "rgb(0, 0, 0)"
    assert seen.page.locator("td:visible, th:visible").count() > 100
