"""Files elsewhere (s3://, gs://, hf://, ...), through fsspec: fetched and stored as whole files."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from acfuse.errors import AcfuseError, InputError, OutputError, UsageError
from acfuse.system.escape import one_line
from acfuse.system.limits import LIMITS, Limits

# What a list may name. fsspec knows more: shells, archives in archives, this machine's own files.
PROTOCOLS = ("abfs", "abfss", "az", "gcs", "gs", "hf", "http", "https", "memory", "s3")
PIECE = 2**22  # bytes


def fetch(url: str, path: Path, limits: Limits = LIMITS) -> int:
    """Copies a file from elsewhere to a path, and gives its bytes. Raises InputError."""
    size = 0
    with _refusing(url, "read", InputError), _opened(url, "rb") as there, path.open("xb") as here:
        while piece := there.read(PIECE):
            size += len(piece)
            limits.check("bytes", size, url)
            here.write(piece)
    return size


def store(path: Path, url: str) -> None:
    """Copies a file to elsewhere. Raises OutputError."""
    given = path.open("rb")
    with _refusing(url, "written", OutputError), given as here, _opened(url, "wb") as there:
        while piece := here.read(PIECE):
            there.write(piece)


def sha256_at(url: str) -> str | None:
    """The SHA-256 of a file elsewhere, in hex; None where there is none. Raises InputError."""
    digest = hashlib.sha256()
    with _refusing(url, "read", InputError):
        try:
            with _opened(url, "rb") as there:
                while piece := there.read(PIECE):
                    digest.update(piece)
        except FileNotFoundError:
            return None
    return digest.hexdigest()


def exists(url: str) -> bool:
    """Whether there is a file elsewhere. Raises InputError where that cannot be asked."""
    with _refusing(url, "read", InputError):
        system, place = _system(url)
        return bool(system.exists(place))


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the file's name in it. Raises UsageError."""
    protocol, _, rest = url.partition("://")
    if protocol not in PROTOCOLS or "::" in url or not rest:
        known = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise UsageError(f"{url} is no URL that acfuse reads; expected one of {known}.")
    try:
        import fsspec
    except ImportError as error:
        raise UsageError(f"{url} needs fsspec: pip install 'acfuse[remote]'.") from error
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        raise UsageError(f"{url} needs a package more: {one_line(error)}.") from error


def _opened(url: str, mode: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    system, place = _system(url)
    return system.open(place, mode)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _refusing(url: str, done: str, kind: type[AcfuseError]) -> Iterator[None]:
    """Whatever a service answers is one line about the URL."""
    try:
        yield
    except AcfuseError:
        raise
    except FileNotFoundError as error:
        raise kind(f"{url} does not exist; expected a file that can be {done}.") from error
    except Exception as error:
        raise kind(f"{url} cannot be {done}: {one_line(error)}.") from error
