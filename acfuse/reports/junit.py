"""A report as JUnit XML: a case for each block and for each comparison of the whole network."""

from collections.abc import Sequence
from xml.etree import ElementTree

from acfuse.reports.record import Report
from acfuse.system.escape import safe

Case = tuple[str, str, str, str]  # of what, its name, why it failed, why it was not tried


def as_junit(report: Report) -> str:
    """The whole document. ElementTree escapes what is markup; `safe` what no document may hold."""
    cases = []
    for kind, name, failure, skipped in _cases(report):
        case = ElementTree.Element("testcase", classname=f"acfuse.{kind}")
        cases.append(case)
        case.set("name", safe(name))
        case.set("time", "0")
        if failure:
            told = ElementTree.SubElement(case, "failure", type="NotEqual", message=safe(failure))
            told.text = safe(f"{name}: {failure}")
        elif skipped:
            ElementTree.SubElement(case, "skipped", message=safe(skipped))
    return suite_xml(report.source, cases, told="; ".join(report.cautions))


def suite_xml(
    source: str, cases: Sequence[ElementTree.Element], errors: int = 0, told: str = ""
) -> str:
    """A document of one suite with these cases, and what is told beside them."""
    suite = ElementTree.Element("testsuite", name=safe(f"acfuse {source}".strip()))
    suite.extend(cases)
    if told:
        ElementTree.SubElement(suite, "system-out").text = safe(told)
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("errors", str(errors))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _cases(report: Report) -> list[Case]:
    blocks = [
        ("block", row.where, row.fault, "" if row.ulp is not None else "there is no certificate")
        for row in report.rows
    ]
    checks = []
    for line in report.lines:
        failure = "" if line.passed else line.detail or f"differs by {line.error:.1e}"
        nothing = line.warning or "nothing was compared"
        skipped = nothing if line.passed and line.compared == 0 else ""
        checks.append(("check", f"{line.name}: {line.words}", failure, skipped))
    return [*blocks, *checks]
