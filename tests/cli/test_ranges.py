"""Range health at the command line: what each command tells of it, and the cure that it names."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from acfuse.pipeline.schema import SCHEMAS
from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, MODEL, change
from tests.reports.runs import Page

NET = MODEL[:2]
CODE = "[ACF232]"
REPORTS = ("--report", "r.html", "--report", "r.md", "--report", "r.json", "--report", "r.xml")


def widen(tensors):
    """One channel between the two blocks 64 times as large: the function is the same."""
    for name in ("square", "ver", "hor"):
        for part in ("weight", "bias"):
            tensors[f"first.{name}_bn.{part}"][0] *= 64
        tensors[f"second.{name}_conv.weight"][:3, 0] /= 64  # of two groups, the first reads it


@pytest.fixture
def wide(project):
    change(project / "model.pth", widen)
    return project


def test_inspect_and_convert_say_it_once_and_end_as_ever(wide):
    for line in (("inspect", "model.pth", *NET), ("convert", "model.pth", *CHECKPOINT)):
        told = worked(run(*line)).stdout.splitlines()
        (warning,) = [row for row in told if CODE in row]
        assert warning.startswith("warning one grid of 8 bits for all channels costs more than 2.5")
        assert "in 1 of 2 blocks, most in first (it loses " in warning
        (summary,) = [row for row in told if row.startswith("8 bits  ")]
        assert summary.startswith("8 bits  lose most of first: ")
        assert "8 bits lose" in told[2]
        assert "per channel" not in told[2]


def test_verbose_tables_have_every_figure(wide):
    told = run("inspect", "model.pth", *NET, "-v").stdout.splitlines()
    assert told[2].split()[-6:] == ["8", "bits", "lose", "per", "channel", "widest"]
    row = next(line for line in told if line.startswith("first "))
    assert row.count("->") == 1 + 1 + 3  # convolutions, multiply-adds, and these


def test_a_healthy_one_is_not_warned_of(project):
    assert CODE not in worked(run("convert", "model.pth", *CHECKPOINT)).stdout


def test_programs_are_told_of_each_block(wide):
    seen = worked(run("inspect", "model.pth", *NET, "--format", "json")).json
    made = worked(run("convert", "model.pth", *CHECKPOINT, "--format", "json")).json
    manifest = json.loads(Path("model.fused.acfuse.json").read_text())
    for told in (seen, made, manifest):
        assert [c["code"] for c in told["cautions"]] == ["ACF232"]
        first, second = (row["ranges"]["after"] for row in told["found"])
        assert first["per_tensor"] - first["per_channel"] > 2.5
        assert second["per_tensor"] - second["per_channel"] < 2.5
        assert all(row["ranges"]["before"]["spread"] >= 1 for row in told["found"])
    assert seen["found"][0]["ranges"] == made["found"][0]["ranges"]
    jsonschema.validate(made, SCHEMAS["report"]())
    jsonschema.validate(manifest, SCHEMAS["manifest"]())


def test_every_report_has_it(wide):
    worked(run("convert", "model.pth", *CHECKPOINT, *REPORTS))
    worked(run("report", "model.fused.acfuse.json", "-o", "again.html"))
    for name in ("r.html", "again.html"):
        words = Page((wide / name).read_text()).words
        assert words.count(CODE) == 1
        assert "8 bits lose" in words
        assert "bits lost before" in words
    markdown = (wide / "r.md").read_text()
    assert "Warning: " in markdown
    assert "ACF232" in markdown
    assert "| 8 bits lose |" in markdown
    assert [c["code"] for c in json.loads((wide / "r.json").read_text())["cautions"]] == ["ACF232"]
    suite = ElementTree.parse(wide / "r.xml").getroot()[0]
    assert CODE in suite.find("system-out").text
    assert suite.get("failures") == "0"


def test_github_is_warned(wide):
    for command in ("inspect", "convert"):
        line = (command, "model.pth", *(NET if command == "inspect" else CHECKPOINT))
        told = worked(run(*line, "--format", "github")).stdout
        (warning,) = [row for row in told.splitlines() if row.startswith("::warning")]
        assert warning.endswith(CODE)


def test_explain_shows_it_of_a_block(wide):
    told = worked(run("explain", "model.pth", "first", *NET)).stdout
    (line,) = [row for row in told.splitlines() if row.startswith("8 bits  lose ")]
    walk = worked(run("explain", "model.pth", "first", *NET, "--format", "json")).json
    shown = [float(figure) for figure in re.findall(r"-?\d+\.\d+", line)]
    names = ("per_tensor", "per_channel", "spread")
    exact = [walk["ranges"][when][name] for name in names for when in ("before", "after")]
    assert shown == pytest.approx(exact, abs=0.05 + 0.001)  # to a tenth, of thousandths
    assert "ACF232" in worked(run("explain", "wide-ranges")).stdout


def test_a_manifest_of_before_is_read_and_reported(wide):
    worked(run("convert", "model.pth", *CHECKPOINT))
    path = Path("model.fused.acfuse.json")
    manifest = json.loads(path.read_text())
    del manifest["cautions"]
    for row in manifest["found"]:
        del row["ranges"]
    path.write_text(json.dumps(manifest))
    worked(run("report", str(path), "-o", "r.html"))
    worked(run("report", str(path), "-o", "r.md"))
    assert CODE not in Page(Path("r.html").read_text()).words
    assert CODE in worked(run("verify")).stdout  # it is measured again, of the files


def test_the_cure_that_is_named_cures(wide):
    assert CODE in worked(run("convert", "model.pth", *MODEL)).stdout
    worked(run("equalize", "model.fused.onnx", "--input", "2,3,9,7"))
    verify = ("verify", "model.pth", "model.fused.equalized.onnx", *MODEL)
    assert CODE not in worked(run(*verify)).stdout
    told = worked(run("convert", "model.pth", *CHECKPOINT, "--equalize", "-o", "even.pth")).stdout
    assert CODE not in told
    assert CODE not in worked(run("verify", "even.acfuse.json")).stdout


def test_without_code_and_in_onnx_it_is_told_as_well(wide):
    bare = worked(run("inspect", "model.pth", "--format", "json")).json
    live = worked(run("inspect", "model.pth", *NET, "--format", "json")).json
    for one, other in zip(bare["found"], live["found"], strict=True):
        assert one["ranges"]["after"] == pytest.approx(other["ranges"]["after"], abs=1e-3)
    worked(run("export-onnx", "model.pth", *MODEL))
    seen = worked(run("inspect", "model.onnx", "--format", "json")).json
    assert len(seen["found"]) == 2
    for one, other in zip(seen["found"], live["found"], strict=True):
        assert one["ranges"]["after"] == pytest.approx(other["ranges"]["after"], abs=1e-3)
    assert [c["code"] for c in seen["cautions"]] == ["ACF232"]


def test_blocks_with_weights_that_are_not_finite_are_not_among_them(wide):
    change(wide / "model.pth", lambda t: t["second.square_conv.weight"][0, 0].fill_(float("inf")))
    refused(run("inspect", "model.pth", *NET), 3, "second.square_conv.weight holds Inf")
    seen = run("inspect", "model.pth", *NET, "--allow-nonfinite", "--format", "json").json
    (first,) = seen["found"]
    assert first["where"] == "first"
    assert isinstance(first["ranges"]["after"]["per_tensor"], float)
