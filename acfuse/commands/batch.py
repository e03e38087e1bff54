"""batch: convert many checkpoints, a process for each."""

import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from acfuse.commands.convert import convert
from acfuse.errors import Exit, UsageError
from acfuse.options import HELP, INPUT, KEPT_OPTIONS, LIMIT, QUIET, THREADS, option, takes
from acfuse.pipeline.batch import (
    Entry,
    check_distinct,
    is_url,
    memory_of,
    read_list,
    size_of,
    worst,
)
from acfuse.settings import for_command
from acfuse.system.escape import as_json, safe
from acfuse.system.free_memory import free_memory
from acfuse.system.threads import COUNTS, threads, usable_processors

if TYPE_CHECKING:
    from acfuse.system.forks import Ended

OWN = ("source", "output", "dry_run", "format", "output_file", "log_file", "quiet", "verbose",
       "threads")  # fmt: skip
SHARED = [p for p in convert.params if isinstance(p, click.Option) and p.name not in OWN]


@click.command()
@click.argument("sources", nargs=-1, metavar="[FILES]...")
@option(
    "--list",
    "list_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Checkpoints, a path or URL a line, or JSON with settings of their own.",
)
@option("-o", "--output", metavar="DIR|URL", help="Where all results go; beside each source else.")
@option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 1000),
    help="How many at once. Default: as many as there are processors.",
)
@option("--resume", is_flag=True, help="Skip what manifests prove to be done.")
@option(
    "--scheduler",
    metavar="tcp://HOST:PORT",
    help="Convert on the workers of a Dask scheduler. Resumes always.",
)
@takes(KEPT_OPTIONS, (QUIET, THREADS))
def batch(
    sources: tuple[str, ...], list_file: Path | None, output: str | None, jobs: int | None,
    resume: bool, scheduler: str | None, quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Convert many checkpoints, each in a process of its own; a JSON line for each that ended.

    All options of `acfuse convert` apply to each. A failure stops nothing; the exit code is that
    of the worst.
    """
    entries = [Entry(source) for source in sources]
    entries += read_list(list_file) if list_file is not None else []
    if not entries:
        raise UsageError("there is nothing to convert: name checkpoints, or give --list FILE.")
    check_distinct(entries, output)
    if output is not None and not is_url(output):
        try:
            Path(output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output {output} is no directory: {error.strerror}.") from error
    tasks = [_task(entry, options, output, resume=resume) for entry in entries]
    if scheduler is not None:
        from acfuse.commands.batch_dask import converted_on

        lines = converted_on(scheduler, tasks)
    else:
        lines = _converted(tasks, jobs or min(usable_processors(), len(tasks)))
    done = []
    with contextlib.closing(lines):
        for line in lines:
            done.append(line)
            click.echo(as_json(line, indent=None))
            if not quiet and line["exit"]:
                click.echo(f"{safe(line['source'])}: error: {safe(line['error'])}", err=True)
    if not quiet:
        failed = sum(line["exit"] != Exit.DONE for line in done)
        skipped = sum(line.get("skipped", False) for line in done)
        click.echo(f"{len(done) - failed - skipped} converted, {skipped} skipped, {failed} failed",
                   err=True)  # fmt: skip
    sys.exit(worst(line["exit"] for line in done))


batch.params += [p for p in SHARED if p.name not in {own.name for own in batch.params}]


@dataclass(frozen=True)
class Task:
    """What the process of one checkpoint is told, and what it may take."""

    told: Mapping[str, Any]

    @property
    def source(self) -> str:
        return str(self.told["source"])


def _task(entry: Entry, options: Mapping[str, Any], output: str | None, *, resume: bool) -> Task:
    """A checkpoint with its arguments for `convert`. Raises UsageError for settings of a list."""
    known = {p.name for p in SHARED}
    unknown = sorted(set(entry.settings) - known)
    if unknown:
        raise UsageError(f"{entry.place}: there is no setting {safe(unknown[0])!r}.")
    own = for_command(convert, dict(entry.settings))
    arguments = [text for p in SHARED for text in _arguments(p, {**options, **own}.get(p.name))]
    try:
        convert.make_context("convert", [*arguments, "--", entry.source], **HELP)
    except click.ClickException as error:
        place = f"{entry.place}: " if entry.place else ""
        raise UsageError(f"{place}{error.format_message()}") from error
    told = {"source": entry.source, "output": output, "arguments": arguments, "resume": resume}
    return Task(told)


def _arguments(parameter: click.Option, value: Any) -> list[str]:
    """A setting as it is typed: flags alone, all others as --name=value."""
    name = parameter.opts[-1]
    if parameter.is_flag:
        return [name] if value else []
    values = value if parameter.multiple and isinstance(value, (list, tuple)) else [value]
    return [f"{name}={_text(parameter, v)}" for v in values if v is not None]


def _text(parameter: click.Option, value: Any) -> str:
    if parameter.type is INPUT and isinstance(value, tuple):
        name, shape, kind = value
        parts = [*([name] if name else []), *([kind] if kind else []), ",".join(map(str, shape))]
        return ":".join(parts) if shape or kind else f"{name}:"
    if parameter.type is LIMIT and isinstance(value, tuple):
        return f"{value[0]}={value[1]}"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _converted(tasks: Sequence[Task], jobs: int) -> Generator[dict[str, Any]]:
    """The lines of all tasks, as they end, with so many at once as memory allows.

    What is expected to take more than is free waits until another ends; one alone always runs.
    """
    from acfuse.system.forks import Ended, Forks, TemplateLost

    share = str(max(1, threads() // jobs))
    variables = {**os.environ, **dict.fromkeys(COUNTS, share)}
    most = free_memory()
    waiting, running = deque(enumerate(tasks)), dict[int, int]()  # number: bytes expected
    command = template_of([task.told for task in tasks])
    forks, answered = Forks(command, variables), False
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, task = waiting[0]
                size = memory_of(size_of(task.source))
                if running and not _fits(size, running.values(), most):
                    break
                waiting.popleft()
                running[number] = size
                forks.start(number, task.told)
            try:
                ended = forks.ended()
            except TemplateLost:
                for number in running:
                    yield line_of(tasks[number].told, Ended(number, None, forks.process.returncode))
                if not answered and forks.process.returncode > 0:
                    for number, task in waiting:
                        yield line_of(task.told, Ended(number, None, forks.process.returncode))
                    return
                running, answered = {}, False
                forks = Forks(command, variables)
                continue
            answered = True
            del running[ended.number]
            yield line_of(tasks[ended.number].told, ended)
    finally:
        forks.stop()


def _fits(size: int, running: Any, most: int | None) -> bool:
    now = free_memory()
    return most is None or now is None or (sum(running) + size <= most and size <= now)


def template_of(told: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The arguments of Python for a template of these tasks."""
    exports = any("--no-onnx" not in one["arguments"] for one in told)
    return ("-m", "acfuse.commands.batch_task", *["export"] * exports)


def line_of(told: Mapping[str, Any], ended: "Ended") -> dict[str, Any]:
    """The line of a checkpoint whose process has ended, with or without a word."""
    if ended.result is not None:
        line = dict(ended.result)
    elif ended.status < 0:
        said = f"its process was killed by signal {-ended.status}: out of memory, or by somebody."
        line = {"source": told["source"], "exit": int(Exit.LOST), "error": said}
    else:
        said = f"its process ended by itself with {ended.status}, and without a result."
        line = {"source": told["source"], "exit": int(Exit.LOST), "error": said}
    return line | {
        "seconds": round(ended.seconds, 3),
        "cpu_seconds": round(ended.cpu_seconds, 3),
        "peak_bytes": ended.peak_bytes,
    }
