"""A report as Markdown that fits into the comment of a review: tables first, details folded."""

from collections.abc import Iterable, Sequence

from acfuse.findings import place_of
from acfuse.pipeline.ranges import cells, in_short
from acfuse.reports.record import Report, Row
from acfuse.system.escape import safe

MOST = 60_000  # characters; hosts of reviews take some 65,000
MOST_OF_A_CELL = 300


def as_markdown(report: Report) -> str:
    """The whole text; what does not fit is counted."""
    sign = "\u2705" if report.passed else "\u274c"
    verdict = f"{sign} **{_text(report.verdict, 2000)}**"
    lines = [f"## acfuse: {_text(report.source)}", "", verdict, ""]
    if report.diagnosis:
        lines += [f"It looks like: {_text(report.diagnosis, 1000)}", ""]
    for caution in report.cautions:
        lines += [f"Warning: {_text(caution, 1000)}", ""]
    lines += [*_totals(report), ""]
    failed = [row for row in report.rows if row.fault]
    sections = [
        _section("Blocks that are not equal", ("block", "fault"), map(_fault, failed)),
        _section("Blocks, equal ones together", GROUP, map(_group, report.groups)),
        _section("The whole network", CHECK, _checks(report), folded=True),
        _section("Refused", ("place", "code", "reason"), _refused(report), folded=True),
        _section("Every block", BLOCK, map(_block, report.rows), folded=True),
        _section("Files", ("file", "bytes", "SHA-256"), _files(report), folded=True),
        _section("Notes", ("note",), ([_text(n)] for n in report.notes), folded=True),
    ]
    room = MOST - sum(len(line) + 1 for line in lines)
    for section in sections:
        fitting = _within(section, room)
        room -= sum(len(line) + 1 for line in fitting)
        lines += fitting
    return "\n".join(lines).rstrip() + "\n"


GROUP = ("blocks", "first", "pattern", "result", "convolutions", "worst ULP", "worst error",
         "8 bits lose")  # fmt: skip
CHECK = ("comparison", "result", "error", "at most", "detail")
BLOCK = ("block", "pattern", "result", "convolutions", "worst ULP", "error", "8 bits lose",
         "per channel")  # fmt: skip


def _text(name: object, most: int = MOST_OF_A_CELL) -> str:
    """A name as text that Markdown does not obey, cut where it would fill the comment."""
    text = str(name)
    return safe(text if len(text) <= most else f"{text[: most - 3]}...", "markdown")


Section = tuple[list[str], list[str], list[str]]  # what opens it, its rows, what closes it


def _section(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, folded: bool = False
) -> Section:
    """A table below a heading; folded, below a line that opens it."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    if folded:
        opening = f"<details><summary>{title} ({len(body):,})</summary>"
        return [opening, "", *head], body, ["", "</details>", ""]
    return [f"### {title}", "", *head], body, [""]


def _within(section: Section, room: int) -> list[str]:
    """The lines of a section that fit; nothing where it is empty, or not a row would fit."""
    head, body, end = section
    left = room - sum(len(line) + 1 for line in (*head, *end)) - len("and 1,000,000 more\n\n")
    kept = []
    for line in body:
        left -= len(line) + 1
        if left < 0:
            break
        kept.append(line)
    if not kept:
        return []
    more = len(body) - len(kept)
    return [*head, *kept, *(["", f"and {more:,} more"] if more else []), *end]


def _totals(report: Report) -> list[str]:
    known = [t for t in report.totals if t.before is not None and t.after is not None]
    lines = ["| | before | after | |", "|---|---:|---:|---|"]
    for total in known:
        by = "" if total.ratio is None else f"{total.ratio:.2f} times fewer"
        lines.append(f"| {total.name} | {total.before:,} | {total.after:,} | {by} |")
    speed = report.speed_up
    if speed is not None:
        lines += ["", f"Expected speed-up: {speed:.2f} times, the ratio of multiply-adds."]
    return lines


def _fault(row: Row) -> list[str]:
    return [_text(row.where), _text(row.fault)]


def _result(row: Row) -> str:
    return "**not equal**" if row.fault else row.kind


def _convolutions(row: Row) -> str:
    return f"{row.convolutions[0]} -> {row.convolutions[1]}"


def _worst(values: Iterable[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(max(known), form) if known else ""


def _group(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    return [
        str(len(rows)),
        _text(first.where),
        _text(first.pattern),
        _result(first),
        _convolutions(first),
        _worst((row.ulp for row in rows), ".2f"),
        _worst((row.error for row in rows), ".1e"),
        *cells((row.ranges for row in rows), verbose=False),
    ]


def _block(row: Row) -> list[str]:
    figures = [_worst([row.ulp], ".2f"), _worst([row.error], ".1e")]
    figures += [in_short(row.ranges), in_short(row.ranges, "per_channel")]
    return [_text(row.where), _text(row.pattern), _result(row), _convolutions(row), *figures]


def _checks(report: Report) -> Iterable[list[str]]:
    for line in report.lines:
        told = "nothing compared" if line.compared == 0 else "equal"
        yield [
            _text(line.words),
            told if line.passed else "**differs**",
            f"{line.error:.1e}",
            f"{line.limit:.0e}" if line.limit else "",
            _text("; ".join(filter(None, (line.detail, line.warning)))),
        ]


def _refused(report: Report) -> Iterable[list[str]]:
    return ([_text(place_of(r.where)), r.code, _text(r.why)] for r in report.refusals)


def _files(report: Report) -> Iterable[list[str]]:
    for file in report.files:
        yield [_text(file.name), "" if file.size is None else f"{file.size:,}", _text(file.sha256)]
