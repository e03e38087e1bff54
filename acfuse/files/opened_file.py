"""A file is opened once, and what was hashed is what is read."""

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

from acfuse.errors import InputError, UnsafeError, UsageError
from acfuse.system.escape import safe
from acfuse.system.limits import LIMITS, Limits


@dataclass(frozen=True)
class FileState:
    """A file as it was when it was read: bytes, nanoseconds of its last change, SHA-256."""

    size: int
    modified: int
    sha256: str


@dataclass(frozen=True)
class Opened(os.PathLike[str]):
    """An open file. Whatever reads it by its path reads this very file.

    Another file that is renamed to its name meanwhile is never seen: on Linux the path leads to
    the open file itself.
    """

    name: str
    place: str
    size: int  # bytes
    modified: int  # nanoseconds
    sha256: str

    @property
    def state(self) -> FileState:
        """What it was before anything was read."""
        return FileState(self.size, self.modified, self.sha256)

    def __fspath__(self) -> str:
        return self.place

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        """The file once more, from its first byte."""
        return open(self.place, mode)


@contextlib.contextmanager
def opened(source: Path, limits: Limits = LIMITS, sha256: str | None = None) -> Iterator[Opened]:
    """Opens a regular file and hashes it. Raises InputError for anything else.

    So it does if the file is changed before it is closed. Raises UnsafeError if it is not the file
    of the given hash.
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
        if os.path.isdir(source):  # unlike the method, it asks nothing else of a forbidden folder
            raise InputError(f"{source} is a directory; {_file_in(source)}.") from error
        raise InputError(f"{source} cannot be read: {error.strerror}.") from error
    try:
        status = os.fstat(number)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{source} is a directory; {_file_in(source)}.")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{source.name} is not a regular file; expected a checkpoint file.")
        limits.check("bytes", status.st_size, source.name)
        place = f"/proc/self/fd/{number}" if sys.platform == "linux" else str(source)
        try:
            yield Opened(source.name, place, status.st_size, status.st_mtime_ns, "")
        finally:
            now = os.fstat(number)
            if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                raise _changed(source, status.st_size, now.st_size)
    finally:
        os.close(number)


@contextlib.contextmanager
def unchanged(files: Mapping[Path, FileState]) -> Iterator[None]:
    """Raises InputError at the end, whatever else came of it, if one of these files has changed.

    Tensors may still lie in a file that was read. One that was only touched has its hash still.
    """
    try:
        yield
    finally:
        for path, before in files.items():
            try:
                now = path.stat()
            except OSError:  # removed, or no longer to be seen: what was open stays what it was
                continue
            if (now.st_size, now.st_mtime_ns) == (before.size, before.modified):
                continue
            if now.st_size != before.size or _digest(path) != before.sha256:
                raise _changed(path, before.size, now.st_size)


def _digest(path: Path) -> str:
    with open(path, "rb") as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()


def _changed(path: Path, before: int, now: int) -> InputError:
    size = f"{before:,} bytes are {now:,} now" if now != before else f"of {now:,} bytes as before"
    return InputError(
        f"{path.name} was written to while it was read ({size}): nothing is proved of it. Wait "
        "until it is complete, or copy it, and try again."
    )


def small_file(path: Path, most: int, kind: str) -> bytes:
    """All that is in a file that somebody wrote by hand, of `most` so many bytes.

    Raises InputError if it cannot be read, or is larger: then it is not what it should be.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        name = safe(path.name)
        raise InputError(f"{name} cannot be read: {error.strerror}; expected {kind}.") from error
    if len(data) > most:
        raise InputError(f"{safe(path.name)} has more than {most:,} bytes: is it {kind}?")
    return data


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
