"""Where the results of a conversion go."""

import os
from dataclasses import dataclass
from pathlib import Path

from acfuse.errors import UsageError

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".onnx")


@dataclass(frozen=True)
class Paths:
    """The three files of a conversion."""

    checkpoint: Path
    onnx: Path
    manifest: Path

    @classmethod
    def beside(cls, checkpoint: Path) -> "Paths":
        """The ONNX file and the manifest that belong to a fused checkpoint."""
        stem = checkpoint.name.removesuffix(checkpoint.suffix)
        folder = checkpoint.parent
        return cls(checkpoint, folder / f"{stem}.onnx", folder / f"{stem}.acfuse.json")

    def wanted(self, *, onnx: bool) -> list[Path]:
        """The files that a conversion writes, each once; the manifest last."""
        files = [self.checkpoint, *([self.onnx] if onnx else []), self.manifest]
        return list(dict.fromkeys(files))


def fused_path(source: Path, output: Path | None) -> Path:
    """The fused checkpoint of `source`: `output`, or the usual name in that or its own folder."""
    suffix = source.suffix if source.suffix in SUFFIXES else ".pth"
    name = f"{source.stem}.fused{suffix}"
    if output is None:
        return source.parent / name
    if os.path.isdir(output):  # false, no error, for a name that is too long
        return output / name
    kinds = [".safetensors", ".onnx"]
    if any((output.suffix == kind) != (suffix == kind) for kind in kinds):
        raise UsageError(
            f"--output {output}: the result of {source.name} is a {suffix} file; name it so."
        )
    return output
