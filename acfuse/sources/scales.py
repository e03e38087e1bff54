"""The scales of a network in PyTorch, by its ONNX form: which tensors have them, and which had.

Which channels may be scaled is told by an exported graph; a tensor of that is one of the network's
own, by its name and by its numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from acfuse.errors import AcfuseError, InputError, NotEqual
from acfuse.graph.fx_read import is_norm
from acfuse.int8.channels import Channels, Layer
from acfuse.int8.equalize import Array, Scales, constants_named, times_power
from acfuse.int8.evened import Evened, evened
from acfuse.int8.unscaled import scales_between
from acfuse.proof import Check, Inputs
from acfuse.proof.onnx_runtime import image_of
from acfuse.proof.trace_onnx import shapes_in
from acfuse.system.limits import LIMITS, Limits
from acfuse.targets.onnx_export import to_onnx

FOLDED = 1e-5  # how far a fold in float32 may take a factor
NEAR = 1.5  # as large or as small: what is no further away is rounded, and not scaled


def evened_tensors(
    model: nn.Module, inputs: Inputs, limits: Limits = LIMITS, *, everything: bool = False
) -> tuple[dict[str, Tensor], Evened]:
    """The tensors of a network that have other numbers in its equalized ONNX form, by name.

    Channels stay as they are whose scale no tensor of the network's own could have.
    """
    file = to_onnx(model, inputs, dynamic="none").model
    network, given = _Network(model, file), in_order(inputs)
    made = evened(file, given, limits, everything=everything, fixed=network.not_own)
    return (network.scaled(made.scaled.scales) if made.is_taken else {}), made


def tensors_without_scales(
    scaled: nn.Module, own: nn.Module, inputs: Inputs, limits: Limits = LIMITS
) -> dict[str, Tensor]:
    """The tensors of a network that is `own` with other scales, without these; none if it is not.

    All other differences stay as they are.
    """
    after = dict(_named_tensors(scaled))
    if not is_far((after[n], t) for n, t in _named_tensors(own) if n in after):
        return {}
    try:
        before, file = (to_onnx(model, inputs, dynamic="none").model for model in (own, scaled))
        image = image_of(before, in_order(inputs))
        scales = scales_between(before, file, shapes_in(before, image, limits))
        return {} if scales is None else _Network(scaled, file).scaled(scales.turned())
    except (AcfuseError, ValueError):  # it cannot be exported or run, or is of other shapes
        return {}


def is_far(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether some number is that much larger or smaller than another that it may be scaled.

    Each counts, however small: a channel that is scaled may be the smallest of its tensor.
    """
    for a, b in pairs:
        if not b.is_floating_point() or a.shape != b.shape:
            continue
        one, other = (t.detach().cpu() for t in (a, b))
        if torch.equal(one, other):
            continue
        one, other = (t.to(torch.promote_types(t.dtype, torch.float32)).abs() for t in (one, other))
        is_apart = (one > NEAR * other) | (other > NEAR * one)
        if bool((is_apart & (one > 0) & (other > 0)).any()):
            return True
    return False


def same_scales(compare: Callable[[], int]) -> Check:
    """Whether a file gives the same bits as without its scales."""
    try:
        compared = compare()
    except NotEqual as error:
        return Check("scales", False, 1.0, 0.0, detail=str(error).rstrip("."))
    told = f"{compared:,} numbers are the same as without them"
    return Check("scales", True, 0.0, 0.0, detail=told, compared=compared)


def in_order(inputs: Inputs) -> Inputs:
    """Inputs for an exported file, which may call them otherwise."""
    return replace(inputs, shapes=tuple((None, shape) for _, shape in inputs.shapes))


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


