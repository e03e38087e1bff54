"""A fused file with channels of even range, beside it."""

from pathlib import Path

from acfuse.errors import UsageError
from acfuse.files.many_arrays import read_many
from acfuse.files.opened_file import unchanged
from acfuse.findings import Findings
from acfuse.int8.evened import Evened
from acfuse.pipeline.convert import logged
from acfuse.pipeline.job import Job
from acfuse.pipeline.paths import equalized_path
from acfuse.pipeline.quantize_file import data_for
from acfuse.pipeline.replay import as_it_is
from acfuse.sources.base import Progress, silent
from acfuse.system.atomic_write import reserved, write_all


def equalize_file(
    job: Job, progress: Progress = silent, *, everything: bool = False, data: Path | None = None
) -> tuple[Path, Evened]:
    """Equalizes an ONNX file, or a checkpoint with its code, and writes the result if it is taken.

    8 bits are measured on the job's inputs, or of an ONNX file on what is in `data`. Raises
    UsageError where nobody knows what stands between the layers, NotEqual where a bit of what the
    model gives would change.
    """
    progress = logged(progress)
    path = equalized_path(job.source, job.output)
    with reserved([path], [job.source], force=job.force):
        source = as_it_is(job, progress)
        if data is not None and source.network is not None:
            raise UsageError(
                f"--data is for ONNX files, and {job.source.name} is none; give --inputs FILE.npz."
            )
        if source.is_program:
            raise UsageError(
                f"{job.source.name} is a program of torch.export: give --equalize and --pt2 to "
                "`acfuse convert` of what it was made of, or equalize an ONNX file."
            )
        fused = source.fuse(Findings((), ()))
        inputs = job.inputs
        if data is not None and fused.onnx_file is not None:
            many = read_many(data, "--data", job.limits)
            inputs = data_for(fused.onnx_file.model, many, None).inputs
        with unchanged(source.file.files):
            form, made = fused.evened(inputs, job.limits, everything=everything)
        if made.is_taken:
            (content,) = form.contents().values()
            write_all({path: content})
    return path, made
