"""From a live model to one ONNX file, checked, and compared with the original in onnxruntime."""

import contextlib
import copy
import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from acfuse.errors import AcfuseError, InputError, Reason, UnsafeError, UsageError
from acfuse.proof.whole import (
    Check,
    Difference,
    Inputs,
    Tolerance,
    floating_dtype,
    images,
    judge,
    largest_changes,
    named_shapes,
    noise_of_rounding,
    run,
)
from acfuse.system.limits import LIMITS, Limits

DEFAULT_OPSET = 20
GENERIC_NAMES = {"x", "input", "inputs", "inp", "data"}
LARGEST_FILE = 2**31 - 2**20  # protobuf's own limit, with room for the graph
AXES = {"none": (), "batch": (0,), "hw": (2, 3), "all": (0, 2, 3)}
AXIS_NAMES = {0: "batch", 2: "height", 3: "width"}


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX model in memory, and what was asked of it."""

    model: onnx.ModelProto
    opset: int
    dynamic: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def bytes(self) -> bytes:
        return bytes(self.model.SerializeToString())

    def count(self, kind: str) -> int:
        """How many nodes of a type there are."""
        return sum(node.op_type == kind for node in self.model.graph.node)


def to_onnx(
    model: nn.Module,
    inputs: Inputs,
    *,
    opset: int = DEFAULT_OPSET,
    dynamic: str = "batch",
    metadata: Mapping[str, str] | None = None,
) -> OnnxFile:
    """Exports a model in eval mode, with the axes of `dynamic` free: batch, hw, all or none.

    Raises InputError with the exporter's reason where it cannot, and where an axis that should be
    free is not. Node metadata, which names source files of this machine, is taken out.
    """
    shapes = named_shapes(model, inputs)
    axes = dynamic_axes(shapes, dynamic)
    given = example(model, shapes, axes, inputs.seed)
    names = [_input_name(n, len(shapes)) for n in shapes]
    outputs = _output_names(model, given)
    with quiet():
        try:
            program = torch.onnx.export(
                model,
                kwargs=given,
                input_names=names,
                output_names=outputs,
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes={n: {i: dimension(i, n, shapes) for i in axes[n]} for n in shapes},
            )
        except Exception as error:
            raise InputError(export_failure(error, "ONNX", "Give --no-onnx", dynamic)) from error
    if program is None:
        raise AcfuseError("torch's exporter gave nothing.")
    proto = program.model_proto
    _clean(proto, metadata or {})
    if proto.ByteSize() > LARGEST_FILE:
        raise InputError("the model is larger than one ONNX file can be (2 GiB).")
    check_proto(proto)
    fixed = _fixed_axes(proto, [axes[n] for n in shapes])
    if fixed:
        raise InputError(
            f"{Reason.FIXED_AXIS}: the exporter fixed {fixed}, which --dynamic {dynamic} asks to "
            "be free. Give --dynamic none, or make the model independent of that size."
        )
    return OnnxFile(proto, opset, dynamic, tuple(names), tuple(outputs))


def dynamic_axes(shapes: Mapping[str, tuple[int, ...]], dynamic: str) -> dict[str, list[int]]:
    """Which axes of each input --dynamic leaves free."""
    if dynamic not in AXES:
        raise UsageError(f"--dynamic {dynamic}: expected one of {', '.join(AXES)}.")
    return {n: [i for i in AXES[dynamic] if i < len(s)] for n, s in shapes.items()}


def dimension(axis: int, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The symbol of a free axis. The batch is one for all inputs, a size belongs to its input."""
    label = AXIS_NAMES[axis]
    return torch.export.Dim(label if axis == 0 or len(shapes) == 1 else f"{name}_{label}", min=1)


def _input_name(parameter: str, count: int) -> str:
    return "input" if count == 1 and parameter in GENERIC_NAMES else parameter


