"""What an earlier run has done already, as its manifest proves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acfuse import __version__
from acfuse.errors import AcfuseError
from acfuse.pipeline.job import Job
from acfuse.pipeline.manifest import Manifest, asked_of
from acfuse.system.atomic_write import sha256_of
from acfuse.system.escape import as_json


def earlier(path: Path) -> Manifest | None:
    """The manifest of an earlier run; None where there is none that can be read."""
    try:
        return Manifest.read(path)
    except AcfuseError:
        return None


def is_request(manifest: Manifest, job: Job) -> bool:
    """Whether a manifest is of this version, of the source as it is now, and of the same job."""
    data = manifest.data
    asked = json.loads(as_json(asked_of(job, manifest.path.parent)))
    return (
        data.get("acfuse") == __version__
        and data.get("passed") is True
        and data["source"]["sha256"] == sha256_of(job.source)
        and all(key in data and data[key] == value for key, value in asked.items())
    )


def is_done(manifest: Manifest, job: Job) -> bool:
    """Whether nothing is left to do: the same request, and every file is what the manifest says."""
    try:
        return job.source.is_file() and is_request(manifest, job) and not manifest.changed()
    except (OSError, AcfuseError):
        return False


def may_replace(manifest: Manifest | None, paths: list[Path]) -> bool:
    """Whether all files that stand at these places are those that the manifest names, or itself."""
    if manifest is None:
        return False
    named = {record["file"] for record in manifest.data["outputs"]} | {manifest.path.name}
    return all(path.name in named for path in paths if path.exists())


def outputs_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The written files as a manifest records them."""
    return [dict(record) for record in data["outputs"]]
