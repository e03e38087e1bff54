"""Output to a pipe that its reader closes, as `| head` does: the rest of it is for nobody."""

import os
from typing import Any, TextIO


class Unbroken:
    """A text stream that goes on where nobody reads any more, so that a command ends as it would.

    Without it a closed pipe is an exit code of 1, which says that two models are not equal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text, or drops it."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Writes what is held back, or drops it."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """From now on all goes where nothing is kept."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
