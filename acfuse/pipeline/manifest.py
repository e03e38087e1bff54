"""The manifest: the record that a conversion leaves, and a job read from it again."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from msgspec import convert

from acfuse import __version__
from acfuse.errors import InputError
from acfuse.files.arrays import read_arrays
from acfuse.files.cost_table import read_cost_table
from acfuse.files.packages import MAKERS
from acfuse.findings import Findings
from acfuse.patterns import known_patterns
from acfuse.pipeline.job import Conversion, Job
from acfuse.pipeline.paths import Paths, only_manifest
from acfuse.pipeline.ranges import BlockRanges, Caution
from acfuse.pipeline.schema import VERSION, check_manifest
from acfuse.proof import Inputs, Proofs
from acfuse.sources.base import SourceFile
from acfuse.system.atomic_write import Written, sha256_of, written_to
from acfuse.system.escape import as_json, one_line
from acfuse.system.limits import Limits, parsed_json


def provenance(job: Job, file: SourceFile) -> dict[str, str]:
    """Where an exported file comes from, without a path of this machine."""
    return {
        "acfuse.version": __version__,
        "acfuse.source": job.source.name,
        "acfuse.source.sha256": file.files[job.source].sha256,
    }


def to_json(data: Mapping[str, Any]) -> bytes:
    """A manifest as the bytes of its file."""
    return f"{as_json(data)}\n".encode()


def record(path: Path, written: Written) -> dict[str, Any]:
    """A written file, as the manifest names it."""
    return {"file": path.name, "bytes": written.size, "sha256": written.sha256}


def describe(
    conversion: Conversion, written: Mapping[Path, Written] | None = None
) -> dict[str, Any]:
    """A conversion as plain data: what the manifest holds and `--format json` prints."""
    job, proofs = conversion.job, conversion.proofs
    folder = job.paths.manifest.parent
    outputs = [record(path, data) for path, data in (written or {}).items()]
    return {
        "schema_version": VERSION,
        "acfuse": __version__,
        "torch": torch.__version__,
        "source": {"file": _relative(job.source, folder),
                   "sha256": conversion.files[job.source].sha256},
        "shards": [{"file": _relative(path, folder), "sha256": state.sha256}
                   for path, state in sorted(conversion.files.items()) if path != job.source],
        "outputs": outputs,
        **asked_of(job, folder),
        "onnx": None if conversion.onnx is None else {
            "opset": conversion.onnx.opset,
            "dynamic": conversion.onnx.dynamic,
            "inputs": list(conversion.onnx.inputs),
            "outputs": list(conversion.onnx.outputs),
            "nodes": {kind: conversion.onnx.count(kind) for kind in ("Conv", "BatchNormalization")},
        },
        "pt2": conversion.pt2 is not None,
        "passed": proofs.passed,
        "fault": proofs.fault,
        "diagnosis": conversion.diagnosis,
        "before": vars_of(conversion.sizes[0]),
        "after": vars_of(conversion.sizes[1]),
        **findings_json(conversion.findings, proofs, conversion.ranges),
        "equalized": None if conversion.evened is None else conversion.evened.to_json(),
        "cautions": cautions_json(conversion.cautions),
        "checks": [vars_of(check) for check in proofs.checks],
        "notes": [*conversion.notes, *proofs.notes],
    }  # fmt: skip


def conversion_json(conversion: Conversion) -> dict[str, Any]:
    """What `--format json` prints of a conversion: its manifest, and the paths it wrote."""
    data = describe(conversion, {path: written_to(path) for path in conversion.written[:-1]})
    return {**data, "written": [str(path) for path in conversion.written]}


def asked_of(job: Job, folder: Path) -> dict[str, Any]:
    """What a job was asked, but for its source and outputs, as a manifest in `folder` names it."""
    code = Path((job.model or "").rpartition(":")[0])
    return {
        "model": _moved(job.model, lambda p: _relative(p, folder)),
        "model_args": dict(job.model_args),
        "key": job.key,
        "prefix": job.prefix,
        "allow_class": [_moved(c, lambda p: _relative(p, folder)) for c in job.allow_classes],
        "limits": vars_of(job.limits),
        "allow_nonfinite": job.allow_nonfinite,
        "fix_initializers": job.fix_initializers,
        "no_runtime": job.no_runtime,
        "bn_eps": job.bn_eps,
        "fold_bn": job.fold_bn,
        "patterns": [
            {"file": _relative(path, folder), "sha256": sha256_of(path)}
            for path in dict.fromkeys(p.file for p in job.patterns) if path is not None
        ],
        "assume": [p.name for p in job.patterns if p.is_assumed],
        "cost": None if job.costs is None or job.costs.file is None else {
            "file": _relative(job.costs.file, folder),
            "sha256": sha256_of(job.costs.file),
        },
        "inputs": None if job.inputs is None else {
            "shapes": [[name, list(shape)] for name, shape in job.inputs.shapes],
            "kinds": list(job.inputs.kinds),
            "file": None if job.inputs.source is None else {
                "file": _relative(job.inputs.source, folder),
                "sha256": sha256_of(job.inputs.source),
            },
            "seed": job.inputs.seed,
            "samples": job.inputs.samples,
        },
        "asked": {
            "equalize": job.equalize,
            "onnx": job.onnx,
            "pt2": job.pt2,
            "opset": job.opset,
            "dynamic": job.dynamic,
            "atol": job.tolerance.atol,
            "rtol": job.tolerance.rtol,
            "of_outputs": {
                name: {"atol": own.atol, "rtol": own.rtol}
                for name, own in job.tolerance.of_outputs.items()
            },
            "code": sha256_of(code) if code.name.endswith(".py") and code.is_file() else None,
        },
    }  # fmt: skip


def vars_of(value: Any) -> dict[str, Any]:
    """The fields of a flat record."""
    return {f.name: getattr(value, f.name) for f in fields(value)}


def cautions_json(cautions: Sequence[Caution]) -> list[dict[str, Any]]:
    """What a reader should know of a result that is right, with the code of each."""
    return [{"code": str(caution.code), "text": caution.text} for caution in cautions]


def findings_json(
    findings: Findings, proofs: Proofs, ranges: Sequence[BlockRanges]
) -> dict[str, Any]:
    """What was found and refused, a row each; a certificate where one was made."""
    certificates: list[Any] = [*map(vars_of, proofs.certificates)]
    certificates += [None] * (len(findings.found) - len(certificates))
    return {
        "found": [
            {
                "where": block.where,
                "pattern": block.pattern,
                "fused": list(block.names),
                "replaced": list(block.layers),
                "block": block.is_block,
                "assumed": block.assumed,
                "convolutions": list(block.convolutions),
                "ranges": own.to_json(),
                "certificate": certificate,
            }
            for block, own, certificate in zip(findings.found, ranges, certificates, strict=True)
        ],
        "refused": [
            {"where": r.where, "pattern": r.pattern, "code": str(r.code), "why": r.why}
            for r in findings.refused
        ],
    }


def _relative(path: Path, folder: Path) -> str:
    """A path as the manifest names it: from the manifest's own folder."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _moved(spec: str | None, change: Callable[[Path], str]) -> str | None:
    """A --model or --allow-class whose file is named from elsewhere; a module's name stays."""
    package, _, path = (spec or "").partition(":")
    if package in MAKERS and (path.startswith(("./", "../", "/")) or Path(path).exists()):
        moved = change(Path(path))
        return f"{package}:{moved if moved.startswith(('.', '/')) else './' + moved}"
    place, _, name = (spec or "").rpartition(":")
    return f"{change(Path(place))}:{name}" if place.endswith(".py") else spec


