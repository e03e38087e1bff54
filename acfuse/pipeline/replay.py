"""The last conversion again, from its files: proved, or exported to ONNX another time."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from acfuse.errors import InputError, NotEqual, OutputError, UnsafeError, UsageError
from acfuse.files import (
    Checkpoint,
    LiveModel,
    ReadOptions,
    build_model,
    fit_prefix,
    load_into,
    read_tensors,
)
from acfuse.files.onnx_reading import read_onnx
from acfuse.find import find_in_module
from acfuse.findings import Findings
from acfuse.patterns import PATTERNS, Pattern
from acfuse.pipeline.convert import (
    Progress,
    checked_onnx,
    conversion_of_onnx,
    diagnosis,
    find,
    load_job,
    load_onnx,
    rewrite,
    size_of,
    verify,
)
from acfuse.pipeline.job import Conversion, Fused, Job
from acfuse.pipeline.manifest import Manifest, record, to_json
from acfuse.pipeline.paths import Paths, again_path, exported_path
from acfuse.proof import Check
from acfuse.rewrite import fused_copy
from acfuse.sources.onnx import fuse_onnx, verify_onnx, with_tensors
from acfuse.system.atomic_write import Written, reserved, write_all
from acfuse.targets.onnx_export import OnnxFile, compare_onnx
from acfuse.targets.pt2_export import compare_pt2_file

NEEDS_CODE = "an ONNX file needs the model's code: give --model package.module:factory."


def verify_again(manifest: Manifest, job: Job, progress: Progress = lambda _: None) -> Conversion:
    """Proves the last conversion again, from its files alone."""
    changed = manifest.changed()
    missing = [change for change in changed if change.is_missing]
    if missing:
        raise InputError(f"{'; '.join(map(str, missing))}.")
    in_words = "; ".join(map(str, changed))
    paths = manifest.paths
    onnx_path = paths.onnx if job.onnx and paths.onnx.exists() else None
    if job.allow_classes and any(change.file == paths.checkpoint.name for change in changed):
        raise NotEqual(f"{in_words}. Convert it again.")
    conversion = verify_files(job, paths.checkpoint, onnx_path, progress, unchanged=not changed)
    if changed and conversion.proofs.passed:
        raise NotEqual(f"{in_words}, although the numbers agree. Convert it again.")
    return conversion


def verify_files(
    job: Job,
    fused_path: Path,
    onnx_path: Path | None = None,
    progress: Progress = lambda _: None,
    *,
    unchanged: bool = False,
) -> Conversion:
    """Proves that a fused checkpoint (and an ONNX file) is the job's original."""
    progress("loading")
    if job.source.suffix == ".onnx":
        return _verify_onnx_files(job, fused_path, progress)
    checkpoint = load_job(job)
    findings = find(checkpoint, job)
    fused = rewrite(checkpoint, findings)
    if checkpoint.container.kind == "module":
        # A pickled module is not read back: nothing but code could. Its hash says if it is the one.
        if not unchanged:
            raise InputError(
                f"{fused_path.name} is, as the original, a pickled module: only code could read it "
                "back. It is proved by its manifest: run `acfuse verify` in its folder."
            )
        stored = fused
    else:
        _, tensors = read_tensors(fused_path, ReadOptions(job.key, limits=job.limits))
        stored = _with_tensors(checkpoint, fused, tensors, fused_path.name)
    proofs = verify(checkpoint, stored, findings, job, progress)
    proofs = replace(proofs, checks=(_untouched(checkpoint, stored, findings), *proofs.checks))
    program_path = Paths.beside(fused_path).pt2
    if job.pt2 and unchanged and isinstance(checkpoint, LiveModel) and job.inputs is not None:
        progress("the .pt2 file in torch")
        given = checkpoint.model, job.inputs, job.tolerance, job.dynamic
        try:
            check = compare_pt2_file(program_path, *given)
        except (InputError, UnsafeError) as error:  # torch can load it: it was when it was made
            note = f"its hash is right, but it is not run again: {error}"
            proofs = replace(proofs, notes=(*proofs.notes, note))
        else:
            proofs = replace(proofs, checks=(*proofs.checks, check))
    if onnx_path is not None and isinstance(checkpoint, LiveModel) and job.inputs is not None:
        onnx_file, _ = read_onnx(onnx_path, ReadOptions(limits=job.limits))  # no file elsewhere
        check = compare_onnx(
            onnx_file.SerializeToString(),
            checkpoint.model,
            job.inputs,
            job.tolerance,
            dynamic=job.dynamic,
            limits=job.limits,
            progress=progress,
        )
        proofs = replace(proofs, checks=(*proofs.checks, check))
    sizes = size_of(checkpoint, job.inputs), size_of(stored, job.inputs)
    conversion = Conversion(
        job,
        findings,
        proofs,
        sizes,
        (*checkpoint.notes, *findings.messages),
        digests=checkpoint.container.digests,
    )
    if proofs.passed:
        return conversion
    return replace(conversion, diagnosis=diagnosis(checkpoint, stored, findings, proofs))


