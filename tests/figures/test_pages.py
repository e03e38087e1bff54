"""What docs/peers.md and docs/performance.md show is what was measured."""

import json

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.pages import RESULTS, ROOT, figures_table, pages, with_part

MEASURED = json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ["docs/peers.md", "docs/performance.md", "docs/img/peers.svg"])
def test_the_pages_are_what_the_results_give(page):
    assert (ROOT / page).read_text(encoding="utf-8") == pages(MEASURED)[page]


def test_another_result_would_be_another_page():
    changed = json.loads(json.dumps(MEASURED))
    changed["figures"][0]["values"] = [99.25]
    changed["peers"]["tools"]["acfuse"]["cells"]["ACNet"]["convolutions"] = 99
    assert "99" in figures_table(changed)
    made, now = pages(changed), pages(MEASURED)
    assert [page for page in now if made[page] == now[page]] == []


def test_every_benchmark_has_a_figure_and_says_where_it_was_measured():
    assert {f["benchmark"] for f in MEASURED["figures"]} == {*NAMES} - {"peers"}
    assert all(f["about"]["versions"]["torch"] for f in MEASURED["figures"])
    assert all(f["verdict"] != "failed" for f in MEASURED["figures"])


def test_whatever_falls_short_is_explained():
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    short = page.partition("### What falls short")[2]
    names = {f["benchmark"] for f in MEASURED["figures"] if f["verdict"] == "SHORT"}
    assert [name for name in sorted(names) if f"`{name}`" not in short] == []


def test_a_page_without_its_part_is_refused():
    with pytest.raises(ValueError, match="0 parts called figures; expected one"):
        with_part("nothing", "figures", "x")
    page = "a\n<!-- b -->\nold\n<!-- end of b -->\nc"
    assert with_part(page, "b", r"new \1") == "a\n<!-- b -->\nnew \\1\n<!-- end of b -->\nc"
