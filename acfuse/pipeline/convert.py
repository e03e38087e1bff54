"""The pipeline: load, find, rewrite, verify, save. Nothing is written before it is proved."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from acfuse.errors import AcfuseError, InputError, NothingToFuse, UsageError
from acfuse.files import (
    BareTensors,
    Checkpoint,
    LiveModel,
    check_numbers,
    load,
    norms_of,
    read_tensors,
    writer,
)
from acfuse.files.onnx_reading import read_onnx
from acfuse.find import find_in_module
from acfuse.findings import Findings, Size
from acfuse.patterns.match import find_in_tensors
from acfuse.patterns.states import state_of
from acfuse.pipeline.job import Conversion, Fused, Job
from acfuse.pipeline.manifest import describe, provenance, to_json
from acfuse.proof import Check, Proofs, diagnose, verify_models
from acfuse.proof.certificate import certify_tensors
from acfuse.proof.whole import Inputs, floating_dtype, named_shapes
from acfuse.rewrite import fused_bare, fused_copy, fused_tensors, without_nonfinite
from acfuse.sources.onnx import (
    FusedOnnx,
    as_file,
    fuse_onnx,
    numbers_of,
    size_of_onnx,
    verify_onnx,
)
from acfuse.system.atomic_write import Write, reserved, write_all
from acfuse.targets.onnx_export import OnnxFile, compare_onnx, to_onnx
from acfuse.targets.pt2_export import Program, compare_pt2, to_pt2

Progress = Callable[[str], None]


def convert(job: Job, progress: Progress = lambda _: None) -> Conversion:
    """Fuses every block of a checkpoint, proves that nothing changed, and writes the results.

    Raises AcfuseError for what a user can mend; a failed proof is a result, and nothing is written.
    """
    if job.dry_run:
        return _convert(job, progress)
    with reserved(job.wanted, [job.source], force=job.force):
        return _convert(job, progress)


def _convert(job: Job, progress: Progress) -> Conversion:
    progress("loading")
    if job.source.suffix == ".onnx":
        return convert_onnx(job, progress)
    try:
        checkpoint = load_job(job)
    except InputError as error:
        raise _already_fused(job, error) from error
    progress("finding blocks")
    job = replace(job, sha256=checkpoint.container.digests[job.source])
    findings = find(checkpoint, job)
    if not findings.found and not job.allow_empty:
        raise NothingToFuse(_nothing(job, findings, is_bare=isinstance(checkpoint, BareTensors)))
    fused = rewrite(checkpoint, findings)
    proofs = verify(checkpoint, fused, findings, job, progress)
    onnx_file, proofs, notes = _export(checkpoint, fused, job, proofs, progress)
    program, proofs, more = _export_pt2(checkpoint, fused, job, proofs, progress)
    sizes = size_of(checkpoint, job.inputs), size_of(fused, job.inputs)
    told = (*checkpoint.notes, *findings.messages, *notes, *more)
    digests = checkpoint.container.digests
    conversion = Conversion(job, findings, proofs, sizes, told, onnx_file, program, digests=digests)
    if not proofs.passed:
        return replace(conversion, diagnosis=diagnosis(checkpoint, fused, findings, proofs))
    return conversion if job.dry_run else save(conversion, checkpoint, fused)


def convert_onnx(job: Job, progress: Progress) -> Conversion:
    """The same for an ONNX file: it holds its graph, and needs no code."""
    original = load_onnx(job)
    progress("finding blocks")
    fused = fuse_onnx(original.model, fold_bn=job.fold_bn)
    if not fused.found and not job.allow_empty:
        raise NothingToFuse(_nothing(job, fused.findings))
    proofs = verify_onnx(
        original.model, fused, job.inputs, job.tolerance, progress, limits=job.limits
    )
    conversion = conversion_of_onnx(job, original, fused, proofs)
    if job.dry_run or not proofs.passed:
        return conversion
    return write(conversion, {job.paths.onnx: fused.model.SerializeToString()})


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX file as it was read: the SHA-256 of its files, and what is odd about its numbers."""

    model: ModelProto
    digests: Mapping[Path, str]
    notes: tuple[str, ...]


