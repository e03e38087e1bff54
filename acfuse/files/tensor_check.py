"""Whether the tensors of a file are what can be fused: dense, real, finite, and well behaved."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.errors import InputError, UnsafeError
from acfuse.system.escape import listed
from acfuse.system.memory import pieces

USUAL_EPS = 1e-5  # of a BatchNorm, where nothing tells it
TINY_VARIANCE = 1e-8  # of values that hardly differ: float32 itself is that coarse around one
LISTED = 3  # names in a note
MOST_VIEWS = 16  # what different views of the same numbers may have together, in sizes of a file


def check_dense(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises InputError for a tensor that is not dense, or not of real numbers."""
    for key, tensor in tensors.items():
        odd = tensor.layout != torch.strided or tensor.device.type != "cpu"
        if odd or tensor.is_quantized or tensor.is_complex():
            raise InputError(f"{name}: {key} is not a dense tensor of real numbers.")


def check_stored(tensors: Iterable[Tensor], name: str, size: int) -> None:
    """Raises UnsafeError for tensors that say that they have more numbers than a file holds.

    `size` is the file's, in bytes. A view repeats none of the numbers of its storage: one number
    with a step of nothing would be an image of any size. Several views may share numbers, as tied
    weights do, but not without end.
    """
    storages: dict[int, int] = {}
    views: dict[Any, int] = {}
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            continue  # check_dense has a word for it, where it is a weight
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        views[view_of(tensor)] = tensor.nbytes
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        end = (tensor.storage_offset() + last + 1) * tensor.element_size()
        if tensor.nbytes > storage.nbytes() or (tensor.numel() and end > storage.nbytes()):
            raise UnsafeError(
                f"{name}: a tensor of {tuple(tensor.shape)} has {storage.nbytes():,} bytes, which "
                "is not enough. If it was expanded, save its contiguous()."
            )
    if sum(storages.values()) > size:
        raise UnsafeError(f"{name}: its tensors take more memory than the file has bytes.")
    if sum(views.values()) > MOST_VIEWS * size:
        raise UnsafeError(
            f"{name}: its tensors are parts of one another, and together more than {MOST_VIEWS} "
            "times the file. Save each one's clone()."
        )


def view_of(tensor: Tensor) -> Any:
    """What two tensors share that are the same numbers in the same form."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


@dataclass(frozen=True)
class Norm:
    """The names of a BatchNorm's tensors in their file, which need not hold them all."""

    gamma: str
    mean: str
    variance: str
    eps: float = USUAL_EPS


def norms_of(
    tensors: Mapping[str, Tensor], model: nn.Module | None = None, eps: float | None = None
) -> Iterator[Norm]:
    """The BatchNorms of a state dict, by the names that torch gives to their tensors."""
    layers = dict(model.named_modules()) if model is not None else {}
    for variance in [name for name in tensors if name.endswith("running_var")]:
        prefix = variance.removesuffix("running_var")
        own = getattr(layers.get(prefix.removesuffix(".")), "eps", eps)
        known = USUAL_EPS if own is None else own
        yield Norm(f"{prefix}weight", f"{prefix}running_mean", variance, known)


def check_numbers(
    tensors: Mapping[str, Tensor],
    norms: Iterable[Norm],
    name: str,
    *,
    allow_nonfinite: bool = False,
) -> tuple[str, ...]:
    """What is odd about the numbers of a file, a line for each kind, with the names of the tensors.

    Raises InputError for NaN, Inf and variances whose root is none, unless they are allowed.
    """
    worst, denormals = {}, {}
    known: dict[Any, tuple[str, int]] = {}
    for key, tensor in tensors.items():
        view = view_of(tensor)
        kind, small = known[view] = known.get(view) or _scanned(tensor)
        if kind:
            worst[key] = f"{key} holds {kind}"
        if small:
            denormals[key] = small
    batch_norms = list(norms)
    for norm in batch_norms:
        variance = tensors[norm.variance]
        least = float(variance.min()) if variance.numel() else 0.0
        if least + norm.eps <= 0:
            text = f"{norm.variance} is negative ({least:.1e}): its BatchNorm gives NaN or Inf"
            worst.setdefault(norm.variance, text)
    if worst and not allow_nonfinite:
        more = f" ({len(worst)} such tensors)" if len(worst) > 1 else ""
        raise InputError(
            f"{name}: {next(iter(worst.values()))}{more}. Nothing can be proved about such a "
            "model; with --allow-nonfinite, blocks without such tensors are fused."
        )
    told = [*worst.values()][:LISTED]
    told += [f"and {len(worst) - LISTED} more tensors like these"] if len(worst) > LISTED else []
    told += _notes_on_norms(tensors, [norm for norm in batch_norms if norm.variance not in worst])
    if denormals:
        where = _where(denormals, "numbers")
        told.append(f"denormal numbers: {where}; some devices take them as zero")
    return tuple(told)


def _scanned(tensor: Tensor) -> tuple[str, int]:
    """What a tensor holds that is no number ("NaN" before "Inf"), and how many denormal numbers."""
    if not tensor.is_floating_point() or not tensor.numel():
        return "", 0
    found, small, tiny = "", 0, torch.finfo(tensor.dtype).tiny
    for piece in pieces(tensor):
        wide = piece.float() if piece.element_size() == 1 else piece  # 8-bit floats have no min
        low, high = (float(n) for n in torch.aminmax(wide))  # NaN, where there is one
        if math.isnan(low) or math.isnan(high):
            return "NaN", 0
        if math.isinf(low) or math.isinf(high):
            found = "Inf"
        near = int((wide.abs() < tiny).count_nonzero())
        small += near - wide.numel() + int(wide.count_nonzero()) if near else 0
    return found, small


def _notes_on_norms(tensors: Mapping[str, Tensor], norms: Sequence[Norm]) -> Iterator[str]:
    """Channels that are constant, or that their BatchNorm enlarges out of almost nothing.

    The condition number of (x - mean) / sqrt(variance + eps) says how much of the relative rounding
    of x, whose size is sqrt(mean^2 + variance), is left in the result.
    """
    zero: dict[str, int] = {}
    tiny: dict[str, int] = {}
    negative: dict[str, int] = {}
    condition = 0.0
    for norm in norms:
        variance = tensors[norm.variance].double()
        gamma, mean = tensors.get(norm.gamma), tensors.get(norm.mean)
        if gamma is not None and int((gamma == 0).sum()):
            zero[norm.gamma] = int((gamma == 0).sum())
        if int((variance < 0).sum()):
            negative[norm.variance] = int((variance < 0).sum())
        small = variance < TINY_VARIANCE
        if int(small.sum()) and mean is not None and mean.shape == variance.shape:
            tiny[norm.variance] = int(small.sum())
            grows = ((mean.double() ** 2 + variance) / (variance + norm.eps))[small].max()
            condition = max(condition, math.sqrt(max(float(grows), 0.0)))
    if zero:
        yield f"gamma is zero in {_where(zero, 'channels')}: they give a constant"
    if negative:
        yield f"variances are negative, though by less than eps, in {_where(negative, 'channels')}"
    if tiny:
        yield (
            f"variances are below {TINY_VARIANCE:g} in {_where(tiny, 'channels')}: condition "
            f"number {condition:.1e}, by so much does their BatchNorm enlarge rounding"
        )


def _where(counts: Mapping[str, int], of: str) -> str:
    """How much in all, and the first names."""
    return f"{sum(counts.values()):,} {of} of {listed(counts, LISTED)}"
