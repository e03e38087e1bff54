"""A conversion as text for people and as JSON for programs. Names from files are only ever data."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from acfuse.find import Findings
from acfuse.job import Conversion
from acfuse.manifest import VERSION, describe
from acfuse.patterns import Pattern
from acfuse.verify import Certificate, Check

WIDE = 400  # nothing is cut off where the width of the terminal is not known


def console(*, stderr: bool = False) -> Console:
    """A console that never cuts names, and never takes them for markup or links."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDE
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False,
                   soft_wrap=True)  # fmt: skip


def safe(name: object) -> str:
    """A string from a file, with everything that a terminal or CI log would obey made visible."""
    text = "".join(
        c if c.isprintable() and c not in BIDI else c.encode("unicode_escape").decode()
        for c in str(name)
    )
    return text.replace("::", ":\u200b:") if text.startswith("::") else text


BIDI = {chr(n) for n in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def print_json(data: object) -> None:
    """Exactly one JSON document on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, default=str) + "\n")


def print_conversion(conversion: Conversion, *, quiet: bool = False) -> None:
    """What was found, proved and written."""
    out = console()
    if quiet:
        return
    job = conversion.job
    out.print(f"acfuse {VERSION}  {safe(job.source.name)}")
    out.print()
    out.print(_blocks_table(conversion))
    out.print()
    for line in _summary(conversion):
        out.print(line)
    _print_refused(out, conversion.findings)
    for note in (*conversion.notes, *conversion.proofs.notes):
        out.print(f"note    {safe(note)}")


def print_findings(findings: Findings, source: str) -> None:
    """What would be fused, and what not, and why."""
    out = console()
    out.print(f"acfuse {VERSION}  {safe(source)}")
    out.print()
    table = _table("block", "pattern", "fused into", "convolutions", "multiply-adds/pixel")
    for block in findings.found:
        table.add_row(
            Text(safe(block.label)),
            Text(block.pattern or ("found by algebra" if block.is_block else "fold")),
            Text(safe(", ".join(block.names))),
            f"{block.convolutions[0]} -> {block.convolutions[1]}",
            _costs(block.multiply_adds),
        )
    if findings.found:
        out.print(table)
        out.print()
    out.print(f"{len(findings.blocks)} blocks can be fused, {len(findings.refused)} were refused")
    _print_refused(out, findings)
    for note in findings.notes:
        out.print(f"assumed {safe(note)}")


def print_patterns(patterns: Sequence[Pattern]) -> None:
    """The registry."""
    table = _table("pattern", "fused name", "BN eps", "bare", "source")
    for p in patterns:
        eps = "?" if p.bn_eps is None else f"{p.bn_eps:g}"
        table.add_row(p.name, p.fused, eps, "no" if p.alone else "yes", p.source)
    console().print(table)


def describe_findings(findings: Findings, source: str) -> dict[str, Any]:
    """What `inspect --format json` prints."""
    return {
        "acfuse": VERSION,
        "source": source,
        "found": [
            {
                "where": f.where,
                "pattern": f.pattern,
                "fused": list(f.names),
                "replaced": list(f.layers),
                "block": f.is_block,
                "convolutions": list(f.convolutions),
            }
            for f in findings.found
        ],
        "refused": [
            {"where": r.where, "pattern": r.pattern, "code": str(r.code), "why": r.why}
            for r in findings.refused
        ],
        "notes": list(findings.notes),
    }


def conversion_json(conversion: Conversion) -> dict[str, Any]:
    """What `--format json` prints of a conversion: its manifest, and the paths it wrote."""
    contents = {path: path.read_bytes() for path in conversion.written[:-1]}
    data = describe(conversion, contents)
    return {**data, "written": [str(path) for path in conversion.written]}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ignore")
    return table


def _costs(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,} -> {pair[1]:,}" if pair[0] else f"{pair[1]:,}"


def _blocks_table(conversion: Conversion) -> Table:
    table = _table("block", "pattern", "convolutions", "worst ULP", "error in float64")
    certificates: list[Certificate | None] = [*conversion.proofs.certificates]
    certificates += [None] * (len(conversion.findings.found) - len(certificates))
    for block, certificate in zip(conversion.findings.found, certificates, strict=True):
        bad = certificate is not None and not certificate.passed
        table.add_row(
            Text(safe(block.label), style="red" if bad else ""),
            Text(block.pattern or ("algebra" if block.is_block else "fold")),
            f"{block.convolutions[0]} -> {block.convolutions[1]}",
            "" if certificate is None else f"{certificate.ulp:.2f}",
            "" if certificate is None else f"{certificate.error:.1e}",
        )
    return table


def _summary(conversion: Conversion) -> list[str]:
    before, after = conversion.sizes
    lines = [
        f"fused   {len(conversion.findings.blocks)} blocks: convolutions {before.convolutions} -> "
        f"{after.convolutions}, parameters {before.parameters:,} -> {after.parameters:,}"
        + (
            f", multiply-adds {before.multiply_adds:,} -> {after.multiply_adds:,}"
            if before.multiply_adds and after.multiply_adds
            else ""
        )
    ]
    proofs = conversion.proofs
    if proofs.certificates and all(c.passed for c in proofs.certificates):
        worst = max(c.ulp for c in proofs.certificates)
        lines.append(
            f"equal   certificate of {len(proofs.certificates)} blocks, for all inputs: every "
            f"weight within {worst:.2f} ULP (at most 0.51)"
        )
    lines += [f"{'equal' if c.passed else 'NOT EQUAL':<8}{_check_line(c)}" for c in proofs.checks]
    lines += [f"warning {c.warning}" for c in proofs.checks if c.warning]
    if not proofs.passed:
        lines.append(f"FAILED  {safe(proofs.fault)}")
        if conversion.diagnosis:
            lines.append(f"        looks like: {safe(conversion.diagnosis)}")
        if not conversion.written:
            lines.append("        nothing was written")
    if conversion.onnx is not None and conversion.written:
        onnx = conversion.onnx
        lines.append(
            f"onnx    opset {onnx.opset}, {_signature(conversion)}, {onnx.count('Conv')} Conv, "
            f"{onnx.count('BatchNormalization')} BatchNormalization"
        )
    for path in conversion.written:
        lines.append(f"wrote   {safe(path)}  ({path.stat().st_size:,} bytes)")
    return lines


def _signature(conversion: Conversion) -> str:
    onnx = conversion.onnx
    if onnx is None:
        return ""

    def shown(value: Any) -> str:
        dims = value.type.tensor_type.shape.dim
        return f"{safe(value.name)}[{','.join(d.dim_param or str(d.dim_value) for d in dims)}]"

    graph = onnx.model.graph
    inputs, outputs = map(shown, graph.input), map(shown, graph.output)
    return f"{', '.join(inputs)} -> {', '.join(outputs)}"


NAMES = {
    "algebra": "whole model in float64, nothing rounded",
    "weights": "whole model in float64, weights as stored",
    "rounding": "whole model as it ships",
    "onnx": "ONNX file in onnxruntime against the original model",
}


def _check_line(check: Check) -> str:
    line = f"{NAMES.get(check.name, check.name)}: {check.error:.1e} of the largest output"
    if check.own is not None:
        line += f" (the original's own rounding: {check.own:.1e})"
    if check.name in ("rounding", "onnx"):
        line += f"; max |a-b| {check.absolute:.1e}"
    return line


def _print_refused(out: Console, findings: Findings) -> None:
    for refused in findings.refused:
        pattern = f" ({refused.pattern})" if refused.pattern else ""
        where = safe(refused.where or "the model")
        out.print(f"refused {where}{pattern}: {safe(refused.why)} [{refused.code}]")
