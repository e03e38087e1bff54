"""explain: what a code means, or how a block of a checkpoint becomes one convolution."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import indent, wrap
from typing import TYPE_CHECKING, Any

import click

from acfuse.commands.jobs import check_first, job_of
from acfuse.commands.shown import progress_of
from acfuse.errors import UsageError
from acfuse.options import COMMON_OPTIONS, MODEL_OPTIONS, takes
from acfuse.system.escape import as_json, columns, safe

if TYPE_CHECKING:
    from acfuse.codes import Code
    from acfuse.pipeline.walk import Walk

WIDTH = 80
INPUT = ({"layer": "", "what": "the input itself", "bias": None},)
Layers = Sequence[tuple[str, str, float | None]]


@click.command()
@click.argument("what", required=False, metavar="[CODE | SOURCE]")
@click.argument("block", required=False)
@takes(MODEL_OPTIONS, COMMON_OPTIONS)
def explain(
    what: str | None, block: str | None, format: str, quiet: bool, verbose: int, **options: Any
) -> None:
    """Say what a code means, or walk through one BLOCK of a checkpoint.

    \b
    acfuse explain                     lists every code
    acfuse explain ACF205              a code of a message
    acfuse explain exit-3              an exit code
    acfuse explain model.pth BLOCK     arms, kernels and biases of a block, or
                                       why it was refused
    """  # noqa: D301
    if what is None:
        _list(format)
    elif block is None:
        _explain_code(code_named(what), format)
    else:
        _walk(Path(what), block, format, quiet, verbose, options)


def code_named(text: str) -> "Code":
    """The code of a name: ACF205, padded-middle, exit-3 or 3. Raises UsageError, with those near.

    A file stands where only a block is missing: that is said.
    """
    from acfuse.codes import CODES  # long texts, that no other command reads

    known = {alias: code for code in CODES for alias in (code.name.lower(), *code.aliases)}
    wanted = text.strip().strip("[]").lower().replace("_", "-")
    if wanted in known:
        return known[wanted]
    if Path(text).exists():
        raise UsageError(
            f"give the block of {text} that should be explained; `acfuse inspect {text}` lists "
            "them."
        )
    close = dict.fromkeys(known[name].name for name in get_close_matches(wanted, known))
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UsageError(f"there is no code {text!r}.{hint} `acfuse explain` lists them all.")


def _list(format: str) -> None:
    """Every code in one screen."""
    from acfuse.codes import CODES, EXITS, REASONS

    if format == "json":
        click.echo(as_json([{"code": code.name, "title": code.title} for code in CODES]))
        return
    for group in (REASONS, EXITS):
        _echo(*columns(("code", "meaning"), [(code.name, code.title) for code in group]), "")
    _echo("`acfuse explain CODE` says more, with an example.")


def _explain_code(code: "Code", format: str) -> None:
    if format == "json":
        told = {name: getattr(code, name) for name in ("title", "meaning", "example", "says")}
        click.echo(as_json({"code": code.name, **told, "cure": code.cure}))
        return
    _echo(f"{code.name}  {code.title}", "", *wrap(code.meaning, WIDTH), "")
    if code.example:
        _echo("For example:", "", indent(code.example.rstrip("\n"), "    "), "")
        _echo("prints", "", indent(code.says, "    "), "")
    _echo(*_cure(code))


def _walk(
    source: Path, name: str, format: str, quiet: bool, verbose: int, options: dict[str, Any]
) -> None:
    """One block step by step, or why it was refused."""
    options["dry_run"] = True
    check_first(source, options)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose) as progress:
        from acfuse.pipeline.walk import walk

        walked = walk(job_of(source, options), name, progress)
    if isinstance(walked, tuple):
        from acfuse.codes import REASONS

        codes = {code.code: code for code in REASONS}
        told = [(refused, codes[refused.code]) for refused in walked]
        if format == "json":
            rows = [
                {"where": r.where, "code": r.code, "why": r.why, "cure": c.cure} for r, c in told
            ]
            click.echo(as_json({"refused": rows}))
            return
        for refused, code in told:
            where = safe(refused.place)
            _echo(f"{where} stays as it is: {safe(refused.why)} [{code.name}]", "")
            _echo(*wrap(code.meaning, WIDTH), "", *_cure(code), "")
        _echo(f"`acfuse explain {told[0][1].name}` shows an example.")
    elif format == "json":
        click.echo(as_json(_described(walked)))
    else:
        _echo(*_walked(walked))


def _described(walk: "Walk") -> dict[str, Any]:
    """A walk as JSON has it."""
    from acfuse.pipeline.walk import drawn

    def rows(layers: Layers) -> list[dict[str, Any]]:
        return [dict(zip(("layer", "what", "bias"), layer, strict=True)) for layer in layers]

    block, certificate = walk.block, walk.certificate
    return {
        "block": block.label,
        "pattern": block.pattern,
        "convolutions": list(block.convolutions),
        "multiply_adds": list(block.multiply_adds),
        "arms": [
            {
                "source": arm.source,
                "layers": rows(arm.layers),
                "bias": arm.bias,
                "taps": list(taps),
            }
            for arm, taps in zip(walk.arms.arms, drawn(walk.arms.arms), strict=True)
        ],
        "behind": rows(walk.arms.behind),
        "bias": walk.bias,
        "results": [{"name": name, "what": what} for name, what in walk.results],
        "ranges": walk.ranges.to_json(),
        "certificate": certificate
        and {"ulp": certificate.ulp, "error": certificate.error, "fault": certificate.fault},
    }


def _walked(walk: "Walk") -> list[str]:
    """A walk as text."""
    from acfuse.pipeline.ranges import in_words

    told = _described(walk)
    before, after = told["convolutions"]
    label, pattern = safe(told["block"]), told["pattern"] or "found by algebra"
    count, many = len(told["arms"]), len({arm["source"] for arm in told["arms"]}) > 1
    lines = [f"{label}  {pattern}  convolutions {before} -> {after}", ""]
    for number, arm in enumerate(told["arms"], 1):
        of = f" (of {safe(arm['source'])})" if many else ""
        lines += [f"branch {number} of {count}{of}", *_layers(arm["layers"] or INPUT)]
        lines += [f"    {line}" for line in arm["taps"]]
        lines += [""]
    if told["behind"]:
        lines += ["behind their sum", *_layers(told["behind"]), ""]
    shares = [arm["bias"] for arm in told["arms"] if arm["bias"] is not None]
    if shares:
        total = [f"= {sum(shares):.6g}"] * (len(shares) > 1)
        lines.append(" ".join(["bias[0]", " + ".join(f"{share:.6g}" for share in shares), *total]))
    if told["behind"]:
        lines.append(f"        and behind the sum: {told['bias']:.6g}")
    lines += [f"result  {safe(row['name'])}: {row['what']}" for row in told["results"]]
    if told["multiply_adds"][0]:
        lines.append("cost    {:,} -> {:,} multiply-adds per pixel".format(*told["multiply_adds"]))
    if walk.ranges.after is not None:
        lines.append(f"8 bits  lose {in_words(walk.ranges)}")
    certificate = told["certificate"]
    if certificate is not None:
        said = certificate["fault"] or f"every weight within {certificate['ulp']:.2f} ULP"
        lines.append(f"proof   for all inputs: {safe(said)}")
    return lines


def _layers(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            f"    {safe(layer['layer'])}",
            safe(layer["what"]),
            "" if layer["bias"] is None else f"bias[0] = {layer['bias']:.6g}",
        )
        for layer in layers
    ]
    return columns(("", "", ""), rows)[1:]


def _cure(code: "Code") -> list[str]:
    indent = "  "
    return ["What to do:", *wrap(code.cure, WIDTH, initial_indent=indent, subsequent_indent=indent)]


def _echo(*lines: str) -> None:
    click.echo("\n".join(lines))
