"""A PyTorch model on random inputs."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.errors import InputError, UsageError
from acfuse.graph.calls import signature
from acfuse.proof.leaves import Holder, Leaves, leaves_of
from acfuse.system.escape import one_line

Image = Mapping[str, Tensor]  # one for each input of a model
OTHERS = tuple((m, s) for s in (1.0, 10.0, 0.1, 100.0) for m in (0.0, 1.0, -1.0))


@dataclass(frozen=True)
class Inputs:
    """What a model is run on. `shapes` are (name or None, shape), one for each input."""

    shapes: tuple[tuple[str | None, tuple[int, ...]], ...]
    seed: int = 0
    samples: int = 3


def input_names(model: nn.Module) -> list[str]:
    """The parameters of a model's forward that have no default."""
    parameters = signature(model).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def named_shapes(model: nn.Module, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Which parameter gets which shape. Raises UsageError where that does not fit."""
    names = input_names(model)
    given: dict[str, tuple[int, ...]] = {}
    # What has a default is an input where there are shapes left for it.
    optional = [n for n, p in signature(model).parameters.items()
                if p.kind is p.POSITIONAL_OR_KEYWORD and n not in names]  # fmt: skip
    named = {name for name, _ in inputs.shapes}
    free = [n for n in (*names, *optional) if n not in named]
    for name, shape in inputs.shapes:
        if name is None and free:
            name = free.pop(0)
        if name is None or name not in signature(model).parameters:
            known = [*names, *optional]
            given_for = f"{shape} is given for {name}" if name else f"{shape} is one too many"
            raise UsageError(
                f"--input-shape: {given_for}, but the model's inputs "
                + (f"are {', '.join(known)}." if known else "have no names.")
            )
        given[name] = shape
    missing = [n for n in names if n not in given]
    if missing:
        raise UsageError(f"--input-shape: none is given for {', '.join(missing)}.")
    return given


def images(
    shapes: dict[str, tuple[int, ...]], seed: int, *, mean: float = 0.0, scale: float = 1.0
) -> dict[str, Tensor]:
    """Random inputs, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * (torch.randn(*shape, generator=generator, dtype=torch.float64) + mean)
        for name, shape in shapes.items()
    }


def run(model: nn.Module, given: Image, dtype: torch.dtype) -> dict[str, Any]:
    """Every value that a model gives, by name."""
    with torch.no_grad():
        return leaves_of(model(**{name: image.to(dtype) for name, image in given.items()}))


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in: that of its first floating parameter."""
    parameters = [*model.parameters(), *model.buffers()]
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def variations(
    model: nn.Module, inputs: Inputs, dtype: torch.dtype
) -> Iterator[tuple[Image, Leaves]]:
    """Inputs of the given shape, with several seeds, and what a model gives; then of other sizes.

    Other batches and odd sizes are tried, and left out where the model itself cannot take them. If
    some output is empty on all of that, so are other inputs on which it is not, if there are any.
    Raises InputError where the model cannot take the given shape.
    """
    shapes = named_shapes(model, inputs)
    tried: list[Leaves] = []
    for sample in range(max(1, inputs.samples)):
        given = images(shapes, inputs.seed + sample)
        tried.append(_run_or_explain(model, given, dtype, shapes))
        yield given, tried[-1]
    others = [{n: change(s) for n, s in shapes.items()} for change in (_other_batch, _other_size)]
    for image, result in _tried(model, (images(s, inputs.seed) for s in others), dtype):
        tried.append(result)
        yield image, result
    more = (images(shapes, inputs.seed + 100 + i, mean=m, scale=s)
            for i, (m, s) in enumerate(OTHERS))  # fmt: skip
    empty = set.intersection(*map(_empty, tried))
    for image, result in _tried(model, more, dtype) if empty else ():
        if shown := {name for name in empty if name in result} - _empty(result):
            empty -= shown
            yield image, result
        if not empty:
            return


def _tried(
    model: nn.Module, given: Iterable[Image], dtype: torch.dtype
) -> Iterator[tuple[Image, Leaves]]:
    for image in given:
        try:
            result = run(model, image, dtype)
        except Exception:
            continue
        yield image, result


def _empty(result: Leaves) -> set[str]:
    """The outputs, and lists of outputs, in which there is nothing."""
    nothing = {n for n, x in result.items() if isinstance(x, Tensor) and x.numel() == 0}
    return nothing | {n for n, x in result.items() if isinstance(x, Holder) and not x.keys}


def _other_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (3 if shape[0] == 1 else 1, *shape[1:])


def _other_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], *(n + 1 + 2 * i for i, n in enumerate(shape[2:])))


def _run_or_explain(
    model: nn.Module,
    given: Image,
    dtype: torch.dtype,
    shapes: dict[str, tuple[int, ...]],
) -> Leaves:
    try:
        return run(model, given, dtype)
    except Exception as error:
        text = one_line(error, 200)
        listed = ", ".join(f"{n} {','.join(map(str, s))}" for n, s in shapes.items())
        raise InputError(
            f"the model cannot take an input of this shape ({listed}): {text}. "
            "Is --input-shape right?"
        ) from error


def moved_by_rounding(
    tensor: Tensor, dtype: torch.dtype, generator: torch.Generator, units: float = 1
) -> Tensor:
    """Numbers in float64, each moved up or down at random by units of a dtype's rounding."""
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8)
    return tensor * (1 + units * torch.finfo(dtype).eps * (2 * signs.double() - 1))
