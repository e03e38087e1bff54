"""Looks at the kernels of a conversion while they are at hand: pictures, ranges, distances."""

import platform
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from acfuse.algebra import Value
from acfuse.findings import Block
from acfuse.int8.ranges import channels_of, median_of, ranges_of
from acfuse.pipeline.ranges import kernels_after, kernels_before
from acfuse.proof.impulses import SOME, unit_in_last_place
from acfuse.reports.record import BlockPictures, Grid, Kernel, Pictures
from acfuse.sources.base import Fused
from acfuse.system.devices import CPU

ULP_BINS = 20  # from 0 to half a unit in the last place, and one more for what lies beyond
MOST_CELLS = 15  # of a picture along an axis; of a larger kernel, neighbours are averaged
MOST_CHANNELS = 32  # of a picture of ranges


def pictures_of(fused: Fused, source_bytes: int) -> Pictures:
    """What can be seen of the kernels of a fused form, whose original was so large a file."""
    original: Mapping[str, Tensor] = getattr(getattr(fused, "source", None), "tensors", {})
    ulps = torch.zeros(ULP_BINS + 1, dtype=torch.int64, device=CPU)
    blocks = []
    for block in fused.found:
        stored = fused.stored(block)
        ulps += distances(block, stored)
        before, after = kernels_before(block), kernels_after(block, stored)
        scale = max((float(plane_of(kernel).max()) for _, kernel in (*before, *after)), default=1)
        pictures = [
            tuple(kernel_of(*named, scale) for named in kernels) for kernels in (before, after)
        ]
        blocks.append(BlockPictures(*pictures))
    return Pictures(
        tuple(blocks),
        tuple(map(int, ulps)),
        tuple(_kept(fused)),
        _order(original),
        source_bytes,
        (("Python", platform.python_version()), ("system", f"{platform.system()} "
         f"{platform.machine()}"), ("threads", str(torch.get_num_threads()))),
    )  # fmt: skip


def _kept(fused: Fused) -> list[str]:
    """The layers of a fused model that were convolutions before: each has a weight with taps."""
    weights = (name for name, tensor in fused.kept.items() if tensor.ndim > 2)
    return [name.removesuffix(".weight") for name in weights]


def _order(original: Mapping[str, Tensor]) -> dict[str, int]:
    """Where each module stands in a network: by the first of its tensors."""
    order: dict[str, int] = {}
    for place, key in enumerate(original):
        parts = key.split(".")
        for length in range(1, len(parts)):
            order.setdefault(".".join(parts[:length]), place)
    return order


def kernel_of(name: str, kernel: Tensor, scale: float | None = None) -> Kernel:
    """A kernel [out, in, *taps] as a picture, over a `scale`: without one, its own largest tap."""
    plane = plane_of(kernel)
    scale = float(plane.max()) if scale is None else scale
    ranges, measured = channel_ranges(kernel), ranges_of(kernel)
    return Kernel(name, tuple(kernel.shape[2:]), grid_of(plane, scale), ranges, measured)


def plane_of(kernel: Tensor) -> Tensor:
    """The mean |w| of a kernel [out, in, *taps] at each tap, as rows and columns."""
    taps = kernel.shape[2:]
    plane = kernel.abs().mean((0, 1)).reshape(taps or (1,))
    while plane.ndim > 2:  # a kernel of volumes, seen along its first axis
        plane = plane.mean(0)
    return plane.reshape(-1, plane.shape[-1])


def grid_of(plane: Tensor, scale: float) -> Grid:
    """Numbers of a plane over the scale, with no more cells than a picture has."""
    size = min(plane.shape[0], MOST_CELLS), min(plane.shape[1], MOST_CELLS)
    if tuple(plane.shape) != size:
        plane = torch.nn.functional.adaptive_avg_pool2d(plane[None], size)[0]
    scaled = plane / max(scale, torch.finfo(plane.dtype).tiny)
    return tuple(tuple(round(x, 3) for x in row) for row in scaled.tolist())


def channel_ranges(kernel: Tensor) -> tuple[float, ...]:
    """The largest |w| of each output channel over the median of those that are not 0, sorted."""
    channels = channels_of(kernel)
    if channels is None or not len(channels.largest):
        return ()
    known = channels.largest.sort().values.sub(median_of(channels.largest)).exp2()
    ranges = torch.cat([known.new_zeros(len(kernel) - len(known)), known])
    if len(ranges) > MOST_CHANNELS:
        places = torch.linspace(0, len(ranges) - 1, MOST_CHANNELS, device=ranges.device)
        ranges = ranges[places.round().long()]
    return tuple(round(x, 3) for x in ranges.tolist())


def distances(block: Block, stored: Sequence[Value | None]) -> Tensor:
    """How many stored numbers of a block are how far from the exact ones, by the algebra."""
    counts = torch.zeros(ULP_BINS + 1, dtype=torch.int64, device=CPU)
    for term, have in zip(block.terms, stored, strict=True):
        exact = term.value
        if exact is None or have is None or exact.kernel.shape != have.kernel.shape:
            continue
        for a, b in ((exact.kernel, have.kernel), (exact.bias, have.bias)):
            parts = (
                torch.tensor_split(part.cpu().flatten(), -(-part.numel() // SOME))
                for part in (a, b)
            )
            for numbers, others in zip(*parts, strict=True):
                units = (numbers - others).abs() / unit_in_last_place(numbers, block.dtype)
                places = (units * 2 * ULP_BINS).nan_to_num(nan=ULP_BINS).clamp(0, ULP_BINS).long()
                places[units == 0.5] = ULP_BINS - 1  # half a unit is still rounded right
                counts += torch.bincount(places, minlength=ULP_BINS + 1)
    return counts
