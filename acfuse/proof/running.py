"""A PyTorch model on random inputs, and how far a unit of rounding moves what it gives."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from acfuse.errors import InputError, UsageError
from acfuse.proof.outputs import largest_changes
from acfuse.system.escape import one_line


@dataclass(frozen=True)
class Inputs:
    """What a model is run on. `shapes` are (name or None, shape), one for each input."""

    shapes: tuple[tuple[str | None, tuple[int, ...]], ...]
    seed: int = 0
    samples: int = 3


def input_names(model: nn.Module) -> list[str]:
    """The parameters of a model's forward that have no default."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def named_shapes(model: nn.Module, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Which parameter gets which shape. Raises UsageError where that does not fit."""
    names = input_names(model)
    given: dict[str, tuple[int, ...]] = {}
    free = [n for n in names if n not in {name for name, _ in inputs.shapes}]
    for name, shape in inputs.shapes:
        if name is None and free:
            name = free.pop(0)
        if name is None or name not in inspect.signature(model.forward).parameters:
            given_for = f"{shape} is given for {name}" if name else f"{shape} is one too many"
            raise UsageError(
                f"--input-shape: {given_for}, but the model's inputs are {', '.join(names)}."
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


def run(model: nn.Module, given: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors that a model gives, in order."""
    with torch.no_grad():
        result = model(**{name: image.to(dtype) for name, image in given.items()})
    return [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in: that of its first floating parameter."""
    parameters = [*model.parameters(), *model.buffers()]
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def variations(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Inputs of the given shape, with several seeds; then of other sizes.

    Other batches and odd sizes are tried, and left out where the model itself cannot take them.
    Raises InputError where it cannot take the given shape.
    """
    shapes = named_shapes(model, inputs)
    for sample in range(max(1, inputs.samples)):
        given = images(shapes, inputs.seed + sample)
        if sample == 0:
            _run_or_explain(model, given, dtype, shapes)
        yield given
    for change in (_other_batch, _other_size):
        other = {name: change(shape) for name, shape in shapes.items()}
        given = images(other, inputs.seed)
        try:
            run(model, given, dtype)
        except Exception:
            continue
        yield given


def _other_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (3 if shape[0] == 1 else 1, *shape[1:])


def _other_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], *(n + 1 + 2 * i for i, n in enumerate(shape[2:])))


def _run_or_explain(
    model: nn.Module,
    given: dict[str, Tensor],
    dtype: torch.dtype,
    shapes: dict[str, tuple[int, ...]],
) -> None:
    try:
        run(model, given, dtype)
    except Exception as error:
        text = one_line(error, 200)
        listed = ", ".join(f"{n} {','.join(map(str, s))}" for n, s in shapes.items())
        raise InputError(
            f"the model cannot take an input of this shape ({listed}): {text}. "
            "Is --input-shape right?"
        ) from error


def moved_by_rounding(tensor: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Numbers in float64, each moved up or down at random by one unit of a dtype's rounding."""
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8)
    return tensor * (1 + torch.finfo(dtype).eps * (2 * signs.double() - 1))


def noise_of_rounding(
    model: nn.Module,
    given: Sequence[dict[str, Tensor]],
    expected: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
) -> list[list[float]]:
    """What rounding to a dtype costs a float64 model: how far each output moves, for each input.

    Every weight and every pixel is moved by one unit of that rounding, up or down at random. A
    fused model, whose weights are others, cannot be nearer to the original than that; where the
    outputs of a network say little of what is behind them (a sigmoid of a large number), it is far.
    """
    generator = torch.Generator().manual_seed(0)
    moved = partial(moved_by_rounding, dtype=dtype, generator=generator)
    near = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*near.parameters(), *near.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(moved(tensor))
    return [
        largest_changes(true, run(near, {n: moved(x) for n, x in g.items()}, torch.float64))
        for g, true in zip(given, expected, strict=True)
    ]


def own_noise(
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
