"""What a zip file may be before torch sees it: stored records, each once, in order, and whole.

Torch and Python read zip files with two different parsers. Where a file leaves no room for two
readings (no prefix, no tail, no comment, no gap to hide in, one name one record), they agree.
"""

import contextlib
import struct
import zipfile
from collections.abc import Iterator
from typing import IO

from acfuse.errors import InputError, UnsafeError
from acfuse.files.opened_file import Opened
from acfuse.system.escape import one_line
from acfuse.system.limits import Limits

LOCAL = struct.Struct("<4s5H3L2H")  # what stands in front of each record
END = struct.Struct("<4s4H2LH")
LONG_END, LOCATOR = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")  # of large files
LARGEST_DIRECTORY = 2**26  # bytes
ENCRYPTED, DESCRIBED_LATER = 0x1, 0x8  # flags of a record
AGAIN = "Download it again, or save it again with torch.save"


def is_zip(source: Opened) -> bool:
    """Whether a file begins as a zip file does."""
    with source.open() as file:
        return file.read(4) == b"PK\x03\x04"


@contextlib.contextmanager
def unzipped(source: Opened) -> Iterator[zipfile.ZipFile]:
    """The open archive. Records without a checksum (torch can leave them away) are read as well."""
    with zipfile.ZipFile(source) as archive:
        for record in archive.infolist():
            if record.CRC == 0:
                del record.CRC  # Python then compares nothing
        yield archive


def names_of(source: Opened, limits: Limits) -> list[str]:
    """The names of the records, as the directory has them; none where there is no directory.

    Raises UnsafeError for a directory that is too large to be read.
    """
    try:
        _check_end(source, limits)
        with zipfile.ZipFile(source) as archive:
            return archive.namelist()
    except (InputError, OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return []


def check_zip(source: Opened, limits: Limits) -> tuple[str, ...]:
    """Checks the zip file that torch.save or torch.export wrote; what a user should know of it.

    Raises InputError for a damaged file, UnsafeError for one that is made to be read in two ways,
    or to be larger in memory than on disk.
    """
    name = source.name
    try:
        _check_end(source, limits)
        with unzipped(source) as archive:
            _check_directory(archive, name, limits)
            bad = archive.testzip()
            unchecked = [r for r in archive.infolist() if r.file_size and not hasattr(r, "CRC")]
    except (InputError, UnsafeError):
        raise
    except Exception as error:
        text = f"{name} is damaged or cut off: {one_line(error)}. Download it again."
        raise InputError(text) from error
    if bad is not None:
        raise InputError(f"{name} is damaged: the checksum of {bad} is wrong. Download it again.")
    return (f"{name} has no checksums: damage to its numbers is not noticed",) if unchecked else ()


def _check_end(source: Opened, limits: Limits) -> None:
    """The directory's end is the file's end, and the directory is no larger than it may be."""
    with source.open() as file:
        size = file.seek(0, 2)
        file.seek(max(size - END.size - LOCATOR.size - LONG_END.size, 0))
        tail = file.read()
    end = tail[-END.size :]
    if len(end) < END.size or end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise InputError(
            f"{source.name} is damaged or cut off: it does not end as a zip file does. {AGAIN}."
        )
    _, _, _, _, count, length, start, _ = END.unpack(end)
    locator = tail[-END.size - LOCATOR.size : -END.size]
    if locator[:4] == b"PK\x06\x07":  # of large files, and of all that torch writes
        place = size - END.size - LOCATOR.size - LONG_END.size
        long = LONG_END.unpack(tail[: LONG_END.size]) if place >= 0 else (b"",)
        # Torch looks where the locator says, Python in front of it; some look at the short end.
        if long[0] != b"PK\x06\x06" or LOCATOR.unpack(locator)[1:] != (0, place, 1):
            raise UnsafeError(f"{source.name} has two ends of its directory. {AGAIN}.")
        short, (count, length, start) = (count, length, start), long[7:]
        pairs = zip(short, (count, length, start), (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True)
        if any(said not in (true, large) for said, true, large in pairs):
            raise UnsafeError(f"{source.name} has two ends of its directory. {AGAIN}.")
    limits.check("records", count, source.name)
    if length > LARGEST_DIRECTORY:
        raise UnsafeError(f"{source.name} has a directory of {length:,} bytes, which none needs.")


def _check_directory(archive: zipfile.ZipFile, name: str, limits: Limits) -> None:
    records = archive.infolist()
    limits.check("records", len(records), name)
    seen: set[str] = set()
    for record in records:
        own = record.filename
        why = (
            "stands twice in it" if own.lower() in seen
            else "is no plain path" if not _is_plain(record.orig_filename)
            else "is encrypted" if record.flag_bits & ENCRYPTED
            else "is compressed" if record.compress_type != zipfile.ZIP_STORED
            else "has two sizes" if record.file_size != record.compress_size
            else ""
        )  # fmt: skip
        if why:
            raise UnsafeError(f"{name}: the record {own!r} {why}. {AGAIN}.")
        seen.add(own.lower())
    assert archive.fp is not None
    end = 0
    for record in sorted(records, key=lambda r: r.header_offset):
        if record.header_offset != end:
            raise UnsafeError(f"{name}: there are bytes that no record names. {AGAIN}.")
        end = _end_of(archive.fp, record, name)
    if end != archive.start_dir:
        raise UnsafeError(f"{name}: there are bytes that no record names. {AGAIN}.")


def _is_plain(path: str) -> bool:
    parts = path.removesuffix("/").split("/")
    return "\\" not in path and "\0" not in path and not {"", ".", ".."} & set(parts)


def _end_of(file: IO[bytes], record: zipfile.ZipInfo, name: str) -> int:
    """Where a record ends. Its own header must say what the directory says."""
    file.seek(record.header_offset)
    head = LOCAL.unpack(file.read(LOCAL.size))
    signature, _, flags, method, _, _, crc, packed, unpacked, length, extra = head
    own = file.read(length)
    later = bool(flags & DESCRIBED_LATER)
    sizes = {record.file_size, 0xFFFFFFFF, *([0] if later else [])}
    same = (
        signature == b"PK\x03\x04"
        and own.decode("utf-8", "replace") == record.orig_filename
        and method == record.compress_type
        and flags == record.flag_bits
        and (crc == getattr(record, "CRC", 0) or (later and crc == 0))
        and {packed, unpacked} <= sizes
    )
    if not same:
        raise UnsafeError(f"{name}: the record {record.filename!r} has two headers. {AGAIN}.")
    end: int = record.header_offset + LOCAL.size + length + extra + record.file_size
    file.seek(end)
    # Sizes that were written behind the record: a signature, the checksum, and two sizes.
    behind = file.read(4) if later else b""
    return end + (
        (24 if 0xFFFFFFFF in (packed, unpacked) else 16) if behind == b"PK\x07\x08" else 0
    )


def is_exported(source: Opened, limits: Limits) -> bool:
    """Whether a zip file is a program of torch.export."""
    return any(n.endswith("/archive_format") for n in names_of(source, limits))
