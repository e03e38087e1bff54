"""A PyTorch model on random inputs."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.errors import InputError, UsageError
from acfuse.files.arrays import read_arrays
from acfuse.graph.calls import signature
from acfuse.proof.leaves import Holder, Leaves, leaves_of
from acfuse.system.devices import CPU, device_of, exact_arithmetic
from acfuse.system.escape import one_line

Image = Mapping[str, Tensor]  # one for each input of a model
OTHERS = tuple((m, s) for s in (1.0, 10.0, 0.1, 100.0) for m in (0.0, 1.0, -1.0))


@dataclass(frozen=True)
class Inputs:
    """What a model is run on. `shapes` are (name or None, shape), one for each input.

    `kinds` are their dtypes, in the same order, as far as they are given: "int64", or with the
    numbers that it takes, "int64=0..99". `data` are real values, so too, from the file `source`.
    """

    shapes: tuple[tuple[str | None, tuple[int, ...]], ...]
    seed: int = 0
    samples: int = 3
    kinds: tuple[str, ...] = ()
    data: tuple[Tensor | None, ...] = field(default=(), repr=False, compare=False)
    source: Path | None = None

    def with_file(self, path: Path) -> "Inputs":
        """The same, with the arrays of an .npz file: by name, those without one in their order."""
        arrays = read_arrays(path)
        names = [None if re.fullmatch(r"arr_\d+", name) else name for name in arrays]
        both = [name for name, _ in self.shapes if name is not None and name in names]
        if both:
            raise UsageError(f"--input: {both[0]} is in {path.name} as well. Give one of them.")
        shapes = tuple(tuple(array.shape) for array in arrays.values())
        kinds = tuple(text for _, text in zip_longest(self.shapes, self.kinds, fillvalue=""))
        return replace(
            self,
            shapes=(*zip(names, shapes, strict=True), *self.shapes),
            kinds=(*[""] * len(names), *kinds),
            data=tuple(arrays.values()),
            source=path,
        )


@dataclass(frozen=True)
class Kind:
    """The dtype of an input, the smallest and largest number of it, and its values, if given.

    Without a dtype it is an image: floating numbers, in the dtype of what runs.
    """

    dtype: torch.dtype | None = None
    low: int = 0
    high: int = 1
    data: Tensor | None = None

    @classmethod
    def of(cls, text: str, data: Tensor | None = None) -> "Kind":
        """That which a user writes. Raises UsageError for no dtype of torch's."""
        name, _, numbers = text.partition("=")
        if not name:
            return cls(data=data)
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype) or dtype.is_complex:
            raise UsageError(f"--input: {name} is no dtype; expected one as float32, int64, bool.")
        if dtype.is_floating_point:
            return cls(data=data)
        low, high = RANGES.get(dtype, (FREE.low, FREE.high))
        if numbers:
            low, high = (int(n) for n in numbers.split(".."))
        return cls(dtype, low, high, data)

    def made(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Random values; those of floating numbers in float64."""
        size = tuple(shape)
        if self.dtype is None:
            return torch.randn(size, generator=generator, dtype=torch.float64, device=CPU)
        numbers = torch.randint(self.low, self.high + 1, size, generator=generator, device=CPU)
        return numbers.to(self.dtype)


IMAGE = Kind()
FREE = Kind(torch.int64, 0, 9)  # an integer of which no more is known
RANGES = {torch.bool: (0, 1), torch.uint8: (0, 255)}  # bytes are those of an image


def input_names(model: nn.Module) -> list[str]:
    """The parameters of a model's forward that have no default."""
    parameters = signature(model).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in VARIABLE]


VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def named_shapes(model: nn.Module, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Which parameter gets which shape. Raises UsageError where that does not fit."""
    names, parameters = input_names(model), signature(model).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given: dict[str, tuple[int, ...]] = {}
    # What has a default is an input where there are shapes left for it.
    optional = [n for n, p in parameters.items()
                if p.kind is p.POSITIONAL_OR_KEYWORD and n not in names]  # fmt: skip
    named = {name for name, _ in inputs.shapes}
    free = [n for n in (*names, *optional) if n not in named]
    for name, shape in inputs.shapes:
        if name is None and free:
            name = free.pop(0)
        variable = [n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL]
        if variable and (name is None or name in variable):
            raise UsageError(
                f"--input-shape: the model takes any number of {variable[0]}, and inputs are given "
                "by name. Write a module around it whose forward names them, for --model."
            )
        if name is None or not (name in parameters or takes_any):
            known = [n for n, p in parameters.items() if p.kind not in VARIABLE]
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


def kinds_of(shapes: Iterable[str], inputs: Inputs, model: nn.Module) -> dict[str, Kind]:
    """What each input is, of a model whose inputs have these names, in the order they are given.

    Numbers of rows are what a table of the model's has at least: they are looked up there.
    """
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    kinds: dict[str, Kind] = {}
    for name, (_, _, kind) in zip(shapes, named_kinds(inputs), strict=True):
        free = kind.dtype not in (None, *RANGES) and kind.data is None and kind.high == FREE.high
        kinds[name] = replace(kind, high=min(*rows, FREE.high + 1) - 1) if rows and free else kind
    return kinds


def named_kinds(inputs: Inputs) -> list[tuple[str | None, tuple[int, ...], Kind]]:
    """The name, shape and kind of each input that a user gives; real integers tell their range."""
    kinds = []
    for i, (name, shape) in enumerate(inputs.shapes):
        data = inputs.data[i] if i < len(inputs.data) else None
        kind = Kind.of(inputs.kinds[i] if i < len(inputs.kinds) else "", data)
        if data is not None and not data.is_floating_point():
            numbers = data.long()
            least, most = (int(numbers.min()), int(numbers.max())) if numbers.numel() else (0, 0)
            kind = replace(kind, dtype=data.dtype, low=least, high=most)
        kinds.append((name, shape, kind))
    return kinds


def images(
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    kinds: Mapping[str, Kind] | None = None,
    *,
    mean: float = 0.0,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Random inputs, the same for the same seed; the real ones where those have these shapes."""
    generator = torch.Generator().manual_seed(seed)
    plain = mean == 0.0 and scale == 1.0
    given: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        kind = (kinds or {}).get(name, IMAGE)
        value = kind.made(shape, generator)
        if kind.data is not None and plain and tuple(kind.data.shape) == tuple(shape):
            value = kind.data.to(value.dtype)
        given[name] = scale * (value + mean) if value.is_floating_point() else value
    return given


def cast(image: Tensor, dtype: torch.dtype) -> Tensor:
    """An input in the dtype of what runs; integers stay what they are."""
    return image.to(dtype) if image.is_floating_point() else image


def run(model: nn.Module, given: Image, dtype: torch.dtype) -> dict[str, Any]:
    """Every value that a model gives, by name. It runs where it is; they are on the CPU."""
    device = device_of(model)
    images = {name: cast(image, dtype).to(device) for name, image in given.items()}
    with torch.no_grad(), exact_arithmetic(device):
        leaves = leaves_of(model(**images))
    has_numbers = {n for n, x in leaves.items() if isinstance(x, Tensor) and not x.is_meta}
    return {n: x.cpu() if n in has_numbers else x for n, x in leaves.items()}


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in: that of its first floating parameter."""
    parameters = [*model.parameters(), *model.buffers()]
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def is_empty(result: Leaves) -> set[str]:
    """The outputs, and lists of outputs, in which there is nothing."""
    nothing = {n for n, x in result.items() if isinstance(x, Tensor) and x.numel() == 0}
    return nothing | {n for n, x in result.items() if isinstance(x, Holder) and not x.keys}


def other_batch(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The same with more images, or fewer."""
    return {n: (3 if s[0] == 1 else 1, *s[1:]) if s else s for n, s in shapes.items()}


def larger(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The same with each spatial size a little larger, by another odd number each."""
    return {
        name: (*s[:2], *(n + 1 + 2 * i for i, n in enumerate(s[2:]))) for name, s in shapes.items()
    }


def smaller(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The same with half of each spatial size, an odd number: there is more border, for less."""
    return {
        name: (*s[:2], *((n // 2 | 1) + 2 * i for i, n in enumerate(s[2:])))
        for name, s in shapes.items()
    }


# What torch says where a forward asks for a device by name, or keeps a tensor that is not moved.
NO_DEVICE = re.compile(
    r"not compiled with \w+ enabled|NVIDIA driver|No \w+ GPUs|PyTorch is not linked|CUDA error"
    r"|same device"
)


def run_or_explain(model: nn.Module, given: Image, dtype: torch.dtype) -> Leaves:
    """The same, of an input that a user gives. Raises InputError where the model cannot take it."""
    try:
        return run(model, given, dtype)
    except Exception as error:
        text = one_line(error, 200)
        if NO_DEVICE.search(text):
            raise InputError(
                f"the model's forward calls a device where it is not: {text}. acfuse runs it on "
                f"{device_of(model)}: make the forward take the device of its input."
            ) from error
        listed = ", ".join(f"{n} {','.join(map(str, x.shape))}" for n, x in given.items())
        raise InputError(
            f"the model cannot take an input of this shape ({listed}): {text}. "
            "Is --input-shape right?"
        ) from error


def moved_by_rounding(
    tensor: Tensor, dtype: torch.dtype, generator: torch.Generator, units: float = 1
) -> Tensor:
    """Numbers in float64, each moved up or down at random by units of a dtype's rounding.

    Integers are exact.
    """
    if not tensor.is_floating_point():
        return tensor
    drawn = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8, device=CPU)
    signs = 2 * drawn.to(tensor.device).double() - 1
    return tensor * (1 + units * torch.finfo(dtype).eps * signs)