def _untouched(checkpoint: Checkpoint, stored: Fused, findings: Findings) -> Check:
    """Whether every tensor that was not fused is the original's, bit for bit."""
    made = {f"{name}.{n}" for f in findings.found for name in f.names for n in ("weight", "bias")}
    altered = [
        key
        for key, tensor in stored.tensors.items()
        if key in checkpoint.tensors
        and key not in made
        and not _same_bits(tensor, checkpoint.tensors[key])
    ]
    detail = f"{altered[0]} is not the original's ({len(altered)} in all)" if altered else ""
    return Check("untouched", not altered, float(len(altered)), 0.0, detail=detail)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a != a) & (b != b)).all())
    )


def _verify_onnx_files(job: Job, fused_path: Path, progress: Progress) -> Conversion:
    original = load_onnx(job)
    fused = fuse_onnx(original.model, fold_bn=job.fold_bn)
    written, _ = read_onnx(fused_path, ReadOptions(limits=job.limits))
    stored = with_tensors(fused, written, fused_path.name)
    proofs = verify_onnx(
        original.model, stored, job.inputs, job.tolerance, progress, limits=job.limits
    )
    return conversion_of_onnx(job, original, stored, proofs)


def _with_tensors(
    checkpoint: Checkpoint, fused: Fused, tensors: Mapping[str, Tensor], name: str
) -> Fused:
    """The fused structure with a file's tensors in it. Raises InputError if they do not fit."""
    prefix = checkpoint.container.prefix
    given = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    missing = sorted(set(fused.tensors) - set(given))
    unknown = sorted(set(given) - set(fused.tensors))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which is none of its keys"
        raise InputError(f"{name} is not a fused form of this checkpoint: it {what}.")
    for key, tensor in fused.tensors.items():
        if given[key].shape != tensor.shape or given[key].dtype != tensor.dtype:
            kinds = [f"{tuple(t.shape)} of {t.dtype}" for t in (given[key], tensor)]
            raise InputError(f"{name}: {key} is {kinds[0]}, expected {kinds[1]}.")
    if fused.model is None:
        return Fused(None, dict(given))
    model = copy.deepcopy(fused.model)
    model.load_state_dict(dict(given), strict=False, assign=True)
    return Fused(model, dict(given))


def export_again(
    manifest: Manifest, job: Job, output: Path | None = None, progress: Progress = lambda _: None
) -> Path:
    """Writes the ONNX file of the last conversion again, from the fused checkpoint's tensors.

    The file is replaced without --force if it is still the one that the manifest names. With
    `output` another file is written, and the manifest stays as it is.
    """
    path = again_path(manifest.path, output)
    if job.source.suffix == ".onnx":
        raise UsageError(f"{job.source.name} is an ONNX file; its fused form is {path.name}.")
    if output is None and path.exists() and not job.force and not manifest.is_own(path):
        raise OutputError(f"{path} is not the file that acfuse wrote; give --force to replace it.")
    targets = [path, manifest.path] if output is None else [path]
    inputs = [job.source, manifest.paths.checkpoint]
    with reserved(targets, inputs, force=job.force or output is None):
        return _export_again(manifest, job, path, progress, is_own=output is None)


