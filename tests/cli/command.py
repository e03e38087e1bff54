"""Runs `acfuse` as a user would, in this process: arguments in, exit code and both streams out."""

import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from acfuse import cli

OBEYED = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "TERM")


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it wrote to the two streams."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one strict JSON document that stdout is."""
        return json.loads(self.stdout, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


class Stream(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def run(*arguments: str, terminal: bool = False, env: Mapping[str, str] | None = None) -> Result:
    """Runs `acfuse` with these arguments in the working directory.

    Nothing that a user's shell may have set for acfuse or for colours is seen, but for `env`.
    """
    out, err = Stream(terminal=terminal), Stream(terminal=terminal)
    with _as_program(arguments, env or {}), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code
    return Result(int(code or 0), out.getvalue(), err.getvalue())


def run_line(line: str, **settings: Any) -> Result:
    """Runs a line as it is typed: `acfuse verify --atol 1e-4`."""
    program, *arguments = shlex.split(line)
    assert program == "acfuse"
    return run(*arguments, **settings)


@contextmanager
def _as_program(arguments: tuple[str, ...], env: Mapping[str, str]) -> Iterator[None]:
    """Makes this process one that was started as `acfuse`; what the run changes is put back."""
    ours = {k for k in os.environ if k.startswith("ACFUSE_") or k in OBEYED}
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    handler, path, known = signal.getsignal(signal.SIGTERM), list(sys.path), set(sys.modules)
    folder = str(Path.cwd())
    with (
        mock.patch.object(sys, "argv", ["acfuse", *arguments]),
        mock.patch.object(sys.modules["__main__"], "__package__", None, create=True),
        mock.patch.dict(os.environ, {**clean, "TERM": "xterm", **env}, clear=True),
    ):
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
            sys.path[:] = path
            for name in set(sys.modules) - known:
                if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
                    del sys.modules[name]


def refused(result: Result, code: int, *words: str) -> None:
    """Asserts that a command ended with one line that says what is wrong, and nothing else."""
    assert result.exit_code == code, result.stdout + result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def worked(result: Result) -> Result:
    """Asserts that a command did what it was told, without a word on stderr."""
    assert result.exit_code == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result
