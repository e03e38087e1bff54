"""Whether the tensors of a file are what can be fused: dense, real, and finite."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from acfuse.checkpoint.memory import pieces
from acfuse.errors import InputError, UnsafeError


def check_dense(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises InputError for a tensor that is not dense, or not of real numbers."""
    for key, tensor in tensors.items():
        odd = tensor.layout != torch.strided or tensor.device.type != "cpu"
        if odd or tensor.is_quantized or tensor.is_complex():
            raise InputError(f"{name}: {key} is not a dense tensor of real numbers.")


def check_stored(tensors: Iterable[Tensor], name: str, size: int) -> None:
    """Raises UnsafeError for tensors that say that they have more numbers than a file holds.

    `size` is the file's, in bytes. A view repeats none of the numbers of its storage: one number
    with a step of nothing would be an image of any size.
    """
    storages: dict[int, int] = {}
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            continue  # check_dense has a word for it, where it is a weight
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        end = (tensor.storage_offset() + last + 1) * tensor.element_size()
        if tensor.nbytes > storage.nbytes() or (tensor.numel() and end > storage.nbytes()):
            raise UnsafeError(
                f"{name}: a tensor of {tuple(tensor.shape)} has {storage.nbytes():,} bytes, which "
                "is not enough. If it was expanded, save its contiguous()."
            )
    if sum(storages.values()) > size:
        raise UnsafeError(f"{name}: its tensors take more memory than the file has bytes.")


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises InputError if a tensor holds NaN or Inf, with its name."""
    for key, tensor in tensors.items():
        worst = _not_finite(tensor)
        if worst:
            raise InputError(
                f"{name}: {key} holds {worst}. Nothing can be proved about such a model."
            )


def _not_finite(tensor: Tensor) -> str:
    """What a tensor holds that is no number, "NaN" before "Inf"; empty where there is none."""
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    found = ""
    for piece in pieces(tensor):
        wide = piece.float() if piece.element_size() == 1 else piece  # 8-bit floats have no min
        low, high = (float(n) for n in torch.aminmax(wide))  # NaN, where there is one
        if math.isnan(low) or math.isnan(high):
            return "NaN"
        if math.isinf(low) or math.isinf(high):
            found = "Inf"
    return found
