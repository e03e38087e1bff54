"""Inputs by which a model is calibrated and judged: arrays of images to batches of its inputs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from acfuse.errors import InputError
from acfuse.graph.onnx_values import inputs_without_default
from acfuse.proof.onnx_runtime import images_of
from acfuse.proof.running import Image, Inputs
from acfuse.system.escape import listed, safe

AT_ONCE = 8  # images in a batch, where the model leaves that open
FEW = 16  # images: of less, their number is remarked on
Parts = Sequence[tuple[str, Mapping[str, Tensor]]]  # arrays by name, of each file


@dataclass(frozen=True)
class Data:
    """Inputs of a model in batches, how many images these are, and what is to be said of them."""

    batches: tuple[Image, ...] = field(repr=False)
    images: int
    notes: tuple[str, ...] = ()
    is_random: bool = False

    @property
    def inputs(self) -> Inputs:
        """Those of the shape of the first as inputs of a model, by name and all at once."""
        shapes = [tuple(x.shape[1:] for x in batch.values()) for batch in self.batches]
        alike = [b for b, shape in zip(self.batches, shapes, strict=True) if shape == shapes[0]]
        whole = {n: torch.cat([b[n] for b in alike]) if x.ndim else x for n, x in alike[0].items()}
        named = tuple((name, tuple(x.shape)) for name, x in whole.items())
        return Inputs(named, data=tuple(whole.values()))

    def first(self, images: int) -> "Data":
        """The first batches, of at least so many images, or all."""
        some: list[Image] = []
        count = 0
        for batch in self.batches:
            if count >= images:
                break
            some.append(batch)
            count += _images_in(batch)
        return Data(tuple(some), count, is_random=self.is_random)


def random_data(model: onnx.ModelProto, inputs: Inputs | None) -> Data:
    """Inputs that are made up, in the shapes that the model has or that are given."""
    given = inputs or Inputs((), samples=16)
    batches = tuple(images_of(model, given))
    return Data(batches, sum(map(_images_in, batches)), is_random=True)


def data_of(
    model: onnx.ModelProto, parts: Parts, source: str = "the data", others: Sequence[str] = ()
) -> Data:
    """Real inputs, in batches as the model takes them. `others` are files that hold no arrays.

    Each array is of one input: by its name, or whatever its name where the model has one input. Its
    first axis counts images; an array without that axis is a single one. Raises InputError for what
    the model does not take.
    """
    wanted = [_Wanted.of(value) for value in inputs_without_default(model)]
    groups: dict[object, list[dict[str, Tensor]]] = {}
    left_out: dict[str, None] = {}
    for file, arrays in parts:
        own, more = _named(wanted, arrays, file)
        left_out.update(dict.fromkeys(more))
        given = {w.name: w.checked(own[w.name], f"{safe(file)}, {safe(own_name)}")
                 for w, own_name in ((w, _key(own, w, arrays)) for w in wanted)}  # fmt: skip
        # One without images is its number: files that differ in it are not of one batch.
        shapes = tuple(tuple(x.shape[1:]) if x.ndim else x.item() for x in given.values())
        groups.setdefault(shapes, []).append(given)
    batches: list[Image] = []
    dropped = 0
    for group in groups.values():
        made, rest = _batches(wanted, group, source)
        batches += made
        dropped += rest
    images = sum(map(_images_in, batches))
    size = next((w.batch for w in wanted if w.batch), AT_ONCE)
    if not batches:
        raise InputError(
            f"{safe(source)} holds {counted(dropped)}, and the model takes {size} at a time; give "
            "as many at least, or export it with a free batch."
        )
    _check_varied(wanted, batches, source)
    notes = []
    if images < FEW:
        notes.append(
            f"{counted(images)} {'is' if images == 1 else 'are'} few: ranges of values are known "
            "well of about a hundred"
        )
    if dropped:
        notes.append(f"{counted(dropped)} of {safe(source)} left out, as the model takes {size}")
    if left_out:
        notes.append(f"the model has no input {listed([*map(safe, left_out)], 5)}: left out")
    if others:
        told = listed([*map(safe, others)], 5)
        notes.append(f"no arrays, and left out: {told}, of {safe(source)}")
    return Data(tuple(batches), images, tuple(notes))


@dataclass(frozen=True)
class _Wanted:
    """An input of a model: its dtype, and its sizes as far as they are fixed; None of any rank."""

    name: str
    dtype: np.dtype
    sizes: tuple[int | None, ...] | None

    @classmethod
    def of(cls, value: onnx.ValueInfoProto) -> "_Wanted":
        """One that a file states."""
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or tensor.elem_type == onnx.TensorProto.STRING:
            raise InputError(
                f"the input {safe(value.name)} is no tensor of numbers; no array can be given for "
                "it. Take it out of the model."
            )
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        dims = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
        return cls(value.name, dtype, tuple(dims) if tensor.HasField("shape") else None)

    @property
    def batch(self) -> int | None:
        """How many images it takes at once, where that is fixed."""
        return self.sizes[0] if self.sizes else None

    @property
    def is_constant(self) -> bool:
        """Whether it has no axis on which images could be counted."""
        return self.sizes == ()

    def checked(self, array: Tensor, where: str) -> Tensor:
        """An array as this input takes it. Raises InputError for another one."""
        if self.sizes and array.ndim == len(self.sizes) - 1:
            array = array.unsqueeze(0)
        shape = tuple(array.shape)
        if self.sizes is not None:
            wanted = ", ".join("any" if n is None else str(n) for n in ("any", *self.sizes[1:]))
            is_right = len(shape) == len(self.sizes) and all(
                own in (None, n) for own, n in zip(self.sizes[1:], shape[1:], strict=True)
            )
            if not is_right:
                raise InputError(
                    f"{where} is of {shape}; the input {safe(self.name)} takes "
                    f"({wanted if self.sizes else ''}), the first axis being the images."
                )
        if array.numel() == 0:
            raise InputError(f"{where} is empty, {shape}; expected one image at least.")
        return self._cast(array, where)

    def _cast(self, array: Tensor, where: str) -> Tensor:
        # numpy has no bfloat16, and float32 has all of its numbers.
        numbers = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
        kind, name = numbers.dtype.kind, numbers.dtype.name
        is_floating = self.dtype.kind not in "iub"  # bfloat16 has a kind of its own
        if is_floating and kind != "f":
            raise InputError(
                f"{where} is {name}; the input {safe(self.name)} takes {self.dtype.name}, as the "
                "network is given it: scaled and normalized as in training."
            )
        if kind == "f":
            bad = ~np.isfinite(numbers)
            if bad.any():
                image = int(np.argwhere(bad)[0][0]) if numbers.ndim else 0
                raise InputError(
                    f"{where} holds {int(bad.sum())} numbers that are not finite, first in image "
                    f"{image}; expected none."
                )
        with np.errstate(all="ignore"):
            made = numbers.astype(self.dtype)
        is_kept = np.isfinite(made.astype(np.float64)).all() if is_floating else (
            kind in "iub" and (made == numbers).all())  # fmt: skip
        if not is_kept:
            raise InputError(
                f"{where} is {name}, and not all of its numbers are {self.dtype.name}, which the "
                f"input {safe(self.name)} takes."
            )
        return torch.from_numpy(made if made.dtype.kind in "fiub" else made.astype(np.float32))


def _named(
    wanted: Sequence[_Wanted], arrays: Mapping[str, Tensor], file: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The array of each input, and the names of those that belong to none."""
    names = [w.name for w in wanted]
    found = {name: arrays[name] for name in names if name in arrays}
    unnamed = all(re.fullmatch(r"arr_\d+", name) for name in arrays)
    if len(found) < len(names) and len(arrays) == len(names) and (len(names) == 1 or unnamed):
        return dict(zip(names, arrays.values(), strict=True)), []
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"{safe(file)} has no array {safe(missing[0])}: it holds "
            f"{listed([*map(safe, arrays)], 5)}; expected one for each input of the model, by its "
            "name."
        )
    return found, [name for name in arrays if name not in found]


