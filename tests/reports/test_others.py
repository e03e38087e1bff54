"""Markdown, JUnit and JSON: each is what its reader takes, and says the same."""

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from acfuse.pipeline.manifest import conversion_json
from acfuse.reports.junit import as_junit
from acfuse.reports.markdown import as_markdown
from acfuse.reports.record import report_of
from acfuse.system.escape import as_json
from tests.reports.runs import bare, conversion, report

SCHEMA = Path(__file__).parents[2] / "docs/schema/report.schema.json"


def with_rows(*rows):
    return report_of({**report().data, "found": rows})


def row(index=0, fault="", **changes):
    given = report().data["found"][index]
    return {**given, "certificate": {**given["certificate"], "fault": fault}, **changes}


def test_markdown_says_the_verdict_first_and_equal_blocks_once():
    text = as_markdown(report())
    assert text.splitlines()[2].startswith("\u2705 **Equal")
    start = text.index("### Blocks, equal ones together")
    table = text[start : text.index("<details>")].strip().splitlines()[2:]
    assert len(table) == 3
    assert table[2].startswith("| 5 | features")
    assert text.count("<details>") == text.count("</details>") >= 3


def test_markdown_of_what_is_not_equal_lists_the_faults_before_all_else():
    data = {**report().data, "passed": False, "fault": "b: wrong", "diagnosis": "a dropped bias"}
    text = as_markdown(report_of({**data, "found": [row(), row(1, "weights are wrong")]}))
    assert text.splitlines()[2].startswith("\u274c **Not equal")
    assert "a dropped bias" in text
    assert text.index("weights are wrong") < text.index("equal ones together")


def test_markdown_of_the_largest_networks_still_fits_and_counts_the_rest():
    rows = [row(where=f"stage.{i}." + "long." * 60, replaced=[str(i)]) for i in range(3000)]
    text = as_markdown(with_rows(*rows))
    assert 60_000 - 1_000 < len(text) <= 60_000  # it is filled, but for part of a row
    assert " more\n" in text
    assert text.count("<details>") == text.count("</details>")
    assert max(map(len, text.splitlines())) < 5000


def test_junit_has_a_case_for_each_block_and_each_check():
    suite = ElementTree.fromstring(as_junit(report())).find("testsuite")
    names = [case.get("name") for case in suite]
    checks = conversion().proofs.checks
    assert names[:5] == [block.label for block in conversion().findings.found]
    assert [name.split(":")[0] for name in names[5:]] == [check.name for check in checks]
    assert suite.attrib["tests"] == str(5 + len(checks))
    assert suite.attrib["failures"] == suite.attrib["skipped"] == "0"
    assert not [*suite.iter("failure")]


def test_junit_says_what_failed_and_what_was_not_tried():
    checks = [dict(check) for check in report().data["checks"]]
    checks[0] |= {"passed": False, "detail": "outputs differ"}
    checks[1] |= {"compared": 0, "warning": "nothing was compared: it was empty"}
    data = {**report().data, "checks": checks, "passed": False}
    found = [row(), row(1, "2 weights are wrong"), row(2, certificate=None)]
    suite = ElementTree.fromstring(as_junit(report_of({**data, "found": found})))[0]
    failed = {case.get("name"): case.find("failure") for case in suite}
    told = [failure.get("message") for failure in failed.values() if failure is not None]
    assert told == ["2 weights are wrong", "outputs differ"]
    assert suite.attrib["failures"] == "2"
    skipped = [
        case.find("skipped").get("message") for case in suite if case.find("skipped") is not None
    ]
    assert skipped == ["there is no certificate", "nothing was compared: it was empty"]
    assert suite.attrib["skipped"] == "2"


@pytest.fixture(scope="module")
def schema():
    """The published schema; a document is valid if nothing is raised."""
    jsonschema = pytest.importorskip("jsonschema")
    given = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(given)
    return jsonschema.Draft202012Validator(given)


@pytest.mark.parametrize("run", [conversion, bare])
def test_json_is_what_the_schema_says(schema, run):
    schema.validate(json.loads(as_json(conversion_json(run()))))


def test_json_of_a_failure_is_what_the_schema_says(schema):
    proofs = conversion().proofs
    failed = replace(proofs.certificates[0], ulp=math.inf, error=math.nan, fault="wrong")
    proofs = replace(proofs, certificates=(failed, *proofs.certificates[1:]))
    data = json.loads(as_json(conversion_json(replace(conversion(), proofs=proofs))))
    assert data["found"][0]["certificate"]["error"] == "nan"
    schema.validate(data)
    assert "Not equal" in report_of(data).verdict


def places(value, path=()):
    """Every object of a document, by its path."""
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def test_the_schema_knows_every_key_and_no_other(schema):
    data = json.loads(as_json(conversion_json(conversion())))
    for path in places(data):
        if path == ("model_args",) or path[-1:] == ("needed",):  # a user's own names
            continue
        other = json.loads(json.dumps(data))
        inner = other
        for step in path:
            inner = inner[step]
        inner["unheard"] = 1
        assert [e.validator for e in schema.iter_errors(other)] != [], path
        del inner["unheard"]
        if inner:
            del inner[next(iter(inner))]
            assert not schema.is_valid(other), path
