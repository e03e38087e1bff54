"""The files that a run has begun: nothing heavy is imported here, so that --help stays quick."""

import contextlib
from pathlib import Path

UNFINISHED: set[Path] = set()  # what is on the disk, and is to be gone when this process ends


def remove_unfinished() -> None:
    """Removes what is not finished: for a process that is about to end without another word."""
    for path in list(UNFINISHED):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
