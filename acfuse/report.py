"""A conversion as text for people and as JSON for programs. Names from files are only ever data."""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from acfuse import __version__
from acfuse.errors import Reason
from acfuse.findings import Block, Findings, Suspect, place_of
from acfuse.patterns import Pattern
from acfuse.patterns.trial import Trial
from acfuse.pipeline.job import Conversion
from acfuse.pipeline.manifest import cautions_json, findings_json
from acfuse.pipeline.ranges import cells, headings, summary_of
from acfuse.pipeline.selftest import Trial as FaultTrial
from acfuse.proof import Check
from acfuse.proof.results import Results
from acfuse.reports.record import NAMES
from acfuse.system.escape import as_json, columns, safe


def print_json(data: object) -> None:
    """Exactly one JSON document on stdout."""
    click.echo(as_json(data))


def print_conversion(
    conversion: Conversion, *, quiet: bool = False, verbose: bool = False, writes: bool = True
) -> None:
    """What was found, proved and written; what is alike in one row, unless it is `verbose`."""
    if quiet:
        return
    _echo(f"acfuse {__version__}  {safe(conversion.job.source.name)}", "")
    rows = _blocks(conversion, verbose=verbose)
    _echo(*rows, "", *_summary(conversion, writes=writes), *_refused(conversion.findings))
    for note in (*conversion.notes, *conversion.proofs.notes):
        _echo(f"note    {safe(note)}")
    _echo(*_next(conversion))


def print_findings(seen: Conversion, *, verbose: bool = False, tree: bool = False) -> None:
    """What would be fused, and what not, and why."""
    findings = seen.findings
    _echo(f"acfuse {__version__}  {safe(seen.job.source.name)}", "")
    header = ("block", "pattern", "fused into", "convolutions", "multiply-adds/pixel",
              *headings(verbose=verbose))  # fmt: skip
    ranges = dict(zip(map(id, findings.found), seen.ranges, strict=True))
    rows = []
    for blocks in _alike(findings.found, verbose=verbose):
        first, label = blocks[0], _named(blocks)
        convolutions = f"{first.convolutions[0]} -> {first.convolutions[1]}"
        into = label if len(blocks) > 1 else safe(", ".join(first.names))
        costs = _costs([block.multiply_adds for block in blocks])
        lost = cells((ranges[id(block)] for block in blocks), verbose=verbose)
        rows.append((label, _pattern_name(first), into, convolutions, costs, *lost))
    if tree:
        _echo(*_tree(findings), "")
    elif rows:
        _echo(*columns(header, shortened(rows, verbose=verbose)), "")
    count = f"{_counted(findings)} can be fused, {len(findings.refused)} were refused"
    _echo(count, f"in all: {_sizes(seen)}", *_in_8_bits(seen), *_refused(findings))
    _echo(*_suspects(findings))
    for told in findings.state:
        _echo(f"state   {safe(told)}")
    for note in findings.notes:
        _echo(f"assumed {safe(note)}")
    for note in seen.notes[: len(seen.notes) - len(findings.messages)]:
        _echo(f"note    {safe(note)}")


def print_patterns(patterns: Sequence[Pattern]) -> None:
    """The registry."""
    rows = [
        (
            safe(p.name),
            safe(p.fused),
            "?" if p.bn_eps is None else f"{p.bn_eps:g}",
            "yes" if not p.ambiguity else "with --assume" if p.assumption else "no",
            safe(p.owner),
            safe(p.source),
        )
        for p in patterns
    ]
    _echo(*columns(("pattern", "fused name", "BN eps", "bare", "owner", "source"), rows))


def describe_pattern(pattern: Pattern) -> dict[str, Any]:
    """What `patterns show` tells of one."""
    return {
        "name": pattern.name,
        "family": pattern.family,
        "dialect": pattern.dialect,
        "block": str(pattern.block),
        "fused": pattern.fused,
        "beside": list(pattern.ignore),
        "bn_eps": pattern.bn_eps,
        "assumptions": [
            "branches are parallel, of one stride, and centred on each other",
            *pattern.assumptions,
        ],
        "alone": pattern.ambiguity,
        "claim": pattern.assumption,
        "owner": pattern.owner,
        "source": pattern.source,
    }


