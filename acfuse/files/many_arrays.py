"""Real inputs in one file or a folder of files, each of which numpy has written."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from acfuse.errors import InputError, UsageError
from acfuse.files.arrays import read_arrays
from acfuse.files.opened_file import opened
from acfuse.system.escape import safe
from acfuse.system.limits import LIMITS, Limits

ARRAYS = (".npy", ".npz")
PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ManyArrays:
    """The arrays of each file, by the file's name and their own, and what the files are.

    Of a folder, `sha256` is that of the lines that `sha256sum *` prints for its files in order.
    """

    name: str
    sha256: str
    parts: tuple[tuple[str, Mapping[str, Tensor]], ...] = field(repr=False)
    left_out: tuple[str, ...] = ()  # files of the folder that hold no arrays


def files_in(path: Path, flag: str) -> list[Path]:
    """The file or files whose arrays would be read.

    Raises UsageError where there is no such file or folder, InputError for one of pictures.
    """
    return _files_of(path, flag)[0]


def read_many(path: Path, flag: str, limits: Limits = LIMITS) -> ManyArrays:
    """The arrays of an .npz or .npy file, or of all of a folder, in the order of their names.

    Raises UsageError where there is none, InputError for one that cannot be read, UnsafeError for
    more than memory should hold.
    """
    files, others = _files_of(path, flag)
    parts, hashes, size = [], [], 0
    for file in files:
        with opened(file, limits) as state:
            arrays = read_arrays(file, limits, flag)
        size += sum(t.numel() * t.element_size() for t in arrays.values())
        if size > limits.memory:
            raise InputError(
                f"{flag}: {safe(path.name)} holds more than {limits.memory:,} bytes of numbers; "
                "a few hundred images are enough for the ranges of values."
            )
        parts.append((file.name, arrays))
        hashes.append((state.sha256, file.name))
    sha256 = hashes[0][0]
    if path.is_dir():
        lines = "".join(f"{digest}  {name}\n" for digest, name in hashes)
        sha256 = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
    return ManyArrays(path.resolve().name, sha256, tuple(parts), tuple(others))


def _files_of(path: Path, flag: str) -> tuple[list[Path], list[str]]:
    """The files with arrays, and the names of others beside them."""
    if not path.exists():
        raise UsageError(f"{flag}: {path} does not exist.")
    there = sorted(path.iterdir()) if path.is_dir() else [path]
    there = [file for file in there if not file.name.startswith(".") or not path.is_dir()]
    pictures = [file.name for file in there if file.suffix.lower() in PICTURES]
    if pictures:
        raise InputError(
            f"{flag}: {safe(pictures[0])} is a picture, and how its pixels become numbers (size, "
            "mean, scale, order of colours) is the network's own affair; save what the network is "
            "given, as numpy.save(FILE.npy, array) does."
        )
    if not path.is_dir():
        return there, []
    files = [file for file in there if file.suffix.lower() in ARRAYS and file.is_file()]
    if not files:
        raise InputError(f"{flag}: {safe(path.name)} holds no .npy or .npz file.")
    return files, [file.name for file in there if file not in files]
