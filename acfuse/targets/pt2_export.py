"""From a live model to one file of torch.export (.pt2), compared with the original."""

import inspect
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from acfuse.errors import InputError, UsageError
from acfuse.files.read import read_tensors
from acfuse.proof.exported import compared, dynamic_dims
from acfuse.proof.leaves import Leaves, leaves_of
from acfuse.proof.original import Original
from acfuse.proof.outputs import Check, Tolerance
from acfuse.proof.running import Image, Inputs, cast, floating_dtype, named_shapes
from acfuse.proof.trace import Trace, trace_of_model
from acfuse.system.escape import one_line
from acfuse.targets.onnx_export import dimension, example, export_failure, quiet

# What a node is told to keep: its value, and which layer it comes from. The rest names source files
# of this machine.
KEPT = ("val", "tensor_meta", "nn_module_stack", "torch_fn")


@dataclass(frozen=True)
class Program:
    """A .pt2 file in memory, and the names of the inputs that are given by position."""

    bytes: bytes = field(repr=False)
    positional: bool


def to_pt2(model: nn.Module, inputs: Inputs, dynamic: str = "batch") -> Program:
    """Exports a model in eval mode, with the axes of `dynamic` free: batch, hw, all or none.

    Inputs are given by position where they are the first of the forward, by name otherwise.
    Raises InputError with torch's reason where it cannot.
    """
    shapes = named_shapes(model, inputs)
    axes = dynamic_dims(shapes, dynamic)
    given = example(model, shapes, axes, inputs)
    positional = list(inspect.signature(model.forward).parameters)[: len(shapes)] == [*shapes]
    free = {n: {i: dimension(i, n, shapes) for i in axes[n]} for n in shapes}
    buffer = io.BytesIO()
    with quiet():
        try:
            program = torch.export.export(
                model,
                tuple(given.values()) if positional else (),
                {} if positional else given,
                dynamic_shapes=free,
                strict=False,
            )
            for node in program.graph.nodes:
                node.meta = {k: v for k, v in node.meta.items() if k in KEPT}
            torch.export.save(program, buffer)
        except Exception as error:
            failure = export_failure(error, "a .pt2 file", "Leave --pt2 away", dynamic)
            raise InputError(failure) from error
    return Program(buffer.getvalue(), positional)


def compare_pt2(
    program: Program,
    original: Original,
    tolerance: Tolerance,
    dynamic: str,
    progress: Callable[[str], None] = lambda _: None,
) -> Check:
    """A program that was just made, loaded as its user will, against the original model."""
    progress("the .pt2 file in torch")
    with quiet():  # these bytes are our own: nothing strange is unpickled
        loaded = torch.export.load(io.BytesIO(program.bytes)).module()

    def call(given: Mapping[str, Tensor]) -> Any:
        return loaded(*given.values()) if program.positional else loaded(**given)

    return _compared(call, original, tolerance, dynamic)


def compare_pt2_file(path: Path, original: Original, tolerance: Tolerance, dynamic: str) -> Check:
    """A .pt2 file, read without running what it says, against the original model."""
    call, _ = _call_of(path)
    return _compared(call, original, tolerance, dynamic)


def _call_of(path: Path) -> tuple[Callable[[Mapping[str, Tensor]], Any], torch.dtype]:
    """How the program of a .pt2 file is called, and the dtype that it computes in."""
    network, names = _network_of(path)

    def call(given: Mapping[str, Tensor]) -> Any:
        return network(**dict(zip(names, given.values(), strict=True)))

    return call, floating_dtype(network)


def _network_of(path: Path) -> tuple[nn.Module, list[str]]:
    """The network of a .pt2 file, and what its inputs are called, in their order."""
    network = read_tensors(path)[0].network
    if network is None:
        raise UsageError(
            f"{path.name} is no program that could be run by itself; give an ONNX or .pt2 file."
        )
    return network, list(inspect.signature(network.forward).parameters)


def trace_of_program(path: Path, image: Image) -> Trace:
    """What a .pt2 file computes for an image, step by step."""
    network, names = _network_of(path)
    given = dict(zip(names, image.values(), strict=True))
    return trace_of_model(network, given, floating_dtype(network))


def answers_of_program(path: Path, optimised: bool) -> Callable[[Image], Leaves]:
    """What a .pt2 file gives for images; there is nothing to be optimised."""
    call, dtype = _call_of(path)

    def answer(given: Image) -> Leaves:
        with torch.no_grad():
            try:
                return leaves_of(call({name: cast(image, dtype) for name, image in given.items()}))
            except Exception as error:
                raise _cannot_be_run(given, error) from error

    return answer


def _cannot_be_run(given: Image, error: Exception) -> InputError:
    tried = ", ".join(str(tuple(image.shape)) for image in given.values())
    return InputError(f"the .pt2 file cannot be run on {tried}: {one_line(error, 200)}.")


def _compared(
    call: Callable[[Mapping[str, Tensor]], Any],
    original: Original,
    tolerance: Tolerance,
    dynamic: str,
) -> Check:
    """What a call gives, against the original model."""

    def answer(given: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            try:
                result = call({name: cast(image, original.dtype) for name, image in given.items()})
            except Exception as error:
                raise _cannot_be_run(given, error) from error
        return [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]

    return compared("pt2", "it", [answer], original, tolerance, dynamic)