def conversion_of_onnx(
    job: Job, original: OnnxSource, fused: FusedOnnx, proofs: Proofs
) -> Conversion:
    """The result of converting, or of verifying, an ONNX file."""
    sizes = size_of_onnx(original.model), size_of_onnx(fused.model)
    file, digests = as_file(fused.model), original.digests
    return Conversion(job, fused.findings, proofs, sizes, original.notes, file, digests=digests)


def load_job(job: Job) -> Checkpoint:
    """The checkpoint of a job, every number in it finite unless others are allowed."""
    checkpoint = load(job.source, model=job.model, model_args=job.model_args, options=job.reading)
    model = checkpoint.model if isinstance(checkpoint, LiveModel) else None
    norms = norms_of(checkpoint.tensors, model, job.bn_eps)
    odd = check_numbers(
        checkpoint.tensors, norms, job.source.name, allow_nonfinite=job.allow_nonfinite
    )
    if isinstance(checkpoint, LiveModel):
        _refuse(job, ("assume", "bn_eps"), "the model's own code decides that")
    if isinstance(checkpoint, LiveModel) and job.inputs is None and not job.dry_run:
        raise UsageError(
            "--input-shape is missing: the whole model is compared on inputs, and exported with "
            "one. Give for instance --input-shape 1,3,224,224."
        )
    return replace(checkpoint, notes=(*checkpoint.notes, *odd))


def load_onnx(job: Job) -> OnnxSource:
    """The ONNX file of a job, which holds its graph, its settings and its names itself."""
    needless = ("model", "model_args", "key", "allow_class", "bn_eps", "patterns", "assume")
    _refuse(job, needless, "an ONNX file needs none")
    model, digests = read_onnx(job.source, job.reading)
    tensors, norms = numbers_of(model)
    odd = check_numbers(tensors, norms, job.source.name, allow_nonfinite=job.allow_nonfinite)
    return OnnxSource(model, digests, odd)


def _refuse(job: Job, needless: Sequence[str], why: str) -> None:
    """A request that would change nothing is an error: it is never ignored silently."""
    for name in needless:
        if job.asks_for[name]:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{job.source.name}: {flag} has no effect here: {why}. Remove it.")


def look(job: Job) -> Conversion:
    """What would be found, what refused, and how large the result would be; nothing is proved."""
    if job.source.suffix == ".onnx":
        original = load_onnx(job)
        fused_onnx = fuse_onnx(original.model, fold_bn=job.fold_bn)
        return conversion_of_onnx(job, original, fused_onnx, Proofs())
    checkpoint = load_job(job)
    findings = find(checkpoint, job)
    fused = rewrite(checkpoint, findings)
    sizes = size_of(checkpoint, job.inputs), size_of(fused, job.inputs)
    notes = (*checkpoint.notes, *findings.messages)
    return Conversion(job, findings, Proofs(), sizes, notes, digests=checkpoint.container.digests)


def find(checkpoint: Checkpoint, job: Job) -> Findings:
    """The blocks of a checkpoint."""
    if isinstance(checkpoint, LiveModel):
        findings = find_in_module(checkpoint.model, job.patterns, folds=job.fold_bn)
        state = state_of(checkpoint.tensors, findings.found, job.patterns)
        findings = replace(findings, state=state)
    else:
        findings = find_in_tensors(checkpoint.tensors, job.patterns, job.bn_eps)
    return without_nonfinite(findings) if job.allow_nonfinite else findings