def _key(own: Mapping[str, Tensor], wanted: _Wanted, arrays: Mapping[str, Tensor]) -> str:
    """What the array of an input is called in its file."""
    return next(name for name, array in arrays.items() if array is own[wanted.name])


def _batches(
    wanted: Sequence[_Wanted], group: Sequence[Mapping[str, Tensor]], source: str
) -> tuple[list[Image], int]:
    """Arrays of the same sizes one behind the other, in batches; how many images are left."""
    whole = {
        w.name: group[0][w.name] if w.is_constant else torch.cat([part[w.name] for part in group])
        for w in wanted
    }
    own = [w for w in wanted if not w.is_constant]
    if not own:
        return [whole], 0
    fixed = [w.batch for w in own if w.batch]
    steps = {w.name: w.batch or (fixed[0] if fixed else AT_ONCE) for w in own}
    counts = {name: whole[name].shape[0] / step for name, step in steps.items()}
    if len({*counts.values()}) > 1:
        told = ", ".join(f"{safe(n)} {whole[n].shape[0]}" for n in counts)
        raise InputError(
            f"{safe(source)} has arrays of different numbers of images ({told}); expected as many "
            "for each input."
        )
    first = own[0].name
    count, step = whole[first].shape[0], steps[first]
    ends = count // step if fixed else -(-count // step)
    made = [
        {name: x if name not in steps else x[i * steps[name] : (i + 1) * steps[name]]
         for name, x in whole.items()}
        for i in range(ends)
    ]  # fmt: skip
    return list(made), count - ends * step if fixed else 0


def _check_varied(wanted: Sequence[_Wanted], batches: Sequence[Image], source: str) -> None:
    """Raises InputError for images that are all one number: they tell no range."""
    for w in wanted:
        values = [batch[w.name] for batch in batches]
        if w.is_constant or not values[0].is_floating_point() or values[0][0].numel() < 2:
            continue
        first = values[0].reshape(-1)[0]
        if all(bool((value == first).all()) for value in values):
            raise InputError(
                f"{safe(source)}: all that the input {safe(w.name)} is given is {float(first):g}; "
                "expected images, whose values have a range."
            )


def counted(images: int) -> str:
    """So many images, in words."""
    return f"{images:,} image{'' if images == 1 else 's'}"


def _images_in(batch: Image) -> int:
    return next((int(x.shape[0]) for x in batch.values() if x.ndim), 1)
