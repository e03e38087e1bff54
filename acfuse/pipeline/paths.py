"""Where the results of a conversion go."""

import os
from dataclasses import dataclass
from pathlib import Path

from acfuse.errors import UsageError
from acfuse.files.detect import is_onnx
from acfuse.system.escape import listed

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".hdf5", ".h5", ".pt2", ".onnx")
# Formats whose files must be named so, and never otherwise.
NAMED = ((".safetensors",), (".hdf5", ".h5"), (".pt2",), (".onnx",))
MANIFEST, ONNX = ".acfuse.json", ".onnx"
INDEX = ".index.json"  # of shards: the result is one file


@dataclass(frozen=True)
class Paths:
    """The files of a conversion."""

    checkpoint: Path
    onnx: Path
    pt2: Path
    manifest: Path

    @classmethod
    def beside(cls, checkpoint: Path) -> "Paths":
        """The ONNX file and the manifest that belong to a fused checkpoint."""
        stem = checkpoint.name.removesuffix(checkpoint.suffix)
        folder = checkpoint.parent
        names = (f"{stem}.onnx", f"{stem}.pt2", f"{stem}{MANIFEST}")
        return cls(checkpoint, *(folder / name for name in names))

    def wanted(self, *, onnx: bool, pt2: bool = False) -> list[Path]:
        """The files that a conversion writes, each once; the manifest last."""
        more = [*([self.onnx] if onnx else []), *([self.pt2] if pt2 else [])]
        return list(dict.fromkeys([self.checkpoint, *more, self.manifest]))


def equalized_path(fused: Path, output: Path | None) -> Path:
    """The file of even ranges that is made of `fused`, likewise."""
    return fused_path(fused, output, "equalized")


def fused_path(source: Path, output: Path | None, becomes: str = "fused") -> Path:
    """The fused checkpoint of `source`: `output`, or the usual name in that or its own folder."""
    source = source.with_name(source.name.removesuffix(INDEX) or source.name)
    suffix = source.suffix if source.suffix in SUFFIXES else ".pth"
    suffix = ONNX if is_onnx(source) else suffix  # whatever it is called
    name = f"{source.stem}.{becomes}{suffix}"
    if output is None:
        return source.parent / name
    if os.path.isdir(output):  # false, no error, for a name that is too long
        return output / name
    if any((output.suffix in kind) != (suffix in kind) for kind in NAMED):
        raise UsageError(
            f"--output {output}: the result of {source.name} is a {suffix} file; name it so."
        )
    return output


def exported_path(source: Path, output: Path | None) -> Path:
    """The ONNX file of a checkpoint: `output`, or the usual name in that or the source's folder."""
    if output is None:
        return source.with_suffix(".onnx")
    return output / f"{source.stem}.onnx" if os.path.isdir(output) else output


def again_path(manifest: Path, output: Path | None) -> Path:
    """The ONNX file that belongs to a manifest, or another one in its stead."""
    name = f"{manifest.name.removesuffix(MANIFEST)}.onnx"
    if output is None:
        return manifest.with_name(name)
    return output / name if os.path.isdir(output) else output


def is_last_run(original: Path | None, fused: Path | None = None) -> bool:
    """Whether a command is asked for a conversion again: that of a manifest, or of the only one."""
    named = original is not None and original.name.endswith(MANIFEST)
    if named and fused is not None:
        raise UsageError(f"{original} is a manifest, which names both files: give it alone.")
    return named or original is None


def only_manifest(folder: Path) -> Path:
    """The one manifest of a folder. Raises UsageError if there are none or several."""
    paths = sorted(path for path in folder.glob(f"*{MANIFEST}") if path.is_file())
    if not paths:
        raise UsageError(
            "there is no manifest (*.acfuse.json) here: run `acfuse convert` first, or give "
            "a manifest or the files."
        )
    if len(paths) > 1:
        names = listed([p.name for p in paths])
        raise UsageError(f"there are several manifests here ({names}): give the one that is meant.")
    return paths[0]
