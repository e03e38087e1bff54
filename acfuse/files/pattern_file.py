"""A file of a user's own patterns, as the table that it is: what stands in it is read elsewhere."""

import tomllib
from pathlib import Path
from typing import Any

from acfuse.errors import InputError
from acfuse.files.opened_file import small_file
from acfuse.system.escape import one_line, safe

BYTES, LINE = 2**16, 2_000  # a key of thousands of dots takes tomllib minutes


def pattern_table(path: Path) -> dict[str, Any]:
    """What a file says as TOML. Raises InputError, in one line, where it says nothing so."""
    name = safe(path.name)
    data = small_file(path, BYTES, "a file of patterns")
    try:
        if any(len(line) > LINE for line in data.splitlines()):
            raise InputError(f"{name} has a line of more than {LINE:,} bytes: break it in two.")
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} cannot be read as TOML: {safe(one_line(error))}.") from error
