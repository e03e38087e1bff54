"""How much memory a process may still take here: of the machine, and of its container."""

from contextlib import suppress
from pathlib import Path

MACHINE = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say."""
    found = []
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = MACHINE.read_text().splitlines()
        told = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(int(told.split()[1]) * 1024)
    with suppress(OSError, ValueError):
        most = int((CONTAINER / "memory.max").read_text())
        found.append(max(most - int((CONTAINER / "memory.current").read_text()), 0))
    return min(found, default=None)
