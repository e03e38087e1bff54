"""How many threads compute, how they wait, and in which memory. To be said before torch is loaded.

Threads of OpenMP spin while they wait for each other. On a machine that has other work, each then
waits for one that does not run, and a conversion takes ten times as long. Asleep they cost a few
percent. What the user's own environment says is left alone.
"""

import os
from contextlib import suppress
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of each period
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def prepare_threads(count: int | None = None) -> None:
    """Sets the variables that torch's libraries read when they are loaded.

    `count` threads compute; None: as many as the machine gives this process, unless the user's
    environment says how many.
    """
    if count is None and not any(os.environ.get(name) for name in COUNTS):
        count = usable_processors()
    if count is not None:
        os.environ.update(dict.fromkeys(COUNTS, str(count)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    # Large tensors lie in pages of 2 MB, where the system has such: of small ones, asking for the
    # memory takes as long as what is computed in it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def usable_processors() -> int:
    """How many processors this process may use: those it is bound to, and its container's share."""
    count = os.cpu_count() or 1
    with suppress(AttributeError):  # not every system binds processes
        count = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        share, period = QUOTA.read_text().split()
        count = min(count, max(1, int(share) // int(period)))
    return count


def threads() -> int:
    """How many threads compute here, as it was prepared."""
    for name in COUNTS:
        given = os.environ.get(name, "").partition(",")[0]
        if given.isdigit() and int(given) > 0:
            return int(given)
    return usable_processors()


def bind_threads() -> None:
    """Lets this process run on as many processors as threads compute: always on the same ones.

    No two processors are equally fast. Where the system binds no processes, nothing happens.
    """
    with suppress(AttributeError, OSError):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: threads()])
