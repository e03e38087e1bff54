"""What a manifest and a report hold, as types: a manifest is checked by them as it is read.

The JSON schemas are made of them: `python -m acfuse.pipeline.schema` writes docs/schema.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta, ValidationError, convert
from msgspec.json import schema_components

from acfuse.errors import InputError
from acfuse.system.escape import one_line
from acfuse.system.limits import Limits

VERSION = 1
Count = Annotated[int, Meta(ge=0)]
Number = Annotated[
    float | Literal["inf", "-inf", "nan"],
    Meta(description="A measure; what is not finite is a string."),
]
Name = Annotated[str, Meta(pattern=r"^[^\x00]+$")]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
ReasonCode = Annotated[str, Meta(pattern="^ACF2[0-9]{2}$")]


class File(TypedDict):
    """A file that was read, named from the manifest's folder."""

    file: Name
    sha256: Hash


class WrittenFile(File):
    """A file that was written."""

    bytes: Count


class GivenInputs(TypedDict):
    """What the networks were run on."""

    shapes: list[tuple[str | None, list[Count]]]
    kinds: NotRequired[list[str]]
    file: NotRequired[File | None]
    seed: int
    samples: Count


class OutputTolerance(TypedDict):
    """How far one output may be off."""

    atol: Number | None
    rtol: Number | None


class Asked(TypedDict):
    """What was asked for, by which an earlier result is known again."""

    equalize: NotRequired[Literal["gain", "force"] | None]
    onnx: bool
    pt2: bool
    opset: Count | None
    dynamic: str
    atol: Number | None
    rtol: Number | None
    of_outputs: NotRequired[dict[str, OutputTolerance]]
    code: Hash | None


class OnnxNodes(TypedDict):
    """How many nodes of a kind an ONNX file has."""

    Conv: Count
    BatchNormalization: Count


class Onnx(TypedDict):
    """The ONNX file of a conversion."""

    opset: Count
    dynamic: str
    inputs: list[str]
    outputs: list[str]
    nodes: OnnxNodes


class Size(TypedDict):
    """How large a network is; multiply-adds of the input that was given."""

    convolutions: Count
    parameters: Count
    multiply_adds: Count | None


class BlockCertificate(TypedDict):
    """What was measured for one block, for all inputs. An empty fault means that it is equal."""

    where: str
    ulp: Number
    error: Number
    weights: Count
    wrong: Count
    fault: str
    channels: NotRequired[tuple[Count, Count]]
    folded: NotRequired[str]


class KernelRanges(TypedDict):
    """How widely a kernel's channels range, and what 8 bits lose of the median channel."""

    spread: Number
    per_tensor: Number
    per_channel: Number


class BlockRanges(TypedDict):
    """The ranges of a block's worst branch as it enters the sum, and of what is stored."""

    before: KernelRanges | None
    after: KernelRanges | None


class FoundBlock(TypedDict):
    """A part of the network that is one convolution now."""

    where: str
    pattern: str | None
    fused: list[str]
    replaced: list[str]
    block: bool
    assumed: NotRequired[bool]
    convolutions: tuple[Count, Count]
    ranges: NotRequired[BlockRanges]
    certificate: BlockCertificate | None


class RefusedBlock(TypedDict):
    """A candidate that stays as it is."""

    where: str
    pattern: str | None
    code: ReasonCode
    why: str


class Caution(TypedDict):
    """What a reader should know of a result that is right."""

    code: ReasonCode
    text: str


class WholeCheck(TypedDict):
    """A comparison over the whole network."""

    name: str
    passed: bool
    error: Number
    limit: Number
    absolute: Number
    own: Number | None
    detail: str
    warning: str
    note: NotRequired[str]
    compared: NotRequired[Count | None]
    left_out: NotRequired[Count]
    needed: NotRequired[dict[str, float]]


class Loss(TypedDict):
    """What 8 bits per tensor lose: signal over noise of the worst output, in dB."""

    written: Number
    executed: Number


class EvenedLayer(TypedDict):
    """A layer's bits lost by 8 bits per tensor, and why what it gives stays as it is."""

    name: str
    before_bits: Number
    after_bits: Number
    why: str


class Equalized(TypedDict):
    """What became of evening out ranges; `compared` numbers are the same, bit by bit."""

    taken: bool
    gain_db: Number
    before_db: Loss
    after_db: Loss
    random_inputs: bool
    compared: Count
    layers: list[EvenedLayer]


class _Told(TypedDict):
    schema_version: Literal[1]
    acfuse: str
    torch: str
    source: File
    shards: NotRequired[list[File]]
    model: Name | None
    model_args: dict[str, Any]
    key: str | None
    prefix: NotRequired[str | None]
    allow_class: list[Name]
    limits: NotRequired[Limits]
    allow_nonfinite: NotRequired[bool]
    fix_initializers: NotRequired[bool]
    no_runtime: NotRequired[bool]
    bn_eps: float | None
    fold_bn: bool
    patterns: NotRequired[list[File]]
    assume: NotRequired[list[str]]
    cost: NotRequired[File | None]
    inputs: GivenInputs | None
    asked: NotRequired[Asked]
    onnx: Onnx | None
    pt2: NotRequired[bool]
    passed: bool
    fault: str
    diagnosis: NotRequired[str]
    before: Size
    after: Size
    found: list[FoundBlock]
    refused: list[RefusedBlock]
    equalized: NotRequired[Equalized | None]
    cautions: NotRequired[list[Caution]]
    checks: list[WholeCheck]
    notes: list[str]


