"""How long a test waits: for as long as it takes, on a machine that is busy too.

Nothing is judged by a clock. What must not be slow is held to processor time, which a busy machine
does not add to; what must come first or last is held to an order of events.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANG = 600.0  # seconds of waiting after which a test is taken to hang; nothing takes nearly as long


@contextmanager
def processor_seconds(limit: float) -> Iterator[None]:
    """Ends what would never end: it may take so many seconds of this process's own time."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"not done after {limit} seconds of work")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
