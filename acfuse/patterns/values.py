"""What an expression is evaluated to: a convolution, or an image that layers are run on."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.algebra import Affine, AvgPool, Conv, LinearConv, Pad, identity
from acfuse.algebra.layers import Pads
from acfuse.algebra.linear_conv import beside
from acfuse.errors import NotFusable, Reason
from acfuse.system.devices import CPU

Layer = Conv | Affine | Pad | AvgPool


@dataclass(frozen=True)
class Linear:
    """A value of the language: a convolution, or a factor on the input, which fits any.

    `device` is where the layers of the block are.
    """

    conv: LinearConv | None = None
    by: Affine | None = None
    device: torch.device = CPU

    def then(self, layer: Layer) -> "Linear":
        if not isinstance(layer, Affine):
            before = self.solid(layer.geometry.in_channels, len(layer.geometry.axes))
            own = layer.linear(self.device)
            if not isinstance(own, LinearConv):
                raise NotFusable(Reason.ASSUMPTION, "no pattern has a transposed convolution")
            return self._of(own if self.is_input else before.then(own))
        if self.conv is not None:
            return self._of(layer.of(self.conv))
        if self.by is None:
            return replace(self, by=layer)
        shift = self.by.shift * layer.scale + layer.shift
        return replace(self, by=Affine(self.by.scale * layer.scale, shift))

    def _of(self, conv: LinearConv) -> "Linear":
        return Linear(conv, device=self.device)

    @property
    def is_input(self) -> bool:
        return self.conv is None and self.by is None

    def padded(self, pads: Pads, channels: int) -> "Linear":
        return self.then(Pad(channels, pads))

    def pooled(self, like: Conv) -> "Linear":
        known = like.geometry.in_channels if self.conv is None else self.conv.geometry.out_channels
        return self.then(AvgPool(known, tuple(like.weight.shape[2:]), like.stride, like.pads))

    def solid(self, channels: int, axes: int) -> LinearConv:
        """The same as a convolution, for an input of so many channels."""
        if self.conv is not None:
            return self.conv
        one = identity(channels, axes, self.device)
        return one if self.by is None else self.by.of(one)

    def fits(self, other: "Linear") -> bool:
        """Whether this can be added to the other as it is: it has as many channels."""
        if other.conv is None:
            return False
        own = self.solid(other.conv.geometry.in_channels, len(other.conv.geometry.axes))
        return own.geometry.out_channels == other.conv.geometry.out_channels

    def __add__(self, other: "Linear") -> "Linear":
        known = self.conv or other.conv
        if known is None:
            raise NotFusable(Reason.ASSUMPTION, "no convolution stands in the block")
        width = known.geometry.in_channels, len(known.geometry.axes)
        return self._of(self.solid(*width) + other.solid(*width))


@dataclass(frozen=True)
class Image:
    """An image on which a block's layers are run, one after the other."""

    image: Tensor
    is_input: bool = True

    def then(self, layer: Callable[[Tensor], Tensor] | Affine) -> "Image":
        image = self.image
        if isinstance(layer, Affine):  # a sign of the expression, or a stored factor
            ones = (1,) * (self.image.ndim - 2)
            scale, shift = (beside(n, image).reshape(-1, *ones) for n in (layer.scale, layer.shift))
            return Image(image * scale + shift, is_input=False)
        return Image(layer(image), is_input=False)

    def padded(self, pads: Pads, channels: int) -> "Image":
        around = [n for pair in reversed(pads) for n in pair]
        return Image(nn.functional.pad(self.image, around), is_input=False)

    def pooled(self, like: Any) -> "Image":
        pool = POOLS[len(like.kernel_size)]
        return self.then(pool(like.kernel_size, like.stride, like.padding))

    def fits(self, other: "Image") -> bool:
        return self.image.shape == other.image.shape

    def __add__(self, other: "Image") -> "Image":
        return Image(self.image + other.image, is_input=False)


Value = Linear | Image
POOLS: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def kernel_size_of(found: Any) -> tuple[int, ...]:
    """The kernel of a layer, as data or as a module; () for one that has none."""
    if isinstance(found, Conv):
        return tuple(found.weight.shape[2:])
    return tuple(getattr(found, "kernel_size", ()))


def in_channels_of(found: Any) -> int:
    """The channels that a layer reads, as data or as a module."""
    return int(found.geometry.in_channels if isinstance(found, Conv) else found.in_channels)


def placed(found: Any, half: tuple[int, ...], dilation: tuple[int, ...] = ()) -> Any:
    """The same convolution with other pads (and dilation)."""
    if isinstance(found, Conv):
        pads = tuple((n, n) for n in half)
        return replace(found, pads=pads, dilation=dilation or found.dilation)
    other = copy.copy(found)  # with the same weights
    other.padding, other.dilation = half, dilation or found.dilation
    return other
