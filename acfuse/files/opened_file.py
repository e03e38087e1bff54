"""A file is opened once, and what was hashed is what is read."""

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

from acfuse.errors import InputError, UnsafeError, UsageError
from acfuse.system.limits import LIMITS, Limits


@dataclass(frozen=True)
class Opened(os.PathLike[str]):
    """An open file. Whatever reads it by its path reads this very file.

    Another file that is renamed to its name meanwhile is never seen: on Linux the path leads to
    the open file itself.
    """

    name: str
    place: str
    size: int  # bytes
    sha256: str

    def __fspath__(self) -> str:
        return self.place

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        """The file once more, from its first byte."""
        return open(self.place, mode)


@contextlib.contextmanager
def opened(source: Path, limits: Limits = LIMITS, sha256: str | None = None) -> Iterator[Opened]:
    """Opens a regular file and hashes it. Raises InputError for anything else.

    Raises UnsafeError if it is not the file of the given hash.
    """
    with unhashed(source, limits) as file:
        try:
            with open(file, "rb") as raw:
                digest = hashlib.file_digest(raw, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{source} cannot be read: {error.strerror}.") from error
        if sha256 is not None and digest != sha256.lower():
            raise UnsafeError(
                f"{source.name} is not the expected file: its SHA-256 is {digest}, and should be "
                f"{sha256.lower()}. Download it again."
            )
        yield replace(file, sha256=digest)


@contextlib.contextmanager
def unhashed(source: Path, limits: Limits = LIMITS) -> Iterator[Opened]:
    """The same before it is hashed: only to see what it is."""
    try:
        # A pipe that nobody writes to would be waited for.
        number = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise InputError(f"{source} does not exist; expected a checkpoint file.") from error
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{str(source)!r} is no name of a file.") from error
    except OSError as error:
        if source.is_dir():
            raise InputError(f"{source.name} is a directory; {_file_in(source)}.") from error
        raise InputError(f"{source} cannot be read: {error.strerror}.") from error
    try:
        status = os.fstat(number)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{source.name} is a directory; {_file_in(source)}.")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{source.name} is not a regular file; expected a checkpoint file.")
        limits.check("bytes", status.st_size, source.name)
        place = f"/proc/self/fd/{number}" if sys.platform == "linux" else str(source)
        yield Opened(source.name, place, status.st_size, "")
    finally:
        os.close(number)


def check_given(path: Path, flag: str) -> None:
    """Raises UsageError where a flag names a file that is not there."""
    if not path.is_file():
        raise UsageError(f"{flag}: {path} does not exist.")


# What a folder of a model hub holds, the best to give first.
IN_FOLDERS = ("*.safetensors.index.json", "*.safetensors", "*.bin.index.json", "*.bin", "*.pt2",
              "*.pth", "*.pt", "*.ckpt", "*.hdf5", "*.onnx")  # fmt: skip


def _file_in(folder: Path) -> str:
    for kind in IN_FOLDERS:
        found = sorted(folder.glob(kind))
        if found:
            more = f" (there are {len(found)} such files)" if len(found) > 1 else ""
            return f"give the checkpoint in it: {found[0]}{more}"
    return "expected a checkpoint file, and none is in it"
