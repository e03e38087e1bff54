"""One checkpoint of a batch, in a process of its own: arguments of `convert` in, a line out."""

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from acfuse.commands.convert import convert
from acfuse.commands.jobs import job_of
from acfuse.errors import AcfuseError, BusyError, Exit, OutputError
from acfuse.files.remote import exists, fetch, sha256_at, store
from acfuse.options import HELP
from acfuse.pipeline.batch import is_url
from acfuse.pipeline.convert import convert as run
from acfuse.pipeline.job import Conversion, Job
from acfuse.pipeline.manifest import Manifest
from acfuse.pipeline.resume import earlier, is_done, is_request, may_replace, outputs_of
from acfuse.system.atomic_write import reserved, write_all
from acfuse.system.escape import one_line
from acfuse.system.forks import serve

Line = dict[str, Any]
# What a conversion with ONNX file loads on its way; what is missing here, it loads itself.
NEEDED = ("onnx", "onnxruntime", "torch.export._trace", "torch._inductor.fx_passes",
          "torch._inductor.sizevars", "torch.onnx._internal.exporter._core",
          "onnxscript.rewriter.onnx_fusions", "onnxscript.function_libs.torch_lib.ops",
          "onnxscript._framework_apis.torch_2_9")  # fmt: skip
WAIT_SECONDS = 60  # for another process to end that writes the same files


def run_task(task: Mapping[str, Any]) -> Line:
    """Converts the checkpoint of a task: `source`, `output`, `arguments`, `resume` and `wait`.

    A task that waits is tried again while another process writes its files: a lost worker may not
    have ended yet.
    """
    until = time.monotonic() + (WAIT_SECONDS if task.get("wait") else 0)
    while True:
        try:
            return {"source": task["source"], **_converted(task)}
        except BusyError as error:
            if time.monotonic() < until:
                time.sleep(0.2)
                continue
            return _failed(task, Exit.BAD_OUTPUT, str(error))
        except AcfuseError as error:
            return _failed(task, error.exit_code, str(error))
        except click.ClickException as error:
            return _failed(task, Exit.USAGE, error.format_message())
        except Exception as error:
            if isinstance(error, MemoryError) or "not enough memory" in str(error):
                return _failed(task, Exit.BAD_INPUT, "there is not enough memory here.")
            traceback.print_exc()
            said = f"{type(error).__name__}: {one_line(error)}"
            return _failed(task, Exit.BUG, f"this is a bug of acfuse, not of your file: {said}.")


def _failed(task: Mapping[str, Any], code: Exit, error: str) -> Line:
    return {"source": task["source"], "exit": int(code), "error": " ".join(error.split())}


def _converted(task: Mapping[str, Any]) -> Line:
    source, output, resume = task["source"], task["output"], task["resume"]
    context = convert.make_context("convert", [*task["arguments"], "--", source], **HELP)
    options = {**context.params, "output": None if output is None else Path(output)}
    if is_url(source) or (output is not None and is_url(output)):
        return _converted_elsewhere(source, output, options, resume)
    job = job_of(Path(source), options)
    if resume:
        manifest = earlier(job.paths.manifest)
        if manifest is not None and is_done(manifest, job):
            return _line(manifest, skipped=True)
        job = replace(job, force=job.force or may_replace(manifest, job.wanted))
    return _told(run(job))


def _converted_elsewhere(
    source: str, output: str | None, options: Mapping[str, Any], resume: bool
) -> Line:
    """Fetches a source to a private folder, converts it there, and stores the results."""
    target = source.rpartition("/")[0] if output is None else output.rstrip("/")
    with _private_folder() as folder:
        local = folder / source.rpartition("/")[2]
        job = job_of(local, {**options, "output": None})
        if is_url(source):
            fetch(source, local, job.limits)
        else:
            shutil.copyfile(source, local)
        manifest = _fetched_manifest(target, job) if resume else None
        if manifest is not None and _is_done_elsewhere(manifest, job, target):
            return _line(manifest, skipped=True)
        if manifest is not None:
            manifest.path.unlink()
        names = _named(manifest) if manifest is not None else set()
        with _kept_free(target, job, names):
            conversion = run(job)
            if conversion.written:
                _store_all(conversion, target)
        return _told(conversion)


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="acfuse-") as folder:
        yield Path(folder)


def _fetched_manifest(target: str, job: Job) -> Manifest | None:
    """The manifest at the target, if there is one, beside the job's source."""
    place, name = job.paths.manifest, job.paths.manifest.name
    if not is_url(target):
        there = Path(target) / name
        if not there.is_file():
            return None
        shutil.copyfile(there, place)
    elif exists(f"{target}/{name}"):
        fetch(f"{target}/{name}", place, job.limits)
    return earlier(place) if place.is_file() else None


def _is_done_elsewhere(manifest: Manifest, job: Job, target: str) -> bool:
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        if is_request(manifest, job):
            return all(
                _sha256(f"{target}/{record['file']}") == record["sha256"]
                for record in manifest.data["outputs"]
            )
    return False


def _sha256(place: str) -> str | None:
    from acfuse.system.atomic_write import sha256_of

    if is_url(place):
        return sha256_at(place)
    return sha256_of(Path(place)) if Path(place).is_file() else None


def _named(manifest: Manifest) -> set[str]:
    return {record["file"] for record in manifest.data["outputs"]} | {manifest.path.name}


@contextlib.contextmanager
def _kept_free(target: str, job: Job, replaced: set[str]) -> Iterator[None]:
    """Raises OutputError where files stand at the target that may not be replaced."""
    names = [path.name for path in job.wanted]
    if not is_url(target):
        paths = [Path(target) / name for name in names]
        own = all(path.name in replaced for path in paths if path.exists())
        with reserved(paths, [], force=job.force or own):
            yield
        return
    for name in names:
        if not job.force and name not in replaced and exists(f"{target}/{name}"):
            raise OutputError(f"{target}/{name} exists; give --force to replace it.")
    yield


def _store_all(conversion: Conversion, target: str) -> None:
    """The files of a conversion at its target; the manifest last."""
    if is_url(target):
        for path in conversion.written:
            store(path, f"{target}/{path.name}")
        return
    contents = {Path(target) / p.name: _copy_of(p) for p in conversion.written}
    write_all(contents)


def _copy_of(path: Path) -> Any:
    def write(file: Any) -> None:
        with path.open("rb") as data:
            shutil.copyfileobj(data, file)

    return write


def _told(conversion: Conversion) -> Line:
    if not conversion.written:
        reason = conversion.proofs.fault
        if conversion.diagnosis:
            reason += f" (looks like: {conversion.diagnosis})"
        return {"exit": int(Exit.NOT_EQUAL), "error": f"not equal: {' '.join(reason.split())}"}
    return _line(Manifest.read(conversion.job.paths.manifest), skipped=False)


def _line(manifest: Manifest, *, skipped: bool) -> Line:
    data = manifest.data
    return {
        "exit": int(Exit.DONE),
        "skipped": skipped,
        "verified": data["passed"],
        "blocks": len(data["found"]),
        "sha256": data["source"]["sha256"],
        "outputs": outputs_of(data),
        "manifest": manifest.path.name,
    }


def main() -> None:
    """Is the template of a batch: loads what every conversion needs, then serves.

    With the argument "export" that is what writing an ONNX file needs, too.
    """
    for name in [name for name in os.environ if name.startswith("ACFUSE_")]:
        del os.environ[name]  # what they say is in the arguments
    for name in NEEDED if "export" in sys.argv[1:] else ():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    serve(run_task)


if __name__ == "__main__":
    main()