def rewrite(checkpoint: Checkpoint, findings: Findings) -> Fused:
    """The fused checkpoint."""
    if isinstance(checkpoint, LiveModel):
        model = fused_copy(checkpoint.model, findings.found)
        state = model.state_dict()
        return Fused(model, fused_tensors(checkpoint.tensors, state, findings.found))
    return Fused(None, fused_bare(checkpoint.tensors, findings.found))


def verify(
    checkpoint: Checkpoint, fused: Fused, findings: Findings, job: Job, progress: Progress
) -> Proofs:
    """The proof and the measurements of a fused checkpoint."""
    if isinstance(checkpoint, LiveModel) and fused.model is not None:
        return verify_models(
            checkpoint.model,
            fused.model,
            findings.found,
            job.inputs,
            job.tolerance,
            lambda model: find_in_module(model, job.patterns, folds=job.fold_bn).found,
            progress,
        )
    return Proofs(tuple(certify_tensors(fused.tensors, block) for block in findings.found))


def _export(
    checkpoint: Checkpoint, fused: Fused, job: Job, proofs: Proofs, progress: Progress
) -> tuple[OnnxFile | None, Proofs, tuple[str, ...]]:
    """The ONNX file and its comparison with the original, where it is wanted and can be made."""
    if not job.onnx or not proofs.passed:
        return None, proofs, ()
    if not isinstance(checkpoint, LiveModel) or fused.model is None:
        note = "no ONNX file: it needs the model's code; give --model package.module:factory"
        return None, proofs, (note,)
    if job.inputs is None:
        return None, proofs, ("no ONNX file: it needs --input-shape",)
    onnx_file, check = checked_onnx(fused.model, checkpoint.model, job.inputs, job, progress)
    return onnx_file, replace(proofs, checks=(*proofs.checks, check)), ()


def _export_pt2(
    checkpoint: Checkpoint, fused: Fused, job: Job, proofs: Proofs, progress: Progress
) -> tuple[Program | None, Proofs, tuple[str, ...]]:
    """The same for the .pt2 file; where the input is one, the result is."""
    is_own = checkpoint.container.kind == "exported"
    if not (job.pt2 or is_own) or not proofs.passed or (is_own and job.inputs is None):
        return None, proofs, ()
    if not isinstance(checkpoint, LiveModel) or fused.model is None or job.inputs is None:
        note = "no .pt2 file: it needs the model's code; give --model and --input-shape"
        return None, proofs, (note,)
    progress("exporting to .pt2")
    program = to_pt2(fused.model, job.inputs, job.dynamic)
    check = compare_pt2(program, checkpoint.model, job.inputs, job.tolerance, job.dynamic, progress)
    return program, replace(proofs, checks=(*proofs.checks, check)), ()


def checked_onnx(
    model: nn.Module, original: nn.Module, inputs: Inputs, job: Job, progress: Progress
) -> tuple[OnnxFile, Check]:
    """A model as an ONNX file, and that file in onnxruntime beside the original model."""
    progress("exporting to ONNX")
    onnx_file = to_onnx(
        model,
        inputs,
        opset=job.opset,
        dynamic=job.dynamic,
        metadata=provenance(job),
    )
    check = compare_onnx(
        onnx_file.bytes,
        original,
        inputs,
        job.tolerance,
        dynamic=job.dynamic,
        limits=job.limits,
        progress=progress,
    )
    return onnx_file, check


