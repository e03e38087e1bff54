"""Two models in turn, each in a process of its own: one sleeps while the other is timed.

Two of them in one process would disturb each other, as the idle threads of one wait while the other
computes. So this process runs no model: it starts one for each model, tells them whose turn it is,
and reads what they say, a line of JSON each.
"""

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import acfuse
from acfuse.errors import AcfuseError, Exit, InputError
from acfuse.pipeline.speedup import Measured, Turn
from acfuse.system.threads import threads, usable_processors

ROLES = ("original", "fused")
GRACE = 2  # seconds
Progress = Callable[[str], None]
Start = Callable[[str, str], Sequence[str]]  # a backend and a role to a command line


class Skipped(Exception):
    """A backend that is not here, with the reason."""


@dataclass
class Worker:
    """A process that holds one model, and runs it when it is told to."""

    process: "subprocess.Popen[str]"
    log: IO[str]
    name: str

    def ask(self, what: str) -> dict[str, Any]:
        """What it answers. Raises its own error, Skipped, or InputError where it ended."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{what}\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that it writes."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        try:
            told = json.loads(line)
        except ValueError:
            self.process.wait()
            self.log.seek(0)
            last = (self.log.read().strip() or "it said nothing").splitlines()[-1]
            code = self.process.returncode
            kind = AcfuseError if code == Exit.BUG else InputError
            raise kind(f"the process that runs {self.name} ended ({code}): {last}") from None
        if "skipped" in told:
            raise Skipped(told["skipped"])
        if "error" in told:
            error = AcfuseError(told["error"])
            error.exit_code = Exit(told["exit"])
            raise error
        return dict(told)


@contextmanager
def worker(command: Sequence[str], name: str) -> Iterator[Worker]:
    """A process of this Python, which ends with the block at the latest."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
        )
        try:
            yield Worker(process, log, name)
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends a process: by the end of what it reads, or else at once."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def this_command(backend: str, role: str) -> list[str]:
    """The command line of this process again, as the worker for one model."""
    root = str(Path(acfuse.__file__).parents[1])
    # Nothing but acfuse is looked for there, and nothing at all in the working directory.
    code = (
        f"import sys; sys.path.insert(0, {root!r}); import acfuse; sys.path.remove({root!r}); "
        "sys.argv[0] = 'acfuse'; from acfuse.cli import main; main()"
    )
    return ["-P", "-c", code, *sys.argv[1:], "--worker", f"{backend}:{role}"]


def measure(
    backend: str, rounds: int, start: Start = this_command, progress: Progress = lambda _: None
) -> Measured:
    """Times both models in turn: A B, B A, A B, so that what drifts meets both alike.

    Raises Skipped for a backend that is not here.
    """
    with ExitStack() as stack:
        workers = [
            stack.enter_context(worker(start(backend, role), f"the {role} model")) for role in ROLES
        ]
        progress(f"{backend}: loading both models")
        for one in workers:
            one.answer()
        for one, role in zip(workers, ROLES, strict=True):
            progress(f"{backend}: warming up the {role} model")
            one.ask("warm")
        turns: tuple[list[Turn], list[Turn]] = ([], [])
        for number in range(rounds):
            progress(f"{backend}: round {number + 1} of {rounds}")
            for i in (0, 1) if number % 2 == 0 else (1, 0):
                told = workers[i].ask("turn")
                turns[i].append(Turn(told["wall"], told["cpu"]))
    return Measured(backend, tuple(turns[0]), tuple(turns[1]))


def machine() -> dict[str, Any]:
    """Where it was measured, and with what."""
    versions = {"acfuse": acfuse.__version__, "python": platform.python_version()}
    for name in ("torch", "onnxruntime"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "processor": _processor(),
        "processors": usable_processors(),
        "threads": threads(),
        "system": platform.system(),
        "versions": versions,
    }


def _processor() -> str:
    """What the processor calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
