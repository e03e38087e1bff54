"""One model that is run when it is told to: what each process of `acfuse bench` holds."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from acfuse.errors import AcfuseError, InputError, UsageError
from acfuse.files.detect import is_onnx
from acfuse.files.onnx_reading import read_onnx
from acfuse.pipeline.bench import Skipped
from acfuse.pipeline.convert import opened
from acfuse.pipeline.job import Job
from acfuse.pipeline.replay import open_again
from acfuse.proof.onnx_runtime import DTYPES, inputs_of, session_of
from acfuse.proof.running import Inputs, cast, floating_dtype, images, kinds_of, named_shapes
from acfuse.sources.others import held_in
from acfuse.system.devices import named_device
from acfuse.system.escape import one_line
from acfuse.system.threads import bind_threads, threads
from acfuse.targets.onnx_export import to_onnx

Call = Callable[[], object]
WARM = 3  # calls at least, before anything is timed


@dataclass(frozen=True)
class Asked:
    """Which model is run, and how. `batch` images at once (None: as many as the input has)."""

    job: Job
    fused: Path
    role: str
    backend: str
    is_unchanged: bool = False  # whether the fused file is known by its hash
    batch: int | None = None
    device: str = "cpu"
    provider: str = "CPUExecutionProvider"
    seconds: float = 0.1  # of a turn


def serve(asked: Callable[[], Asked]) -> None:
    """Opens a model, and runs it at each line of stdin, until there is none any more.

    All that is printed meanwhile, by anyone, goes to stderr: stdout is for the answers.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    bind_threads()
    try:
        wanted = asked()
        call = call_of(wanted)
        _tell(answers, {"ready": True})
        calls = 0
        for line in sys.stdin:
            if line.strip() == "warm":
                calls = warmed(call, wanted.seconds)
                _tell(answers, {"calls": calls})
            else:
                _tell(answers, turn(call, calls))
    except Skipped as reason:
        _tell(answers, {"skipped": str(reason)})
    except AcfuseError as error:
        _tell(answers, {"error": str(error), "exit": int(error.exit_code)})


def _tell(answers: IO[str], what: Mapping[str, Any]) -> None:
    answers.write(f"{json.dumps(what)}\n")
    answers.flush()


def warmed(call: Call, seconds: float, clock: Callable[[], float] = time.perf_counter) -> int:
    """Runs a model until it has warmed up; how many calls take that long."""
    for _ in range(WARM):
        call()
    began, calls = clock(), 0
    while calls == 0 or clock() - began < seconds:
        call()
        calls += 1
    return calls


def turn(call: Call, calls: int) -> dict[str, float]:
    """Seconds of each of so many calls, by the clock and of the processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    return {
        "wall": (time.perf_counter() - wall) / calls,
        "cpu": (time.process_time() - cpu) / calls,
    }


def call_of(asked: Asked) -> Call:
    """What runs the model once. Raises Skipped, UsageError or InputError where it cannot run."""
    in_torch = asked.backend != "onnxruntime"
    if in_torch:
        named_device(asked.device)
    model = _opened(asked)
    if in_torch and not isinstance(model, nn.Module):
        raise UsageError(
            f"--backend {asked.backend}: an ONNX file runs in onnxruntime alone. Give --backend "
            "onnxruntime."
        )
    try:
        call = _in_torch(model, asked) if in_torch else _in_onnxruntime(model, asked)
        call()
    except (AcfuseError, Skipped):
        raise
    except Exception as error:
        why = f"{asked.backend} cannot run the {asked.role} model: {one_line(error)}."
        raise InputError(why) from error
    return call


def _opened(asked: Asked) -> nn.Module | onnx.ModelProto:
    """The model: as its code, or as the ONNX file that it is."""
    job = asked.job
    is_original = asked.role == "original"
    path, reading = (job.source, job.reading) if is_original else (asked.fused, job.reading_fused)
    if is_onnx(path):
        return read_onnx(path, reading)[0]
    if is_original:
        network = opened(job).network
    else:
        again = open_again(job)
        if asked.is_unchanged:
            fused = again.fused.with_file(path, reading, unchanged=True)
        else:
            given = again.source, again.fused, job.inputs, job.tolerance
            fused = held_in(path, reading, *given).fused
        network = fused.network
    if network is None:
        raise UsageError(
            f"{path.name} holds tensors alone, which nothing can run: give --model with the "
            "network's code."
        )
    return network


def _sized(shape: tuple[int, ...], batch: int | None) -> tuple[int, ...]:
    return shape if batch is None or not shape else (batch, *shape[1:])


def _with_batch(inputs: Inputs, batch: int | None) -> Inputs:
    shapes = tuple((name, _sized(shape, batch)) for name, shape in inputs.shapes)
    return replace(inputs, shapes=shapes)


def _in_torch(model: nn.Module, asked: Asked) -> Call:
    assert asked.job.inputs is not None  # `opened` wants one
    inputs = _with_batch(asked.job.inputs, asked.batch)
    shapes = named_shapes(model, inputs)
    made = images(shapes, inputs.seed, kinds_of(shapes, inputs, model))
    given: dict[str, Tensor] = {}
    for name, image in made.items():
        given[name] = cast(image, floating_dtype(model)).to(asked.device)
    model = model.to(asked.device)
    run: Callable[..., object] = model
    if asked.backend == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        given = {
            name: image.contiguous(memory_format=torch.channels_last) if image.ndim == 4 else image
            for name, image in given.items()
        }
        run = model
    if asked.backend == "compile":
        run = _compiled(model, given, asked.device)

    def call() -> object:
        with torch.no_grad():
            result = run(**given)
        if asked.device.startswith("cuda"):  # it is done when the device is
            torch.cuda.synchronize()
        return result

    return call


def _compiled(model: nn.Module, given: Mapping[str, Tensor], device: str) -> Callable[..., object]:
    """A model as torch.compile makes it, its weights taken as constants. Raises Skipped."""
    import torch._inductor.config as inductor

    compilers = ("c++", "g++", "clang++")
    if device == "cpu" and not (os.environ.get("CXX") or any(map(shutil.which, compilers))):
        raise Skipped(f"torch.compile needs a C++ compiler, and there is none ({compilers[0]})")
    inductor.freezing = True
    compiled: Callable[..., object] = torch.compile(model)
    try:
        with torch.no_grad():
            compiled(**given)
    except Exception as error:
        raise Skipped(f"torch.compile failed: {one_line(error, 200)}") from error
    return compiled


def _in_onnxruntime(model: nn.Module | onnx.ModelProto, asked: Asked) -> Call:
    inputs = asked.job.inputs
    if isinstance(model, nn.Module):
        assert inputs is not None
        inputs = _with_batch(inputs, asked.batch)
        model = to_onnx(model, inputs, opset=asked.job.export_opset, dynamic="none").model
    known = inputs_of(model, inputs)
    shapes = {name: _sized(shape, asked.batch) for name, (shape, _) in known.items()}
    seed = inputs.seed if inputs is not None else 0
    made = images(shapes, seed, {name: kind for name, (_, kind) in known.items()})
    there = onnxruntime.get_available_providers()
    if asked.provider not in there:
        raise UsageError(f"--provider {asked.provider}: onnxruntime has {', '.join(there)} here.")
    session = session_of(
        model.SerializeToString(),
        optimised=True,
        limits=asked.job.limits,
        count=threads(),
        provider=asked.provider,
    )
    types = {value.name: DTYPES.get(value.type, "float32") for value in session.get_inputs()}
    feeds = {name: image.numpy().astype(types[name]) for name, image in made.items()}

    def call() -> object:
        return session.run(None, feeds)

    return call
