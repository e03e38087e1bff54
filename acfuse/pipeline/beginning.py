"""What a checkpoint says of itself, as settings to begin with."""

from pathlib import Path
from typing import Any

from acfuse.errors import UsageError
from acfuse.files.detect import is_onnx
from acfuse.files.read import read_tensors
from acfuse.files.records import ReadOptions
from acfuse.findings import Findings
from acfuse.patterns import PATTERNS
from acfuse.patterns.match import find_in_tensors

USUAL_EPS = 1e-5  # torch's own


def beginning(checkpoint: Path, key: str | None) -> tuple[dict[str, Any], list[str]]:
    """Settings for converting a checkpoint, and what to say of it in comments."""
    name = checkpoint.name
    if is_onnx(checkpoint):
        return {}, [f"{name} is an ONNX file: it holds its network, and needs no settings."]
    container, tensors = read_tensors(checkpoint, ReadOptions(key))
    settings: dict[str, Any] = {"key": key} if key else {}
    said = [f"{name} is a {KINDS[container.kind]} of {len(tensors)} tensors."]
    if container.key:
        said.append(f"Its weights stand under {container.key!r}.")
    if container.network is not None:
        return settings, [*said, "It holds its network, and needs no model."]
    try:
        findings = find_in_tensors(tensors, PATTERNS)
    except UsageError:  # nothing says the eps of its BatchNorms
        findings = find_in_tensors(tensors, PATTERNS, USUAL_EPS)
        said.append("What eps its BatchNorms have only the code says: give model, or bn-eps.")
    return settings, [*said, *_families(findings)]


KINDS = {
    "state_dict": "torch checkpoint",
    "module": "pickled module",
    "exported": "program of torch.export",
    "safetensors": "safetensors file",
    "hdf5": "HDF5 file",
}


def _families(findings: Findings) -> list[str]:
    """Which named blocks are in it, by its keys alone."""
    counts: dict[str, int] = {}
    for block in findings.found:
        counts[block.pattern or "?"] = counts.get(block.pattern or "?", 0) + 1
    if findings.state:
        return [f"It is {state}." for state in findings.state]
    if not counts:
        return ["Its keys match no named pattern: the network's code is needed."]
    found = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))
    return [
        f"Blocks that its keys alone tell: {found}.",
        "With model and input-shape, acfuse looks by algebra, and writes an ONNX file.",
    ]
