"""What a file is, by its bytes; nothing in it is read as anything before that is known."""

import os
import stat
from pathlib import Path
from typing import IO

from acfuse.errors import InputError
from acfuse.files.opened_file import Opened, unhashed
from acfuse.files.shards import INDEX
from acfuse.files.zip_check import is_exported
from acfuse.system.atomic_write import BINARY
from acfuse.system.limits import Limits


def recognise(source: Opened, limits: Limits) -> str:
    """What a file is: "torch", "exported", "safetensors", "hdf5" or "index" (of shards).

    Raises InputError for anything else, with what it is and what to give.
    """
    name, size = source.name, source.size
    with source.open() as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if size == 0:
        raise InputError(f"{name} is empty; expected a checkpoint. Download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{name} is a git-lfs pointer, not the file itself. Run `git lfs pull`.")
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise InputError(f"{name} is a web page, not a checkpoint. Download the file itself.")
    archives = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7-zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
    for magic, archive in archives.items():
        if head.startswith(magic):
            raise InputError(f"{name} is a {archive} archive. Unpack it and give the checkpoint.")
    if head.startswith(b"\x89HDF"):
        return "hdf5"
    if name.endswith(INDEX) and text.startswith(b"{"):
        return "index"
    if _is_safetensors(head, size):
        return "safetensors"
    if head.startswith(b"PK\x03\x04") and is_exported(source, limits):
        return "exported"
    if head.startswith((b"PK\x03\x04", b"\x80")) or head.startswith(b"ustar", 257):
        return "torch"
    if _begins_as_onnx(head):
        raise InputError(f"{name} is an ONNX file; expected the checkpoint of a PyTorch model.")
    raise InputError(f"{name} is no checkpoint: it begins with {head[:8]!r}.")


def check_source(path: Path, limits: Limits, sha256: str | None = None) -> None:
    """Raises what reading a file will, as far as its first bytes tell.

    Of a file that has to have a hash, nothing is read before it is known to have it.
    """
    with unhashed(path, limits) as file:
        if sha256 is None and not is_onnx(path):
            recognise(file, limits)


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 9 and head[8:9] == b"{" and 2 <= length <= size - 8


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX model, told from its bytes alone; nothing is parsed."""
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | BINARY)
    except (OSError, ValueError):
        return False
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        os.close(number)
        return False
    with open(number, "rb") as file:
        return _begins_as_onnx(file.read(4)) or _consists_of_fields(file, status.st_size)


def _begins_as_onnx(head: bytes) -> bool:
    """A ModelProto begins with its ir_version (field 1, a small number), then the producer."""
    return (
        len(head) > 3 and head[0] == 0x08 and head[1] < 0x20 and head[2] in (0x12, 0x1A, 0x3A, 0x42)
    )


# The fields of a ModelProto: plain numbers, and messages or strings with their sizes in front.
NUMBERS, SIZED, GRAPH = {1, 5}, {2, 3, 4, 6, 7, 8, 14, 20, 25, 26}, 7
MOST_FIELDS = 100_000


def _consists_of_fields(file: IO[bytes], size: int) -> bool:
    """Whether a file is fields of a ModelProto, in any order, from its first byte to its last."""
    file.seek(0)
    seen: set[int] = set()
    for _ in range(MOST_FIELDS):
        if file.tell() >= size:
            return file.tell() == size and GRAPH in seen
        tag, value = _varint(file), _varint(file)
        field, kind = tag >> 3, tag & 7
        fits = (kind == 0 and field in NUMBERS) or (kind == 2 and field in SIZED)
        if not fits or value < 0:
            return False
        if kind == 2:
            file.seek(value, os.SEEK_CUR)
        seen.add(field)
    return False


def _varint(file: IO[bytes]) -> int:
    """A number as protobuf writes it, seven bits a byte; -1 for what is none."""
    number = 0
    for shift in range(0, 63, 7):
        byte = file.read(1)
        if not byte:
            return -1
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
    return -1
