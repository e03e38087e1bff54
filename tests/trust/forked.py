"""Runs of `acfuse` by the thousand: each in a process of its own, which has imported torch before.

A server process imports everything once and converts one sample, so that what is imported late is
there too. For each run it forks; the child is a whole process with its own memory, signals, limits
and exit code, and takes a tenth of a second instead of four.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.waiting import HANG

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "sample_models"
LIMIT = 10  # seconds of the processor that a run may take before it counts as a hang


@dataclass(frozen=True)
class Ended:
    """How a run ended. `exit` is negative for a signal, as in subprocess; `peak` in bytes.

    `seconds` are those of the processor, which a busy machine does not add to; `elapsed` are all.
    """

    exit: int
    seconds: float
    peak: int
    stdout: str
    stderr: str
    hung: bool = False
    touched: tuple[str, ...] = ()  # what it did that it never may: sockets, processes
    elapsed: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Neither a signal, nor a traceback, nor a hang."""
        return self.exit >= 0 and not self.hung and "Traceback" not in self.stderr

    @property
    def is_one_line(self) -> bool:
        """Its refusal is one line that begins as each error of acfuse does."""
        lines = self.stderr.strip().splitlines()
        return bool(lines) and lines[-1].startswith("error: ") and self.stderr.count("error: ") == 1


@dataclass(frozen=True)
class Plan:
    """One run: the arguments of `acfuse`, and under what it runs."""

    args: Sequence[str]
    folder: str
    env: Mapping[str, str] = field(default_factory=dict)
    file_size: int | None = None  # RLIMIT_FSIZE in bytes
    user: int | None = None  # the user it runs as, for permissions (root may write everywhere)
    kill_after: float | None = None  # seconds until SIGKILL, of all that pass
    kill_at: int | None = None  # which change of a file dies with SIGKILL, from 0
    full_at: int | None = None  # which change of a file finds the disk full, from 0


class Server:
    """A process that forks runs. One run at a time; several servers run beside one another."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trust.forked"],
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, folder: Path, **more: Any) -> Ended:
        """Runs `acfuse` with these arguments in a folder; `more` as in Plan."""
        return self.send(Plan(args, str(folder), **more))

    def send(self, plan: Plan) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(plan)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(**{**answer, "touched": tuple(answer["touched"])})

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def server(**env: str) -> Iterator[Server]:
    """A server that ends with the block; `env` is what it has beside this process's variables."""
    running = Server(env)
    try:
        yield running
    finally:
        running.close()


# --- inside the server ---------------------------------------------------------------------------


def _serve(requests: IO[str], answers: IO[str]) -> None:
    _import_all()
    for line in requests:
        plan = Plan(**json.loads(line))
        print(json.dumps(asdict(_forked(plan))), file=answers, flush=True)


def _import_all() -> None:
    """Imports what a run imports, early or late, by converting a sample here."""
    import shutil

    import h5py  # noqa: F401
    import torch

    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    with tempfile.TemporaryDirectory() as name:
        for file in (*SAMPLES.glob("*.py"), SAMPLES / "acfuse.toml", SAMPLES / "model.pth"):
            shutil.copy(file, name)
        for args in (["convert", "model.pth"], ["verify"], ["inspect", "model.pth"]):
            plan = Plan(args, name)
            with _streams() as (out, err):
                kept = os.getcwd()
                code = _acfuse(plan)
                os.chdir(kept)
                assert code == 0, (args, _text(out), _text(err))
        own = [m for m in sys.modules if _file_of(m).startswith(f"{name}{os.sep}")]
        for module in own:  # the sample's code: each run has its own
            del sys.modules[module]


def _file_of(module: str) -> str:
    return str(getattr(sys.modules[module], "__file__", None))


def _forked(plan: Plan) -> Ended:
    began = time.monotonic()
    with _streams(redirect=False) as (out, err), tempfile.TemporaryFile() as acts:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                _restrict(plan, acts.fileno())
                code = _acfuse(plan)
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        hung = _wait(child, plan)
        _, status, usage = os.wait4(child, 0)
        return Ended(
            exit=os.waitstatus_to_exitcode(status),
            seconds=usage.ru_utime + usage.ru_stime,
            elapsed=time.monotonic() - began,
            peak=usage.ru_maxrss * 1024,
            stdout=_text(out),
            stderr=_text(err),
            hung=hung or os.waitstatus_to_exitcode(status) == -signal.SIGXCPU,
            touched=tuple(_text(acts).split()),
        )


def _wait(child: int, plan: Plan) -> bool:
    """Waits for the end of a run, or makes it. True if it waited for something that never came."""
    number = os.pidfd_open(child)
    try:
        until = HANG if plan.kill_after is None else plan.kill_after
        ready, _, _ = select.select([number], [], [], until)
        if not ready:
            os.kill(child, signal.SIGKILL)
        return not ready and plan.kill_after is None
    finally:
        os.close(number)


def _acfuse(plan: Plan) -> int:
    """The command in this process; its exit code."""
    from acfuse import cli

    os.chdir(plan.folder)
    os.environ.update(plan.env)
    sys.argv = ["acfuse", *plan.args]
    try:
        cli.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# What a run may never do, whatever file it is given.
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork")
CHANGES = ("os.rename", "os.remove", "os.link", "os.chmod", "shutil.copyfile")


def _restrict(plan: Plan, acts: int) -> None:
    """Limits this process, and counts what it does to files."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, resource.RLIM_INFINITY))
    if plan.file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.file_size, plan.file_size))
    if plan.user is not None:
        os.setgid(plan.user)
        os.setuid(plan.user)
    without_sockets()
    changes = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal changes
        if event.startswith(FORBIDDEN):
            os.write(acts, f"{event}\n".encode())
        if plan.kill_at is None and plan.full_at is None:
            return
        writes = event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT
        if not (event in CHANGES or writes) or not str(args[0]).startswith((plan.folder, ".")):
            return
        if event == "os.remove" and plan.full_at is not None:
            return  # a full disk still removes
        changes += 1
        if plan.kill_at == changes - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if plan.full_at == changes - 1:
            raise OSError(28, "No space left on device")

    sys.addaudithook(watch)


# The system's own names: (of the machine's instructions, of the call that makes a socket).
CALLS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}


def without_sockets() -> bool:
    """Makes the system kill this process if anything in it, C code too, asks for a socket.

    False where the system has no such filter: then only what Python does is seen.
    Source: kernel.org, "Seccomp BPF".
    """
    if sys.platform != "linux" or os.uname().machine not in CALLS:
        return False
    machine, call = CALLS[os.uname().machine]
    program = b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 4), (0x15, 0, 3, machine),  # of another machine: allowed
            (0x20, 0, 0, 0), (0x15, 0, 1, call),
            (0x06, 0, 0, 0x80000000),  # kill
            (0x06, 0, 0, 0x7FFF0000),  # allow
        )
    )  # fmt: skip
    kept = ctypes.create_string_buffer(program)

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))

    given = Filter(len(program) // 8, ctypes.addressof(kept))
    prctl = ctypes.CDLL(None).prctl
    return prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, ctypes.byref(given), 0, 0) == 0


@contextlib.contextmanager
def _streams(redirect: bool = True) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Two files for the two streams; with `redirect`, this process writes into them."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        kept = [os.dup(1), os.dup(2)]
        if redirect:
            sys.stdout.flush()
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
        try:
            yield out, err
        finally:
            sys.stdout.flush()
            for number, place in zip(kept, (1, 2), strict=True):
                os.dup2(number, place)
                os.close(number)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes where the answers go
    _serve(sys.stdin, replies)
