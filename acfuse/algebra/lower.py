"""From a LinearConv to a real layer: dilation recovered, pads made symmetric, rounded once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.algebra.layers import Conv
from acfuse.algebra.linear_conv import LinearConv, on_axes
from acfuse.errors import NotFusable, Reason

CONVOLUTION_LAYERS: dict[int, Any] = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class ConvLayer(Conv):
    """The weights and settings of one convolution layer, rounded, ready to be stored.

    Shapes: weight [out, in / groups, *kernel], bias [out], in the dtype they were lowered to.
    """

    bias: Tensor

    @property
    def padding(self) -> tuple[int, ...]:
        """The padding per axis, for layers that pad both sides alike."""
        if any(before != after for before, after in self.pads):
            raise ValueError(f"pads {self.pads} are not symmetric")
        return tuple(before for before, _ in self.pads)

    def module(self) -> nn.Module:
        """The same as nn.Conv1d, 2d or 3d, or nn.Linear without axes."""
        kind = CONVOLUTION_LAYERS[len(self.stride)]
        out, per_group, *size = self.weight.shape
        channels = per_group * self.groups, out
        settings = self.stride, self.padding, self.dilation, self.groups, True, self.border
        window = (tuple(size), *settings) if size else ()
        conv: nn.Module = kind(*channels, *window, device="meta")
        conv.weight, conv.bias = nn.Parameter(self.weight), nn.Parameter(self.bias)
        return conv.eval()


def lower(value: LinearConv, dtype: torch.dtype, *, symmetric: bool = True) -> ConvLayer:
    """The layer that computes `value`, its numbers rounded once, to `dtype`.

    Kernels are trimmed to their live taps, then grown until pads are not negative and (with
    `symmetric`, which torch's layers need and ONNX does not) equal on both sides. The largest
    dilation that meets every live tap is taken out again.
    Raises NotFusable if a number is too large for the dtype.
    """
    dilation, growth = [], []
    for axis in value.geometry.axes:
        live = axis.trim()
        before, after = max(live.before, 0), max(live.after, 0)
        if symmetric:
            before = after = max(before, after)
        meets = (before - live.before) % live.spacing == (after - live.after) % live.spacing == 0
        dilation.append(live.spacing if meets else 1)
        growth.append((before - axis.before, after - axis.after))
    grown = value.grow(growth) if value.taps else value.regroup(1)
    weight = grown.kernel[on_axes(slice(None, None, d) for d in dilation)].contiguous().to(dtype)
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
        weight, bias, grown.stride, grown.pads, tuple(dilation), grown.groups, grown.border
    )
