"""What an original gives, kept in a file: so that a program can be compared where nothing else is.

That is on the machine or in the runtime where it will be used, without the model's code. Only those
outputs are compared then, on those inputs: no certificate is in it.
"""

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acfuse.errors import InputError, UsageError
from acfuse.files.opened_file import opened
from acfuse.proof.leaves import Leaves
from acfuse.proof.noise import Noises, own_rounding
from acfuse.proof.original import Original
from acfuse.proof.outputs import Check, Difference, Tolerance, judge, rounding_limit, still
from acfuse.proof.running import Image, cast
from acfuse.system.escape import as_json, one_line
from acfuse.system.limits import LIMITS, Limits, parsed_json

FORMAT = "acfuse results 1"
DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Run:
    """The inputs of one run, and what the original gives: as it ships, and in float64 if it can."""

    inputs: Mapping[str, Tensor]
    shipped: Leaves
    true: Leaves | None = None


@dataclass(frozen=True)
class Results:
    """What an original gave on some inputs. `sha256` is of its file, "" where there was none."""

    source: str
    sha256: str
    runs: tuple[Run, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest dtype of its floating outputs."""
        given = [x.dtype for run in self.runs for x in run.shipped.values()]
        return max((d for d in given if d.is_floating_point), key=_eps, default=torch.float32)


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def results_of(original: Original, source: str, sha256: str) -> Results:
    """What an original gives on inputs of the given shapes, in the dtype in which it ships."""
    runs = []
    for image in original.given:
        given = {name: cast(value, original.dtype) for name, value in image.items()}
        true = None if original.why_not_exact else only_tensors(original.true(image))
        runs.append(Run(given, only_tensors(original.shipped(image)), true))
    return Results(source, sha256, tuple(runs))


def compare_with_results(
    results: Results, answer: Callable[[Image], Sequence[Tensor]], tolerance: Tolerance
) -> Check:
    """What a program answers, beside what the original gave. Its own rounding is the measure."""
    shipped = [run.shipped for run in results.runs]
    true = [run.shipped if run.true is None else run.true for run in results.runs]
    found = [answer(run.inputs) for run in results.runs]

    def verdict(noise: Sequence[Noises]) -> Check:
        difference = Difference(tolerance=tolerance)
        for expected, other, own in zip(shipped, found, noise, strict=True):
            if len(expected) != len(other):
                difference.fail(f"the file gives {len(other)} outputs, not {len(expected)}")
            else:
                difference.add(expected, dict(zip(expected, other, strict=True)), own)
        return judge("results", difference, tolerance, results.dtype)

    check = verdict(still(shipped, len(shipped), rounding_limit(results.dtype)))
    if check.passed or any(run.true is None for run in results.runs):
        return check
    return verdict(own_rounding(true, shipped, len(shipped), results.dtype))


def only_tensors(leaves: Leaves) -> dict[str, Tensor]:
    """The tensors among outputs: what else there is, no file of a runtime gives."""
    return {n: x.detach().cpu() for n, x in leaves.items() if isinstance(x, Tensor)}


def to_json(results: Results) -> bytes:
    """The text of a results file: numbers are base64 of their bytes, the lowest first."""
    runs = [
        {
            "inputs": _listed(run.inputs),
            "outputs": _listed(run.shipped),
            "float64": None if run.true is None else _listed(run.true),
        }
        for run in results.runs
    ]
    told = {"source": results.source, "sha256": results.sha256}
    return f"{as_json({'format': FORMAT, **told, 'runs': runs})}\n".encode()


def _listed(values: Leaves) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "data": base64.b64encode(_bytes(value)).decode(),
        }
        for name, value in values.items()
    ]


def _bytes(value: Tensor) -> bytes:
    if str(value.dtype).removeprefix("torch.") not in DTYPES:
        known = ", ".join(DTYPES)
        raise UsageError(f"--save-results: {value.dtype} cannot be kept; expected {known}.")
    array = value.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def read_results(path: Path, limits: Limits = LIMITS) -> Results:
    """The results in a file. Raises InputError for one that is none."""
    with opened(path, limits) as file, file.open() as raw:
        text = raw.read()
    try:
        return _parsed(parsed_json(text, path.name, limits))
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        why = one_line(error, 120) if isinstance(error, ValueError) else "parts are missing"
        raise InputError(
            f"{path.name} holds no results ({why}); expected what --save-results writes."
        ) from error


def _parsed(data: Any) -> Results:
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']!r:.40}")
    runs = tuple(
        Run(
            _read(run["inputs"]),
            _read(run["outputs"]),
            None if run["float64"] is None else _read(run["float64"]),
        )
        for run in data["runs"]
    )
    if not runs:
        raise ValueError("it holds no run")
    return Results(str(data["source"]), str(data["sha256"]), runs)


def _one_of(value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{value!r:.40} is none of {', '.join(known)}")
    return str(value)


def _read(values: Any) -> dict[str, Tensor]:
    return {str(value["name"]): _tensor(value) for value in values}


def _tensor(value: Any) -> Tensor:
    dtype = np.dtype(_one_of(value["dtype"], DTYPES))
    shape, data = value["shape"], base64.b64decode(value["data"], validate=True)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{value['shape']!r:.40} is no shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes are no {dtype.name} of the shape {shape!r:.40}")
    array = np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)
    return torch.from_numpy(array.astype(dtype))