def _output_names(model: nn.Module, given: Mapping[str, Tensor]) -> list[str]:
    with torch.no_grad():
        result = model(**given)
    if isinstance(result, Tensor):
        return ["output"]
    leaves, _ = _pytree.tree_flatten_with_path(result)
    names = []
    for path, leaf in leaves:
        if isinstance(leaf, Tensor):
            keys = [str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", "")))) for p in path]
            names.append("_".join(k if not k.isdigit() else f"output_{k}" for k in keys))
    return names


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress lines and its own deprecation warnings off the streams."""
    logger = logging.getLogger("torch")
    level = logger.level
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def export_failure(error: Exception, form: str, without: str, dynamic: str) -> str:
    """Torch's reason for not exporting a model, in one line, with what may help."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0][:240].rstrip(".") if lines else type(cause).__name__
    hint = f"{without} to write the checkpoint alone"
    if "onstraint" in str(cause) or "dynamic" in str(cause).lower():
        hint = f"A size may be fixed in the model: try another --dynamic than {dynamic}"
    return f"torch cannot export the model to {form}: {text}. {hint}."


def _clean(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Takes out what tells about the machine, and puts in where the file comes from."""
    for graph in _graphs(proto.graph):
        del graph.metadata_props[:]
        graph.doc_string = ""
        for item in (
            *graph.node,
            *graph.initializer,
            *graph.value_info,
            *graph.input,
            *graph.output,
        ):
            item.doc_string = ""
            del item.metadata_props[:]
    for function in proto.functions:
        del function.metadata_props[:]
        function.doc_string = ""
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    del proto.metadata_props[:]
    proto.doc_string = ""
    proto.graph.name = "main_graph"
    onnx.helper.set_model_props(proto, dict(metadata))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for sub in (*inner, *attribute.graphs):
                yield from _graphs(sub)


def check_proto(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        first = str(error).splitlines()[0]
        raise AcfuseError(f"the exported model is not valid ONNX: {first}") from error


def _fixed_axes(proto: onnx.ModelProto, wanted: list[list[int]]) -> str:
    """The axes that should be free and are not, in words."""
    fixed = []
    for value, axes in zip(proto.graph.input, wanted, strict=False):
        dims = value.type.tensor_type.shape.dim
        fixed += [f"axis {i} of {value.name}" for i in axes if not dims[i].dim_param]
    return " and ".join(fixed)


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
            yield partial(_answer, session, limits)

    return compared("onnx", "onnxruntime", sessions(), original, inputs, tolerance, dynamic)


def _answer(
    session: onnxruntime.InferenceSession, limits: Limits, given: Mapping[str, Tensor]
) -> list[Tensor]:
    return [torch.from_numpy(np.array(a)) for a in run_session(session, given, limits)]


Answer = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


def compared(
    name: str,
    runtime: str,
    answers: Iterable[Answer],
    original: nn.Module,
    inputs: Inputs,
    tolerance: Tolerance,
    dynamic: str,
) -> Check:
    """What answers to images, each in turn, against the original model, on all sizes to try."""
    shapes, dtype = named_shapes(original, inputs), floating_dtype(original)
    free = dynamic_axes(shapes, dynamic)
    difference = Difference(tolerance=tolerance)
    given = [images(sizes, seed) for sizes, seed in _sizes_to_try(shapes, free, inputs)]
    true = [run(original, g, dtype) for g in given]
    noise = _own_noise(original, given, true, dtype)
    for answer in answers:
        for g, expected, own in zip(given, true, noise, strict=True):
            difference.add(expected, answer(g), own)
    check = judge(name, difference, tolerance, dtype)
    if math.isfinite(check.error):
        return check
    return Check(check.name, False, check.error, check.limit, detail=f"{runtime} gives NaN or Inf")


def _own_noise(
    original: nn.Module,
    given: Sequence[dict[str, Tensor]],
    shipped: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
) -> list[list[float]]:
    """What rounding costs the original: its own on each input, and that of its weights."""
    exact = copy.deepcopy(original).double().eval()
    true = [run(exact, g, torch.float64) for g in given]
    moved = noise_of_rounding(exact, given, true, dtype)
    return [
        [max(pair) for pair in zip(m, largest_changes(t, s), strict=True)]
        for m, t, s in zip(moved, true, shipped, strict=True)
    ]


def example(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    axes: Mapping[str, list[int]],
    seed: int,
) -> dict[str, Tensor]:
    """Images to export a model with.

    An axis of size 1 counts as fixed for torch: free ones are shown to it with 2.
    """
    seen = {n: tuple(2 if i in axes[n] and d == 1 else d for i, d in enumerate(s))
            for n, s in shapes.items()}  # fmt: skip
    return {n: t.to(floating_dtype(model)) for n, t in images(seen, seed).items()}


def _sizes_to_try(
    shapes: Mapping[str, tuple[int, ...]], free: Mapping[str, list[int]], inputs: Inputs
) -> Iterator[tuple[dict[str, tuple[int, ...]], int]]:
    """The given sizes with several seeds, then two others of each free axis."""
    for sample in range(max(1, inputs.samples)):
        yield dict(shapes), inputs.seed + sample
    if any(free.values()):
        more = {0: 2, 2: 1, 3: 4}
        for factor in (1, 2):
            yield (
                {
                    n: tuple(d + factor * more[i] if i in free[n] else d for i, d in enumerate(s))
                    for n, s in shapes.items()
                },
                inputs.seed,
            )


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
