"""What a wrong fused block looks like: the known mistakes are made on a copy, one by one.

The first whose kernel is the stored one names the cause, and what to do about it where the file was
made. A mistake is a change to the replaced layers; its kernel is read by the same impulses as the
certificate's.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.algebra import Value
from acfuse.findings import Block, Run
from acfuse.graph.fx_read import is_convolution, is_norm
from acfuse.proof.certificate import ULP_LIMIT
from acfuse.proof.impulses import read_out, rows, unit_in_last_place

Mistake = Callable[[nn.Module], None]
NO_EPS = sys.float_info.min  # changes no variance in float64, and torch 2.10 runs none with 0
OTHER_FACTORS = 64  # roundings: so near are kernels that are right but for other factors
OTHER_EPS = (0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def diagnose(
    block: Block,
    stored: Sequence[Value | None],
    module: nn.Module,
    rerun: Callable[[nn.Module], Run],
    slack: Sequence[Tensor] | None = None,
) -> str:
    """The known mistake that gives the stored weights of a block, in words; empty if none does.

    `module` holds the layers that were replaced; `rerun` gives them as a function, as the block's
    own reference does, of a copy into which a mistake was made. By `slack` each weight and bias may
    be off, if the file was rounded more than once.
    """
    geometries = [s.geometry if s is not None else None for s in stored]
    for name, cure, mistake in _mistakes(module, block):
        wrong = copy.deepcopy(module)
        try:
            mistake(wrong)
            values = read_out(rerun(wrong), geometries)
        except Exception:
            continue
        if _same(values, stored, block.dtype, slack):
            return f"{name}: {cure}"
    return _by_other_factors(block, stored, module, rerun, slack)


def _by_other_factors(
    block: Block,
    stored: Sequence[Value | None],
    module: nn.Module,
    rerun: Callable[[nn.Module], Run],
    slack: Sequence[Tensor] | None,
) -> str:
    """Whether the kernels are right but for a factor of each channel of each BatchNorm."""
    geometries = [s.geometry if s is not None else None for s in stored]
    norms = [n for n in block.layers if is_norm(module.get_submodule(n))]
    exact = _kernels(read_out(block.reference(), geometries))
    parts = []
    for name in norms:
        without = copy.deepcopy(module)
        try:
            _silence(name, without)
        except TypeError:  # it has no factors
            return ""
        parts.append(exact - _kernels(read_out(rerun(without), geometries)))
    if not parts or exact.shape[1] < 3 * len(parts):  # too few numbers to tell
        return ""
    of_arms, have = torch.stack(parts, 2), _kernels(stored)
    if not bool(of_arms.isfinite().all() and have.isfinite().all()):
        return ""
    factors = torch.linalg.lstsq(of_arms, have.unsqueeze(2), driver="gelsd").solution
    nearest = (of_arms @ factors).squeeze(2)
    room = have.abs().amax(1, keepdim=True) * OTHER_FACTORS * torch.finfo(block.dtype).eps
    if slack:
        solid = [value for value in stored if value is not None]
        most = [rows(*pair).flatten(1) for pair in zip(solid, slack[::2], strict=True)]
        room = room + torch.cat(most, 1)
    if bool(((exact - have).abs() <= room).all()):  # the kernels are right as they are
        return ""
    if not bool(((nearest - have).abs() <= room).all()):
        return ""
    told = "BatchNorm statistics or factors that are not the file's, as those of training mode are"
    return f"{told}: call eval() before folding, and fold running_mean and running_var"


def _kernels(values: Sequence[Value | None]) -> Tensor:
    return torch.cat([rows(v).flatten(1) for v in values if v is not None], 1)


def diagnose_numbers(
    block: Block, stored: Sequence[Value | None], slack: Sequence[Tensor] | None = None
) -> str:
    """Mistakes that the numbers tell by themselves, whatever the block was found in."""
    exact = read_out(block.reference(), [s.geometry if s is not None else None for s in stored])
    pairs = [(a, b) for a, b in zip(exact, stored, strict=True) if a is not None and b is not None]
    numbers = [((a.kernel, a.bias), (b.kernel, b.bias)) for a, b in pairs]
    return told_by_numbers(numbers, block.dtype, slack)


Layer = tuple[Tensor, Tensor]  # a kernel and a bias, in float64


def told_by_numbers(
    pairs: Sequence[tuple[Layer, Layer]], dtype: torch.dtype, slack: Sequence[Tensor] | None = None
) -> str:
    """What layers as they should be, each beside the one that is there, tell by themselves."""
    given = slack or [torch.zeros_like(part) for exact, _ in pairs for part in exact]
    more = list(zip(given[::2], given[1::2], strict=True))
    near = partial(_near, dtype=dtype)
    same = [
        near(own, other, slack=room)
        for (exact, stored), rooms in zip(pairs, more, strict=True)
        for own, other, room in zip(exact, stored, rooms, strict=True)
    ]
    altered = sum(int((~part).sum()) for part in same)
    if altered == 0:
        return ""
    if all(bool(m.all()) for m in same[::2]) and not any(bool(b.any()) for _, (_, b) in pairs):
        return "the bias was dropped: give the convolution a bias"
    if 0 < altered <= 3:
        altogether = f"{altered} altered weight{'s' if altered > 1 else ''}, the rest is right"
        return f"{altogether}: the file was changed after it was made, make it again"
    for narrow in (torch.bfloat16, torch.float16):
        if narrow != dtype and all(torch.equal(k.to(narrow).double(), k) for _, (k, _) in pairs):
            name = str(narrow).removeprefix("torch.")
            return f"the weights went through {name}: fold, and save, without it"
    for ((own, _), (other, _)), (room, _) in zip(pairs, more, strict=True):
        axes = range(2, own.ndim)
        square = own.ndim > 3 and len(set(own.shape[2:])) == 1
        if square and bool(near(own.mT, other, slack=room.mT).all()):
            return "the kernel is transposed: keep its height and width apart"
        if len(axes) and bool(near(own.flip(*axes), other, slack=room.flip(*axes)).all()):
            return "the kernel is flipped: PyTorch's convolution does not turn it round"
        for axis, step in ((axis, step) for axis in axes for step in (1, -1)):
            if bool(near(own.roll(step, axis), other, slack=room.roll(step, axis)).all()):
                return "the kernel is moved by one tap: pad the smaller kernels alike on both sides"
    return ""


def _mistakes(module: nn.Module, block: Block) -> Iterator[tuple[str, str, Mistake]]:
    """What may have gone wrong, what to do then, and how it is done to a copy."""
    layers = [(n, module.get_submodule(n)) for n in block.layers]
    norms = [n for n, m in layers if is_norm(m)]
    convolutions = [n for n, m in layers if is_convolution(m)]
    for eps in OTHER_EPS:
        if any(getattr(module.get_submodule(n), "eps", eps) != eps for n in norms):
            known = sorted({f"{module.get_submodule(n).eps:g}" for n in norms})
            cure = f"take the eps of each BatchNorm, here {', '.join(known)}"
            yield f"BatchNorm eps {eps:g}", cure, partial(_set_eps, norms, eps)
    for name in convolutions:
        add = "add it to the sum"
        yield f"the arm of {name} is missing", add, partial(_switch_off, name)
        yield f"the bias of {name} is missing", add, partial(_zero, name, "bias")
        apart = "keep its height and width apart"
        yield f"the kernel of {name} is transposed", apart, partial(_transpose, name)
        as_is = "PyTorch's convolution does not turn it round"
        yield f"the kernel of {name} is flipped", as_is, partial(_flip, name)
    for name in norms:
        yield f"{name} is missing", "fold it into what is before it", partial(_neutralize, name)
        yield f"the arm of {name} is missing", "add it to the sum", partial(_silence, name)
        shift, mean = "add its bias", "subtract mean * weight / sqrt(var + eps)"
        yield f"the shift of {name} is missing", shift, partial(_zero, name, "bias")
        yield f"the mean of {name} is missing", mean, partial(_zero, name, "running_mean")
    for name in (*convolutions, *norms):
        yield f"the arm of {name} is added twice", "add it once", partial(_double, name)
    for first, second in combinations(norms, 2):
        cure = "fold each into its own convolution"
        yield f"{first} and {second} are swapped", cure, partial(_swap, first, second)
    for first, second in combinations(convolutions, 2):
        one, two = module.get_submodule(first).weight, module.get_submodule(second).weight
        if isinstance(one, Tensor) and isinstance(two, Tensor) and one.numel() == two.numel():
            cure = "put each before its own BatchNorm"
            yield f"{first} and {second} are swapped", cure, partial(_swap_kernels, first, second)


def _set_eps(norms: list[str], eps: float, module: nn.Module) -> None:
    for name in norms:
        module.get_submodule(name).eps = eps or NO_EPS  # type: ignore[assignment]


def _switch_off(name: str, module: nn.Module) -> None:
    layer, norm = module.get_submodule(name), _norm_behind(module, name)
    for tensor in (layer.weight, layer.bias, *((norm.weight, norm.bias) if norm else ())):
        if isinstance(tensor, Tensor):
            tensor.data = torch.zeros_like(tensor)
    if norm is not None and norm.weight is None:
        raise ValueError("this arm cannot be switched off")


def _double(name: str, module: nn.Module) -> None:
    """Twice what an arm gives: of its norm, if it has one, else of its convolution."""
    own = module.get_submodule(name)
    layer: Any = own if is_norm(own) else _norm_behind(module, name) or own
    if layer.weight is None:
        raise ValueError("this arm cannot be doubled")
    for tensor in (layer.weight, layer.bias):
        if tensor is not None:
            tensor.data = 2 * tensor


def _norm_behind(module: nn.Module, name: str) -> nn.Module | None:
    """The BatchNorm that goes with a convolution by name: ver_conv and ver_bn, a.conv and a.bn."""
    head, _, last = name.rpartition(".")
    for new in ("bn", "batch_norm", "norm"):
        found = module
        for part in filter(None, (*head.split("."), last.replace("conv", new))):
            found = getattr(found, part, None)  # type: ignore[assignment]
        if isinstance(found, nn.Module) and is_norm(found):
            return found
    return None


def _zero(name: str, tensor: str, module: nn.Module) -> None:
    value = getattr(module.get_submodule(name), tensor)
    value.data = torch.zeros_like(value)


def _transpose(name: str, module: nn.Module) -> None:
    layer: Any = module.get_submodule(name)
    layer.weight.data = layer.weight.transpose(-1, -2).contiguous()
    for setting in ("kernel_size", "padding", "dilation"):
        setattr(layer, setting, tuple(reversed(getattr(layer, setting))))


def _flip(name: str, module: nn.Module) -> None:
    layer: Any = module.get_submodule(name)
    layer.weight.data = layer.weight.flip(*range(2, layer.weight.ndim))


def _neutralize(name: str, module: nn.Module) -> None:
    norm: Any = module.get_submodule(name)
    norm.eps = NO_EPS
    norm.weight.data = torch.ones_like(norm.weight)
    norm.running_var.data = torch.ones_like(norm.running_var)
    for tensor in (norm.bias, norm.running_mean):
        if tensor is not None:
            tensor.data = torch.zeros_like(tensor)


def _silence(name: str, module: nn.Module) -> None:
    norm: Any = module.get_submodule(name)
    norm.weight.data, norm.bias.data = torch.zeros_like(norm.weight), torch.zeros_like(norm.bias)


def _swap(first: str, second: str, module: nn.Module) -> None:
    one, two = module.get_submodule(first), module.get_submodule(second)
    state = copy.deepcopy(one.state_dict())
    one.load_state_dict(two.state_dict())
    two.load_state_dict(state)


def _swap_kernels(first: str, second: str, module: nn.Module) -> None:
    one: Any = module.get_submodule(first).weight
    two: Any = module.get_submodule(second).weight
    a, b = two.data.reshape(one.shape).clone(), one.data.reshape(two.shape).clone()
    one.data, two.data = a, b


def _near(exact: Tensor, stored: Tensor, dtype: torch.dtype, slack: Tensor | float = 0) -> Tensor:
    limit = ULP_LIMIT * unit_in_last_place(exact, dtype) + 1e-13 * exact.abs().max() + slack
    return (exact - stored).abs() <= limit


def _same(
    values: Sequence[Value | None],
    stored: Sequence[Value | None],
    dtype: torch.dtype,
    slack: Sequence[Tensor] | None,
) -> bool:
    pairs = [(a, b) for a, b in zip(values, stored, strict=True) if a is not None and b is not None]
    parts = [(getattr(a, n), getattr(b, n)) for a, b in pairs for n in ("kernel", "bias")]
    more: Sequence[Tensor | float] = slack or [0.0] * len(parts)
    return all(bool(_near(*pair, dtype, own).all()) for pair, own in zip(parts, more, strict=True))