@dataclass(frozen=True)
class Changed:
    """A file that is not what a manifest says."""

    file: str
    is_missing: bool = False

    def __str__(self) -> str:
        fate = "missing" if self.is_missing else "not the file that was converted or written"
        return f"{self.file} is {fate}"


@dataclass(frozen=True)
class Manifest:
    """The record that a conversion left."""

    path: Path
    data: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Reads a manifest. Raises InputError for one that this version cannot use."""
        try:
            data = parsed_json(path.read_bytes(), path.name)
        except (OSError, ValueError, RecursionError) as error:
            text = f"{path.name} is not a manifest of acfuse: {one_line(error)}."
            raise InputError(text) from error
        check_manifest(data, path.name)
        return cls(path, data)

    @classmethod
    def meant(cls, named: Path | None) -> "Manifest":
        """The manifest that is named, or else the only one of the working directory."""
        return cls.read(named or only_manifest(Path.cwd()))

    @property
    def paths(self) -> Paths:
        """The files that this manifest is about."""
        first = self.data["outputs"][0]["file"]
        return Paths.beside(self.path.parent / Path(first).name)

    def job(self, changes: Mapping[str, Any]) -> Job:
        """The job again, with changes where a flag was given."""
        data, folder = self.data, self.path.parent

        def here(path: Path) -> str:
            return str(folder / path)

        inputs = data["inputs"]
        job = Job(
            source=folder / data["source"]["file"],
            model=_moved(data["model"], here),
            model_args=data["model_args"],
            key=data["key"],
            prefix=data.get("prefix"),
            allow_classes=tuple(_moved(c, here) or c for c in data["allow_class"]),
            output=self.paths.checkpoint,
            inputs=None if inputs is None else self._inputs(inputs),
            limits=convert(data.get("limits", {}), Limits),
            allow_nonfinite=data.get("allow_nonfinite", False),
            fix_initializers=data.get("fix_initializers", False),
            no_runtime=data.get("no_runtime", False),
            bn_eps=data["bn_eps"],
            fold_bn=data["fold_bn"],
            patterns=known_patterns(self.pattern_files, self.assume),
            costs=None if self.cost_file is None else read_cost_table(self.cost_file),
            onnx=data["onnx"] is not None,
            pt2=data.get("pt2", False),
            opset=data["onnx"]["opset"] if data["onnx"] else None,
            dynamic=data["onnx"]["dynamic"] if data["onnx"] else "batch",
            allow_empty=True,
        )  # fmt: skip
        return replace(job, **{k: v for k, v in changes.items() if v is not None})

    def _inputs(self, inputs: Mapping[str, Any]) -> Inputs:
        shapes = [(name, tuple(shape)) for name, shape in inputs["shapes"]]
        kinds, file = inputs.get("kinds", []), inputs.get("file")
        if file is None:
            return Inputs(tuple(shapes), inputs["seed"], inputs["samples"], tuple(kinds))
        count = len(read_arrays(path := self.path.parent / file["file"]))
        written = tuple(shapes[count:]), inputs["seed"], inputs["samples"], tuple(kinds[count:])
        return Inputs(*written).with_file(path)

    @property
    def pattern_files(self) -> tuple[Path, ...]:
        """The user's own files of patterns."""
        return tuple(self.path.parent / r["file"] for r in self.data.get("patterns", ()))

    @property
    def cost_file(self) -> Path | None:
        """The table by which blocks were chosen."""
        cost = self.data.get("cost")
        return None if cost is None else self.path.parent / cost["file"]

    @property
    def assume(self) -> tuple[str, ...]:
        """The patterns that were taken at their word."""
        return tuple(self.data.get("assume", ()))

    def changed(self) -> list[Changed]:
        """The files that are no longer what the manifest says."""
        given = (self.data.get("inputs") or {}).get("file")
        one = (record for record in (given, self.data.get("cost")) if record)
        own = (*self.data.get("shards", ()), *self.data.get("patterns", ()), *one)
        records = [self.data["source"], *own, *self.data["outputs"]]
        return [c for c in map(self._change, records) if c is not None]

    def is_own(self, path: Path) -> bool:
        """Whether a file is still the one that the conversion wrote under that name."""
        records = [r for r in self.data["outputs"] if r["file"] == path.name]
        return any(self._change(r) is None for r in records)

    def _change(self, record: Mapping[str, Any]) -> Changed | None:
        path = self.path.parent / record["file"]
        if not path.is_file():
            return Changed(record["file"], is_missing=True)
        return None if sha256_of(path) == record["sha256"] else Changed(record["file"])
