"""A device that is none: it computes on the CPU, and mixes with it as little as a GPU would.

Its tensors hold real numbers and say that they are on `pretend:0`. As on a GPU, an operator that
reads some of them beside tensors of the CPU (other than single numbers) fails, and so does
whatever asks for their memory. It is set up for a whole process, so tests run it in one of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
OPS = torch.ops.aten
MAY_MIX = {OPS.copy_.default, OPS._to_copy.default}
INDICES = {OPS.index.Tensor, OPS.index_put_.default, OPS.index_put.default}  # those may be CPU's


class Pretend(Tensor):
    """A tensor on the device, with the one that holds its numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretend":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return computed(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Within it, tensors can be made on the device."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return computed(func, args, kwargs or {})


def set_up() -> None:
    """Makes the device known to torch, for as long as the process lives."""
    _setup_privateuseone_for_python_backend(NAME)
    # A module that is moved gets other parameters: to put numbers into those it has takes C++.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Device().__enter__()


def computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operator on the numbers; its result is where its tensors are, or where it is asked for."""
    tensors = [x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = any(isinstance(x, Pretend) for x in tensors)
    others = [x for x in tensors if not isinstance(x, Pretend) and x.ndim > 0 and not x.is_meta]
    may_mix = func in MAY_MIX or (func in INDICES and isinstance(args[0], Pretend))
    if here and others and not may_mix:
        why = f"Expected all tensors to be on the same device: {func} reads cpu and {NAME}:0"
        raise RuntimeError(why)
    if here and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a generator of {NAME}, and got one of the CPU: {func}")
    wanted = kwargs.get("device")
    if wanted is not None:
        here = torch.device(wanted).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu") if here else wanted}
    inner_args, inner_kwargs = _pytree.tree_map_only(Pretend, lambda x: x.inner, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if not here:
        return result
    written = [r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns]
    if written and all(written):  # it writes into what it reads: that is what it gives
        names = [a.name for a in func._schema.arguments]
        into = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        own = [given[name] for name in into]
        return own[0] if len(own) == 1 else tuple(own)
    return _pytree.tree_map_only(
        Tensor, lambda x: x if isinstance(x, Pretend) else Pretend(x), result
    )
