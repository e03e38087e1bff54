"""Ctrl-C and SIGTERM end a run within a second, whatever it is doing."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from acfuse.system.temp_files import remove_unfinished

GRACE_SECONDS = 0.7  # Python handles a signal only between two of its own steps


class Terminated(BaseException):
    """SIGTERM arrived."""


def _terminate(_: int, __: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Makes SIGTERM an exception, as Ctrl-C is one, and ends a process that does not react.

    A long computation, a slow disk or code of a model that swallows exceptions would keep it
    running. A second signal ends it at once. What is not finished is removed either way.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if sys.platform == "win32":  # there, nobody can wait for a pipe: Python's own handling is all
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # the watch ends
        watch.join()
        os.close(reader)


def _watch(reader: int) -> None:
    """Waits for a signal, then for the end of the run, for a second signal, or for too long."""
    while number := os.read(reader, 1):
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        ready, _, _ = select.select([reader], [], [], GRACE_SECONDS)
        if ready and not os.read(reader, 1):
            return
        remove_unfinished()
        word = "interrupted" if number[0] == signal.SIGINT else "terminated"
        os.write(2, f"{word}\n".encode())
        os._exit(128 + number[0])
