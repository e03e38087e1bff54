"""A process a task, each as quick to start as a fork: a template has loaded what all of them need.

The template reads tasks from its standard input, a JSON line each, forks for each, and answers
with a JSON line when that process has ended, however it ended. It never starts a thread, so that
its forks are whole. When its input ends, it ends the tasks that still run.
"""

import ctypes
import gc
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from acfuse.system.signals import Terminated, handle_signals

Task = Mapping[str, Any]
PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux


@dataclass(frozen=True)
class Ended:
    """How the process of a task ended.

    `result` is what the task gave, None if it gave nothing; `status` the exit code of the process,
    below zero the signal that killed it.
    """

    number: int
    result: Mapping[str, Any] | None
    status: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


class TemplateLost(Exception):
    """The template ended, and with it all that it had started."""


class Forks:
    """A template that runs, and the tasks that it was given."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        # In a session of its own, it does not hear a terminal's Ctrl-C: its input ends instead.
        self.process = subprocess.Popen(
            [sys.executable, "-P", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=dict(variables),
        )

    def start(self, number: int, task: Task) -> None:
        """Starts the process of a task. That the template was lost is said by `ended`."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            line = json.dumps({"number": number, "task": task})
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()

    def ended(self) -> Ended:
        """Waits for the next process that ends. Raises TemplateLost."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            self.stop()
            raise TemplateLost
        return Ended(**json.loads(line))

    def stop(self) -> None:
        """Ends all tasks, and waits until each of them has removed what it had begun."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@dataclass
class _Child:
    number: int
    pid: int
    started: float = field(default_factory=time.monotonic)
    text: bytes = b""

    def end(self) -> Ended:
        _, status, usage = os.wait4(self.pid, 0)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Ended(
            self.number,
            json.loads(self.text) if self.text else None,
            os.waitstatus_to_exitcode(status),
            time.monotonic() - self.started,
            usage.ru_utime + usage.ru_stime,
            peak,
        )


def serve(run: Callable[[Task], Mapping[str, Any]]) -> None:
    """Is a template, until its input ends: calls `run` in a process of its own for each task.

    What a task prints goes to stderr.
    """
    gc.freeze()  # what is loaded stays: no task need look through it, and so copy its pages
    answers = os.dup(1)
    os.dup2(2, 1)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    children: dict[int, _Child] = {}
    unread, is_open = b"", True
    while is_open or children:
        for key, _ in selector.select():
            descriptor = key.fd
            data = os.read(descriptor, 2**16)
            if descriptor == 0 and not data:
                is_open = False
                selector.unregister(0)
                for child in children.values():
                    os.kill(child.pid, signal.SIGTERM)
            elif descriptor == 0:
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    asked = json.loads(line)
                    reader, pid = _forked(run, asked["task"], answers)
                    children[reader] = _Child(asked["number"], pid)
                    selector.register(reader, selectors.EVENT_READ)
            elif data:
                children[descriptor].text += data
            else:
                selector.unregister(descriptor)
                os.close(descriptor)
                ended = children.pop(descriptor).end()
                with suppress(BrokenPipeError):
                    os.write(answers, f"{json.dumps(vars(ended))}\n".encode())


def _forked(run: Callable[[Task], Mapping[str, Any]], task: Task, answers: int) -> tuple[int, int]:
    """A process that does a task: where its result can be read, and its number."""
    reader, writer = os.pipe()
    template = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writer)
        return reader, pid
    status = 1
    try:
        os.close(answers)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        with handle_signals():
            _end_with(template)
            text = json.dumps(run(task)).encode()
        with open(writer, "wb") as file:
            file.write(text)
        status = 0
    except Terminated:
        status = 128 + signal.SIGTERM
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _end_with(template: int) -> None:
    """Asks the system to end this process when the template does, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGTERM)
    if os.getppid() != template:
        raise Terminated