class ManifestData(_Told):
    """The record that a conversion leaves. What need not be there came with later versions."""

    outputs: Annotated[list[WrittenFile], Meta(min_length=1)]


class ConversionData(_Told):
    """A conversion: its manifest, and the paths that it wrote."""

    outputs: list[WrittenFile]
    written: list[str]


class Failed(TypedDict):
    """What went wrong, and what to do."""

    message: str
    kind: Literal["not_equal", "usage", "bad_input", "unsafe", "nothing", "bad_output", "bug"]
    exit_code: Annotated[int, Meta(ge=1, le=7)]
    meaning: str
    cure: str


class FailureData(TypedDict):
    """The error with which a run ended."""

    schema_version: Literal[1]
    acfuse: str
    source: str | None
    error: Failed


class Int8Settings(TypedDict):
    """How a model was quantized; `asked_reduce_range` is null where nothing was asked."""

    per_channel: bool
    calibrate: str
    asked_reduce_range: bool | None
    reduce_range: bool
    keep: list[str]


class Int8Data(TypedDict):
    """What the ranges and figures come from; of a folder, the hash is that of all its files."""

    file: Name | None
    sha256: Hash | None
    images: Count
    random: bool


class Int8Processor(TypedDict):
    """Where the figures were measured, and whether sums of 8 bits are cut off there."""

    name: str
    saturates: bool


class Int8Output(TypedDict):
    """How far one output is from the float one: in dB, and in percent of the same largest class."""

    output: str
    written_db: Number
    executed_db: Number
    written_agreement: float | None
    executed_agreement: float | None


class Int8Layer(TypedDict):
    """A layer that loses much: the dB of the worst output if it alone is in 8 bits."""

    layer: str
    operator: str
    weight: str
    alone_db: Number
    share: float


class Int8Advice(TypedDict):
    """What was tried and helps, with the dB of the worst output on the first images."""

    what: Literal["keep", "per channel", "per tensor", "equalize"]
    layers: list[str]
    before_db: Number
    after_db: Number


class Int8Clipped(TypedDict):
    """How many percent of the numbers of a value lie past its range."""

    layer: str
    percent: float


class Int8Gates(TypedDict):
    """What was asked of the worst output."""

    min_sqnr: Number | None
    min_agreement: float | None


class Int8ManifestData(TypedDict):
    """The record that `acfuse quantize` leaves, and with `written` what it prints as JSON."""

    schema_version: Literal[1]
    acfuse: str
    onnx: str
    onnxruntime: str
    source: File
    output: WrittenFile | None
    settings: Int8Settings
    data: Int8Data
    processor: Int8Processor
    outputs: list[Int8Output]
    otherwise: list[Int8Output] | None  # with weights of the other width, where both were tried
    worst: list[Int8Layer]
    advice: list[Int8Advice]
    tried_on: Count
    clipped: list[Int8Clipped]
    gates: Int8Gates
    passed: bool
    missed: list[str]
    notes: list[str]
    written: NotRequired[list[str]]


def check_manifest(data: Any, name: str) -> None:
    """Raises InputError, which names the field, if data of the file `name` are no manifest."""
    version = data.get("schema_version") if isinstance(data, dict) else VERSION
    if version != VERSION:
        given = one_line(ValueError(version))
        raise InputError(f"{name} has schema version {given}, not {VERSION}: convert again.")
    try:
        convert(data, ManifestData)
    except (ValidationError, UnicodeError) as error:  # half a character, where no text may be
        what, _, where = str(error).partition(" - at ")
        where = where.strip("`").removeprefix("$").removeprefix(".")
        what = what.replace("Object missing required field", "it lacks")
        place = f"{name}, {where}" if where else name
        text = one_line(ValueError(what))
        raise InputError(f"{place}: {text[:1].lower()}{text[1:]}; convert again.") from error


def manifest_schema() -> dict[str, Any]:
    """The JSON schema of a manifest of this version or an earlier one."""
    return _document("A manifest of acfuse", ManifestData)


def report_schema() -> dict[str, Any]:
    """The JSON schema of what this version prints and reports: every key, and no other."""
    schema = _document("A report of acfuse", ConversionData, FailureData)
    for part in schema["$defs"].values():
        part.update(required=[*part["properties"]], additionalProperties=False)
    return schema


def int8_schema() -> dict[str, Any]:
    """The JSON schema of the record of a file in 8 bits."""
    schema = _document("A manifest of acfuse quantize", Int8ManifestData)
    for part in schema["$defs"].values():
        part.update(additionalProperties=False)
    return schema


def _document(title: str, *kinds: Any) -> dict[str, Any]:
    schemas, parts = schema_components(kinds, ref_template="#/$defs/{name}")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    whole = schemas[0] if len(kinds) == 1 else {"oneOf": [*schemas]}
    return {**head, **whole, "$defs": parts}


SCHEMAS = {"manifest": manifest_schema, "report": report_schema, "int8": int8_schema}

if __name__ == "__main__":
    for name, made in SCHEMAS.items():
        path = Path("docs/schema") / f"{name}.schema.json"
        path.write_text(json.dumps(made(), indent=2) + "\n", encoding="utf-8")
