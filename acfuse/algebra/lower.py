"""From a value to a real layer: dilation recovered, pads made symmetric, rounded once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.algebra.adjoint import Adjoint, Value
from acfuse.algebra.adjoint_geometry import crops, dilation_at
from acfuse.algebra.geometry import Axis
from acfuse.algebra.layers import Conv
from acfuse.algebra.linear_conv import on_axes
from acfuse.errors import NotFusable, Reason

CONVOLUTION_LAYERS: dict[int, Any] = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_LAYERS: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


@dataclass(frozen=True)
class ConvLayer(Conv):
    """The weights and settings of one convolution layer, rounded, ready to be stored.

    Shapes: weight [out, in / groups, *kernel] (transposed: [in, out / groups, *kernel]), bias
    [out], in the dtype they were lowered to.
    """

    bias: Tensor

    @property
    def padding(self) -> tuple[int, ...]:
        """The padding per axis, for layers that pad both sides alike."""
        if any(before != after for before, after in self.pads) and not self.transposed:
            raise ValueError(f"pads {self.pads} are not symmetric")
        return tuple(before for before, _ in self.pads)

    @property
    def output_padding(self) -> tuple[int, ...]:
        """How much less a transposed layer cuts off at the end than at the beginning."""
        return tuple(before - after for before, after in self.pads)

    def module(self) -> nn.Module:
        """The same as one of torch's own layers: without axes, an nn.Linear."""
        kind = (TRANSPOSED_LAYERS if self.transposed else CONVOLUTION_LAYERS)[len(self.stride)]
        size = tuple(self.weight.shape[2:])
        settings: dict[str, Any] = {"dilation": self.dilation, "groups": self.groups}
        if self.transposed:
            settings["output_padding"] = self.output_padding
        else:
            settings["padding_mode"] = self.border
        channels = self.geometry.in_channels, self.geometry.out_channels
        window = (size, self.stride, self.padding) if size else ()
        conv: nn.Module = kind(*channels, *window, **(settings if size else {}), device="meta")
        conv.weight, conv.bias = nn.Parameter(self.weight), nn.Parameter(self.bias)
        return conv.eval()


def lower(value: Value, dtype: torch.dtype, *, symmetric: bool = True) -> ConvLayer:
    """The layer that computes `value`, its numbers rounded once, to `dtype`.

    Kernels are trimmed to their live taps, then grown until pads are not negative and (with
    `symmetric`, which torch's layers need and ONNX does not) equal on both sides. The largest
    dilation that meets every live tap is taken out again.
    Raises NotFusable if a number is too large for the dtype.
    """
    transposed = isinstance(value, Adjoint)
    dilation, growth = [], []
    for axis in value.geometry.axes:
        live = axis.trim()
        before, after = (crops if transposed else _pads)(live, symmetric=symmetric)
        dilation.append(dilation_at(live, before, after))
        growth.append((before - axis.before, after - axis.after))
    kernel = value.of if isinstance(value, Adjoint) else value
    grown = kernel.grow(growth) if growth else kernel.regroup(1)
    weight = grown.kernel[on_axes(slice(None, None, d) for d in dilation)].contiguous().to(dtype)
    bias = value.bias.to(dtype)
    for name, rounded, exact in (("weight", weight, grown.kernel), ("bias", bias, value.bias)):
        if not torch.isfinite(rounded).all():
            kind = str(dtype).removeprefix("torch.")
            cause = (
                f"does not fit into {kind}: it reaches {float(exact.abs().max()):.1e}, of at most "
                f"{torch.finfo(dtype).max:.1e}"
                if torch.isfinite(exact).all()
                else "holds NaN or Inf"
            )
            raise NotFusable(Reason.OVERFLOW, f"the fused {name} {cause}")
    settings = grown.stride, grown.pads, tuple(dilation), grown.groups, grown.border
    return ConvLayer(weight, bias, *settings, transposed)


def _pads(live: Axis, *, symmetric: bool) -> tuple[int, int]:
    """The least padding that a convolution can have there."""
    before, after = max(live.before, 0), max(live.after, 0)
    return (max(before, after),) * 2 if symmetric else (before, after)
