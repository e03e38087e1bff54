"""Whether two programs give the same numbers, each bit by bit."""

from collections.abc import Callable, Mapping, Sequence

import onnx
from torch import Tensor, nn

from acfuse.errors import InputError, NotEqual
from acfuse.proof.leaves import Leaves
from acfuse.proof.onnx_runtime import answers_in_onnx, image_of, images_of
from acfuse.proof.original import Original
from acfuse.proof.running import Image, Inputs, larger, other_batch, run
from acfuse.system.limits import LIMITS, Limits

SCALES = (1.0, 1e3, 1e-3)  # of the inputs on which both have to give the same bits


def same_bits_in_onnx(
    one: onnx.ModelProto, other: onnx.ModelProto, inputs: Inputs | None, limits: Limits = LIMITS
) -> int:
    """How many numbers both models give, each the same bit by bit. Raises NotEqual for another.

    They are given several images, larger and smaller ones in value, and where they take them more
    of them and larger ones in size.
    """
    data, compared = images_of(one, inputs), 0
    shapes = {name: tuple(x.shape) for name, x in data[0].items()}
    others = [_of_shapes(one, inputs, change(shapes)) for change in (other_batch, larger)]
    for optimised in (False, True):
        before, after = (answers_in_onnx(model, limits, optimised) for model in (one, other))
        taken = [image for image in others if _is_taken(before, image)]
        for image in _scaled([*data, *taken]):
            compared += check_same_bits(before(image), after(image))
    return compared


def _of_shapes(
    model: onnx.ModelProto, inputs: Inputs | None, shapes: Mapping[str, tuple[int, ...]]
) -> Image:
    seed, kinds = (inputs.seed, inputs.kinds) if inputs else (0, ())
    return image_of(model, Inputs(tuple(shapes.items()), seed, kinds=kinds))


def _is_taken(answer: Callable[[Image], Leaves], image: Image) -> bool:
    try:
        answer(image)
    except InputError:  # its sizes are fixed
        return False
    return True


def _scaled(data: Sequence[Image]) -> list[Image]:
    return [
        {n: x * factor if x.is_floating_point() else x for n, x in image.items()}
        for factor in SCALES
        for image in data
    ]


def same_bits_in_torch(one: nn.Module, other: nn.Module, inputs: Inputs) -> int:
    """The same of two models in PyTorch."""
    original, compared = Original(one, inputs), 0
    given = [*original.given, *original.of_other_sizes, *original.of_other_batches]
    for image in _scaled(given):
        answers = (run(model, image, original.dtype) for model in (one, other))
        compared += check_same_bits(*answers)
    return compared


def check_same_bits(true: Leaves, given: Leaves) -> int:
    """How many numbers two results hold. Raises NotEqual unless each is the same, bit by bit."""
    count = 0
    for name, value in true.items():
        other = given[name]
        if not isinstance(value, Tensor):
            continue
        same = (value == other) | ((value != value) & (other != other))
        if not bool(same.all()):
            raise NotEqual(
                f"output {name}: {int((~same).sum())} of {value.numel()} numbers are not the same "
                "after scaling by powers of two. The model is left as it is."
            )
        count += value.numel()
    return count
