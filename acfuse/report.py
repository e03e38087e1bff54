"""A conversion as text for people and as JSON for programs. Names from files are only ever data."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from acfuse import __version__
from acfuse.errors import Reason
from acfuse.findings import Block, Findings, Suspect
from acfuse.patterns import Pattern
from acfuse.patterns.trial import Trial
from acfuse.pipeline.job import Conversion
from acfuse.pipeline.manifest import describe, findings_json
from acfuse.pipeline.selftest import Trial as FaultTrial
from acfuse.proof import Check
from acfuse.system.atomic_write import written_to
from acfuse.system.escape import as_json, columns, safe


def print_json(data: object) -> None:
    """Exactly one JSON document on stdout."""
    click.echo(as_json(data))


def print_conversion(conversion: Conversion, *, quiet: bool = False) -> None:
    """What was found, proved and written."""
    if quiet:
        return
    job = conversion.job
    _echo(f"acfuse {__version__}  {safe(job.source.name)}")
    _echo("", *_blocks(conversion), "", *_summary(conversion), *_refused(conversion.findings))
    for note in (*conversion.notes, *conversion.proofs.notes):
        _echo(f"note    {safe(note)}")


def print_findings(seen: Conversion) -> None:
    """What would be fused, and what not, and why."""
    findings = seen.findings
    _echo(f"acfuse {__version__}  {safe(seen.job.source.name)}")
    _echo()
    rows = [
        (
            safe(block.label),
            _pattern_name(block),
            safe(", ".join(block.names)),
            f"{block.convolutions[0]} -> {block.convolutions[1]}",
            _costs(block.multiply_adds),
        )
        for block in findings.found
    ]
    header = ("block", "pattern", "fused into", "convolutions", "multiply-adds/pixel")
    _echo("", *columns(header, rows), "") if rows else _echo("")
    count = f"{_counted(findings)} can be fused, {len(findings.refused)} were refused"
    _echo(count, f"in all: {_sizes(seen)}", *_refused(findings))
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
        **findings_json(findings, seen.proofs),
        "suspects": [
            {"where": s.where, "layers": [b[0] for b in s.branches], "pattern": s.stub}
            for s in findings.suspects
        ],
        "state": list(findings.state),
        "notes": list(findings.notes),
    }


def conversion_json(conversion: Conversion) -> dict[str, Any]:
    """What `--format json` prints of a conversion: its manifest, and the paths it wrote."""
    data = describe(conversion, {path: written_to(path) for path in conversion.written[:-1]})
    return {**data, "written": [str(path) for path in conversion.written]}


def _echo(*lines: str) -> None:
    for line in lines:
        click.echo(line)


def _pattern_name(block: Block) -> str:
    name = block.pattern or ("algebra" if block.is_block else "fold")
    return f"{name} (assumed)" if block.assumed else name


def _costs(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,} -> {pair[1]:,}" if pair[0] else f"{pair[1]:,}"


def _blocks(conversion: Conversion) -> list[str]:
    rows = []
    certificates = conversion.proofs.certificates
    for i, block in enumerate(conversion.findings.found):
        certificate = certificates[i] if i < len(certificates) else None
        rows.append(
            (
                safe(block.label),
                _pattern_name(block),
                f"{block.convolutions[0]} -> {block.convolutions[1]}",
                "" if certificate is None else f"{certificate.ulp:.2f}",
                "" if certificate is None else f"{certificate.error:.1e}",
            )
        )
    return columns(("block", "pattern", "convolutions", "worst ULP", "error in float64"), rows)


def _sizes(conversion: Conversion) -> str:
    """Convolutions, parameters and (for a given input) multiply-adds, before and after."""
    before, after = conversion.sizes
    text = (
        f"convolutions {before.convolutions} -> {after.convolutions}, parameters "
        f"{before.parameters:,} -> {after.parameters:,}"
    )
    if before.multiply_adds and after.multiply_adds:
        text += f", multiply-adds {before.multiply_adds:,} -> {after.multiply_adds:,}"
    return text


def _counted(findings: Findings) -> str:
    """How many blocks and folds there are."""
    blocks = len(findings.blocks)
    folds = len(findings.found) - blocks
    told = [f"{blocks} blocks"] if blocks or not folds else []
    return " and ".join([*told, *([f"{folds} folds"] if folds else [])])


def _summary(conversion: Conversion) -> list[str]:
    lines = [f"fused   {_counted(conversion.findings)}: {_sizes(conversion)}"]
    proofs = conversion.proofs
    pairs = [*zip(conversion.findings.found, proofs.certificates, strict=False)]
    known = [certificate for block, certificate in pairs if not block.assumed]
    if known and all(c.passed for c in proofs.certificates):
        worst = max(c.ulp for c in known)
        folded = {c.folded for c in known if c.folded}
        told = f"folded in {', '.join(sorted(folded))}: rounding, no fault; " if folded else ""
        limit = "where terms cancel" if folded else "at most 0.51"
        lines.append(
            f"equal   certificate of {len(known)} blocks, for all inputs: {told}every "
            f"weight within {worst:.2f} ULP ({limit})"
        )
    if len(known) < len(pairs):
        count = len(pairs) - len(known)
        lines.append(
            f"assumed {count} blocks whose forward cannot be read: compared on images of a few "
            "sizes, and by the word of --assume for all others"
        )
    lines += [f"{_verdict(c):<8}{_check_line(c)}" for c in proofs.checks]
    lines += [f"warning {c.warning}" for c in proofs.checks if c.warning]
    if not proofs.passed:
        lines.append(f"FAILED  {safe(proofs.fault)}")
        if conversion.diagnosis:
            lines.append(f"        looks like: {safe(conversion.diagnosis)}")
        if not conversion.written:
            lines.append("        nothing was written")
    if conversion.onnx is not None and conversion.written:
        onnx, kinds = conversion.onnx, ("Conv", "ConvTranspose", "BatchNormalization")
        counts = {kind: onnx.count(kind) for kind in kinds}
        nodes = [f"{n} {kind}" for kind, n in counts.items() if n or kind != "ConvTranspose"]
        lines.append(f"onnx    opset {onnx.opset}, {_signature(conversion)}, {', '.join(nodes)}")
    for path in conversion.written:
        lines.append(f"wrote   {safe(path)}  ({path.stat().st_size:,} bytes)")
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


NAMES = {
    "program": "what is outside of the blocks, as acfuse writes it",
    "entries": "what a checkpoint holds beside its weights",
    "untouched": "tensors that were not fused, other than the original's",
    "algebra": "whole model in float64, nothing rounded",
    "weights": "whole model in float64, weights as stored",
    "rounding": "whole model as it ships",
    "rewriting": "what acfuse rewrote, read back",
    "onnx": "ONNX file in onnxruntime against the original model",
    "pt2": ".pt2 file in torch against the original model",
}


def _check_line(check: Check) -> str:
    name = NAMES.get(check.name, check.name)
    if check.compared == 0 and check.passed:
        return f"{name}: nothing was compared"
    if check.name == "untouched":
        return f"{name}: {check.error:.0f}"
    if check.name in ("program", "rewriting", "entries"):
        return f"{name}: {safe(check.detail)}"
    line = f"{name}: {check.error:.1e} of the largest output"
    if check.own is not None:
        line += f" (the original's own rounding: {check.own:.1e})"
    if check.name in ("rounding", "onnx", "pt2"):
        line += f"; max |a-b| {check.absolute:.1e}"
    return line


def _suspects(findings: Findings) -> list[str]:
    """What looks like branches, each kind with a pattern to start from."""
    kinds: dict[str, list[Suspect]] = {}
    for suspect in findings.suspects:
        kinds.setdefault(suspect.stub, []).append(suspect)
    lines = []
    for stub, alike in kinds.items():
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
        where = f"{safe(refused.where or 'the model')}{pattern}"
        why = f"{safe(refused.why)} [{refused.code}]"
        values.setdefault((where, why), []).append(safe(refused.value))
    lines = []
    for (where, why), named in values.items():
        several = ", ".join(filter(None, named)) if len(named) > 1 else ""
        lines.append(f"refused {where}{several and f' at {several}'}: {why}")
    if len(dear) > 1:
        where = safe(dear[0].where or "the model")
        lines.append(
            f"refused {len(dear)} places because of the cost alone, the first {where}: "
            f"{safe(dear[0].why)} [{dear[0].code}]"
        )
    return lines
