"""What a file is, by its first bytes; nothing in it is read as anything before that is known."""

from acfuse.errors import InputError
from acfuse.files.opened_file import Opened
from acfuse.files.pt2_archive import is_exported
from acfuse.files.shards import INDEX
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
    if _is_onnx(head):
        raise InputError(f"{name} is an ONNX file; expected the checkpoint of a PyTorch model.")
    raise InputError(f"{name} is no checkpoint: it begins with {head[:8]!r}.")


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 9 and head[8:9] == b"{" and 2 <= length <= size - 8


def _is_onnx(head: bytes) -> bool:
    """A ModelProto begins with its ir_version (field 1, a small number), then the producer."""
    return (
        len(head) > 3 and head[0] == 0x08 and head[1] < 0x20 and head[2] in (0x12, 0x1A, 0x3A, 0x42)
    )
