"""A report as one HTML file: nothing in it is loaded from elsewhere, and names are only text."""

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

from acfuse.findings import place_of
from acfuse.int8.ranges import Ranges
from acfuse.pipeline.ranges import in_short
from acfuse.proof.certificate import BLOCK_LIMIT
from acfuse.reports.page import SCRIPT, STYLE
from acfuse.reports.record import BlockPictures, Kernel, Report, Row, worst_kernel
from acfuse.reports.svg import cross_share, error_bar, heat_map, histogram, ranges
from acfuse.system.escape import safe

MOST_ARMS = 8  # kernels before the fusion that a block shows
KINDS = {
    "fused": "fused into one convolution",
    "folded": "took up a BatchNorm or a factor",
    "assumed": "fused by the word of --assume",
    "failed": "not equal",
    "refused": "refused, with the reason below",
    "kept": "kept as it is",
}
Cell = tuple[str, str, str]  # the kind, the name, and where the page says more (or nothing)


def as_html(report: Report) -> str:
    """The whole page."""
    title = f"acfuse report: {_text(report.source)}"
    parts = [
        f'<header><a class="skip" href="#main">Skip to the result</a><h1>{title}</h1></header>',
        f'<main id="main">{_verdict(report)}{_totals(report)}{_strip(report)}',
        '<p class="find" hidden><label for="filter">Filter by any text </label>'
        '<input id="filter" type="search" autocomplete="off" placeholder="a name, a code, a word">'
        ' <span id="shown" role="status"></span></p>',
        _blocks(report),
        _distances(report),
        _table_of_blocks(report),
        _refusals(report),
        _checks(report),
        _files(report),
        _environment(report),
        f"</main><footer>Made by acfuse {_text(report.version)}. This page loads nothing and "
        f"sends nothing.</footer><script>{SCRIPT}</script>",
    ]
    return document(title, "".join(parts))


def document(title: str, body: str) -> str:
    """A page that loads nothing and sends nothing. What it is given is HTML already."""
    policy = (
        f"default-src 'none'; style-src '{_hash(STYLE)}'; script-src '{_hash(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="referrer" content="no-referrer"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>"
    )
    return f"{head}{body}</body></html>\n"


