"""The rules of operators that take some channels or axes, or put them elsewhere."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from acfuse.algebra import Pad
from acfuse.algebra.linear_conv import on_axes
from acfuse.errors import NotFusable, Reason
from acfuse.graph.combination import Move
from acfuse.graph.images import Image, Parts, are_ints, not_linear
from acfuse.graph.steps import ChannelSlice, Concat, ConvStep, Moved, Rule

COPIES = 1e-11  # of the largest number: how far copies may be off that are computed each
END = 2**31 - 1  # the end of a slice from here on is that of the axis


def permute(input: Image, dims: Any) -> Rule:
    """Makes rows of images, or images of rows."""
    last = permuted(dims)
    if input.spatial_rank is None or last is None:
        raise not_linear("a permute of other axes than the channels'")
    count = len(dims)
    if count == 3:
        last = input.spatial_rank != 0
    if (count - 2 if last else 0) != input.spatial_rank:
        raise not_linear("a permute of other axes than the channels'")
    names = "permute to images", "permute to rows"
    return Moved(Move(names[last], (count,), count, undoes=names[not last]))


def transpose(input: Image, dim0: int, dim1: int) -> Rule:
    """The same of three axes."""
    if not swaps_channels(dim0, dim1):
        raise not_linear("a transpose of other axes than the channels'")
    return permute(input, (0, 2, 1))


def pixel_shuffle(input: Image, upscale_factor: int) -> Rule:
    """Pixels of r * r channels become r * r pixels of one channel. Source: arXiv:1609.05158."""
    if input.spatial_rank != 2 or not isinstance(upscale_factor, int) or upscale_factor < 1:
        raise not_linear("a pixel shuffle of what is no image")
    r = upscale_factor
    return Moved(Move("pixel shuffle", (r,), scale=(r, r), merged=r * r))


def interpolate(
    input: Image, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: Any = None, recompute_scale_factor: Any = None, antialias: bool = False,
) -> Rule:  # fmt: skip
    """Copies of each pixel; other modes mix them, and a size depends on that of the input."""
    axes = input.spatial_rank
    if mode != "nearest" or size is not None or not axes or align_corners or antialias:
        raise not_linear(f"an upsampling of mode {mode}, or to a size")
    factors = scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor] * axes
    if len(factors) != axes or not all(_is_whole(factor) for factor in factors):
        raise not_linear("an upsampling by no whole factors")
    scale = tuple(int(factor) for factor in factors)
    return Moved(Move("upsampling", scale, scale=scale))


def _is_whole(factor: Any) -> bool:
    return isinstance(factor, (int, float)) and factor >= 1 and factor == int(factor)


def enlarged(image: Tensor, move: Move) -> Tensor:
    """What a move that makes images larger gives."""
    if move.merged > 1:
        return F.pixel_shuffle(image, *move.settings)
    return F.interpolate(image, scale_factor=[*map(float, move.scale)])


def made_smaller(image: Tensor, moves: Sequence[Move]) -> Tensor:
    """What these moves were given. Raises RuntimeError for what they cannot have made."""
    for move in reversed(moves):
        before = (
            F.pixel_unshuffle(image, *move.settings)
            if move.merged > 1
            else image[on_axes(slice(None, None, n) for n in move.scale)]
        )
        off = (enlarged(before, move) - image).abs().max() / image.abs().max().clamp_min(1e-300)
        if not float(off) <= COPIES:
            raise RuntimeError(f"it does not end in a {move.name}")
        image = before
    return image


def flatten(input: Image, start_dim: int = 0, end_dim: int = -1) -> Rule:
    """Makes one axis of the two before the channels of some rows."""
    if input.spatial_rank != 0 or start_dim != 0 or end_dim not in (1, -2):
        raise not_linear("a flatten of other axes than those before the channels")
    return Moved(Move("flatten", input.rows, 3, -1, undoes="reshape"))


def rows_of_channels(input: Image, channels: int | None = None) -> Rule:
    """The same, as `x.reshape(-1, channels)` does it."""
    if input.spatial_rank != 0:
        raise not_linear("a reshape of what are no rows")
    return Moved(Move("flatten", input.rows, 3, -1, undoes="reshape", channels=channels))


def reshape_as(input: Image, other: Image) -> Rule:
    """Puts rows that were flattened back to the axes that they had."""
    if not input.spatial_rank == other.spatial_rank == 0:
        raise not_linear("a reshape of what are no rows")
    return Moved(Move("reshape", other.rows, 2, 1, undoes="flatten", alone=False))


def swaps_channels(dim0: Any = 0, dim1: Any = 0) -> bool:
    """Whether a transpose exchanges the last two of three axes."""
    return are_ints((dim0, dim1)) and {dim0, dim1} in ({1, 2}, {-1, -2}, {1, -1}, {2, -2})


def permuted(dims: Any) -> bool | None:
    """Whether channels that are second become last ones (True), or last ones second (False).

    None: neither, or, for three axes, either.
    """
    if not are_ints(dims) or len(dims) < 3:
        return None
    count = len(dims)
    order = [d % count for d in dims]
    if order == [0, *range(2, count), 1]:
        return True
    return False if order == [0, count - 1, *range(1, count - 1)] else None


def getitem(input: Image, index: Any) -> Rule | None:
    """`x[:, a:b]`, some of the channels, or `x[:, :, 1:-1]`, a crop by constant amounts."""
    if input.parts is not None and isinstance(index, int):
        return input.parts(index)
    parts = [*index] if isinstance(index, tuple) else [index]
    if input.spatial_rank is None:
        raise NotFusable(Reason.UNKNOWN_LAYER, "nothing tells how many axes are indexed")
    place = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    if input.spatial_rank == 0 and (place or len(parts) != 2):
        raise _no_crop()  # rows may have any number of axes before the last one
    rest = parts[place + 1 :]
    parts = [*parts[:place], *[WHOLE] * (input.spatial_rank + 2 - place - len(rest)), *rest]
    if len(parts) != input.spatial_rank + 2 or not all(map(_is_range, parts)):
        raise _no_crop()
    batch, channels, *spatial = (slice(p.start or 0, _end(p.stop)) for p in parts)
    if batch != WHOLE:
        raise _no_crop()
    if channels != WHOLE and all(part == WHOLE for part in spatial):
        return ChannelSlice(channels)
    if channels != WHOLE or any(
        p.start < 0 or (p.stop is not None and p.stop >= 0) for p in spatial
    ):
        raise _no_crop()
    return ConvStep(Pad(0, tuple((-p.start, p.stop or 0) for p in spatial)))


WHOLE = slice(0, None)


def _no_crop() -> NotFusable:
    return not_linear("an index that is no crop by constant amounts")


def _is_range(part: Any) -> bool:
    """Whether a part of an index is a slice without a step, between plain numbers."""
    return (
        isinstance(part, slice)
        and part.step in (None, 1)
        and all(bound is None or isinstance(bound, int) for bound in (part.start, part.stop))
    )


def _end(stop: int | None) -> int | None:
    return None if stop is None or stop >= END else stop


def sliced(input: Image, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    """The same of one dimension."""
    if input.spatial_rank == 0 and dim == -1:
        return getitem(input, (Ellipsis, slice(start, end, step)))
    count = (input.spatial_rank or 0) + 2
    if not -count <= dim < count:
        raise _no_crop()
    return getitem(input, (*[WHOLE] * (dim % count), slice(start, end, step)))


def split(input: Image, split_size: Any, dim: int = 0) -> Parts:
    """The channels in parts of one size, or of the sizes that are listed."""
    if isinstance(split_size, int):
        return _parts(input, dim, lambda i: slice(i * split_size, (i + 1) * split_size))
    if not are_ints(split_size):
        raise not_linear("a split by what are no plain numbers")
    return _parts(input, dim, lambda i: slice(sum(split_size[:i]), sum(split_size[: i + 1])))


def chunk(input: Image, chunks: int, dim: int = 0) -> Parts:
    """The channels in so many parts, as torch divides them."""
    return _parts(input, dim, lambda i: (i, max(chunks, 1)))


def _parts(input: Image, dim: Any, part: Callable[[int], slice | tuple[int, int]]) -> Parts:
    if not input.is_channel_dim(dim):
        raise not_linear("a split of what are no channels")

    def rule(index: int) -> Rule:
        if index < 0:
            raise not_linear("a part that is counted from the end")
        return ChannelSlice(part(index))

    return rule


def cat(tensors: Any, dim: int = 0) -> Rule:
    """Images side by side, by channels."""
    images = isinstance(tensors, (tuple, list)) and all(isinstance(t, Image) for t in tensors)
    alike = images and len({t.spatial_rank for t in tensors}) == 1
    if not alike or not tensors[0].is_channel_dim(dim):
        raise NotFusable(Reason.CONCATENATED, "the arms are concatenated, not added")
    return Concat()


def stack(tensors: Any, dim: int = 0) -> Rule:
    """Images along a dimension that they do not have."""
    raise NotFusable(Reason.CONCATENATED, "the arms are stacked, not added")
