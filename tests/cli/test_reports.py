"""`--report` and `acfuse report`: which files are written, when, and which never."""

import importlib
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, fused_tensors, make_project, snapshot, state
from tests.reports.runs import Page

ROOT = Path(__file__).parents[2]
CONVERT = ("convert", "model.pth", *CHECKPOINT)
ALL = ("--report", "r.html", "--report", "r.md", "--report", "r.json", "--report", "r.xml")


def test_a_conversion_writes_every_report_that_is_asked_for(project):
    result = worked(run(*CONVERT, *ALL))
    for name in ("r.html", "r.md", "r.json", "r.xml"):
        assert f"wrote   {name}" in result.stdout
    assert "Equal: 2 of 2 blocks" in Page((project / "r.html").read_text()).words
    assert "fused" in (project / "r.md").read_text()
    assert json.loads((project / "r.json").read_text())["passed"] is True
    assert ElementTree.parse(project / "r.xml").getroot()[0].get("failures") == "0"


def test_a_json_report_is_what_format_json_prints(fused):
    result = worked(run("verify", "--format", "json", "--report", "r.json"))
    assert json.loads((fused / "r.json").read_text()) == result.json


def test_a_dry_run_writes_its_report_and_nothing_else(project):
    before = snapshot(project)
    worked(run(*CONVERT, "-n", "--report", "r.html"))
    assert {*snapshot(project)} - {*before} == {"r.html"}


def test_quiet_writes_it_without_a_word(fused):
    assert worked(run("verify", "-q", "--report", "r.md")).stdout == ""
    assert (fused / "r.md").is_file()


def test_what_is_not_equal_is_reported_too(fused):
    tensors = fused_tensors(fused)
    tensors["first.fused_conv.weight"][0, 0, 1, 1] += 1.0
    torch.save(tensors, fused / "model.fused.pth")
    result = run("verify", "model.pth", "model.fused.pth", *CHECKPOINT[1:], *ALL)
    assert result.exit_code == 1
    page = Page((fused / "r.html").read_text())
    assert "Not equal: first: " in page.words
    assert len(page.all("a", "failed")) == 1
    assert "Not equal" in (fused / "r.md").read_text()
    assert json.loads((fused / "r.json").read_text())["passed"] is False
    failures = [*ElementTree.parse(fused / "r.xml").iter("failure")]
    assert any("first" in failure.text for failure in failures)


def test_a_manifest_becomes_a_report_without_the_files_that_it_names(fused):
    for name in ("model.pth", "model.fused.pth"):
        (fused / name).unlink()
    worked(run("report", "model.fused.acfuse.json", "-o", "m.html", "-o", "m.md", "-o", "m.json"))
    words = Page((fused / "m.html").read_text()).words
    assert "Equal: 2 of 2 blocks" in words
    assert "only a run has them at hand" in words
    written = json.loads((fused / "m.json").read_text())["written"]
    assert written == ["model.fused.pth", "model.fused.acfuse.json"]


def test_a_manifest_that_lacks_something_is_an_error_of_its_own(fused):
    path = fused / "model.fused.acfuse.json"
    data = json.loads(path.read_text())
    del data["found"]
    path.write_text(json.dumps(data))
    refused(run("report", path.name, "-o", "m.html"), 3, "lacks", "found")


@pytest.mark.parametrize("name", ["r.pdf", "r", "r.html.gz", "r.HTML"])
def test_another_suffix_is_a_mistake_in_usage(project, name):
    before = snapshot(project)
    refused(run(*CONVERT, "--report", name), 2, name, ".html, .md, .json, .xml")
    assert snapshot(project) == before


@pytest.mark.parametrize("command", [CONVERT, ("verify",)])
def test_a_file_that_exists_is_kept_unless_force_says_otherwise(fused, command):
    (fused / "r.html").write_text("mine")
    more = ("-f",) if command[0] == "verify" else ("-o", "other.pth", "-f")
    first = run(*command, *more[:-1], "--report", "r.html")
    refused(first, 6, "r.html exists", "--force", "--report")
    assert (fused / "r.html").read_text() == "mine"
    worked(run(*command, *more, "--report", "r.html"))
    assert (fused / "r.html").read_text() != "mine"


def test_no_report_takes_the_place_of_what_is_read_or_written(fused):
    before = snapshot(fused)
    (fused / "link.json").symlink_to("model.pth")
    for name in ("model.fused.acfuse.json", "x.acfuse.json", "model.safetensors.index.json"):
        refused(run("verify", "--report", name, "-f"), 2, name)
    refused(run(*CONVERT, "-f", "--report", "link.json"), 6, "is the input itself")
    twice = ("--report", "r.md", "--report", "./r.md")
    refused(run(*CONVERT, "-f", *twice), 2, "written twice")
    assert "written twice" in (fused / "r.md").read_text()
    (fused / "r.md").unlink()
    refused(run("report", "model.fused.acfuse.json", "-f", "-o", "no/such/r.md"), 6, "no")
    (fused / "link.json").unlink()
    assert snapshot(fused) == before


def test_the_configuration_may_name_a_report(project):
    (project / "acfuse.toml").write_text('report = "r.xml"\nno-onnx = true\n')
    worked(run("convert", "model.pth", *CHECKPOINT[1:]))
    assert (project / "r.xml").is_file()


