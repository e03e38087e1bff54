"""What a wrong fused block looks like: the known mistakes are made on a copy, one by one.

The first whose kernel is the stored one names the cause. A mistake is a change to the replaced
layers; its kernel is read by the same impulses as the certificate's.
"""

import copy
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from acfuse.algebra import LinearConv
from acfuse.findings import Block
from acfuse.proof.certificate import (
    ULP_LIMIT,
    fused_layers,
    read_out,
    replaced_layers,
    unit_in_last_place,
)

Mistake = Callable[[nn.Module], None]
NO_EPS = sys.float_info.min  # changes no variance in float64, and torch 2.10 runs none with 0
OTHER_EPS = (0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def diagnose(original: nn.Module, fused: nn.Module, found: Block) -> str:
    """The known mistake that gives the stored weights of a block, in words; empty if none does."""
    stored = fused_layers(fused, found)
    geometries = [s.geometry if s is not None else None for s in stored]
    exact = read_out(replaced_layers(original, found), geometries)
    near = _by_numbers(exact, stored, found)
    if near:
        return near
    for name, mistake in _mistakes(original.get_submodule(found.where), found):
        wrong = copy.deepcopy(original)
        try:
            mistake(wrong.get_submodule(found.where))
            values = read_out(replaced_layers(wrong, found), geometries)
        except Exception:
            continue
        if _same(values, stored, found.dtype):
            return name
    return ""


def _by_numbers(
    exact: list[LinearConv | None], stored: list[LinearConv | None], found: Block
) -> str:
    """Mistakes that the numbers tell by themselves."""
    pairs = [(a, b) for a, b in zip(exact, stored, strict=True) if a is not None and b is not None]
    kernels = [_near(a.kernel, b.kernel, found.dtype) for a, b in pairs]
    biases = [_near(a.bias, b.bias, found.dtype) for a, b in pairs]
    altered = sum(int((~m).sum()) for m in (*kernels, *biases))
    if all(bool(m.all()) for m in kernels) and all(not bool(b.bias.any()) for _, b in pairs):
        return "the bias was dropped"
    if 0 < altered <= 3:
        return f"{altered} altered weight{'s' if altered > 1 else ''}, the rest is right"
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(b.kernel.to(dtype).double(), b.kernel) for _, b in pairs):
            return f"the weights went through {str(dtype).removeprefix('torch.')}"
    for a, b in pairs:
        square = a.kernel.ndim > 3 and len(set(a.kernel.shape[2:])) == 1
        if square and bool(_near(a.kernel.transpose(-1, -2), b.kernel, found.dtype).all()):
            return "the kernel is transposed"
        if bool(_near(a.kernel.flip(*range(2, a.kernel.ndim)), b.kernel, found.dtype).all()):
            return "the kernel is flipped"
    return ""