def _export_again(
    manifest: Manifest, job: Job, path: Path, progress: Progress, *, is_own: bool
) -> Path:
    progress("loading")
    checkpoint = load_job(job)
    if not isinstance(checkpoint, LiveModel):
        raise UsageError(NEEDS_CODE)
    fused = rewrite(checkpoint, find(checkpoint, job))
    if checkpoint.container.kind != "module":
        _, tensors = read_tensors(
            manifest.paths.checkpoint, ReadOptions(job.key, limits=job.limits)
        )
        fused = _with_tensors(checkpoint, fused, tensors, manifest.paths.checkpoint.name)
    onnx_file = _checked_onnx(fused, checkpoint.model, job, progress)
    if not is_own:
        write_all({path: onnx_file.bytes})
        return path
    data = dict(manifest.data)
    data["onnx"] = {
        **(data["onnx"] or {}),
        "opset": job.opset,
        "dynamic": job.dynamic,
        "inputs": list(onnx_file.inputs),
        "outputs": list(onnx_file.outputs),
    }
    others = [output for output in data["outputs"] if output["file"] != path.name]

    def renewed(written: Mapping[Path, Written]) -> bytes:
        return to_json({**data, "outputs": [*others, record(path, written[path])]})

    write_all({path: onnx_file.bytes}, (manifest.path, renewed))
    return path


def _checked_onnx(fused: Fused, original: nn.Module, job: Job, progress: Progress) -> OnnxFile:
    if fused.model is None or job.inputs is None:
        raise UsageError("an ONNX file needs --model and --input-shape.")
    onnx_file, check = checked_onnx(fused.model, original, job.inputs, job, progress)
    if not check.passed:
        raise NotEqual(f"the ONNX file differs from the original: {check.detail}.")
    return onnx_file


def export_file(job: Job, progress: Progress = lambda _: None) -> Path:
    """Exports one checkpoint as it is, fused or not, and compares the file with it."""
    path = exported_path(job.source, job.output)
    with reserved([path], [job.source], force=job.force):
        return _export_file(job, path, progress)


def _export_file(job: Job, path: Path, progress: Progress) -> Path:
    progress("loading")
    if job.model is None and not job.allow_classes:
        raise UsageError(NEEDS_CODE)
    try:
        checkpoint = load_job(job)
    except InputError:
        model = _as_fused(job)
        if model is None:
            raise
        checkpoint = model
    if not isinstance(checkpoint, LiveModel):
        raise UsageError(NEEDS_CODE)
    fused = Fused(checkpoint.model, dict(checkpoint.tensors))
    write_all({path: _checked_onnx(fused, checkpoint.model, job, progress).bytes})
    return path


def _as_fused(job: Job) -> LiveModel | None:
    """A fused checkpoint in the structure of the fused model; None if it does not fit."""
    if job.model is None:
        return None
    container, tensors = read_tensors(job.source, job.reading)
    try:
        model = load_fused(build_model(job.model, job.model_args), tensors, job.patterns)
    except InputError:
        return None
    return LiveModel(model, tensors, container)


def load_fused(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    patterns: Sequence[Pattern] = PATTERNS,
) -> nn.Module:
    """A fused model, from a training-form network and a fused checkpoint.

    It is the way back into code whose authors wrote no deploy form. The network's own weights do
    not matter. Raises InputError if the tensors do not fit.
    """
    name, tensors = "the state dict", source
    if not isinstance(tensors, Mapping):
        name, tensors = Path(tensors).name, read_tensors(Path(tensors))[1]
    generator = torch.Generator().manual_seed(0)
    trained = copy.deepcopy(model).eval()
    with torch.no_grad():  # weights that happen to be zero must not decide what can be fused
        for tensor in (*trained.parameters(), *trained.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    fused = fused_copy(trained, find_in_module(trained, patterns).found)
    folded = fused_copy(trained, find_in_module(trained, patterns, folds=True).found)
    # Were lone BatchNorms folded as well? Then only the folded network has these keys.
    network = folded if _has_keys(folded, tensors) and not _has_keys(fused, tensors) else fused
    load_into(network, fit_prefix(tensors, network)[1], name)
    return network


def _has_keys(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    keys = set(fit_prefix(tensors, network)[1])
    return keys == {k for k in network.state_dict() if k in keys or "num_batches" not in k}