def size_of(side: Checkpoint | Fused, inputs: Inputs | None) -> Size:
    """How large a model is; of bare tensors, only what the tensors tell."""
    parameters = sum(
        t.numel()
        for k, t in side.tensors.items()
        if t.is_floating_point() and not k.endswith(("running_mean", "running_var"))
    )
    model = side.model if not isinstance(side, BareTensors) else None
    if model is None:
        weights = sum(t.ndim > 2 and k.endswith("weight") for k, t in side.tensors.items())
        return Size(weights, parameters)
    convolutions = sum(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    graphs = [m.graph for m in model.modules() if isinstance(m, fx.GraphModule)]
    convolutions += sum(n.target in (F.conv1d, F.conv2d, F.conv3d) for g in graphs for n in g.nodes)
    return Size(convolutions, parameters, multiply_adds(model, inputs))


def multiply_adds(model: nn.Module, inputs: Inputs | None) -> int | None:
    """What one forward costs for the given input, as torch counts it; nothing is computed."""
    if inputs is None:
        return None
    tensors = (*model.parameters(), *model.buffers())
    ghosts: dict[int, Any] = {id(t): t.detach().to("meta") for t in tensors}
    ghost = copy.deepcopy(model, ghosts)  # no weight is copied
    shapes = named_shapes(model, inputs)
    given = {
        n: torch.empty(s, dtype=floating_dtype(model), device="meta") for n, s in shapes.items()
    }
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ghost(**given)
    except Exception:
        return None
    return int(counter.get_total_flops()) // 2


def _already_fused(job: Job, error: InputError) -> AcfuseError:
    """Why a checkpoint does not fit its code: it may be fused already; if not, the error itself."""
    if job.model is None:
        return error
    try:
        _, tensors = read_tensors(job.source, job.reading)
        findings = find_in_tensors(tensors, job.patterns, job.bn_eps or 1e-5)
    except AcfuseError:
        return error
    alone = findings.state and not findings.found
    return NothingToFuse(_nothing(job, findings)) if alone else error


def _nothing(job: Job, findings: Findings, *, is_bare: bool = False) -> str:
    if findings.state:
        return f"{job.source.name}: nothing to fuse: it is {'; '.join(findings.state)}."
    if findings.refused:
        first = findings.refused[0]
        more = f" ({len(findings.refused)} candidates in all)" if len(findings.refused) > 1 else ""
        return (
            f"{job.source.name}: nothing to fuse. {first.where or 'the model'}: {first.why}{more}. "
            "`acfuse inspect` lists every candidate."
        )
    if findings.suspects:
        group, count = findings.suspects[0], len(findings.suspects)
        return (
            f"{job.source.name}: nothing to fuse by any pattern. {group.where or 'the model'}: "
            f"{group} may be branches of one sum ({count} such groups). `acfuse inspect` shows "
            "what to do."
        )
    hint = " Give --model with the network's code to look by algebra as well." if is_bare else ""
    return f"{job.source.name}: nothing to fuse: no block of parallel branches was found.{hint}"


def diagnosis(checkpoint: Checkpoint, fused: Fused, findings: Findings, proofs: Proofs) -> str:
    """What the first bad block looks like."""
    if not isinstance(checkpoint, LiveModel) or fused.model is None:
        return ""
    for block, certificate in zip(findings.found, proofs.certificates, strict=True):
        if not certificate.passed:
            return diagnose(checkpoint.model, fused.model, block)
    return ""


def save(conversion: Conversion, checkpoint: Checkpoint, fused: Fused) -> Conversion:
    """Writes the fused checkpoint, the ONNX and .pt2 files and, last, the manifest."""
    paths = conversion.job.paths
    contents: dict[Path, bytes | Write] = {}
    if checkpoint.container.kind != "exported":
        whole = fused.model if checkpoint.container.kind == "module" else None
        contents[paths.checkpoint] = writer(checkpoint.container, whole or fused.tensors)
    if conversion.pt2 is not None:
        contents[paths.pt2] = conversion.pt2.bytes
    if conversion.onnx is not None:
        contents[paths.onnx] = conversion.onnx.bytes
    return write(conversion, contents)


def write(conversion: Conversion, contents: Mapping[Path, bytes | Write]) -> Conversion:
    """Writes the files of a conversion and, last, its manifest."""
    manifest = conversion.job.paths.manifest
    write_all(contents, (manifest, lambda written: to_json(describe(conversion, written))))
    return replace(conversion, written=(*contents, manifest))
