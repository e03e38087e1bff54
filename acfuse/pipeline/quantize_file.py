"""An ONNX file to one in 8 bits with its manifest, written only where it passes its gates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from torch import Tensor

from acfuse import __version__
from acfuse.errors import InputError, UsageError
from acfuse.files.arrays import tensor_of
from acfuse.files.detect import is_onnx
from acfuse.files.many_arrays import ManyArrays, read_many
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.opened_file import unchanged
from acfuse.files.records import ReadOptions
from acfuse.int8.data import Data, data_of, random_data
from acfuse.int8.quantized import Figures
from acfuse.pipeline.manifest import record, to_json
from acfuse.pipeline.quantize import (
    Quantized,
    Settings,
    check_float,
    check_gates,
    check_settings,
    quantize_model,
)
from acfuse.pipeline.schema import VERSION
from acfuse.proof import Inputs
from acfuse.system.atomic_write import Written, reserved, write_all
from acfuse.system.escape import safe
from acfuse.system.limits import LIMITS, Limits
from acfuse.system.processor import processor


@dataclass(frozen=True)
class Gates:
    """What the worst output has to reach: signal over noise in dB, the same top-1 in percent."""

    min_sqnr: float | None = None
    min_agreement: float | None = None


@dataclass(frozen=True)
class QuantizedFile:
    """What became of a file: where it passes its gates it was written, else `missed` says why."""

    made: Quantized
    missed: tuple[str, ...]
    written: tuple[Path, ...]
    told: dict[str, Any]  # the manifest


def quantize_file(
    source: Path,
    output: Path,
    manifest: Path,
    data: Path | None,
    settings: Settings,
    gates: Gates = Gates(),
    inputs: Inputs | None = None,
    *,
    force: bool = False,
    limits: Limits = LIMITS,
    progress: Callable[[str], None] = lambda _: None,
) -> QuantizedFile:
    """Quantizes an ONNX file by real data, or without any by inputs that are made up.

    Nothing is written where a gate is missed. Raises UsageError, InputError and OutputError.
    """
    check_settings(settings)
    check_gates(gates.min_sqnr, gates.min_agreement)
    if not is_onnx(source):
        raise UsageError(
            f"{safe(source.name)} is no ONNX file; give the one that `acfuse convert` wrote."
        )
    model, files = read_onnx(source, ReadOptions(limits=limits))
    try:
        check_float(model)
    except InputError as error:
        raise InputError(f"{safe(source.name)}: {error}") from error
    with reserved([output, manifest], [*files], force=force), unchanged(files):
        progress("the data")
        many = None if data is None else read_many(data, "--data", limits)
        made = quantize_model(model, data_for(model, many, inputs), settings, limits, progress)
        if gates.min_agreement is not None and made.agreement is None:
            raise UsageError(
                "--min-agreement: no output gives classes ([images, classes]), so that none could "
                "agree; give --min-sqnr."
            )
        missed = made.missed(gates.min_sqnr, gates.min_agreement)

        def told(written: Written | None) -> dict[str, Any]:
            return {
                "schema_version": VERSION,
                "acfuse": __version__,
                "onnx": onnx.__version__,
                "onnxruntime": onnxruntime.__version__,
                "source": {"file": source.name, "sha256": files[source].sha256},
                "output": None if written is None else record(output, written),
                "settings": _settings(made),
                "data": {
                    "file": many and many.name,
                    "sha256": many and many.sha256,
                    "images": made.images,
                    "random": made.is_random,
                },
                **describe(made),
                "gates": vars(gates),
                "passed": not missed,
                "missed": [*missed],
                "notes": [*made.notes],
            }

        if missed:
            return QuantizedFile(made, missed, (), told(None))
        kept: dict[str, Any] = {}

        def last(written: Any) -> bytes:
            kept.update(told(written[output]))
            return to_json(kept)

        try:
            content = made.model.SerializeToString()
        except Exception as error:  # of protobuf's own: a file has two gigabytes at most
            raise InputError(f"{safe(source.name)} is too large for one ONNX file.") from error
        write_all({output: content}, (manifest, last))
    return QuantizedFile(made, (), (output, manifest), kept)


def quantize_given(
    model: onnx.ModelProto | str | Path,
    data: object,
    settings: Settings,
    *,
    is_random: bool = False,
) -> Quantized:
    """The same of a model or file, and of arrays, a file or a folder; nothing is written."""
    check_settings(settings)
    if (data is None) != is_random:
        raise UsageError(
            "data: give real inputs (an array, arrays by name, a file or a folder), or random=True "
            "to try it with inputs that are made up; not both."
        )
    if not isinstance(model, onnx.ModelProto):
        model, _ = read_onnx(Path(model), ReadOptions())
    if isinstance(data, (str, Path)):
        return quantize_model(model, data_for(model, read_many(Path(data), "data"), None), settings)
    if data is None:
        return quantize_model(model, random_data(model, None), settings)
    named = data if isinstance(data, Mapping) else {"arr_0": data}
    parts = [("data", {str(name): _tensor(name, array) for name, array in named.items()})]
    return quantize_model(model, data_of(model, parts), settings)


def _tensor(name: object, array: object) -> Tensor:
    """An array as a tensor on the CPU. Raises UsageError for what is none of numbers."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    try:
        return tensor_of(array)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"data: {safe(name)} is {type(array).__name__}, and no array of numbers."
        ) from error


def data_for(model: onnx.ModelProto, many: ManyArrays | None, inputs: Inputs | None) -> Data:
    """The inputs of a model from files, or made up without any."""
    if many is None:
        return random_data(model, inputs)
    return data_of(model, many.parts, many.name, many.left_out)


def describe(made: Quantized) -> dict[str, Any]:
    """What was measured, as plain data."""
    return {
        "processor": {"name": processor(), "saturates": made.saturates},
        "outputs": _outputs(made.figures),
        "otherwise": None if made.otherwise is None else _outputs(made.otherwise),
        "worst": [
            {"layer": one.layer, "operator": one.operator, "weight": one.weight,
             "alone_db": one.alone, "share": one.share}
            for one in made.worst
        ],
        "advice": [
            {"what": one.what, "layers": [*one.layers], "before_db": one.before,
             "after_db": one.after}
            for one in made.advice
        ],
        "tried_on": made.tried_on,
        "clipped": [vars(one) for one in made.clipped],
    }  # fmt: skip


def _settings(made: Quantized) -> dict[str, Any]:
    settings = made.settings
    return {
        "per_channel": settings.per_channel,
        "calibrate": settings.calibrate,
        "asked_reduce_range": settings.reduce_range,
        "reduce_range": made.reduced,
        "keep": [*settings.keep],
    }


def _outputs(figures: Figures) -> list[dict[str, Any]]:
    return [
        {
            "output": written.output,
            "written_db": written.decibels,
            "executed_db": executed.decibels,
            "written_agreement": written.agreement,
            "executed_agreement": executed.agreement,
        }
        for written, executed in zip(figures.written, figures.executed, strict=True)
    ]
