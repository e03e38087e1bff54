"""The index of a checkpoint that is cut into several files, as Hugging Face writes it."""

from pathlib import Path

from acfuse.errors import InputError, UnsafeError
from acfuse.files.opened_file import Opened
from acfuse.system.escape import one_line
from acfuse.system.limits import Limits, parsed_json

INDEX = ".index.json"
LARGEST = 2**26  # bytes of an index; the largest models need a few million


def read_index(source: Opened, limits: Limits) -> dict[str, str]:
    """Which file holds each tensor, in the order of the index. Raises InputError, UnsafeError."""
    if source.size > LARGEST:
        raise InputError(f"{source.name} is larger than an index of shards can be.")
    try:
        with source.open() as file:
            files = parsed_json(file.read(), source.name, limits)["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{source.name} is no index of shards: {one_line(error)}.") from error
    if not isinstance(files, dict) or not files:
        raise InputError(f"{source.name} is no index of shards: it names no files.")
    return {key: str(file) for key, file in files.items()}


def shard_of(source: Path, name: str) -> Path:
    """A file that an index names. Raises UnsafeError for one outside of its own folder."""
    path = source.parent / name
    if Path(name).name != name or name in ("", ".", ".."):
        raise UnsafeError(f"{source.name} names {name!r}, which is no file of its own folder.")
    if path.is_symlink() and path.resolve().parent != source.resolve().parent:
        raise UnsafeError(f"{source.name} names {name!r}, which is a link to another folder.")
    if name.endswith(INDEX):
        raise InputError(f"{source.name} names {name!r}, which is another index.")
    return path
