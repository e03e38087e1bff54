"""What a report says, as one plain value: of a manifest's data, and of a run's pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acfuse.int8.ranges import Ranges
from acfuse.pipeline.ranges import BlockRanges

Grid = tuple[tuple[float, ...], ...]

# What each comparison of whole models is, in words.
NAMES = {
    "program": "what is outside of the blocks, as acfuse writes it",
    "entries": "what a checkpoint holds beside its weights",
    "untouched": "tensors that were not fused, other than the original's",
    "algebra": "whole model in float64, nothing rounded",
    "weights": "whole model in float64, weights as stored",
    "rounding": "whole model as it ships",
    "rewriting": "what acfuse rewrote, read back",
    "scales": "channels times powers of two, which change no bit",
    "onnx": "ONNX file in onnxruntime against the original model",
    "pt2": ".pt2 file in torch against the original model",
    "results": "outputs beside those that were kept of the original",
}
ONLY_A_RUN = (
    "This report was made from a manifest. Kernels, the histogram and pictures of ranges are "
    "made while a conversion runs: give --report to `acfuse convert` or `acfuse verify`."
)


@dataclass(frozen=True)
class Kernel:
    """A kernel as a picture: the mean |w| over all channels at each tap, of its block's largest.

    `ranges` are the largest |w| of each output channel, sorted, as multiples of their median; of
    very many channels, some in equal steps with both ends. `measured` is what 8 bits lose of it.
    """

    name: str
    taps: tuple[int, ...]
    grid: Grid
    ranges: tuple[float, ...]
    measured: Ranges

    @property
    def spread(self) -> float:
        """The largest range of a channel over the median of all; 0 where all are zero."""
        return self.ranges[-1] if self.ranges else 0.0


def worst_kernel(kernels: Sequence[Kernel]) -> Kernel | None:
    """The one of several of which 8 bits lose most."""
    return max(kernels, key=lambda kernel: kernel.measured.order, default=None)


@dataclass(frozen=True)
class BlockPictures:
    """The kernels of a block: of its branches as they enter the sum, and of what is stored."""

    before: tuple[Kernel, ...]
    after: tuple[Kernel, ...]


@dataclass(frozen=True)
class Pictures:
    """What only a run can show, with the blocks in the order in which they were found.

    `ulps` counts the stored numbers by their distance from the exact ones: equal parts
    from 0 to half a unit, and one for all beyond. `kept` are the layers that stay as they are;
    `order` says where each module stands in the network, as far as that is known.
    """

    blocks: tuple[BlockPictures, ...]
    ulps: tuple[int, ...]
    kept: tuple[str, ...]
    order: Mapping[str, int]
    source_bytes: int
    environment: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """A block: what it was, what it is, and what its certificate says."""

    where: str
    pattern: str
    kind: str  # fused, folded or assumed
    fused: tuple[str, ...]
    replaced: tuple[str, ...]
    convolutions: tuple[int, int]
    ulp: float | None
    error: float | None
    weights: int
    fault: str
    pictures: BlockPictures | None
    ranges: BlockRanges

    @property
    def is_proved(self) -> bool:
        """Whether there is a certificate, and it holds."""
        return self.ulp is not None and not self.fault

    @property
    def alike(self) -> tuple[Any, ...]:
        """What equal blocks have in common."""
        shapes = () if self.pictures is None else tuple(k.taps for k in self.pictures.after)
        return self.pattern, self.kind, self.convolutions, self.replaced, shapes, bool(self.fault)


@dataclass(frozen=True)
class Refusal:
    """A candidate that stays as it is."""

    where: str
    pattern: str
    code: str
    why: str


@dataclass(frozen=True)
class Line:
    """A comparison of whole models, or files."""

    name: str
    words: str
    passed: bool
    error: float
    limit: float
    absolute: float
    detail: str
    warning: str
    compared: int | None


@dataclass(frozen=True)
class FileLine:
    """A file that was read or written."""

    role: str
    name: str
    size: int | None
    sha256: str


@dataclass(frozen=True)
class Total:
    """One figure before and after; None where it is not known."""

    name: str
    before: int | None
    after: int | None

    @property
    def ratio(self) -> float | None:
        """How many times smaller it is now."""
        return self.before / self.after if self.before and self.after else None


@dataclass(frozen=True)
class Report:
    """Everything that a report says. `data` is what `--format json` prints."""

    source: str
    version: str
    passed: bool
    verdict: str
    fault: str
    diagnosis: str
    totals: tuple[Total, ...]
    rows: tuple[Row, ...]
    refusals: tuple[Refusal, ...]
    lines: tuple[Line, ...]
    files: tuple[FileLine, ...]
    environment: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    cautions: tuple[str, ...]
    pictures: Pictures | None
    data: Mapping[str, Any]

    @property
    def speed_up(self) -> float | None:
        """How many times fewer multiply-adds; None where no input was given."""
        return self.totals[1].ratio

    @property
    def groups(self) -> list[list[Row]]:
        """The blocks, equal ones together, in the order of the first of each."""
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.alike, []).append(row)
        return [*groups.values()]


def report_of(data: Mapping[str, Any], pictures: Pictures | None = None) -> Report:
    """A report from what `--format json` prints, which is what a manifest holds."""
    drawn = (None,) * len(data["found"]) if pictures is None else pictures.blocks
    rows = tuple(_row(found, own) for found, own in zip(data["found"], drawn, strict=True))
    lines = tuple(map(_line, data["checks"]))
    passed, fault = bool(data["passed"]), str(data["fault"])
    environment = (("acfuse", str(data["acfuse"])), ("torch", str(data["torch"])))
    return Report(
        source=str(data["source"]["file"]),
        version=str(data["acfuse"]),
        passed=passed,
        verdict=_verdict(rows, lines, passed=passed, fault=fault),
        fault=fault,
        diagnosis=str(data.get("diagnosis", "")),
        totals=_totals(data, pictures),
        rows=rows,
        refusals=tuple(
            Refusal(str(r["where"]), str(r["pattern"] or ""), str(r["code"]), str(r["why"]))
            for r in data["refused"]
        ),
        lines=lines,
        files=tuple(_files(data, pictures)),
        environment=environment if pictures is None else (*environment, *pictures.environment),
        notes=(*map(str, data["notes"]), *((ONLY_A_RUN,) if pictures is None else ())),
        cautions=tuple(f"{c['text']} [{c['code']}]" for c in data.get("cautions", ())),
        pictures=pictures,
        data=data,
    )


def _row(found: Mapping[str, Any], pictures: BlockPictures | None) -> Row:
    certificate = found["certificate"]
    before, after = map(int, found["convolutions"])
    fused = tuple(map(str, found["fused"]))
    return Row(
        where=str(found["where"] or (fused[0] if fused else "the model")),
        pattern=str(found["pattern"] or ("algebra" if found["block"] else "fold")),
        kind="assumed" if found.get("assumed") else "fused" if found["block"] else "folded",
        fused=fused,
        replaced=tuple(map(str, found["replaced"])),
        convolutions=(before, after),
        ulp=None if certificate is None else float(certificate["ulp"]),
        error=None if certificate is None else float(certificate["error"]),
        weights=0 if certificate is None else int(certificate["weights"]),
        fault="" if certificate is None else str(certificate["fault"]),
        pictures=pictures,
        ranges=BlockRanges.of_json(found.get("ranges")),
    )


def _line(check: Mapping[str, Any]) -> Line:
    return Line(
        name=str(check["name"]),
        words=NAMES.get(check["name"], str(check["name"])),
        passed=bool(check["passed"]),
        error=float(check["error"]),
        limit=float(check["limit"]),
        absolute=float(check["absolute"]),
        detail=str(check["detail"]),
        warning=str(check["warning"]),
        compared=check.get("compared"),
    )


def _verdict(rows: Sequence[Row], lines: Sequence[Line], *, passed: bool, fault: str) -> str:
    """The result in one line."""
    if not passed:
        return f"Not equal: {fault}"
    assumed = sum(row.kind == "assumed" for row in rows)
    proved = len(rows) - assumed
    words = [f"{proved} of {len(rows)} blocks are proved for all inputs"] if rows else []
    words += [f"{assumed} hold by the word of --assume"] if assumed else []
    words += [f"{len(lines)} of {len(lines)} comparisons of the whole agree"] if lines else []
    start = "Equal" if rows else "Nothing was fused"
    return f"{start}: {', '.join(words)}." if words else f"{start}."


def _totals(data: Mapping[str, Any], pictures: Pictures | None) -> tuple[Total, ...]:
    before, after = data["before"], data["after"]
    keys = ("convolutions", "multiply_adds", "parameters")
    pairs = [
        Total(key.replace("_", "-"), *(s[key] if s[key] is None else int(s[key]) for s in pair))
        for key, pair in ((key, (before, after)) for key in keys)
    ]
    written = data["outputs"][0]["bytes"] if data["outputs"] else None
    return (
        *pairs,
        Total("bytes of the file", None if pictures is None else pictures.source_bytes, written),
    )


def _files(data: Mapping[str, Any], pictures: Pictures | None) -> list[FileLine]:
    size = None if pictures is None else pictures.source_bytes
    shards = data.get("shards", ())
    read = [("read", data["source"], size), *(("read", shard, None) for shard in shards)]
    given = [*read, *(("written", output, output["bytes"]) for output in data["outputs"])]
    return [FileLine(role, str(f["file"]), n, str(f["sha256"])) for role, f, n in given]
