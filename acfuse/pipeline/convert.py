"""The pipeline: open, find, fuse, prove, export, save. Nothing is written before it is proved.

Between proof and export, --equalize evens out the ranges of what was proved.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from acfuse.errors import InputError, UsageError
from acfuse.files.opened_file import unchanged
from acfuse.findings import Findings
from acfuse.int8.evened import Evened
from acfuse.pipeline.early import without_inputs
from acfuse.pipeline.explain import already_fused, nothing_to_fuse, refused_after_all
from acfuse.pipeline.job import Conversion, Exports, Job
from acfuse.pipeline.locate import Traced, diagnosed
from acfuse.pipeline.manifest import describe, provenance, to_json
from acfuse.pipeline.ranges import ranges_of_blocks
from acfuse.proof import Certificate, Check, Inputs, Proofs, Tolerance, certify
from acfuse.proof.folded import judged_as_folded
from acfuse.proof.onnx_runtime import compare_onnx
from acfuse.proof.trace_onnx import trace_of_onnx
from acfuse.sources.base import Fused, Progress, Source, silent
from acfuse.sources.open_source import open_source
from acfuse.system.atomic_write import reserved, write_all
from acfuse.system.escape import safe
from acfuse.targets.onnx_export import OnnxFile, to_onnx
from acfuse.targets.pt2_export import Program, compare_pt2, to_pt2

LOGGER = logging.getLogger("acfuse")
LOGGER.addHandler(logging.NullHandler())  # who wants to read it, says so


def convert(job: Job, progress: Progress = silent) -> Conversion:
    """Fuses every block of a checkpoint, proves that nothing changed, and writes the results.

    Raises AcfuseError for what a user can mend; a failed proof is a result, and nothing is written.
    """
    progress = logged(progress)
    with _reserved(job):
        source = _opened_to_fuse(job, progress)
        with unchanged(source.file.files):
            findings = find(source, job, progress)
            fused = fuse(source, findings, job, progress)
            proofs = prove(fused, job.inputs, job.tolerance, progress, exhaustive=job.exhaustive)
            if not proofs.passed:
                return concluded(job, source, fused, proofs)
            form, evened = equalize(fused, job, progress)
            exports = export(source, form, job, progress)
        conversion = concluded(job, source, fused, proofs, exports, written=form)
        return save(replace(conversion, evened=evened), form)


def logged(progress: Progress) -> Progress:
    """Progress that is also told to the logger `acfuse`, at INFO."""

    def tell(what: str) -> None:
        LOGGER.info("%s", safe(what))
        progress(what)

    return tell


def inspect(job: Job, progress: Progress = silent) -> Conversion:
    """What would be found, what refused, and how large the result would be; nothing is proved."""
    source = opened(job, logged(progress))
    fused = source.fuse(source.find(job.find_options))
    return concluded(job, source, fused, Proofs())


@contextlib.contextmanager
def _reserved(job: Job) -> Iterator[None]:
    """The outputs of a job, for this run alone; a dry run has none."""
    if job.dry_run:
        yield
    else:
        with reserved(job.wanted, [job.source], force=job.force):
            yield


def opened(job: Job, progress: Progress = silent) -> Source:
    """The source of a job. Raises UsageError if there is not all that it takes to prove it."""
    progress("loading")
    source = open_source(job.source, job.open_options)
    if source.needs_inputs and job.inputs is None and not job.dry_run:
        raise without_inputs()
    return source


def _opened_to_fuse(job: Job, progress: Progress) -> Source:
    """The source of a job. Where it does not fit its code, it may be fused already."""
    try:
        return opened(job, progress)
    except InputError as error:
        raise already_fused(job, error) from error


def find(source: Source, job: Job, progress: Progress = silent) -> Findings:
    """The blocks of a source. Raises NothingToFuse where there are none, unless that is allowed."""
    progress("finding blocks")
    return _some(source.find(job.find_options), source, job)


def fuse(source: Source, findings: Findings, job: Job, progress: Progress = silent) -> Fused:
    """The fused source, without blocks that do something else when run. Raises NothingToFuse."""
    progress("fusing, and running what is fused")
    fused = source.fuse(findings)
    _some(fused.findings, source, job)
    if job.strict and (reason := refused_after_all(job.source, fused.findings)):
        raise reason
    return fused


def _some(findings: Findings, source: Source, job: Job) -> Findings:
    if not findings.found and not job.allow_empty:
        raise nothing_to_fuse(job.source, findings, source.hint)
    return findings


def prove(
    fused: Fused,
    inputs: Inputs | None,
    tolerance: Tolerance,
    progress: Progress = silent,
    *,
    by_others: bool = False,
    exhaustive: bool = False,
) -> Proofs:
    """A certificate for each block, for all inputs; then the whole of it beside the original.

    What is, or may be, `by_others` may have been folded in the dtype that it is stored in. With
    `exhaustive` every weight of the layers is read by impulses.
    """
    certificates = certified(fused, progress, by_others=by_others, exhaustive=exhaustive)
    return Proofs(certificates, fused.compare(inputs, tolerance, progress))


def certified(
    fused: Fused,
    progress: Progress = silent,
    *,
    by_others: bool = False,
    exhaustive: bool = False,
) -> tuple[Certificate, ...]:
    """A certificate for each block."""
    certificates = []
    for i, block in enumerate(fused.found, start=1):
        progress(f"certificate of {block.label} ({i} of {len(fused.found)})")
        given = (fused.stored(block),) if exhaustive else fused.stored_and_claimed(block)
        certificates.append(certify(block, *given, exhaustive=exhaustive))
    if not by_others:
        return tuple(certificates)
    return judged_as_folded(fused.found, certificates, fused.stored, fused.anew)


def equalize(fused: Fused, job: Job, progress: Progress = silent) -> tuple[Fused, Evened | None]:
    """The fused form with channels of even range, where that is asked for and gains something."""
    if job.equalize is None:
        return fused, None
    progress("evening out ranges")
    return fused.evened(job.inputs, job.limits, everything=job.equalize == "force")


def export(source: Source, fused: Fused, job: Job, progress: Progress = silent) -> Exports:
    """The files besides the fused one, each compared with the original, or why there is none."""
    if fused.onnx_file is not None:  # it is written as it is
        return Exports(fused.onnx_file)
    onnx, pt2 = None, None
    checks: list[Check] = []
    notes = []
    if job.onnx:
        if fused.network is None:
            notes.append(
                "no ONNX file: it needs the model's code; give --model package.module:factory"
            )
        elif job.inputs is None:
            notes.append("no ONNX file: it needs --input-shape")
        else:
            onnx, check = checked_onnx(source, fused, job, progress)
            checks.append(check)
    if (job.pt2 or source.is_program) and all(check.passed for check in checks):
        if fused.network is not None and job.inputs is not None:
            pt2, check = _checked_pt2(source, fused, job, progress)
            checks.append(check)
        elif not source.is_program:
            notes.append("no .pt2 file: it needs the model's code; give --model and --input-shape")
    return Exports(onnx, pt2, tuple(checks), tuple(notes))


def checked_onnx(
    source: Source, fused: Fused, job: Job, progress: Progress = silent
) -> tuple[OnnxFile, Check]:
    """A fused model as an ONNX file, and that file in onnxruntime beside the original model."""
    if source.network is None or fused.network is None:
        raise UsageError(source.without_network)
    if job.inputs is None:
        raise UsageError("an ONNX file needs --model and --input-shape.")
    progress("exporting to ONNX")
    file = to_onnx(
        fused.network,
        job.inputs,
        opset=job.export_opset,
        dynamic=job.dynamic,
        metadata=provenance(job, source.file),
    )
    check = compare_onnx(
        file.bytes,
        source.original(job.inputs),
        job.tolerance,
        dynamic=job.dynamic,
        limits=job.limits,
        progress=progress,
    )
    return file, check


def _checked_pt2(
    source: Source, fused: Fused, job: Job, progress: Progress
) -> tuple[Program, Check]:
    """The same as a program of torch.export."""
    assert fused.network is not None
    assert job.inputs is not None
    progress("exporting to .pt2")
    program = to_pt2(fused.network, job.inputs, job.dynamic)
    given = (source.original(job.inputs), job.tolerance, job.dynamic, progress)
    return program, compare_pt2(program, *given)


def concluded(
    job: Job,
    source: Source,
    fused: Fused,
    proofs: Proofs,
    exports: Exports | None = None,
    traced: Traced | None = None,
    written: Fused | None = None,
) -> Conversion:
    """What was found, proved and made, as the record that is reported; nothing is written yet.

    `traced` runs what was compared with the original, if that is not the fused form itself;
    `written` is the form that lies in the files, if it is another one: with other scales.
    """
    exports = exports or Exports()
    in_files = fused if written is None or written.findings is not fused.findings else written
    if exports.onnx is not None and exports.checks and not exports.checks[0].passed:
        made = exports.onnx.model
        traced = lambda image, _: trace_of_onnx(made, image, job.limits)  # noqa: E731
    proofs = replace(proofs, checks=(*proofs.checks, *exports.checks))
    return Conversion(
        job,
        fused.findings,
        diagnosed(proofs, source, fused, job.inputs, traced),
        (source.size(job.inputs), fused.size(job.inputs)),
        (*source.file.notes, *fused.findings.messages, *exports.notes),
        exports.onnx or fused.onnx_file,
        exports.pt2,
        files=source.file.files,
        fused=fused,
        ranges=ranges_of_blocks(in_files),
    )


def save(conversion: Conversion, fused: Fused) -> Conversion:
    """Writes the fused file, the ONNX and .pt2 files and, last, the manifest; or nothing at all."""
    job, paths = conversion.job, conversion.job.paths
    if job.dry_run or not conversion.proofs.passed:
        return conversion
    contents = {getattr(paths, place): data for place, data in fused.contents().items()}
    if conversion.pt2 is not None:
        contents[paths.pt2] = conversion.pt2.bytes
    if conversion.onnx is not None:
        contents.setdefault(paths.onnx, conversion.onnx.bytes)
    write_all(contents, (paths.manifest, lambda written: to_json(describe(conversion, written))))
    return replace(conversion, written=(*contents, paths.manifest))