HOSTILE = {
    "script": "<script>alert(1)</script>",
    "quotes": "\"'` onmouseover=alert(1) x=",
    "closing": "</td></table></main><style>*{display:none}</style>",
    "entity": "&lt;b&gt;&#60;",
    "cdata": "]]><x/>",
    "bidi": "\u202egnp.exe",
    "escape": "\x1b[31mred",
    "newline": "a\n| b |\n::error::c",
    "markdown": "[x](http://example.org) **b** `c` <details>",
    "command": "##[error]",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_names_from_a_file_are_text_in_every_report(project, name):
    make_project(project, {f"{name}.{key}": tensor for key, tensor in state().items()})
    worked(run("convert", "model.pth", "--no-onnx", "--force", *ALL))
    page = Page((project / "r.html").read_text())
    assert [tag for tag, _ in page.elements if tag in ("script", "style", "x")] == [
        "style",
        "script",
    ]
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]
    visible = name.encode("unicode_escape").decode() if not name.isprintable() else name
    if name not in (HOSTILE["newline"], HOSTILE["command"], HOSTILE["bidi"]):
        assert f"{visible}.first" in page.words
    root = ElementTree.parse(project / "r.xml").getroot()
    assert {e.tag for e in root.iter()} == {"testsuites", "testsuite", "testcase"}
    for path in (project / "r.html", project / "r.md", project / "r.xml", project / "r.json"):
        text = path.read_text()
        for line in text.splitlines():
            assert not line.lstrip().startswith("::")
        assert not {"\u202e", "\x1b"} & set(text)
        assert "##[" not in text
    for line in (project / "r.md").read_text().splitlines():
        assert "http:" not in line
        assert "**b**" not in line
        assert line.count("<details>") <= 1
    assert (project / "r.md").read_text().count("| 2 |") == 1


ERRORS = {
    "missing": (["convert", "none.pth"], 3, "none.pth does not exist"),
    "usage": (["convert", "model.pth", "--nothing"], 2, "No such option"),
    "no model": (["convert", "model.pth", *CHECKPOINT[1:3]], 2, "--input-shape is missing"),
    "output": (["convert", "model.pth", "-o", "no/x.pth"], 6, "no is not a directory"),
    "nothing": (["verify"], 2, "there is no manifest"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_reported_as_well(project, name):
    line, code, words = ERRORS[name]
    result = run(*line, *ALL, "--format", "json")
    assert result.exit_code == code
    data = json.loads((project / "r.json").read_text())
    assert data == result.json
    assert words in data["error"]["message"]
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "docs/schema/report.schema.json").read_text())
    jsonschema.validate(data, schema)
    page = Page((project / "r.html").read_text())
    assert words in page.words
    assert f"Exit code {code}" in page.words
    assert data["error"]["cure"] in page.words
    text = (project / "r.md").read_text()
    assert text.splitlines()[2].startswith("\u274c **")
    assert f"Exit code {code}" in text
    suite = ElementTree.parse(project / "r.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("1", "1", "0")
    (error,) = suite.iter("error")
    assert words in error.get("message")
    assert f"exit code {code}" in error.text


def test_our_own_mistake_is_reported_as_well(project, monkeypatch):
    def broken(*_):
        raise RuntimeError("impossible")

    monkeypatch.setattr(importlib.import_module("acfuse.pipeline.convert"), "find", broken)
    assert run("convert", "model.pth", "--report", "r.json").exit_code == 7
    assert json.loads((project / "r.json").read_text())["error"]["kind"] == "bug"


def test_a_report_of_an_error_takes_no_other_file_s_place(fused):
    (fused / "r.md").write_text("mine")
    before = snapshot(fused)
    refused(run("convert", "none.pth", "--report", "r.md"), 6, "r.md exists")
    run("convert", "none.pth", "--nothing", "--force", "--report", "r.md")
    run("verify", "--nothing", "--force", "--report", "model.fused.acfuse.json")
    refused(run("convert", "none.pth", "--report", "no/r.md"), 6, "no is not a directory")
    (fused / "link.json").symlink_to("model.pth")
    refused(run(*CONVERT, "-f", "--report", "link.json"), 6, "is the input itself")
    (fused / "link.json").unlink()
    assert snapshot(fused) == before
    assert run("convert", "none.pth", "--force", "--report", "r.md").exit_code == 3
    assert "none" in (fused / "r.md").read_text()


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_is_text_in_a_report_of_an_error(project, name):
    (project / "code.pth").write_bytes(b"nothing")
    run("convert", "code.pth", "--key", name, "--model", f"{name}.py:x", *ALL)
    page = Page((project / "r.html").read_text())
    assert not [tag for tag, _ in page.elements if tag in ("script", "x", "b")]
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]
    root = ElementTree.parse(project / "r.xml").getroot()
    assert {e.tag for e in root.iter()} == {"testsuites", "testsuite", "testcase", "error"}
    for path in (project / "r.html", project / "r.md", project / "r.xml", project / "r.json"):
        text = path.read_text()
        assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]
        assert not {"\u202e", "\x1b"} & set(text)
        assert "##[" not in text
    assert "http:" not in (project / "r.md").read_text()
