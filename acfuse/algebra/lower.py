"""From a LinearConv to a real layer: dilation recovered, pads made symmetric, rounded once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.algebra.geometry import Border
from acfuse.algebra.layers import Conv
from acfuse.algebra.linear_conv import LinearConv, on_axes
from acfuse.errors import NotFusable, Reason

CONVOLUTION_LAYERS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class ConvLayer:
    """The weights and settings of one convolution layer, ready to be stored.

    Shapes: weight [out, in / groups, *kernel], bias [out], in the dtype they were lowered to.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    border: Border

    @property
    def padding(self) -> tuple[int, ...]:
        """The padding per axis, for layers that pad both sides alike."""
        if any(before != after for before, after in self.pads):
            raise ValueError(f"pads {self.pads} are not symmetric")
        return tuple(before for before, _ in self.pads)

    def linear(self) -> LinearConv:
        """The same as a value again, in float64."""
        record = Conv(
            self.weight,
            self.bias,
            self.stride,
            self.pads,
            self.dilation,
            self.groups,
            self.border,
        )
        return record.linear()

    def module(self) -> nn.Module:
        """The same as nn.Conv1d, 2d or 3d."""
        kind = CONVOLUTION_LAYERS[len(self.stride)]
        out, per_group, *size = self.weight.shape
        conv = kind(
            per_group * self.groups,
            out,
            tuple(size),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=True,
            padding_mode=self.border,
            device="meta",
        )
        conv.weight = nn.Parameter(self.weight)
        conv.bias = nn.Parameter(self.bias)
        layer: nn.Module = conv.eval()
        return layer


def lower(value: LinearConv, dtype: torch.dtype, *, symmetric: bool = True) -> ConvLayer:
    """The layer that computes `value`, its numbers rounded once, to `dtype`.

    Kernels are trimmed to their live taps, then grown until pads are not negative and (with
    `symmetric`, which torch's layers need and ONNX does not) equal on both sides. The largest
    dilation that meets every live tap is taken out again.
    Raises NotFusable if a number is too large for the dtype.
    """
    trimmed = [axis.trim() for axis in value.geometry.axes]
    sizes, wanted = [], []
    for axis in trimmed:
        before, after = max(axis.before, 0), max(axis.after, 0)
        if symmetric:
            before = after = max(before, after)
        spacing = axis.spacing
        if (before - axis.before) % spacing or (after - axis.after) % spacing:
            spacing = 1
        sizes.append(spacing)
        wanted.append((before, after))
    growth = [
        (before - axis.before, after - axis.after)
        for (before, after), axis in zip(wanted, value.geometry.axes, strict=True)
    ]
    grown = value.grow(growth)
    weight = grown.kernel[on_axes(slice(None, None, d) for d in sizes)].contiguous().to(dtype)
    bias = grown.bias.to(dtype)
    for name, rounded, exact in (("weight", weight, grown.kernel), ("bias", bias, grown.bias)):
        if not torch.isfinite(rounded).all():
            kind = str(dtype).removeprefix("torch.")
            cause = (
                f"does not fit into {kind}: it reaches {float(exact.abs().max()):.1e}, of at most "
                f"{torch.finfo(dtype).max:.1e}"
                if torch.isfinite(exact).all()
                else "holds NaN or Inf"
            )
            raise NotFusable(Reason.OVERFLOW, f"the fused {name} {cause}")
    return ConvLayer(
        weight, bias, grown.stride, grown.pads, tuple(sizes), grown.groups, grown.border
    )
