"""Whether faults are seen in the user's own files: they are planted in copies, one by one."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from acfuse.errors import AcfuseError, UsageError
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.read import read_tensors
from acfuse.files.records import ReadOptions
from acfuse.files.write import writer
from acfuse.pipeline.convert import convert, logged
from acfuse.pipeline.job import Conversion, Job
from acfuse.pipeline.manifest import Manifest
from acfuse.pipeline.replay import Opened, compared_onnx, open_again, proved, verified
from acfuse.proof.planted import Planted, planted_in_onnx
from acfuse.sources.base import Progress, silent
from acfuse.system.atomic_write import write_all

FAULTS = 20


@dataclass(frozen=True)
class Trial:
    """One planted fault: in which file, what and where, and what was said of it ("": nothing)."""

    file: str
    what: str
    place: str
    said: str
    is_named: bool  # whether what was said names the place

    @property
    def is_seen(self) -> bool:
        return bool(self.said)


def selftest(
    job: Job, files: Sequence[Path] = (), progress: Progress = silent
) -> tuple[Conversion, list[Trial]]:
    """Plants twenty faults in copies of fused files, and verifies each as `verify` does.

    `files` are the fused file of the job's original and, where there is one, the ONNX file that
    was exported of it; without any, the original is converted for this alone. The conversion is
    what verifying the files as they are shows; if that fails, nothing is planted.
    """
    told = logged(progress)
    with tempfile.TemporaryDirectory(prefix="acfuse-") as folder:
        if not files:
            made = convert(replace(job, output=Path(folder), dry_run=False, pt2=False), progress)
            if not made.proofs.passed:
                return made, []
            files = [p for p in (made.job.paths.checkpoint, made.job.paths.onnx) if p.exists()]
            files = list(dict.fromkeys(files))
        again = open_again(job, told)
        onnx_path = files[1] if len(files) > 1 else None
        right = verified(again, files[0], onnx_path, told, unchanged=False)
        if not right.proofs.passed:
            return right, []
        trials = list(_trials(again, files, Path(folder), told))
    if not trials:
        raise UsageError(f"{files[0].name} holds nothing in which a fault could be planted.")
    return right, trials


def selftest_again(
    manifest: Manifest, job: Job, progress: Progress = silent
) -> tuple[Conversion, list[Trial]]:
    """The same with the files of the last conversion."""
    paths = manifest.paths
    files = dict.fromkeys(p for p in (paths.checkpoint, paths.onnx) if p.exists())
    return selftest(job, list(files), progress)


def _trials(
    again: Opened, files: Sequence[Path], folder: Path, progress: Progress
) -> Iterator[Trial]:
    reading = again.job.reading_fused
    for index, path in enumerate(files):
        most = FAULTS // len(files) + (index < FAULTS % len(files))
        is_export = index > 0
        for number, planted in enumerate(_planted(again, path, reading, most, is_export=is_export)):
            progress(f"{path.name}: {planted.what}, {planted.place}")
            copy = folder / f"{index}.{number}" / path.name
            copy.parent.mkdir()
            yield _tried(again, files, planted, copy, reading, is_export=is_export)
            copy.unlink()


def _planted(
    again: Opened, path: Path, reading: ReadOptions, most: int, *, is_export: bool
) -> list[Planted]:
    if not is_export:
        return again.fused.planted(path, reading, most)
    file, _ = read_onnx(path, ReadOptions(limits=reading.limits))
    return planted_in_onnx(onnx.ModelProto(), file, most)


def _tried(
    again: Opened, files: Sequence[Path], planted: Planted, copy: Path, reading: ReadOptions, *,
    is_export: bool,
) -> Trial:  # fmt: skip
    if not isinstance(planted.held, Mapping):
        write_all({copy: planted.held.SerializeToString()})
    else:
        container, _ = read_tensors(files[0], reading)
        prefix = container.prefix
        held = {key.removeprefix(prefix): tensor for key, tensor in planted.held.items()}
        write_all({copy: writer(container, held)})
    said, names = "", [planted.place]
    try:
        if is_export:
            form = again.fused.with_file(files[0], reading)  # an export has its scales
            check = compared_onnx(again, form, copy, unchanged=False)
            said = "" if check.passed else f"{check.name}: {check.detail}"
        else:
            stored = again.fused.with_file(copy, reading)
            _, proofs = proved(again, stored)
            said = proofs.fault
            names += [c.where for c in proofs.certificates if not c.passed]
    except AcfuseError as error:
        said = str(error)
    # A certificate speaks of a block, and of the layer in it.
    is_named = any(name in said for name in names if name)
    return Trial(copy.name, planted.what, planted.place, said, is_named)
