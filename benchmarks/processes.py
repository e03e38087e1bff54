"""Programs in processes of their own, and what they cost: by the clock, of the processors, memory.

What is compared runs in turn, A B, B A, A B: whatever makes the machine slower for a while meets
both alike.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[1]
T = TypeVar("T")


@dataclass(frozen=True)
class Ran:
    """What a process took, with all that it started and waited for."""

    wall: float  # seconds
    cpu: float  # seconds
    peak: int  # bytes in memory at once, of the largest of them; at least that of the one that asks
    text: str

    @property
    def last_line(self) -> str:
        """What it said in the end."""
        return (self.text.strip().splitlines() or [""])[-1]


def run(*command: str, folder: Path = ROOT, **variables: str) -> Ran:
    """Runs a program with one thread. Raises RuntimeError with its last line if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout:
            text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            log.seek(0)
            why = (log.read().strip() or text.strip() or "it said nothing").splitlines()[-1]
            raise RuntimeError(f"{' '.join(command)[:60]} ended ({process.returncode}): {why}")
    return Ran(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, text)


def python(*arguments: str, folder: Path = ROOT, **variables: str) -> Ran:
    """Runs this Python. Raises RuntimeError if it fails."""
    return run(sys.executable, "-W", "ignore", *arguments, folder=folder, **variables)


def acfuse(*arguments: str, folder: Path, **variables: str) -> Ran:
    """Runs acfuse. Raises RuntimeError if it fails."""
    return python("-m", "acfuse", *arguments, folder=folder, **variables)


def in_turn(
    first: Callable[[], T], second: Callable[[], T], rounds: int
) -> tuple[list[T], list[T]]:
    """Both, as often as there are rounds: A B, B A, A B. What each gave, round by round."""
    given: tuple[list[T], list[T]] = ([], [])
    for number in range(rounds):
        for i in (0, 1) if number % 2 == 0 else (1, 0):
            given[i].append((first, second)[i]())
    return given


def ratios(above: list[float], below: list[float]) -> tuple[float, ...]:
    """One ratio of each round."""
    return tuple(a / b for a, b in zip(above, below, strict=True))
