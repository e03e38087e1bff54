"""Layers again where a program calls their functions: with their names, they are read as any."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def convolution(root: nn.Module, axes: int, given: Sequence[Any]) -> str | None:
    """The path of a layer that is F.conv{axes}d with these arguments; None where there is none."""
    defaults: tuple[Any, ...] = (None, None, None, 1, 0, 1, 1)
    x, weight, bias, stride, pads, dilation, groups = (*given, *defaults[len(given) :])
    path = _owner(root, x, {"weight": weight, "bias": bias})
    if path is None:
        return None
    tensor: Tensor = root.get_parameter(f"{path}.weight")
    out, per_group, *size = tensor.shape
    pads = tuple(pads) if isinstance(pads, list) else pads
    stride, dilation = (tuple(n) if isinstance(n, list) else n for n in (stride, dilation))
    layer = CONVOLUTIONS[axes](
        per_group * groups, out, tuple(size), stride, pads, dilation, groups,
        bias=bias is not None, device="meta",
    )  # fmt: skip
    return _put(root, path, layer)


def norm(root: nn.Module, axes: int, given: Sequence[Any]) -> str | None:
    """The path of a BatchNorm in eval mode with these arguments; None where there is none."""
    x, weight, bias, mean, variance, training, momentum, eps = given
    tensors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    path = None if training or mean is None else _owner(root, x, tensors)
    if path is None:
        return None
    channels = root.get_buffer(f"{path}.running_mean").numel()
    affine = weight is not None and bias is not None
    if not affine and (weight is not None or bias is not None):
        return None
    return _put(root, path, NORMS[axes](channels, eps, momentum, affine=affine, device="meta"))


def _owner(root: nn.Module, image: Any, tensors: dict[str, Any]) -> str | None:
    """The module that holds just these tensors under these names, for one image."""
    present = {name: node for name, node in tensors.items() if node is not None}
    if not isinstance(image, fx.Node) or not all(
        isinstance(node, fx.Node) and node.op == "get_attr" for node in present.values()
    ):
        return None
    paths = {str(node.target).rpartition(".")[0] for node in present.values()}
    path = paths.pop() if len(paths) == 1 else ""
    if not path or any(str(n.target) != f"{path}.{name}" for name, n in present.items()):
        return None
    module = root.get_submodule(path)
    held = {*module._parameters, *module._buffers} - {"num_batches_tracked"}
    return path if held == set(present) and not module._modules else None


def _put(root: nn.Module, path: str, layer: nn.Module) -> str | None:
    """Puts a layer in the place of the module that holds its tensors; None for another layer's."""
    old = root.get_submodule(path)
    if type(old) is not nn.Module and (type(old), old.extra_repr()) != (
        type(layer), layer.extra_repr(),
    ):  # fmt: skip
        return None
    layer._parameters.update(old._parameters)
    layer._buffers.update(old._buffers)
    if "num_batches_tracked" not in old._buffers:
        layer._buffers.pop("num_batches_tracked", None)
    root.set_submodule(path, layer.eval())
    return path