def _hash(text: str) -> str:
    """What a content security policy calls a text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(name: object) -> str:
    return safe(name, "html")


def _verdict(report: Report) -> str:
    sign, kind = ("&#10003;", "yes") if report.passed else ("&#10007;", "no")
    told = f'<p class="verdict {kind}"><span aria-hidden="true">{sign}</span> '
    wrong = next((i for i, row in enumerate(report.rows) if row.fault), None)
    link = "" if wrong is None else f' <a href="#b{wrong}">The first such block</a>'
    told += f"{_text(report.verdict)}{link}</p>"
    if report.diagnosis:
        told += f"<p>It looks like: {_text(report.diagnosis)}</p>"
    return told + "".join(f"<p>Warning: {_text(caution)}</p>" for caution in report.cautions)


def _number(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"


def _totals(report: Report) -> str:
    tiles = []
    for total in report.totals:
        if total.after is None:
            continue
        by = "" if total.ratio is None else f"<span>{_ratio(total.ratio)}</span>"
        figures = f"{_number(total.before)} &#8594; {_number(total.after)}"
        figures = f"{total.after:,} now" if total.before is None else figures
        tiles.append(f"<li><span>{total.name}</span><b>{figures}</b>{by}</li>")
    speed = report.speed_up
    told = (
        "not known: it takes the code and <code>--input-shape</code>"
        if speed is None
        else "the ratio of multiply-adds, nothing measured: <code>acfuse bench</code> does"
    )
    figure = "" if speed is None else f"<b>{speed:.2f} times</b>"
    tiles.append(f"<li><span>expected speed-up</span>{figure}<span>{told}</span></li>")
    return f'<ul class="tiles">{"".join(tiles)}</ul>'


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f} times fewer" if ratio >= 1 else f"{1 / ratio:.2f} times more"


def kind_of(row: Row) -> str:
    """What happened to a block, as the strip shows it."""
    return "failed" if row.fault else row.kind


def cells_of(report: Report) -> list[Cell]:
    """The network, a cell for each block, each place of a refusal and each layer that was kept.

    In the network's own order where a run tells it.
    """
    cells = [(kind_of(row), row.where, f"b{i}") for i, row in enumerate(report.rows)]
    places = dict.fromkeys(refusal.where for refusal in report.refusals)
    cells += [("refused", place_of(where), "refused") for where in places]
    if report.pictures is None:
        return cells
    cells += [("kept", name, "") for name in report.pictures.kept]
    order = report.pictures.order
    return sorted(cells, key=lambda cell: order.get(cell[1], math.inf))


def _strip(report: Report) -> str:
    signs = {"refused": "&#215;", "kept": "&#183;", "failed": "!"}
    items, seen = [], dict.fromkeys(kind for kind, _, _ in cells_of(report))
    for kind, name, link in cells_of(report):
        row = report.rows[int(link[1:])] if link.startswith("b") else None
        shown = f"{row.convolutions[0]}&#8594;{row.convolutions[1]}" if row else signs[kind]
        shown = signs["failed"] if kind == "failed" else shown
        words = f'<span class="hide">{_text(name)}: {KINDS[kind]}. </span>'
        inside = f'{words}<span aria-hidden="true">{shown}</span>'
        hint = f'title="{_text(name)}"'
        item = f'<a class="{kind}" href="#{link}" {hint}>{inside}</a>'
        items.append(item if link else f'<span class="cell {kind}" {hint}>{inside}</span>')
    if not items:
        return ""
    legend = "".join(f'<li><i class="{kind}"></i>{KINDS[kind]}</li>' for kind in seen)
    count = report.totals[0].after
    left = 0 if count is None else count - sum(row.convolutions[1] for row in report.rows)
    more = ""
    if report.pictures is None and left > 0:
        more = f'<p class="soft">{left:,} more convolutions stay as they are.</p>'
    order = (
        "In the order of the checkpoint."
        if report.pictures and report.pictures.order
        else ("In the order in which they were found.")
    )
    return (
        f'<h2 id="network">The network</h2><p class="soft">{order} Each cell is a block, with its '
        "convolutions before and after, or a layer that stays.</p>"
        f'<ul class="legend">{legend}</ul>'
        f'<ol class="strip">{"".join(f"<li>{item}</li>" for item in items)}</ol>{more}'
    )


def _blocks(report: Report) -> str:
    if not report.rows:
        return ""
    about = (
        "Each picture is a kernel: the mean size of its weights at each tap, of each branch as it "
        "enters the sum, with its BatchNorm, and of the one convolution that they became; the "
        "strongest tap of a block in full. Cross: the part in the middle row and column, the "
        "skeleton of the kernel; 56 per cent of a 3x3 kernel whose taps weigh alike."
    )
    if report.pictures is None:
        about = "The kernels are not shown: only a run has them at hand (see the notes)."
    cards = "".join(_card(i, row) for i, row in enumerate(report.rows))
    return (
        f'<h2 id="blocks">Blocks</h2><p class="soft">{about}</p><div class="blocks">{cards}</div>'
    )


def _card(index: int, row: Row) -> str:
    before, after = row.convolutions
    facts = [("convolutions", f"{before} &#8594; {after}")]
    if row.error is not None and row.ulp is not None:
        facts.append(("error", f"{error_bar(row.error, BLOCK_LIMIT)} {row.error:.1e}"))
        facts.append(("worst weight", f"{row.ulp:.2f} ULP of {row.weights:,} numbers"))
    maps = ""
    if row.pictures is not None:
        facts += _facts(row.pictures)
        maps = _maps(row.pictures)
    if row.ranges.after is not None:
        told = f"{_arrow(row, 'per_tensor')} bits per tensor, {_arrow(row, 'per_channel')} "
        facts.append(("8 bits lose", f"{told}per channel"))
    if row.fault:
        facts.insert(0, ("fault", f'<span class="no">{_text(row.fault)}</span>'))
    told = "".join(f"<dt>{name}</dt><dd>{what}</dd>" for name, what in facts)
    return (
        f'<section class="block" id="b{index}" data-f><h3>{_text(row.where)}</h3>'
        f'<div class="tag">{_text(row.pattern)}, {KINDS[kind_of(row)]}</div>{maps}'
        f'<dl class="facts">{told}</dl></section>'
    )


def _facts(pictures: BlockPictures) -> list[tuple[str, str]]:
    """What the kernels of a block say in numbers: their cross, and the ranges of their channels."""
    both = pictures.before, pictures.after
    crosses = [next((c for c in map(cross_share, k) if c is not None), None) for k in both]
    spreads = [_spread(kernels) for kernels in both]
    facts = []
    if crosses[1] is not None:
        facts.append(("cross", _before_after(crosses, lambda share: f"{100 * share:.0f} %")))
    if spreads[1] is not None:
        told = _before_after(spreads, lambda ratio: f"{ratio:.1f}")
        facts.append(("widest channel", f"{ranges(*both)}<br>{told} times the median one"))
    return facts


def _arrow(row: Row, figure: str) -> str:
    """One figure of the ranges of a block, before and after."""
    return in_short(row.ranges, figure).replace("->", "&#8594;")


def _before_after(pair: Sequence[float | None], form: Callable[[float], str]) -> str:
    return " &#8594; ".join(form(number) for number in pair if number is not None)


def _maps(pictures: BlockPictures) -> str:
    shown = pictures.before[:MOST_ARMS]
    longest = max((max(len(k.grid), len(k.grid[0])) for k in (*shown, *pictures.after)), default=1)
    more = len(pictures.before) - len(shown)
    rest = f"<figure>and {more} more</figure>" if more else ""
    if not shown:
        rest = "<figure>branches that are not known</figure>"
    before = "".join(_figure(kernel, longest) for kernel in shown)
    after = "".join(_figure(kernel, longest) for kernel in pictures.after)
    return f'<div class="maps heat">{before}{rest}<span class="to">&#8594;</span>{after}</div>'


def _figure(kernel: Kernel, longest: int) -> str:
    caption = f"<figcaption>{_text(kernel.name)}</figcaption>"
    return f"<figure>{heat_map(kernel, longest)}{caption}</figure>"


def _distances(report: Report) -> str:
    if report.pictures is None or not sum(report.pictures.ulps):
        return ""
    counts = report.pictures.ulps
    return (
        '<h2 id="ulps">Rounding of the new weights</h2><p class="soft">How far each stored number '
        "is from the exact sum of its branches, in units in the last place (ULP). Rounding once "
        f"costs at most half a unit. {sum(counts):,} numbers; {counts[-1]:,} beyond.</p>"
        f"{histogram(counts)}"
    )


Column = tuple[str, str]  # the heading, and the class of its cells
Value = tuple[str, float | None]  # what a cell shows, and the number by which it is sorted


def _table(name: str, columns: Sequence[Column], rows: Iterable[Sequence[Value]]) -> str:
    """A table that sorts by its headings; the first cell of a row is the row's heading."""
    head = "".join(
        f'<th scope="col" class="{kind}" aria-sort="none">'
        f'<button type="button">{text}</button></th>'
        for text, kind in columns
    )
    body = []
    for row in rows:
        cells = []
        for i, ((shown, number), (_, kind)) in enumerate(zip(row, columns, strict=True)):
            tag, scope = ("th", ' scope="row"') if i == 0 else ("td", "")
            key = "" if number is None else f' data-v="{number:g}"'
            cells.append(f'<{tag}{scope} class="{kind}"{key}>{shown}</{tag}>')
        body.append(f"<tr data-f>{''.join(cells)}</tr>")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{name}"><table>'
        f'<caption class="hide">{name}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _sortable(value: float | None) -> float:
    """A number that JavaScript reads: what is not known first, what is not finite last."""
    if value is None:
        return -1.0
    return value if math.isfinite(value) else 1e308


