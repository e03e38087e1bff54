"""A batch on the workers of a Dask scheduler: tasks are checkpoints, results their lines."""

import importlib
import os
import threading
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from acfuse.errors import Exit, InputError, UsageError
from acfuse.system.escape import one_line
from acfuse.system.forks import Ended, Forks, TemplateLost

if TYPE_CHECKING:
    from acfuse.commands.batch import Task

Line = dict[str, Any]
TEMPLATES = threading.local()  # a worker has a template for each of its threads


def converted_on(scheduler: str, tasks: Sequence["Task"]) -> Generator[Line]:
    """The lines of all tasks, as they end.

    What a lost worker had is given to another one. It waits for the files of the lost one, and
    skips what that has finished: nothing is written twice.
    """
    try:
        dask: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise UsageError("--scheduler needs Dask: pip install 'acfuse[dask]'.") from error
    try:
        client = dask.Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--scheduler {scheduler} does not answer: {one_line(error)}.") from error
    with client:
        told = [{**task.told, "resume": True, "wait": True} for task in tasks]
        futures = {client.submit(convert_one, one, pure=False): one for one in told}
        for future in dask.as_completed(list(futures), loop=client.loop):
            if future.status == "finished":
                yield future.result()
            else:
                said = f"it was given to several workers, and all were lost: {future.status}."
                source = futures[future]["source"]
                yield {"source": source, "exit": int(Exit.LOST), "error": said}


def convert_one(told: Mapping[str, Any]) -> Line:
    """Converts a checkpoint on a worker, in a process of its own."""
    from acfuse.commands.batch import line_of, template_of

    forks = getattr(TEMPLATES, "forks", None) or Forks(template_of([told]), dict(os.environ))
    TEMPLATES.forks = forks
    forks.start(0, told)
    try:
        return line_of(told, forks.ended())
    except TemplateLost:
        TEMPLATES.forks = None
        return line_of(told, Ended(0, None, forks.process.returncode))
