"""Many checkpoints: which there are, what is done already, and how the whole of it ended."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from acfuse.errors import Exit, InputError, UsageError
from acfuse.system.escape import one_line, safe
from acfuse.system.limits import LIMITS

LIST_BYTES = 100 * 10**6  # of a list: a million lines of a hundred characters
INDEX = ".index.json"
# What a conversion takes at most: torch and onnxruntime, and the weights in two precisions, before
# and after, with the ONNX file beside them. benchmarks/batch.py --memory measures both.
BASE_BYTES, TIMES_FILE = 600 * 10**6, 10
# The worst first: of several exit codes, a batch ends with the one that stands nearest the top.
WORST = (Exit.NOT_EQUAL, Exit.BUG, Exit.LOST, Exit.UNSAFE, Exit.BAD_OUTPUT, Exit.BAD_INPUT,
         Exit.USAGE, Exit.NOTHING, Exit.DONE)  # fmt: skip
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Entry:
    """A checkpoint of a batch: a path or URL, and settings of its own, as acfuse.toml has them."""

    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""  # where the list names it, for errors


def is_url(text: str) -> bool:
    """Whether this names something that is not in the file system."""
    return URL.match(text) is not None


def read_list(path: Path) -> list[Entry]:
    """The checkpoints of a list: a path or URL a line, or a JSON object with "source".

    Empty lines, and those that begin with #, are comments. Raises InputError.
    """
    from acfuse.files.opened_file import small_file  # with what hashes: slow to import

    kind = "a list of checkpoints, a path or URL a line"
    try:
        text = small_file(path, LIST_BYTES, kind).decode("utf-8")
    except ValueError as error:
        why = f"{path.name} cannot be read: {one_line(error)}; expected {kind}."
        raise InputError(why) from error
    lines = enumerate(text.split("\n"), 1)
    return [
        _entry(line.strip(), f"{path.name}:{number}")
        for number, line in lines
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _entry(line: str, place: str) -> Entry:
    if not line.startswith("{"):
        if not line.isprintable():
            raise InputError(f"{place}: {safe(line[:80])} is no path; expected printable text.")
        return Entry(line, place=place)
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {one_line(error)}.") from error
    source = data.pop("source", None)
    if not isinstance(source, str) or not source or not source.isprintable():
        raise InputError(f'{place} names no checkpoint; expected {{"source": "model.pth", ...}}.')
    return Entry(source, {key.replace("-", "_"): value for key, value in data.items()}, place)


def result_name(source: str, output: str | None) -> str:
    """What all outputs of a checkpoint have in front: of two that share it, one would be lost."""
    if is_url(source):
        folder, _, name = source.rpartition("/")
    else:
        folder, name = str(Path(source).parent.resolve()), Path(source).name
    if output is not None:
        folder = output.rstrip("/") if is_url(output) else str(Path(output).resolve())
    return f"{folder}/{PurePosixPath(name.removesuffix(INDEX)).stem}.fused"


def check_distinct(entries: Iterable[Entry], output: str | None) -> None:
    """Raises UsageError where two checkpoints would write the same files."""
    seen: dict[str, str] = {}
    for entry in entries:
        name = result_name(entry.source, output)
        if name in seen:
            raise UsageError(
                f"{seen[name]} and {entry.source} would both write {name}.*; rename one, or "
                "convert them to different folders."
            )
        seen[name] = entry.source


def memory_of(size: int) -> int:
    """Bytes that converting a checkpoint of so many bytes is expected to take at most."""
    return BASE_BYTES + TIMES_FILE * size


def size_of(source: str) -> int:
    """The bytes of a checkpoint, with all shards of an index; 0 where that is not known here."""
    if is_url(source):
        return 0
    path = Path(source)
    try:
        if path.name.endswith(INDEX):
            stem = path.name.removesuffix(INDEX).partition(".")[0]
            return sum(p.stat().st_size for p in path.parent.glob(f"{stem}*") if p.is_file())
        return min(path.stat().st_size, LIMITS.bytes)
    except (OSError, ValueError):
        return 0


def worst(codes: Iterable[int]) -> Exit:
    """The exit code of a batch; a code that no command has is that of a lost process."""
    found = {code if code in WORST else Exit.LOST for code in codes}
    return next((code for code in WORST if code in found), Exit.DONE)
