"""Writes files whole or not at all, and says beforehand whether that can work."""

import contextlib
import errno
import glob
import hashlib
import io
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from acfuse.errors import BusyError, OutputError
from acfuse.system.temp_files import UNFINISHED

if sys.platform != "win32":
    import fcntl

BINARY = getattr(os, "O_BINARY", 0)  # Windows would change the ends of lines
SMALLEST = 4  # no published block shrinks its weights to less than a quarter


def check_outputs(
    paths: Sequence[Path],
    inputs: Sequence[Path],
    *,
    force: bool,
    option: str = "--output",
    takes_room: bool = True,
) -> None:
    """Raises OutputError if one of the files may not, or cannot, be written.

    `option` is what names them; what `takes_room` is as large as fused weights.
    """
    try:
        _check_outputs(paths, inputs, force=force, option=option)
        if takes_room:
            _check_room(paths, inputs)
    except OSError as error:
        raise OutputError(f"{error.filename} cannot be written to: {error.strerror}.") from error


def _check_outputs(
    paths: Sequence[Path], inputs: Sequence[Path], *, force: bool, option: str
) -> None:
    for path in paths:
        folder = path.parent
        if not folder.is_dir():
            raise OutputError(f"{folder} is not a directory; create it, or give another {option}.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{folder} cannot be written to; give another {option}.")
        if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
            raise OutputError(f"{path} is the input itself; give another {option}.")
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise OutputError(f"{path} exists and is not a regular file; give another {option}.")
        if path.exists() and not force:
            raise OutputError(f"{path} exists; give --force to replace it, or another {option}.")


def _check_room(paths: Sequence[Path], inputs: Sequence[Path]) -> None:
    needed = sum(source.stat().st_size for source in inputs if source.is_file()) // SMALLEST
    for folder in {path.parent for path in paths}:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OutputError(
                f"{folder} has no room: at least {needed:,} bytes are needed, {free:,} are free."
            )


@contextlib.contextmanager
def reserved(paths: Sequence[Path], inputs: Sequence[Path], *, force: bool) -> Iterator[None]:
    """Checks the outputs, and keeps every other run away from them until the block ends.

    What a run that died has left beside them is removed. Raises OutputError.
    """
    check_outputs(paths, inputs, force=force)
    with _locked(_lock_of(paths[-1])):
        check_outputs(paths, inputs, force=force)  # another run may have written them meanwhile
        for path in paths:
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
                left.unlink(missing_ok=True)
        yield


def _lock_of(path: Path) -> Path:
    """One lock for all outputs of one name: model.fused.pth, model.fused.onnx and so on."""
    stem = path.name.removesuffix(".acfuse.json").removesuffix(path.suffix)
    return path.with_name(f".{stem}.acfuse.lock")


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Holds a lock file. The system lets go of it when the process ends, however it ends."""
    if sys.platform == "win32":
        with _locked_by_filelock(lock):
            yield
        return
    number = _lock(lock)
    if number is not None:
        UNFINISHED.add(lock)
    try:
        yield
    finally:
        if number is not None:
            with contextlib.suppress(OSError):
                lock.unlink(missing_ok=True)
            UNFINISHED.discard(lock)
            os.close(number)


@contextlib.contextmanager
def _locked_by_filelock(lock: Path) -> Iterator[None]:
    """The same where there is no `fcntl`: a library holds the file, and removes it if it can."""
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise _busy(lock, "another run") from error
    except (OSError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise OutputError(f"{lock} cannot be locked: {why}; give another --output.") from error
    try:
        yield
    finally:
        held.release()


def _busy(lock: Path, who: str) -> BusyError:
    return BusyError(
        f"{who} is writing these files now ({lock}); wait for it, or give another --output."
    )


def _lock(lock: Path) -> int | None:
    """The open and locked file; None where the file system has no locks."""
    assert sys.platform != "win32"
    while True:
        try:
            number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise OutputError(f"{lock} cannot be made: {error.strerror}.") from error
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OutputError(f"{lock} is no regular file; remove it, or give another --output.")
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # without room, the next run is told no number
                os.ftruncate(number, 0)
                os.write(number, str(os.getpid()).encode())
            if os.path.samestat(os.fstat(number), lock.lstat()):
                return number
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            holder = os.read(number, 20).decode("ascii", "replace") or "unknown"
            os.close(number)
            raise _busy(lock, f"another run (process {holder})") from error
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                lock.unlink(missing_ok=True)
                os.close(number)
                return None
            os.close(number)
            raise OutputError(f"{lock} cannot be written: {error.strerror}.") from error
        os.close(number)  # its last holder removed it just now: once more


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
            UNFINISHED.discard(temporary)
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
            with contextlib.suppress(OSError):  # the next run removes it
                temporary.unlink(missing_ok=True)
            UNFINISHED.discard(temporary)


def _kept(path: Path) -> Path | None:
    """A second name for the file at a place, so that it can be put back; None if there is none.

    Where the file system has no second names, a copy.
    """
    if not path.is_file() and not path.is_symlink():
        return None
    old = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old.unlink(missing_ok=True)
    try:
        os.link(path, old, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, old, follow_symlinks=False)
    return old


def _put_back(path: Path, old: Path | None, *, written: bool) -> None:
    if old is not None:
        old.replace(path)
    elif written:
        path.unlink(missing_ok=True)


class _Remembering(io.BufferedWriter):
    """An open file that keeps the error of a write: torch.save hides it behind one of its own."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes as any file does."""
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


def _write_beside(path: Path, data: bytes | Write) -> Path:
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.partial")
    UNFINISHED.add(temporary)
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
    try:
        with _Remembering(io.FileIO(number, "wb")) as file:
            try:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    data(file)
                file.flush()
            except Exception as error:
                raise file.failed or error from error
            os.fsync(file.fileno())
        if path.is_file() and not path.is_symlink():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode) & 0o777)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


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
