"""The scales of a network in PyTorch, by its ONNX form: which tensors have them, and which had.

Which channels may be scaled is told by an exported graph; a tensor of that is one of the network's
own, by its name and by its numbers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from acfuse.errors import AcfuseError, InputError, NotEqual
from acfuse.int8.equalize import put, tensor_named
from acfuse.int8.evened import Evened, evened
from acfuse.int8.unscaled import unscaled
from acfuse.proof import Check, Inputs
from acfuse.proof.onnx_runtime import image_of
from acfuse.proof.trace_onnx import shapes_in
from acfuse.system.limits import LIMITS, Limits
from acfuse.targets.onnx_export import to_onnx

NEAR = 0.1  # of a tensor's largest number: what is no further away is rounded, and not scaled


@dataclass(frozen=True)
class _Place:
    """Where a tensor of an exported file stands in the network: its names, and if it is turned."""

    names: tuple[str, ...]
    is_turned: bool


def evened_tensors(
    model: nn.Module, inputs: Inputs, limits: Limits = LIMITS, *, everything: bool = False
) -> tuple[dict[str, Tensor], Evened]:
    """The tensors of a network that have other numbers in its equalized ONNX form, by name.

    Raises InputError where one that was scaled is not the network's own.
    """
    file = to_onnx(model, inputs, dynamic="none").model
    made = evened(file, _in_order(inputs), limits, everything=everything)
    if not made.is_taken:
        return {}, made
    places = _places(model, file, made.scaled.changed)
    for name in made.scaled.changed:
        if name not in places:
            raise InputError(
                f"{name} of the exported model is no tensor of the network's own. Equalize its "
                "ONNX file instead."
            )
    return _as_tensors(places, made.model), made


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
        file = to_onnx(own, inputs, dynamic="none").model
        names = [tensor.name for tensor in file.graph.initializer if len(tensor.dims)]
        places = _places(own, file, names)
        given = onnx.ModelProto()
        given.CopyFrom(file)
        for name, place in places.items():
            tensor = after[place.names[0]].detach().cpu()
            put(tensor_named(given, name), (tensor.mT if place.is_turned else tensor).numpy())
        image = image_of(file, _in_order(inputs))
        found = unscaled(given, file, shapes_in(file, image, limits))
    except AcfuseError:  # it cannot be exported, or run: nothing is known of its channels
        return {}
    if found is None or not places.keys() >= set(found[1]):
        return {}
    return _as_tensors({n: places[n] for n in found[1]}, found[0])


def is_far(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether some tensor is further from another than any rounding takes it."""
    for a, b in pairs:
        if b.is_floating_point() and b.numel() and a.shape == b.shape:
            one, other = a.detach().cpu().double(), b.detach().cpu().double()
            if bool((one - other).abs().max() > NEAR * other.abs().max()):
                return True
    return False


def same_scales(compare: Callable[[], int]) -> Check:
    """Whether a file gives the same bits as without its scales."""
    try:
        compared = compare()
    except NotEqual as error:
        return Check("scales", False, 1.0, 0.0, detail=str(error).rstrip("."))
    return Check("scales", True, 0.0, 0.0, compared=compared)


def _in_order(inputs: Inputs) -> Inputs:
    """Inputs for an exported file, which may call them otherwise."""
    return replace(inputs, shapes=tuple((None, shape) for _, shape in inputs.shapes))


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _places(model: nn.Module, file: onnx.ModelProto, wanted: Iterable[str]) -> dict[str, _Place]:
    """Where the tensors of an exported file stand in its network; those for which it is certain.

    It is the tensor of the same name if that has the same numbers, else the only one that has.
    """
    own = dict(_named_tensors(model))
    by_shape: dict[tuple[int, ...], dict[int, Tensor]] = {}
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        by_shape.setdefault(tuple(tensor.shape), {})[id(tensor)] = tensor
        names.setdefault(id(tensor), []).append(name)
    found = {}
    for name in wanted:
        array = np.array(numpy_helper.to_array(tensor_named(file, name)))
        if name in own and _is(own[name], array):
            found[name] = _Place(tuple(names[id(own[name])]), False)
            continue
        for turned in (False, True):
            numbers = array.T if turned else array
            alike = [t for t in by_shape.get(numbers.shape, {}).values() if _is(t, numbers)]
            if len(alike) == 1:
                found[name] = _Place(tuple(names[id(alike[0])]), turned)
            if alike or array.ndim != 2:
                break
    return found


def _is(tensor: Tensor, array: np.ndarray) -> bool:
    own = tensor.detach().cpu()
    return own.dtype == torch.from_numpy(np.empty(0, array.dtype)).dtype and np.array_equal(
        own.numpy(), array
    )


def _as_tensors(places: Mapping[str, _Place], file: onnx.ModelProto) -> dict[str, Tensor]:
    """What a file has in these places, under the names of the network's own tensors."""
    found = {}
    for name, place in places.items():
        tensor = torch.from_numpy(np.array(numpy_helper.to_array(tensor_named(file, name))))
        numbers = tensor.mT.contiguous() if place.is_turned else tensor
        found.update(dict.fromkeys(place.names, numbers))
    return found