def _mistakes(module: nn.Module, found: Block) -> Iterator[tuple[str, Mistake]]:
    layers = [(n, module.get_submodule(n)) for n in found.layers]
    norms = [n for n, m in layers if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    convolutions = [n for n, m in layers if hasattr(m, "kernel_size")]
    for eps in OTHER_EPS:
        if norms and any(module.get_submodule(n).eps != eps for n in norms):
            yield f"BatchNorm eps {eps:g}", _with_eps(norms, eps)
    for name in convolutions:
        yield f"the arm of {name} is missing", _zeroed(name)
        yield f"the bias of {name} is missing", _without(name, "bias")
        yield f"the kernel of {name} is transposed", _turned(name, transpose=True)
        yield f"the kernel of {name} is flipped", _turned(name, transpose=False)
    for name in norms:
        yield f"{name} is missing", _neutral(name)
        yield f"the shift of {name} is missing", _without(name, "bias")
        yield f"the mean of {name} is missing", _without(name, "running_mean")
    for i, first in enumerate(norms):
        for second in norms[i + 1 :]:
            yield f"{first} and {second} are swapped", _swapped(first, second)
    for i, first in enumerate(convolutions):
        for second in convolutions[i + 1 :]:
            one, two = module.get_submodule(first).weight, module.get_submodule(second).weight
            if isinstance(one, Tensor) and isinstance(two, Tensor) and one.numel() == two.numel():
                yield f"{first} and {second} are swapped", _swapped_kernels(first, second)


def _with_eps(norms: list[str], eps: float) -> Mistake:
    def make(module: nn.Module) -> None:
        for name in norms:
            module.get_submodule(name).eps = eps or NO_EPS  # type: ignore[assignment]

    return make


def _zeroed(name: str) -> Mistake:
    def make(module: nn.Module) -> None:
        layer = module.get_submodule(name)
        norm = _norm_behind(module, name)
        for tensor in (layer.weight, layer.bias, *((norm.weight, norm.bias) if norm else ())):
            if isinstance(tensor, Tensor):
                tensor.data = torch.zeros_like(tensor)
        if norm is not None and norm.weight is None:
            raise ValueError("this arm cannot be switched off")

    return make


def _norm_behind(module: nn.Module, name: str) -> nn.Module | None:
    """The BatchNorm that goes with a convolution by name: ver_conv and ver_bn, a.conv and a.bn."""
    for old, new in (("conv", "bn"), ("conv", "batch_norm"), ("conv", "norm")):
        head, _, last = name.rpartition(".")
        path = ".".join(filter(None, (head, last.replace(old, new))))
        try:
            found = module.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.modules.batchnorm._BatchNorm):
            return found
    return None


def _without(name: str, tensor: str) -> Mistake:
    def make(module: nn.Module) -> None:
        value = getattr(module.get_submodule(name), tensor)
        value.data = torch.zeros_like(value)

    return make


def _turned(name: str, *, transpose: bool) -> Mistake:
    def make(module: nn.Module) -> None:
        weight = module.get_submodule(name).weight
        if not isinstance(weight, Tensor):
            raise TypeError(name)
        if transpose:
            layer = module.get_submodule(name)
            weight.data = weight.transpose(-1, -2).contiguous()
            for setting in ("kernel_size", "padding", "dilation"):
                setattr(layer, setting, tuple(reversed(getattr(layer, setting))))
        else:
            weight.data = weight.flip(*range(2, weight.ndim))

    return make


def _neutral(name: str) -> Mistake:
    def make(module: nn.Module) -> None:
        norm = module.get_submodule(name)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.weight is None:
            raise TypeError(name)
        norm.eps = NO_EPS
        for tensor, value in (
            (norm.weight, 1.0),
            (norm.bias, 0.0),
            (norm.running_mean, 0.0),
            (norm.running_var, 1.0),
        ):
            if tensor is not None:
                tensor.data = torch.full_like(tensor, value)

    return make


def _swapped(first: str, second: str) -> Mistake:
    def make(module: nn.Module) -> None:
        one, two = module.get_submodule(first), module.get_submodule(second)
        state = copy.deepcopy(one.state_dict())
        one.load_state_dict(two.state_dict())
        two.load_state_dict(state)

    return make


def _swapped_kernels(first: str, second: str) -> Mistake:
    def make(module: nn.Module) -> None:
        one, two = module.get_submodule(first).weight, module.get_submodule(second).weight
        if not isinstance(one, Tensor) or not isinstance(two, Tensor):
            raise TypeError(first)
        a, b = two.data.reshape(one.shape).clone(), one.data.reshape(two.shape).clone()
        one.data, two.data = a, b

    return make


def _near(exact: Tensor, stored: Tensor, dtype: torch.dtype) -> Tensor:
    limit = ULP_LIMIT * unit_in_last_place(exact, dtype) + 1e-13 * exact.abs().max()
    return (exact - stored).abs() <= limit


def _same(
    values: list[LinearConv | None], stored: list[LinearConv | None], dtype: torch.dtype
) -> bool:
    return all(
        bool(_near(a.kernel, b.kernel, dtype).all()) and bool(_near(a.bias, b.bias, dtype).all())
        for a, b in zip(values, stored, strict=True)
        if a is not None and b is not None
    )
