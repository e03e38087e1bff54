"""A fused file with channels of even range, beside it."""

from pathlib import Path

from acfuse.errors import UsageError
from acfuse.findings import Findings
from acfuse.int8.evened import Evened
from acfuse.pipeline.convert import logged
from acfuse.pipeline.job import Job
from acfuse.pipeline.paths import equalized_path
from acfuse.pipeline.replay import as_it_is
from acfuse.sources.base import Progress, silent
from acfuse.system.atomic_write import reserved, write_all


def equalize_file(
    job: Job, progress: Progress = silent, *, everything: bool = False
) -> tuple[Path, Evened]:
    """Equalizes an ONNX file, or a checkpoint with its code, and writes the result if it is taken.

    Raises UsageError where nobody knows what stands between the layers, InputError where a weight
    would leave its range, NotEqual where a bit of what the model gives would change.
    """
    progress = logged(progress)
    path = equalized_path(job.source, job.output)
    with reserved([path], [job.source], force=job.force):
        source = as_it_is(job, progress)
        if source.is_program:
            raise UsageError(
                f"{job.source.name} is a program of torch.export: give --equalize and --pt2 to "
                "`acfuse convert` of what it was made of, or equalize an ONNX file."
            )
        fused = source.fuse(Findings((), ()))
        form, made = fused.evened(job.inputs, job.limits, everything=everything)
        if made.is_taken:
            (content,) = form.contents().values()
            write_all({path: content})
    return path, made
