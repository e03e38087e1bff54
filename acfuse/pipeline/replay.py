"""The last conversion again, from its files: proved, or exported to ONNX another time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from acfuse.errors import InputError, NotEqual, OutputError, UnsafeError, UsageError
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.opened_file import unchanged
from acfuse.files.read import read_tensors
from acfuse.files.records import ReadOptions
from acfuse.files.user_code import build_model
from acfuse.findings import Findings
from acfuse.graph.copies import unwrapped
from acfuse.pipeline.convert import certified, checked_onnx, concluded, logged, opened, prove
from acfuse.pipeline.job import Conversion, Job
from acfuse.pipeline.manifest import Manifest, provenance, record, to_json
from acfuse.pipeline.paths import Paths, again_path, exported_path
from acfuse.proof import Check, Proofs
from acfuse.proof.onnx_program import compare_programs
from acfuse.proof.onnx_runtime import compare_onnx
from acfuse.sources.base import Fused, Progress, Source, SourceFile, silent
from acfuse.sources.live import LiveSource, load_fused
from acfuse.sources.others import held_in
from acfuse.system.atomic_write import Written, reserved, write_all
from acfuse.targets.onnx_export import OnnxFile, to_onnx
from acfuse.targets.pt2_export import compare_pt2_file


def verify_again(manifest: Manifest, job: Job, progress: Progress = silent) -> Conversion:
    """Proves the last conversion again, from its files alone."""
    progress = logged(progress)
    changed = manifest.changed()
    missing = [change for change in changed if change.is_missing]
    if missing:
        raise InputError(f"{'; '.join(map(str, missing))}.")
    in_words = "; ".join(map(str, changed))
    paths = manifest.paths
    if job.allow_classes and any(change.file == paths.checkpoint.name for change in changed):
        raise NotEqual(f"{in_words}. Convert it again.")
    onnx_path = paths.onnx if job.onnx and paths.onnx.exists() else None
    again = open_again(job, progress)
    with unchanged(again.source.file.files):
        conversion = verified(again, paths.checkpoint, onnx_path, progress, unchanged=not changed)
    if changed and conversion.proofs.passed:
        raise NotEqual(f"{in_words}, although the numbers agree. Convert it again.")
    return conversion


def verify_files(job: Job, fused_path: Path, progress: Progress = silent) -> Conversion:
    """Proves that a fused file, of acfuse or of others, is the job's original."""
    progress = logged(progress)
    again, reading = open_again(job, progress), job.reading_fused
    if job.opset is not None and again.fused.onnx_original is None:
        raise UsageError(
            f"{job.source.name}: --opset has no effect here: it is for ONNX files. Remove it."
        )
    given = again.source, again.fused, job.inputs, job.tolerance, progress
    with unchanged(again.source.file.files):
        held = held_in(fused_path, reading, *given)
        scales: tuple[Check, ...] = ()
        in_file = held.scaled or held.fused
        if not held.is_run:
            stored, scales = held.fused.unscaled(again.fused, job.inputs, job.limits)
            held = replace(held, fused=stored)
        certificates = certified(held.fused, progress, by_others=True, exhaustive=job.exhaustive)
        compared = () if held.is_run else held.fused.compare(job.inputs, job.tolerance, progress)
    checks, notes = (*held.checks, *compared, *scales), held.notes
    beside = held.fused.beside
    if beside.unlike:
        # What was rounded once, and stands where acfuse would put it, is taken for its own.
        exact = all(c.passed and not c.folded for c in certificates)
        is_own = beside.is_alike and exact and not notes
        told = f"beside the weights, {fused_path.name} is not as the original: {beside.unlike}"
        checks += (Check("entries", False, 1.0, 0.0, detail=told),) * is_own
        notes += (told,) * (not is_own)
    proofs = Proofs(certificates, checks, notes)
    return concluded(job, again.source, held.fused, proofs, traced=held.traced, written=in_file)


@dataclass(frozen=True)
class Opened:
    """The source of a job, and what acfuse makes of it."""

    job: Job
    source: Source
    fused: Fused


def open_again(job: Job, progress: Progress = silent) -> Opened:
    """The original, opened and fused as it was."""
    source = opened(job, progress)
    return Opened(job, source, source.fuse(source.find(job.find_options)))


def verified(
    again: Opened,
    fused_path: Path,
    onnx_path: Path | None,
    progress: Progress,
    *,
    unchanged: bool,
) -> Conversion:
    """Proves that a fused file is its original; so is the ONNX file that was exported, if any."""
    job, source = again.job, again.source
    stored = again.fused.with_file(fused_path, job.reading_fused, unchanged=unchanged)
    plain, proofs = proved(again, stored, progress)
    if source.network is not None and job.inputs is not None:
        if job.pt2 and unchanged:
            progress("the .pt2 file in torch")
            path = Paths.beside(fused_path).pt2
            given = source.original(job.inputs), job.tolerance, job.dynamic
            try:
                check = compare_pt2_file(path, *given)
            except (InputError, UnsafeError) as error:  # torch can load it: it was when it was made
                remark = f"its hash is right, but it is not run again: {error}"
                proofs = replace(proofs, remarks=(*proofs.remarks, remark))
            else:
                proofs = replace(proofs, checks=(*proofs.checks, check))
        if onnx_path is not None:
            check = compared_onnx(again, stored, onnx_path, progress, unchanged=unchanged)
            proofs = replace(proofs, checks=(*proofs.checks, check))
    return concluded(job, source, plain, proofs, written=stored)


