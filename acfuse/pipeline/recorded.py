"""What an original gives, kept by one command and compared with by another, elsewhere perhaps."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from acfuse.errors import UsageError
from acfuse.files.detect import is_onnx
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.records import ReadOptions
from acfuse.pipeline.job import Conversion
from acfuse.proof import Check, Tolerance
from acfuse.proof.onnx_runtime import answers_in_onnx, answers_of, images_of, session_of
from acfuse.proof.results import (
    Results,
    Run,
    compare_with_results,
    only_tensors,
    read_results,
    results_of,
    to_json,
)
from acfuse.proof.running import Image
from acfuse.system.atomic_write import reserved, write_all
from acfuse.system.limits import Limits
from acfuse.targets.pt2_export import answers_of_program


def save_results(conversion: Conversion, path: Path, *, force: bool) -> None:
    """Writes what the original of a conversion gives. Raises UsageError where it cannot be run."""
    results = _results(conversion)
    with reserved([path], [*conversion.files], force=force):
        write_all({path: to_json(results)})


def _results(conversion: Conversion) -> Results:
    job, fused = conversion.job, conversion.fused
    sha256 = next((state.sha256 for state in conversion.files.values()), "")
    original = None if fused is None or job.inputs is None else fused.original(job.inputs)
    if original is not None:
        return results_of(original, job.source.name, sha256)
    model = None if fused is None else fused.onnx_original
    if model is None:
        raise UsageError("--save-results: nothing can be run without --model and --input-shape.")
    answer = answers_in_onnx(model, job.limits, False)
    images = images_of(model, job.inputs)
    runs = tuple(Run(image, only_tensors(answer(image))) for image in images)
    return Results(job.source.name, sha256, runs)


def compare_with_saved(
    path: Path, saved: Path, tolerance: Tolerance, limits: Limits
) -> tuple[Results, Check]:
    """An ONNX or .pt2 file beside what an original gave. Raises UsageError for another file."""
    results = read_results(saved, limits)
    return results, compare_with_results(results, _answer(path, limits), tolerance)


def _answer(path: Path, limits: Limits) -> Callable[[Image], Sequence[Tensor]]:
    if is_onnx(path):
        model, _ = read_onnx(path, ReadOptions(limits=limits))
        session = session_of(model.SerializeToString(), optimised=True, limits=limits)
        return partial(answers_of, session, limits)
    answers = answers_of_program(path, True)
    return lambda image: [*only_tensors(answers(image)).values()]