def print_pattern(pattern: Pattern) -> None:
    """One pattern: its keys, what it assumes, and its source."""
    told = describe_pattern(pattern)
    usual = f" ({pattern.usual_eps})" if pattern.usual_eps else ""
    eps = f"--bn-eps{usual}" if pattern.bn_eps is None else f"{pattern.bn_eps:g}"
    rows = [
        ("pattern", pattern.name),
        ("block", told["block"]),
        ("fused", f"{pattern.fused}.weight, {pattern.fused}.bias"),
        ("beside", ", ".join(pattern.ignore) or "nothing"),
        ("BN eps", eps),
        ("bare", f"no: {pattern.ambiguity}" if pattern.ambiguity else "yes"),
        *([("--assume", f"says that {pattern.assumption}")] if pattern.assumption else []),
        *(("assumes", text) for text in told["assumptions"]),
        ("owner", pattern.owner),
        ("source", pattern.source),
    ]
    for name, text in rows:
        _echo(f"{name:<8} {safe(text)}")


def describe_trials(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """What `patterns test --format json` prints."""
    return [asdict(trial) for trial in trials]


def print_trials(trials: Sequence[Trial], patterns: Sequence[Pattern], checkpoint: Path) -> None:
    """Where each pattern matches, and the nearest misses."""
    for pattern in patterns:
        own = [trial for trial in trials if trial.pattern == pattern.name]
        matched = [trial for trial in own if not trial.why]
        missed = [trial for trial in own if trial.why]
        _echo(f"{safe(pattern.name)}: {len(matched)} blocks of {safe(checkpoint.name)} match")
        rows = [(t, f"{', '.join(t.layers)} -> {pattern.fused}") for t in matched]
        for trial, text in [*rows, *((t, t.why) for t in missed[:NEAREST])]:
            sign = "misses " if trial.why else "matches"
            _echo(f"{sign} {safe(trial.where or 'the model')}: {safe(text)}")
        if len(missed) > NEAREST:
            _echo(f"        and {len(missed) - NEAREST} more that miss")
        if not own:
            names = ", ".join(f"{name}.weight" for name in pattern.names[:4])
            _echo(f"        no two of its names stand below one prefix: {safe(names)} ...")


NEAREST = 5


def describe_findings(seen: Conversion) -> dict[str, Any]:
    """What `inspect --format json` prints."""
    findings = seen.findings
    before, after = map(asdict, seen.sizes)
    return {
        "acfuse": __version__,
        "source": seen.job.source.name,
        "sizes": {"before": before, "after": after},
        **findings_json(findings, seen.proofs, seen.ranges),
        "cautions": cautions_json(seen.cautions),
        "suspects": [
            {"where": s.where, "layers": [b[0] for b in s.branches], "pattern": s.stub}
            for s in findings.suspects
        ],
        "state": list(findings.state),
        "notes": list(findings.notes),
    }


COLOURS = {"equal": "green", "FAILED": "red", "DIFFERS": "red", "warning": "yellow",
           "refused": "yellow"}  # fmt: skip
INDENT = " " * 8


def _echo(*lines: str) -> None:
    """Prints lines; on a terminal with colours, and broken between words where they are long."""
    on_terminal = sys.stdout.isatty()
    for line in lines:
        if not on_terminal:
            click.echo(line)
            continue
        width = shutil.get_terminal_size().columns
        parts = textwrap.wrap(
            line, width, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False
        )
        fits = len(line) <= width or line.startswith(("wrote ", " "))
        first, *rest = [line] if fits or not parts else parts
        word = first.partition(" ")[0]
        if word in COLOURS and not os.environ.get("NO_COLOR"):
            first = click.style(word, fg=COLOURS[word]) + first.removeprefix(word)
        for part in (first, *rest):
            click.echo(part)


def _alike(found: Sequence[Block], *, verbose: bool) -> list[list[Block]]:
    """Blocks that differ by nothing but the numbers in their names, together."""
    groups: dict[object, list[Block]] = {}
    for i, block in enumerate(found):
        alike = (NUMBERS.sub("*", block.label), block.pattern, block.is_block, block.assumed)
        groups.setdefault(i if verbose else (alike, block.convolutions), []).append(block)
    return [*groups.values()]


NUMBERS = re.compile(r"[0-9]+")
ROWS = 20  # of a table that nobody asked to see as a whole


def _named(blocks: Sequence[Block]) -> str:
    """What one row is called: a block, or how many of which kind."""
    first = safe(blocks[0].label)
    return first if len(blocks) == 1 else f"{len(blocks)} x {NUMBERS.sub('*', first)}"


def shortened(rows: Sequence[tuple[str, ...]], *, verbose: bool) -> Sequence[tuple[str, ...]]:
    """The first rows, and how many more there are."""
    if verbose or len(rows) <= ROWS:
        return rows
    more = f"and {len(rows) - ROWS + 1} rows more: -v lists all"
    return [*rows[: ROWS - 1], (more, *[""] * (len(rows[0]) - 1))]


def _tree(findings: Findings) -> list[str]:
    """The modules above what was found or refused, each part of a path once, indented."""
    told = {safe(b.label): f"{_pattern_name(b)}, {b.convolutions[0]} -> {b.convolutions[1]}"
            for b in findings.found}  # fmt: skip
    for refused in findings.refused:
        told.setdefault(safe(place_of(refused.where)), f"refused [{refused.code}]")
    lines, above = [], list[str]()
    for path, what in told.items():
        parts = path.split(".")
        same = 0
        while same < min(len(parts) - 1, len(above)) and parts[same] == above[same]:
            same += 1
        lines += [f"{'  ' * depth}{parts[depth]}" for depth in range(same, len(parts) - 1)]
        lines.append(f"{'  ' * (len(parts) - 1)}{parts[-1]}  ({what})")
        above = parts[:-1]
    return lines


def _pattern_name(block: Block) -> str:
    name = block.pattern or ("algebra" if block.is_block else "fold")
    return f"{name} (assumed)" if block.assumed else name


def _costs(pairs: Sequence[tuple[int, int]]) -> str:
    """What blocks cost before and after: of several, from the least to the most."""
    before, after = (
        f"{min(costs):,}" + (f" to {max(costs):,}" if max(costs) > min(costs) else "")
        for costs in zip(*pairs, strict=True)
    )
    return after if before == "0" else f"{before} -> {after}"


def _blocks(conversion: Conversion, *, verbose: bool) -> list[str]:
    found = conversion.findings.found
    certificates = dict(zip(map(id, found), conversion.proofs.certificates, strict=False))
    ranges = dict(zip(map(id, found), conversion.ranges, strict=True))
    rows = []
    for blocks in _alike(found, verbose=verbose):
        first, known = blocks[0], [certificates[id(b)] for b in blocks if id(b) in certificates]
        rows.append(
            (
                _named(blocks),
                _pattern_name(first),
                f"{first.convolutions[0]} -> {first.convolutions[1]}",
                f"{max(c.ulp for c in known):.2f}" if known else "",
                f"{max(c.error for c in known):.1e}" if known else "",
                *cells((ranges[id(block)] for block in blocks), verbose=verbose),
            )
        )
    header = ("block", "pattern", "convolutions", "worst ULP", "error in float64")
    return columns((*header, *headings(verbose=verbose)), shortened(rows, verbose=verbose))


def _in_8_bits(conversion: Conversion) -> list[str]:
    """What 8 bits lose of the block that loses most, and whether one grid per tensor will do."""
    told = summary_of(conversion.findings.found, conversion.ranges)
    lines = [f"8 bits  {safe(told)}"] if told else []
    return lines + [f"warning {safe(str(caution))}" for caution in conversion.cautions]


def _sizes(conversion: Conversion) -> str:
    """Convolutions, parameters and (for a given input) multiply-adds, before and after."""
    before, after = conversion.sizes
    text = f"convolutions {before.convolutions} -> {after.convolutions}"
    if before.multiply_adds and after.multiply_adds:
        text += f", multiply-adds {before.multiply_adds:,} -> {after.multiply_adds:,}"
    return f"{text}, parameters {before.parameters:,} -> {after.parameters:,}"


def _counted(findings: Findings) -> str:
    """How many blocks and folds there are."""
    blocks = len(findings.blocks)
    folds = len(findings.found) - blocks
    told = [_several(blocks, "block")] if blocks or not folds else []
    return " and ".join([*told, *([_several(folds, "fold")] if folds else [])])


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _summary(conversion: Conversion, *, writes: bool) -> list[str]:
    lines = [f"fused   {_counted(conversion.findings)}: {_sizes(conversion)}"]
    before, after = conversion.sizes
    if before.multiply_adds and after.multiply_adds:
        times = before.multiply_adds / after.multiply_adds
        lines.append(
            f"faster  at most {times:.2f} times, by multiply-adds: `acfuse bench` measures it"
        )
    proofs = conversion.proofs
    pairs = [*zip(conversion.findings.found, proofs.certificates, strict=False)]
    known = [certificate for block, certificate in pairs if not block.assumed]
    if known and all(c.passed for c in proofs.certificates):
        worst = max(c.ulp for c in known)
        folded = {c.folded for c in known if c.folded}
        told = f"folded in {', '.join(sorted(folded))}: rounding, no fault; " if folded else ""
        limit = "where terms cancel" if folded else "at most 0.51"
        lines.append(
            f"equal   certificate of {_several(len(known), 'block')}, for all inputs: {told}every "
            f"weight within {worst:.2f} ULP ({limit})"
        )
    if len(known) < len(pairs):
        count = len(pairs) - len(known)
        lines.append(
            f"assumed {_several(count, 'block')} whose forward cannot be read: compared on images "
            "of a few sizes, and by the word of --assume for all others"
        )
    lines += [f"{_verdict(c):<8}{_check_line(c)}" for c in proofs.checks]
    lines += [f"warning {c.warning}" for c in proofs.checks if c.warning]
    if (evened := conversion.evened) is not None:
        lines.append(f"8 bits  {evened.summary}")
        lines.append(
            f"equal   ranges evened out: {evened.compared:,} numbers are the same, bit by bit"
            if evened.is_taken
            else "note    nothing is gained by evening out ranges: they are left as they are"
        )
    lines += _in_8_bits(conversion)
    if not proofs.passed:
        lines.append(f"FAILED  {safe(proofs.fault)}")
        if conversion.diagnosis:
            lines.append(f"        looks like: {safe(conversion.diagnosis)}")
    if writes and not conversion.written:
        lines.append(f"        nothing was written{' (--dry-run)' * conversion.job.dry_run}")
    if conversion.onnx is not None and conversion.written:
        onnx, kinds = conversion.onnx, ("Conv", "ConvTranspose", "BatchNormalization")
        counts = {kind: onnx.count(kind) for kind in kinds}
        nodes = [f"{n} {kind}" for kind, n in counts.items() if n or kind != "ConvTranspose"]
        lines.append(f"onnx    opset {onnx.opset}, {_signature(conversion)}, {', '.join(nodes)}")
    for path in conversion.written:
        lines.append(f"wrote   {safe(path)}  ({path.stat().st_size:,} bytes)")
    return lines


def _next(conversion: Conversion) -> list[str]:
    """What to do with what was written."""
    if not conversion.written:
        return []
    line = "acfuse verify --atol 1e-4" if conversion.proofs.checks else "acfuse verify"
    lines = [f"next    {line}   proves it again, in a CI job for instance"]
    files = [path for path in conversion.written if path == conversion.job.paths.onnx]
    lines += [
        f"        ovc {safe(path)} --compress_to_fp16=False   (OpenVINO; more in docs/deploy.md)"
        for path in files
    ]
    return lines


def _signature(conversion: Conversion) -> str:
    onnx = conversion.onnx
    if onnx is None:
        return ""

    def shown(value: Any) -> str:
        dims = value.type.tensor_type.shape.dim
        sizes = [d.dim_param or (str(d.dim_value) if d.dim_value > 0 else "?") for d in dims]
        return f"{safe(value.name)}[{','.join(sizes)}]"

    graph = onnx.model.graph
    inputs, outputs = map(shown, graph.input), map(shown, graph.output)
    return f"{', '.join(inputs)} -> {', '.join(outputs)}"


def _verdict(check: Check) -> str:
    if not check.passed:
        return "DIFFERS"
    return "none" if check.compared == 0 else "equal"


def describe_selftest(trials: Sequence[FaultTrial]) -> dict[str, Any]:
    """What `selftest --format json` prints."""
    return {
        "planted": len(trials),
        "seen": sum(trial.is_seen for trial in trials),
        "named": sum(trial.is_named for trial in trials),
        "faults": [asdict(trial) for trial in trials],
    }


def print_selftest(trials: Sequence[FaultTrial], *, quiet: bool = False) -> None:
    """Each planted fault, and what verifying said of it."""
    told = describe_selftest(trials)
    for trial in trials if not quiet else ():
        sign = "seen   " if trial.is_seen else "NOT SEEN"
        _echo(f"{sign} {safe(trial.file)}, {safe(trial.place)}: {trial.what}")
        if trial.is_seen:
            _echo(f"        {safe(trial.said)}")
    seen, named = told["seen"], told["named"]
    _echo(f"{seen} of {len(trials)} planted faults are seen, {named} by the name of their place")


def print_saved(path: Path, results: Results, check: Check, *, quiet: bool = False) -> None:
    """How a program compares with what was kept of the original."""
    if quiet:
        return
    _echo(f"acfuse {__version__}  {safe(path.name)}", "")
    runs = _several(len(results.runs), "run")
    _echo(f"{_verdict(check):<8}{_check_line(check)}, on {runs} of {safe(results.source)}")
    _echo(*([f"warning {safe(check.warning)}"] if check.warning else []))
    if not check.passed:
        _echo(f"FAILED  {safe(check.detail)}")
    _echo("note    outputs alone were compared, on those inputs: no certificate is in such a file")


def describe_saved(path: Path, results: Results, check: Check) -> dict[str, Any]:
    """The same for a program."""
    told = {"source": results.source, "sha256": results.sha256, "runs": len(results.runs)}
    return {"file": path.name, "passed": check.passed, "results": told, "check": asdict(check)}


def _check_line(check: Check) -> str:
    name = NAMES.get(check.name, check.name)
    if check.compared == 0 and check.passed:
        return f"{name}: nothing was compared"
    if check.name == "untouched":
        return f"{name}: {check.error:.0f}"
    if check.name in ("program", "rewriting", "entries", "scales"):
        return f"{name}: {safe(check.detail)}"
    line = f"{name}: {check.error:.1e} of the largest output"
    if check.own is not None:
        line += f" (the original's own rounding: {check.own:.1e})"
    if check.name in ("rounding", "onnx", "pt2", "results"):
        line += f"; max |a-b| {check.absolute:.1e}"
    return line


def _suspects(findings: Findings) -> list[str]:
    """What looks like branches, each kind with a pattern to start from."""
    kinds: dict[str, list[Suspect]] = {}
    for suspect in findings.suspects:
        kinds.setdefault(suspect.stub, []).append(suspect)
    lines = []
    for i, (stub, alike) in enumerate(kinds.items()):
        stub = stub.replace('name = "mine"', f'name = "mine{i + 1}"', 1) if i else stub
        where = safe(alike[0].where or "the model")
        where += f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        lines.append(
            f"suspect {where}: {safe(alike[0])} may be branches of one sum. Give --model with the "
            "code, or --patterns FILE if they are, with"
        )
        lines += [f"        {safe(line)}" for line in stub.splitlines()]
    return lines


def _refused(findings: Findings) -> list[str]:
    """What was refused, a line each; what is alike once, and what only costs more in one line."""
    dear = [r for r in findings.refused if r.code == Reason.COST]
    listed = [r for r in findings.refused if r.code != Reason.COST or len(dear) == 1]
    values: dict[tuple[str, str], list[str]] = {}
    for refused in listed:
        pattern = f" ({refused.pattern})" if refused.pattern else ""
        where = f"{safe(place_of(refused.where))}{pattern}"
        why = f"{safe(refused.why)} [{refused.code}]"
        values.setdefault((where, why), []).append(safe(refused.value))
    lines = []
    for (where, why), named in values.items():
        is_named = len(named) > 1 or where.startswith(place_of(""))
        several = ", ".join(filter(None, named)) if is_named else ""
        lines.append(f"refused {where}{several and f' at {several}'}: {why}")
    if len(dear) > 1:
        where = safe(dear[0].place)
        lines.append(
            f"refused {len(dear)} places because of the cost alone, the first {where}: "
            f"{safe(dear[0].why)} [{dear[0].code}]"
        )
    return lines
