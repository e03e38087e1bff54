"""ONNX files run in onnxruntime, within bounds on memory and time, beside a PyTorch model."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor

from acfuse.errors import AcfuseError, InputError, UnsafeError, UsageError
from acfuse.files.onnx_cost import all_graphs
from acfuse.graph.onnx_nodes import FLOATS
from acfuse.graph.onnx_values import inputs_without_default, is_tensor, with_free_sizes
from acfuse.proof.exported import Answer, compared
from acfuse.proof.leaves import Leaves, is_discrete, leaves_of
from acfuse.proof.noise import UNITS, Noise, Noises, Responses, along, drawn, noises, sizes
from acfuse.proof.original import Original
from acfuse.proof.outputs import Check, Difference, Tolerance, judge
from acfuse.proof.running import (
    OTHERS,
    Image,
    Inputs,
    Kind,
    images,
    moved_by_rounding,
    named_kinds,
)
from acfuse.system.limits import LIMITS, Limits
from acfuse.system.threads import threads

LARGEST_IMAGE = 2**28  # numbers in an input that nobody asked for
SHOWN = 3  # inputs for an output that shows nothing on the usual ones
DTYPES: dict[str, Any] = {  # of what a session takes, where that is not float32
    "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(bool)": np.bool_,
    **{f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}")
       for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
NOTHING: Mapping[str, Any] = MappingProxyType({})
GRID = 8  # steps in the last place of 1: sums of a few numbers near it lie on such a grid
# Nodes that read weights of one axis: biases, factors.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu")


def compare_onnx(
    onnx_file: bytes,
    original: Original,
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

    return compared("onnx", "onnxruntime", sessions(), original, tolerance, dynamic)


def answers_of(
    session: onnxruntime.InferenceSession, limits: Limits, given: Mapping[str, Tensor]
) -> list[Tensor]:
    """What a model in onnxruntime gives for images, as tensors."""
    return [torch.from_numpy(np.array(a)) for a in run_session(session, given, limits)]


def session_of(
    source: bytes,
    *,
    optimised: bool,
    limits: Limits = LIMITS,
    count: int | None = None,
    provider: str = "CPUExecutionProvider",
) -> onnxruntime.InferenceSession:
    """A model in onnxruntime, with every optimisation or with none, on `count` threads.

    What it computes has no more memory than the limits allow.
    """
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    options.log_severity_level = 4
    options.intra_op_num_threads = count or min(4, threads())
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The last allocator that was registered is that of the next session.
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                                  onnxruntime.OrtMemType.DEFAULT),
        onnxruntime.OrtArenaCfg({"max_mem": limits.memory}),
    )  # fmt: skip
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return onnxruntime.InferenceSession(source, options, providers=[provider])
    except Exception as error:
        raise _failed(error, "cannot load the ONNX file", limits) from error


def run_session(
    session: onnxruntime.InferenceSession,
    given: Mapping[str, Tensor],
    limits: Limits = LIMITS,
    names: Sequence[str] | None = None,
    beside: Mapping[str, Any] = NOTHING,
) -> list[Any]:
    """What a model in onnxruntime gives for images, in its inputs' order and dtypes.

    That is the outputs of these names; all of them without any. `beside` are arrays in place of
    defaults.

    Raises InputError where it cannot be run, UnsafeError where it takes more than the limits allow.
    """
    feeds = {
        value.name: image.numpy().astype(DTYPES.get(value.type, np.float32))
        for value, image in zip(session.get_inputs(), given.values(), strict=True)
    }
    options = onnxruntime.RunOptions()
    bell = threading.Timer(limits.seconds, setattr, (options, "terminate", True))
    bell.daemon = True
    bell.start()
    try:
        return list(session.run(names, {**feeds, **beside}, options))
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


Answers = Callable[[bool], Callable[[Image], Leaves]]  # of a program, optimised or not


def compare_files(
    original: onnx.ModelProto,
    fused: onnx.ModelProto,
    inputs: Inputs | None,
    tolerance: Tolerance,
    limits: Limits,
    otherwise: str = "",
) -> Check:
    """A fused ONNX file beside the original, both in onnxruntime, optimiser off and on.

    `otherwise` is what a user may do where the original cannot be run.
    """
    answers = partial(answers_in_onnx, fused, limits)
    return compare_with_onnx(
        original, answers, inputs, tolerance, limits, named=True, otherwise=otherwise
    )


def answers_in_onnx(
    model: onnx.ModelProto, limits: Limits, optimised: bool
) -> Callable[[Image], Leaves]:
    """What an ONNX model gives for images, in onnxruntime."""
    source = with_free_sizes(model).SerializeToString()
    session = session_of(source, optimised=optimised, limits=limits)
    return partial(leaves_in, session, limits)


def compare_with_onnx(
    original: onnx.ModelProto,
    answers: Answers,
    inputs: Inputs | None,
    tolerance: Tolerance,
    limits: Limits,
    *,
    named: bool = False,
    otherwise: str = "",
) -> Check:
    """What a program gives beside an original ONNX file, output by output (by name if `named`).

    How far rounding moves the original is measured by its optimiser, which adds in another order;
    and by moving its weights and inputs where that does not tell enough.
    """
    seed, samples = (inputs.seed, max(1, inputs.samples)) if inputs else (0, 3)
    known, dtype = inputs_of(original, inputs), _coarsest(original)
    shapes = {name: shape for name, (shape, _) in known.items()}
    kinds = {name: kind for name, (_, kind) in known.items()}
    given: list[Image] = [images(shapes, seed + sample, kinds) for sample in range(samples)]

    # One file after the other: each may take much memory.
    try:
        answer = answers_in_onnx(original, limits, False)
        true = [answer(image) for image in given]
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}. {otherwise}".rstrip()) from error
    for image, result in _filled(answer, shapes, kinds, seed + 100, true):
        given.append(image)
        true.append(result)
    true_optimised = [*map(answers_in_onnx(original, limits, True), given)]
    found = [*map(answers(False), given)]
    found_optimised = [*map(answers(True), given)]
    pairs = [*zip(true, found, strict=True), *zip(true_optimised, found_optimised, strict=True)]

    def verdict(noise: Sequence[Noises]) -> Check:
        difference = Difference(tolerance=tolerance)
        for (expected, other), own in zip(pairs, (*noise, *noise), strict=True):
            if len(expected) != len(other):
                difference.fail(f"the files give {len(expected)} and {len(other)} outputs")
            elif not named:
                other = dict(zip(expected, other.values(), strict=True))
            difference.add(expected, other, own)
        return judge("onnx", difference, tolerance, dtype)

    def measured(responses: list[Responses]) -> Check:
        for response, other in zip(responses, true_optimised, strict=True):
            response.add(other, 1)
        known = noises(responses, samples, dtype)
        return verdict([*map(_on_grid, known, true)])

    check = measured([*map(Responses, true)])  # by how far the original's own answers are apart
    if check.passed:
        return check

    def moved(draw: int, units: float) -> Callable[[Image], Leaves]:
        return answers_in_onnx(moved_weights(original, draw, units), limits, False)

    # A single unit as well: what is 0 or the next number in onnxruntime is so at any distance.
    return measured(drawn(moved, given, true, dtype, samples, units=(UNITS, 1)))


def leaves_in(
    session: onnxruntime.InferenceSession,
    limits: Limits,
    given: Image,
    beside: Mapping[str, Any] = NOTHING,
) -> Leaves:
    """What a model in onnxruntime gives for images, by the names of its outputs."""
    values = run_session(session, given, limits, beside=beside)
    named = zip(session.get_outputs(), values, strict=True)
    leaves = {o.name + end: x for o, value in named for end, x in leaves_of(value).items()}
    return {name: _as_tensor(value) for name, value in leaves.items()}


def _as_tensor(value: Any) -> Any:
    """An array as a tensor; texts, and numbers that torch does not know, as they are."""
    if not isinstance(value, np.ndarray):
        return value
    wide = {np.dtype(kind): np.int64 for kind in (np.uint16, np.uint32, np.uint64)}
    try:
        return torch.from_numpy(np.array(value, dtype=wide.get(value.dtype, value.dtype)))
    except TypeError:
        return value.tolist()


def _filled(
    answer: Callable[[Image], Leaves],
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, Kind],
    seed: int,
    tried: Sequence[Leaves],
) -> Iterator[tuple[Image, Leaves]]:
    """Other inputs, on which outputs show something that showed nothing on all that was tried.

    Several for each output: on one of them, rounding may decide what it shows.
    """
    wanted = dict.fromkeys(set.intersection(*map(_blank, tried)), SHOWN)
    for i, (mean, scale) in enumerate(OTHERS):
        if not any(wanted.values()):
            return
        image = images(shapes, seed + i, kinds, mean=mean, scale=scale)
        try:
            result = answer(image)
        except InputError:  # what it takes, but not that
            continue
        shown = {name for name, count in wanted.items() if count} - _blank(result)
        if shown:
            wanted |= {name: wanted[name] - 1 for name in shown}
            yield image, result


def _blank(result: Leaves) -> set[str]:
    """The outputs that show nothing: empty ones, and those of the last digits of numbers near 1."""
    return {n for n, x in result.items() if isinstance(x, Tensor) and _is_blank(x)}


def _is_blank(numbers: Tensor) -> bool:
    if numbers.numel() == 0 or is_discrete(numbers):
        return numbers.numel() == 0
    small = float(sizes(numbers).max()) < math.sqrt(torch.finfo(numbers.dtype).eps)
    return small and not bool(_finer(numbers).any())


def _finer(numbers: Tensor) -> Tensor:
    """Which numbers do not lie on the grid of numbers near 1."""
    steps = numbers.double().nan_to_num() * (GRID / torch.finfo(numbers.dtype).eps)
    return steps != steps.floor()


def _on_grid(noise: Noises, true: Leaves) -> dict[str, Noise]:
    """The same, with a step for numbers that all lie on the grid of numbers near 1.

    So do those of a sigmoid in onnxruntime, however near to 0 they are: 0 and the next are the
    same. Numbers that are small by themselves lie on a finer grid, all but a few.
    """
    known = dict(noise)
    for name, own in noise.items():
        numbers = true[name]
        if not isinstance(numbers, Tensor) or is_discrete(numbers) or own.is_lost:
            continue
        finer, step = _finer(numbers).double(), torch.finfo(numbers.dtype).eps / GRID
        whole = own.whole if finer.any() else max(own.whole, step)
        channels = {
            axis: torch.where(along(axis, finer) > 0, values, values.clamp_min(step))
            for axis, values in own.channels.items()
        }
        known[name] = replace(own, whole=whole, channels=channels)
    return known


def moved_weights(model: onnx.ModelProto, draw: int, units: float) -> onnx.ModelProto:
    """A copy whose weights are so many units of their own rounding away, up or down at random.

    Other constants stay: a factor that sizes are multiplied by is no weight.
    """
    near, generator = onnx.ModelProto(), torch.Generator().manual_seed(draw)
    near.CopyFrom(model)
    graphs = [*all_graphs(near.graph)]
    read = {n for g in graphs for node in g.node if node.op_type in WEIGHTED for n in node.input}
    for stored in (t for graph in graphs for t in graph.initializer):
        dtype = FLOATS.get(stored.data_type)
        if dtype is not None and (len(stored.dims) > 1 or stored.name in read):
            values = torch.from_numpy(np.array(numpy_helper.to_array(stored), dtype=np.float64))
            array = moved_by_rounding(values, dtype, generator, units).to(dtype).numpy()
            stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    return near


def _coarsest(model: onnx.ModelProto) -> torch.dtype:
    """The coarsest dtype that a model computes in, as far as its tensors and ends tell."""
    kinds = {t.data_type for graph in all_graphs(model.graph) for t in graph.initializer}
    kinds |= {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    return torch.float16 if onnx.TensorProto.FLOAT16 in kinds else torch.float32


def inputs_of(
    model: onnx.ModelProto, inputs: Inputs | None
) -> dict[str, tuple[tuple[int, ...], Kind]]:
    """The shape and kind of each input: as given by name or in order, else as the file has it.

    A free batch is 1. Raises UsageError where that does not fit, or does not tell all.
    """
    given = named_kinds(inputs) if inputs is not None else []
    free = [(shape, kind) for name, shape, kind in given if name is None]
    named = {name: (shape, kind) for name, shape, kind in given if name is not None}
    values = inputs_without_default(with_free_sizes(model))
    odd = sorted(named.keys() - {v.name for v in values})
    if odd or len(free) > len([v for v in values if v.name not in named]):
        what = f"{odd[0]} is none of them" if odd else "there are fewer"
        known = ", ".join(v.name for v in values)
        raise UsageError(f"--input: the model's inputs are {known}; {what}.")
    return {value.name: _input_of(value, named.get(value.name), free) for value in values}


def image_of(model: onnx.ModelProto, inputs: Inputs | None, sample: int = 0) -> Image:
    """One input of a model, as `inputs_of` says, at random."""
    known = inputs_of(model, inputs)
    shapes = {name: shape for name, (shape, _) in known.items()}
    kinds = {name: kind for name, (_, kind) in known.items()}
    return images(shapes, (inputs.seed if inputs else 0) + sample, kinds)


def images_of(model: onnx.ModelProto, inputs: Inputs | None) -> list[Image]:
    """As many of these as a user asks for; three, where nothing is said. Real ones are what is."""
    samples = 3 if inputs is None else max(1, inputs.samples)
    if inputs is not None and inputs.data and all(x is not None for x in inputs.data):
        return _in_batches(model, image_of(model, inputs))
    return [image_of(model, inputs, sample) for sample in range(samples)]


def _in_batches(model: onnx.ModelProto, image: Image) -> list[Image]:
    """Real inputs as many at a time as the model's file fixes; what fills no batch is left out.

    Those of which that is not all there is to it stay as they are, and it is told by running them.
    """
    dims = {v.name: v.type.tensor_type.shape.dim for v in model.graph.input if v.name in image}
    sizes = {name: own[0].dim_value for name, own in dims.items() if own and image[name].ndim}
    fixed = [size for size in sizes.values() if size > 0]
    steps = {name: size if size > 0 else fixed[0] for name, size in sizes.items() if fixed}
    shares = {image[name].shape[0] / step for name, step in steps.items()}
    if len(shares) != 1 or min(shares) < 1:
        return [image]
    return [
        {name: x[i * steps[name] : (i + 1) * steps[name]] if name in steps else x
         for name, x in image.items()}
        for i in range(int(min(shares)))
    ]  # fmt: skip


def _input_of(
    value: onnx.ValueInfoProto, named: tuple[Any, Kind] | None, free: list[tuple[Any, Kind]]
) -> tuple[tuple[int, ...], Kind]:
    """The shape and kind of one input; the first of the `free` ones that a user gives is its."""
    kind = Kind.of(_dtype_name(value))
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
    has_shape = value.type.tensor_type.HasField("shape")
    if named is None and free:
        named = free.pop(0)
    if named is not None:
        shape, own = named
        said = own.dtype if own.data is None else own.data.dtype
        floating = said is not None and said.is_floating_point and kind.dtype is None
        if said not in (None, kind.dtype) and not floating:
            given = str(said).removeprefix("torch.")
            raise UsageError(f"--input: {value.name} is {_dtype_name(value)}, not {given}.")
        return tuple(shape), own if own.dtype is not None or own.data is not None else kind
    if has_shape and all(dims[1:]):
        shape = (dims[0] or 1, *dims[1:]) if dims else ()
        if math.prod(shape) > LARGEST_IMAGE:
            raise UsageError(
                f"the input {value.name} is of {tuple(dims)}, which is too much to be tried: "
                f"give a smaller --input {value.name}:1,3,224,224."
            )
        return shape, kind
    usual = (1, 3, 224, 224, 224) if len(dims) != 2 else (1, 16)
    sizes = [d or usual[min(i, len(usual) - 1)] for i, d in enumerate(dims)] or usual[:4]
    raise UsageError(
        f"the input {value.name} has free sizes: give --input {value.name}:"
        f"{','.join(map(str, sizes))}."
    )


def _dtype_name(value: onnx.ValueInfoProto) -> str:
    """The dtype of an input, as torch calls it. Raises UsageError for one that is no tensor."""
    what = value.type.WhichOneof("value") or "no tensor"
    if not is_tensor(value):
        raise UsageError(
            f"the input {value.name} is {what.removesuffix('_type')}, not one tensor: nothing "
            "can be made up for it. Make it a tensor, or take it out of the file."
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    name = "bool" if dtype == np.bool_ else dtype.name
    if not hasattr(torch, name) or dtype == np.object_ or dtype.kind == "c":
        kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        raise UsageError(f"the input {value.name} is of {kind}: nothing can be made up for it.")
    return name
