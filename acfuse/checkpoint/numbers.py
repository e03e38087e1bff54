"""Whether the tensors of a file are what can be fused: dense, real, and finite."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from acfuse.checkpoint.memory import pieces
from acfuse.errors import InputError


def check_dense(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises InputError for a tensor that is not dense, or not of real numbers."""
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise InputError(f"{name}: {key} is not a dense tensor of real numbers.")


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