def proved(again: Opened, stored: Fused, progress: Progress = silent) -> tuple[Fused, Proofs]:
    """A file's form without the scales of its channels, if it has any, and what is proved of it."""
    job = again.job
    plain, scales = stored.unscaled(again.fused, job.inputs, job.limits)
    proofs = prove(plain, job.inputs, job.tolerance, progress, exhaustive=job.exhaustive)
    return plain, replace(proofs, checks=(*proofs.checks, *scales))


def compared_onnx(
    again: Opened, fused: Fused, path: Path, progress: Progress = silent, *, unchanged: bool
) -> Check:
    """The ONNX file of a conversion beside the original model.

    One that has changed since is first held to another export of the same model.
    """
    job, source = again.job, again.source
    assert fused.network is not None
    assert job.inputs is not None
    file, _ = read_onnx(path, ReadOptions(limits=job.limits))  # no file elsewhere
    if not unchanged:
        progress("exporting to ONNX once more")
        metadata = provenance(job, source.file)
        other = to_onnx(
            fused.network,
            job.inputs,
            opset=job.export_opset,
            dynamic=job.dynamic,
            metadata=metadata,
        )
        check = compare_programs(other.model, file)
        if not check.passed:
            return replace(check, detail=f"{path.name}: {check.detail}")
    return compare_onnx(
        file.SerializeToString(),
        source.original(job.inputs),
        job.tolerance,
        dynamic=job.dynamic,
        limits=job.limits,
        progress=progress,
    )


def export_again(
    manifest: Manifest, job: Job, output: Path | None = None, progress: Progress = silent
) -> Path:
    """Writes the ONNX file of the last conversion again, from the fused checkpoint's tensors.

    The file is replaced without --force if it is still the one that the manifest names. With
    `output` another file is written, and the manifest stays as it is.
    """
    progress = logged(progress)
    path, own = again_path(manifest.path, output), output is None
    if own and path.exists() and not job.force and not manifest.is_own(path):
        raise OutputError(f"{path} is not the file that acfuse wrote; give --force to replace it.")
    targets = [path, manifest.path] if own else [path]
    inputs = [job.source, manifest.paths.checkpoint]
    with reserved(targets, inputs, force=job.force or own):
        source = opened(job, progress)
        if source.network is None:
            raise UsageError(source.without_network)
        fused = source.fuse(source.find(job.find_options))
        reading = job.reading_fused
        stored = fused.with_file(manifest.paths.checkpoint, reading, unchanged=True)
        file = _equal_onnx(source, stored, job, progress)
        last = (manifest.path, lambda written: _renewed(manifest, job, file, path, written))
        write_all({path: file.bytes}, last if own else None)
    return path


def _renewed(
    manifest: Manifest, job: Job, file: OnnxFile, path: Path, written: Mapping[Path, Written]
) -> bytes:
    """The manifest with another ONNX file in it."""
    data = dict(manifest.data)
    data["onnx"] = {
        **(data["onnx"] or {}),
        "opset": file.opset,
        "dynamic": job.dynamic,
        "inputs": list(file.inputs),
        "outputs": list(file.outputs),
    }
    others = [output for output in data["outputs"] if output["file"] != path.name]
    return to_json({**data, "outputs": [*others, record(path, written[path])]})


def _equal_onnx(source: Source, fused: Fused, job: Job, progress: Progress) -> OnnxFile:
    file, check = checked_onnx(source, fused, job, progress)
    if not check.passed:
        raise NotEqual(f"the ONNX file differs from the original: {check.detail}.")
    return file


def export_file(job: Job, progress: Progress = silent) -> Path:
    """Exports one checkpoint as it is, fused or not, and compares the file with it."""
    progress = logged(progress)
    path = exported_path(job.source, job.output)
    with reserved([path], [job.source], force=job.force):
        source = as_it_is(job, progress)
        if source.network is None:
            raise UsageError(source.without_network)
        file = _equal_onnx(source, source.fuse(Findings((), ())), job, progress)
        write_all({path: file.bytes})
    return path


def as_it_is(job: Job, progress: Progress = silent) -> Source:
    """A file that is taken as it stands, fused or not."""
    try:
        return opened(job, progress)
    except InputError:
        known = _as_fused(job)
        if known is None:
            raise
        return known


def _as_fused(job: Job) -> LiveSource | None:
    """A fused checkpoint in the structure of the fused model; None if it does not fit."""
    if job.model is None:
        return None
    container, tensors = read_tensors(job.source, job.reading)
    try:
        cost = None if job.costs is None else job.costs.file
        network = unwrapped(build_model(job.model, job.model_args))
        model = load_fused(network, tensors, job.patterns, cost)
    except InputError:
        return None
    file = SourceFile(job.source.name, container.files, container.notes)
    return LiveSource(model, tensors, container, file)
