"""What a run says, kept in files as well: the text of stdout, and a log."""

import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from acfuse.errors import OutputError
from acfuse.system.escape import safe
from acfuse.system.pipes import Unbroken

State = tuple[int, int] | None
LOG = re.compile(rb"[\d-]{10} [\d:]{8},\d{3} INFO acfuse[^\n]*, Python ")  # how one begins
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # a terminal of CI may ask for them without being one


@dataclass
class Run:
    """What a command was told of its output, which holds where it fails as well; what it said."""

    program: str = "acfuse"
    format: str = "text"
    source: str = ""
    reports: tuple[Path, ...] = ()
    inputs: list[Path] = field(default_factory=list)
    force: bool = False
    output_file: Path | None = None
    log_file: Path | None = None
    said: list[str] = field(default_factory=list)
    _before: State = None
    _log: Any = None

    @property
    def files(self) -> list[Path]:
        """Where what it says is kept."""
        return [path for path in (self.output_file, self.log_file) if path is not None]

    def keep(self, output_file: Path | None, log_file: Path | None) -> None:
        """Keeps the text and the log from now on. Raises OutputError where that cannot be.

        An earlier log is replaced without --force, as each run has one.
        """
        if output_file is None and log_file is None:
            return
        from acfuse.system.atomic_write import check_outputs

        for path, option in ((output_file, "--output-file"), (log_file, "--log-file")):
            if path is not None:
                force = self.force or (path == log_file and _is_log(path))
                own = [path], self.inputs
                check_outputs(*own, force=force, option=option, takes_room=False)
        if output_file is not None:
            self.output_file, self._before = output_file, _state(output_file)
        if log_file is not None:
            self._log = _opened_log(log_file, self.program)
            self.log_file = log_file

    def wrong(self, message: str, kind: str = "error: ") -> None:
        """Says what went wrong in one line, on stderr and in what is kept."""
        line = f"{kind}{safe(message)}"
        print(line, file=sys.stderr)
        if self.format != "json":  # that is one document
            self.said.append(f"{line}\n")
        if self._log is not None:  # with the traceback of what is being handled
            self._log.error("%s", message, exc_info=sys.exc_info()[0] is not None)

    def save(self) -> None:
        """Writes what stdout got. Raises OutputError; what a run itself has written stays."""
        if self.output_file is None:
            return
        from acfuse.system.atomic_write import write_all

        if _state(self.output_file) != self._before:
            raise OutputError(
                f"{self.output_file} was written by something else meanwhile; give another "
                "--output-file."
            )
        text = COLOURS.sub("", "".join(self.said))
        write_all({self.output_file: text.encode("utf-8", "backslashreplace")})

    def close(self, code: int) -> None:
        """Ends the log."""
        if self._log is not None:
            self._log.info("exit code %d", code)
            handler = self._log.handlers[-1]
            self._log.removeHandler(handler)
            handler.close()
            self._log.setLevel(0)
            self._log = None


class Copied(Unbroken):
    """A stream whose text a run keeps; where it is kept in a file, nobody's terminal shapes it."""

    def __init__(self, stream: TextIO, run: Run) -> None:
        super().__init__(stream)
        self._run = run

    def write(self, text: str) -> int:
        """Writes a text, and keeps it."""
        written = super().write(text)
        self._run.said.append(text)
        return written

    def isatty(self) -> bool:
        """Whether it is a terminal, and the text is for nothing else."""
        return self._run.output_file is None and self._stream.isatty()


def _state(path: Path) -> State:
    """Which file stands at a place, and of when it is."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_log(path: Path) -> bool:
    """Whether a file is a log that acfuse wrote."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return LOG.match(file.readline(200)) is not None
    except OSError:
        return False


def _opened_log(path: Path, program: str) -> Any:
    """The logger `acfuse`, which writes to a file from now on. Raises OutputError."""
    import logging  # of no use to `acfuse --help`

    class Lines(logging.Formatter):
        """A record as lines of text that nothing obeys."""

        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(map(safe, super().format(record).split("\n")))

    class File(logging.FileHandler):
        """A file whose disk may be full: the run goes on."""

        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
            """Says nothing: the log is not what was asked for."""

    try:
        mode = path.stat().st_mode if path.is_file() and not path.is_symlink() else None
        path.unlink(missing_ok=True)  # another run may still write it; a link is not followed
        handler = File(path, mode="x", encoding="utf-8", errors="backslashreplace")
        if mode is not None:
            path.chmod(mode & 0o777)
    except OSError as error:
        raise OutputError(f"{path} cannot be written to: {error.strerror}.") from error
    handler.setFormatter(Lines("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("acfuse")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.info("%s, Python %s, %s", program, platform.python_version(), platform.platform())
    return logger
