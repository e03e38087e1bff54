"""Writes files whole or not at all, and says beforehand whether that can work."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from acfuse.errors import OutputError


def check_outputs(paths: Sequence[Path], inputs: Sequence[Path], *, force: bool) -> None:
    """Raises OutputError if one of the files may not, or cannot, be written."""
    try:
        _check_outputs(paths, inputs, force=force)
    except OSError as error:
        raise OutputError(f"{error.filename} cannot be written to: {error.strerror}.") from error


def _check_outputs(paths: Sequence[Path], inputs: Sequence[Path], *, force: bool) -> None:
    for path in paths:
        folder = path.parent
        if not folder.is_dir():
            raise OutputError(f"{folder} is not a directory; create it, or give another --output.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{folder} cannot be written to; give another --output.")
        if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
            raise OutputError(f"{path} is the input itself; give another --output.")
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise OutputError(f"{path} exists and is not a regular file; give another --output.")
        if path.exists() and not force:
            raise OutputError(f"{path} exists; give --force to replace it, or another --output.")


Write = Callable[[IO[bytes]], None]


@dataclass(frozen=True)
class Written:
    """What a file holds: how many bytes, and their SHA-256 in hex."""

    size: int
    sha256: str


def written_to(path: Path) -> Written:
    """What a file holds now."""
    return Written(path.stat().st_size, sha256_of(path))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_all(
    contents: Mapping[Path, bytes | Write],
    last: tuple[Path, Callable[[Mapping[Path, Written]], bytes]] | None = None,
) -> None:
    """Writes all files, or none: each whole beside its place, then all renamed, the last one last.

    Contents are bytes, or a function that writes them to an open file. `last` is a file more, which
    is made from what the others hold. Raises OutputError; whatever was there before is then still
    there.
    """
    waiting: dict[Path, Path] = {}
    before: dict[Path, Path | None] = {}  # what stood at each place that was already written
    try:
        for path, data in contents.items():
            waiting[path] = _write_beside(path, data)
        if last is not None:
            path, made_from = last
            others = {place: written_to(beside) for place, beside in waiting.items()}
            waiting[path] = _write_beside(path, made_from(others))
        for path, temporary in list(waiting.items()):
            before[path] = _kept(path)
            temporary.replace(path)
            del waiting[path]
        for folder in {path.parent for path in before}:
            _sync_folder(folder)
    except BaseException as error:
        for path, old in before.items():
            _put_back(path, old, written=path not in waiting)
        if isinstance(error, OSError):
            raise OutputError(_explain(error, contents)) from error
        raise
    finally:
        for temporary in (*waiting.values(), *filter(None, before.values())):
            temporary.unlink(missing_ok=True)


def _kept(path: Path) -> Path | None:
    """A second name for the file at a place, so that it can be put back; None if there is none."""
    if not path.is_file() and not path.is_symlink():
        return None
    old = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old.unlink(missing_ok=True)
    os.link(path, old, follow_symlinks=False)
    return old


def _put_back(path: Path, old: Path | None, *, written: bool) -> None:
    if old is not None:
        old.replace(path)
    elif written:
        path.unlink(missing_ok=True)


def _write_beside(path: Path, data: bytes | Write) -> Path:
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                data(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _explain(error: OSError, contents: Mapping[Path, bytes | Write]) -> str:
    folder = next(iter(contents)).parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        known = sum(len(data) for data in contents.values() if isinstance(data, bytes))
        needed = f"{known:,}" if all(isinstance(d, bytes) for d in contents.values()) else "more"
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            return (
                f"{folder} has no room: {needed} bytes are needed, {free:,} are free. "
                "Nothing was written."
            )
    return f"{folder} cannot be written to: {error.strerror or error}. Nothing was written."