def _figures(value: float | None, form: str) -> Value:
    return ("" if value is None else format(value, form)), _sortable(value)


def _measured(ranges: Ranges | None, figure: str) -> Value:
    return _figures(None if ranges is None else getattr(ranges, figure), ".1f")


def _spread(kernels: Sequence[Kernel]) -> float | None:
    """The largest range of a channel over the median one, of the kernel that loses most."""
    worst = worst_kernel(kernels)
    return None if worst is None else worst.spread


def _table_of_blocks(report: Report) -> str:
    if not report.rows:
        return ""
    columns = [
        ("block", "name"), ("pattern", ""), ("result", ""), ("before", "num"), ("after", "num"),
        ("worst ULP", "num"), ("error", "num"), ("range before", "num"), ("range after", "num"),
        ("bits lost before", "num"), ("bits lost after", "num"), ("per channel", "num"),
    ]  # fmt: skip
    rows: list[list[Value]] = []
    for i, row in enumerate(report.rows):
        before, after = row.ranges.before, row.ranges.after
        rows.append([
            (f'<a href="#b{i}">{_text(row.where)}</a>', None),
            (_text(row.pattern), None),
            (_mark(passed=not row.fault, text="not equal" if row.fault else row.kind), None),
            (str(row.convolutions[0]), row.convolutions[0]),
            (str(row.convolutions[1]), row.convolutions[1]),
            _figures(row.ulp, ".2f"),
            _figures(row.error, ".1e"),
            *(_measured(ranges, "spread") for ranges in (before, after)),
            *(_measured(ranges, "per_tensor") for ranges in (before, after)),
            _measured(after, "per_channel"),
        ])  # fmt: skip
    about = (
        f'<p class="soft">The error is that of the outputs in float64, of the largest one; at most '
        f"{BLOCK_LIMIT:.0e}, or what rounding does to the layers themselves. Ranges: the largest "
        "weight of the widest output channel over that of the median one. Bits lost: of 8, of the "
        "median channel, where all share one grid, and where each has its own; before, of the "
        "branch that loses most.</p>"
    )
    return f'<h2 id="numbers">Blocks in numbers</h2>{about}{_table("Blocks", columns, rows)}'


