"""ONNX files run in onnxruntime, within bounds on memory and time, beside a PyTorch model."""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from acfuse.errors import AcfuseError, InputError, UnsafeError, UsageError
from acfuse.files.onnx_cost import all_graphs
from acfuse.proof.exported import Answer, compared
from acfuse.proof.outputs import Check, Difference, Tolerance, judge, largest_changes
from acfuse.proof.running import Inputs, images, moved_by_rounding
from acfuse.system.limits import LIMITS, Limits

LARGEST_IMAGE = 2**28  # numbers in an input that nobody asked for


def compare_onnx(
    onnx_file: bytes,
    original: nn.Module,
    inputs: Inputs,
    tolerance: Tolerance,
    *,
    dynamic: str = "batch",
    limits: Limits = LIMITS,
    progress: Callable[[str], None] = lambda _: None,
) -> Check:
    """An ONNX file in onnxruntime against the original PyTorch model, with and without optimiser.

    Runs the given shape with several seeds, and at least one further size of each free axis: that
    proves the axis by execution.
    """

    def sessions() -> Iterator[Answer]:
        for optimised in (False, True):
            progress("the ONNX file in onnxruntime")
            session = session_of(onnx_file, optimised=optimised, limits=limits)
            yield partial(answers_of, session, limits)

    return compared("onnx", "onnxruntime", sessions(), original, inputs, tolerance, dynamic)


def answers_of(
    session: onnxruntime.InferenceSession, limits: Limits, given: Mapping[str, Tensor]
) -> list[Tensor]:
    """What a model in onnxruntime gives for images, as tensors."""
    return [torch.from_numpy(np.array(a)) for a in run_session(session, given, limits)]


def session_of(
    source: bytes, *, optimised: bool, limits: Limits = LIMITS
) -> onnxruntime.InferenceSession:
    """A model in onnxruntime on the CPU, with every optimisation or with none.

    What it computes has no more memory than the limits allow.
    """
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    options.log_severity_level = 4
    options.intra_op_num_threads = max(1, min(4, os.cpu_count() or 1))
    # The last allocator that was registered is that of the next session.
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                                  onnxruntime.OrtMemType.DEFAULT),
        onnxruntime.OrtArenaCfg({"max_mem": limits.memory}),
    )  # fmt: skip
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _failed(error, "cannot load the ONNX file", limits) from error


def run_session(
    session: onnxruntime.InferenceSession, given: Mapping[str, Tensor], limits: Limits = LIMITS
) -> list[Any]:
    """What a model in onnxruntime gives for images, in its inputs' order and dtypes.

    Raises InputError where it cannot be run, UnsafeError where it takes more than the limits allow.
    """
    feeds = {}
    kinds = {
        "tensor(float)": np.float32,
        "tensor(double)": np.float64,
        "tensor(float16)": np.float16,
    }
    for value, image in zip(session.get_inputs(), given.values(), strict=True):
        feeds[value.name] = image.numpy().astype(kinds.get(value.type, np.float32))
    options = onnxruntime.RunOptions()
    bell = threading.Timer(limits.seconds, setattr, (options, "terminate", True))
    bell.daemon = True
    bell.start()
    try:
        return list(session.run(None, feeds, options))
    except Exception as error:
        sizes = ", ".join(str(tuple(i.shape)) for i in given.values())
        raise _failed(error, f"cannot run the file on {sizes}", limits) from error
    finally:
        bell.cancel()


def _failed(error: Exception, what: str, limits: Limits) -> AcfuseError:
    """Why onnxruntime gave up: for a limit, or for a fault of the file."""
    text = str(error)
    if "Available memory of" in text:
        return UnsafeError(
            f"onnxruntime {what}: it takes more than {limits.memory:,} bytes. "
            f"{limits.lift('memory', 4 * limits.memory)}"
        )
    if "terminate flag" in text:
        return UnsafeError(
            f"onnxruntime {what}: it takes more than {limits.seconds:,} seconds. "
            f"{limits.lift('seconds', 10 * limits.seconds)}"
        )
    return InputError(f"onnxruntime {what}: {text.splitlines()[0][:200]}")


def compare_files(
    original: onnx.ModelProto,
    fused: onnx.ModelProto,
    inputs: Inputs | None,
    tolerance: Tolerance,
    limits: Limits,
) -> Check:
    """A fused ONNX file beside the original, both in onnxruntime, optimiser off and on."""
    difference = Difference(tolerance=tolerance)
    seed, samples = (inputs.seed, inputs.samples) if inputs else (0, 3)
    given = [images(_shapes(original, inputs), seed + sample) for sample in range(samples)]
    dtype = _coarsest(original)
    near = [_moved(image, dtype) for image in given]

    def answers(
        model: onnx.ModelProto, images: Sequence[dict[str, Tensor]], *, optimised: bool
    ) -> list[list[Tensor]]:
        session = session_of(model.SerializeToString(), optimised=optimised, limits=limits)
        return [answers_of(session, limits, image) for image in images]

    for optimised in (False, True):  # one file after the other: each may take much memory
        before = answers(original, [*given, *near], optimised=optimised)
        true, moved = before[: len(given)], before[len(given) :]
        after = answers(fused, given, optimised=optimised)
        for expected, other, found in zip(true, moved, after, strict=True):
            difference.add(expected, found, largest_changes(expected, other))
    return judge("onnx", difference, tolerance, dtype)


def _moved(given: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same images, every pixel a unit of rounding away: what a model makes of that is noise."""
    generator = torch.Generator().manual_seed(0)
    return {name: moved_by_rounding(image, dtype, generator) for name, image in given.items()}


def _coarsest(model: onnx.ModelProto) -> torch.dtype:
    """The coarsest dtype that a model computes in, as far as its tensors and ends tell."""
    kinds = {t.data_type for graph in all_graphs(model.graph) for t in graph.initializer}
    kinds |= {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    return torch.float16 if onnx.TensorProto.FLOAT16 in kinds else torch.float32


def _shapes(model: onnx.ModelProto, inputs: Inputs | None) -> dict[str, tuple[int, ...]]:
    """The shape of each input: as given, else as the file has it, with 1 for a free batch."""
    stored = {t.name for t in model.graph.initializer}  # what has a default is not given
    free = [shape for name, shape in (inputs.shapes if inputs else ()) if name is None]
    named = {name: shape for name, shape in (inputs.shapes if inputs else ()) if name}
    shapes: dict[str, tuple[int, ...]] = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.name in named:
            shapes[value.name] = named[value.name]
        elif free:
            shapes[value.name] = free.pop(0)
        elif all(dims[1:]) and dims:
            shapes[value.name] = (dims[0] or 1, *dims[1:])
            if math.prod(shapes[value.name]) > LARGEST_IMAGE:
                raise UsageError(
                    f"the input {value.name} is of {tuple(dims)}, which is too much to be tried: "
                    f"give a smaller --input-shape {value.name}:1,3,224,224."
                )
        else:
            raise UsageError(
                f"the input {value.name} has free sizes: give --input-shape "
                f"{value.name}:1,3,224,224."
            )
    return shapes