class _Network:
    """A network in PyTorch, and which of its tensors are those of its exported file."""

    def __init__(self, model: nn.Module, file: onnx.ModelProto) -> None:
        self.own = dict(_named_tensors(model))
        self.file = constants_named(file)
        self.norms = [layer for layer in model.modules() if is_norm(layer)]

    def not_own(self, channels: Channels) -> frozenset[str]:
        """The tensors of the file that would be scaled, and cannot be in the network itself."""
        followers = {follower.constant for follower in channels.followers}
        found = {name for name in followers if not self._is_own(name)}
        for layer in channels.layers:
            if self._is_own(layer.weight):
                if layer.bias is not None and not self._is_own(layer.bias):
                    found.add(layer.bias)
            elif layer.weight not in self.file or self._folded(layer) is None:
                found.add(layer.weight)
        return frozenset(found)

    def _is_own(self, name: str) -> bool:
        """Whether a tensor of the file is one of the network's own, and no other is made of that.

        Zeros need no scale.
        """
        if name not in self.file and name not in self.own:
            return False
        array = self._array(name)
        place = self._place(name, array)
        if place is None:
            return not array.any()
        own = self.own[place.names[0]]
        shapes = tuple(own.shape), tuple(own.shape[::-1])
        others = [
            np.array(numpy_helper.to_array(stored))
            for other, stored in self.file.items()
            if other != name and self.own.get(other, own) is own and tuple(stored.dims) in shapes
        ]
        return not any(_is(own, other) or _is(own, other.T) for other in others)

    def scaled(self, scales: Scales) -> dict[str, Tensor]:
        """Its tensors that have other numbers with these scales, by name. Raises InputError."""
        found: dict[str, Tensor] = {}
        for layer in scales.channels.layers:
            rows, columns = scales.rows(layer), scales.columns(layer)
            if not (rows.any() or columns.any()):
                continue
            array = self._array(layer.weight)
            steps = rows[:, None] - columns
            place = self._place(layer.weight, array)
            if place is None:
                found |= self._of_folded(layer, rows, columns)
                continue
            matrix = times_power(layer.matrix(array), steps[:, :, None], layer.weight)
            found |= place.holding(layer.stored(matrix, array))
            if layer.bias is not None:
                found |= self._times(layer.bias, rows)
        for follower in scales.channels.followers:
            found |= self._times(follower.constant, scales.following(follower))
        return found

    def _times(self, name: str, steps: NDArray[np.int64]) -> dict[str, Tensor]:
        """A tensor times powers of two, if that changes it."""
        array = self._array(name)
        if not (steps * (array != 0)).any():
            return {}
        place = self._place(name, array)
        if place is None:
            raise _not_own(name)
        return place.holding(times_power(array, steps, name))

    def _array(self, name: str) -> Array:
        if name in self.file:
            return np.array(numpy_helper.to_array(self.file[name]))
        if name not in self.own:
            raise _not_own(name)
        return self.own[name].detach().cpu().numpy()  # the exporter made one of it and another

    def _place(self, name: str, array: Array) -> "_Place | None":
        """Where a tensor of the file stands: that of its name, or the only one of its numbers."""
        own = self.own.get(name)
        if own is not None and _is(own, array):
            return _Place(self._names(own), is_turned=False)
        for turned in (False, True)[: 1 + (array.ndim == 2)]:
            numbers = array.T if turned else array
            alike = {id(t): t for t in self.own.values() if _is(t, numbers)}
            if alike:
                names = self._names(next(iter(alike.values())))
                return _Place(names, is_turned=turned) if len(alike) == 1 else None
        return None

    def _names(self, tensor: Tensor) -> tuple[str, ...]:
        return tuple(name for name, own in self.own.items() if own is tensor)

    def _folded(self, layer: Layer) -> tuple[Tensor, nn.Module] | None:
        """The network's own kernel of a layer, and the BatchNorm that is folded into the file's."""
        weight, array = self.own.get(layer.weight), self._array(layer.weight)
        if weight is None or tuple(weight.shape) != array.shape:
            return None
        kernel = weight.detach().cpu().numpy()
        factors = _factors(layer.matrix(kernel), layer.matrix(array))
        behind = [norm for norm in self.norms if _has_factors(norm, factors)]
        return (weight, behind[0]) if len(behind) == 1 else None

    def _of_folded(
        self, layer: Layer, rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """The same of a convolution into which the exporter has folded the BatchNorm behind it.

        The convolution gets the scales of what it reads, and the BatchNorm those of what it gives.
        """
        folded = self._folded(layer)
        if folded is None:
            raise _not_own(layer.weight)
        weight, norm = folded
        kernel = weight.detach().cpu().numpy()
        matrix = times_power(layer.matrix(kernel), -columns[:, :, None], layer.weight)
        found = _Place(self._names(weight), is_turned=False).holding(layer.stored(matrix, kernel))
        for tensor in (norm.weight, norm.bias):
            assert isinstance(tensor, Tensor)
            numbers = times_power(tensor.detach().cpu().numpy(), rows, layer.weight)
            found |= _Place(self._names(tensor), is_turned=False).holding(numbers)
        return found


@dataclass(frozen=True)
class _Place:
    """The names of a tensor in a network, and whether an exported file has it turned."""

    names: tuple[str, ...]
    is_turned: bool

    def holding(self, array: Array) -> dict[str, Tensor]:
        """The tensor with other numbers, under each of its names."""
        numbers = torch.from_numpy(np.ascontiguousarray(array.T if self.is_turned else array))
        return dict.fromkeys(self.names, numbers)


def _not_own(name: str) -> InputError:
    return InputError(
        f"{name} of the exported model is no tensor of the network's own, so that its scale cannot "
        "be given back. Fuse it first (`acfuse convert --fold-bn`), or equalize its ONNX file."
    )


def _factors(kernel: Array, folded: Array) -> Array:
    """The factor of each row [out] that makes one matrix of the other."""
    a, b = kernel.astype(np.float64), folded.astype(np.float64)
    energy = np.square(a).sum((1, 2))
    factors: Array = (a * b).sum((1, 2)) / np.where(energy, energy, 1)
    return factors


def _has_factors(norm: Any, factors: Array) -> bool:
    """Whether a BatchNorm multiplies its channels by these factors."""
    tensors = norm.weight, norm.bias, norm.running_var
    if not all(isinstance(t, Tensor) and tuple(t.shape) == factors.shape for t in tensors):
        return False
    own = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return np.allclose(own.detach().cpu().numpy(), factors, rtol=FOLDED, atol=0)


def _is(tensor: Tensor, array: Array) -> bool:
    if tuple(tensor.shape) != array.shape:
        return False
    numbers = tensor.detach().cpu()
    return numbers.dtype == torch.from_numpy(np.empty(0, array.dtype)).dtype and np.array_equal(
        numbers.numpy(), array
    )