def _mark(*, passed: bool, text: str) -> str:
    return f'<span class="{"yes" if passed else "no"}">{_text(text)}</span>'


def _refusals(report: Report) -> str:
    if not report.refusals:
        return '<h2 id="refused">Refused</h2><p>Nothing was refused.</p>'
    columns = [("place", "name"), ("code", ""), ("reason", "long"), ("pattern", "")]
    rows = [
        [(_text(cell), None) for cell in (place_of(r.where), r.code, r.why, r.pattern)]
        for r in report.refusals
    ]
    about = '<p class="soft">These stay as they are, and are none the worse for it.</p>'
    return f'<h2 id="refused">Refused</h2>{about}{_table("Refused", columns, rows)}'


def _checks(report: Report) -> str:
    if not report.lines:
        return ""
    columns = [
        ("comparison", "long"), ("result", ""), ("error", "num"), ("at most", "num"),
        ("max |a-b|", "num"), ("numbers", "num"), ("detail", "long"),
    ]  # fmt: skip
    rows: list[list[Value]] = []
    for line in report.lines:
        empty = line.compared == 0
        told = "differs" if not line.passed else "nothing compared" if empty else "equal"
        detail = "; ".join(filter(None, (line.detail, line.warning)))
        rows.append([
            (_text(line.words), None),
            (_mark(passed=line.passed, text=told), None),
            _figures(line.error, ".1e"),
            (f"{line.limit:.0e}" if line.limit else "", _sortable(line.limit)),
            _figures(line.absolute, ".1e"),
            (_number(line.compared) if line.compared is not None else "",
             _sortable(line.compared)),
            (_text(detail), None),
        ])  # fmt: skip
    return f'<h2 id="checks">The whole network</h2>{_table("Comparisons", columns, rows)}'


def _files(report: Report) -> str:
    columns = [("file", "name"), ("role", ""), ("bytes", "num"), ("SHA-256", "hash")]
    rows: list[list[Value]] = [
        [
            (_text(file.name), None),
            (file.role, None),
            ("" if file.size is None else f"{file.size:,}", _sortable(file.size)),
            (_text(file.sha256), None),
        ]
        for file in report.files
    ]
    return f'<h2 id="files">Files</h2>{_table("Files", columns, rows)}'


def _environment(report: Report) -> str:
    told = "".join(f"<dt>{_text(n)}</dt><dd>{_text(v)}</dd>" for n, v in report.environment)
    notes = "".join(f"<li>{_text(note)}</li>" for note in report.notes)
    listed = f'<h2 id="notes">Notes</h2><ul>{notes}</ul>' if notes else ""
    return f'{listed}<h2 id="environment">Environment</h2><dl class="facts">{told}</dl>'
