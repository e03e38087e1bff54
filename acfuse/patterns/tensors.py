"""Looks names up among bare tensors: what a state dict holds, and what has to be assumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from acfuse.algebra import Affine, Conv, LinearConv, batch_norm
from acfuse.algebra.lower import CONVOLUTION_LAYERS
from acfuse.errors import NotFusable, Reason
from acfuse.patterns.expr import Layer, Pattern

LAYER_KEYS = ("weight", "bias", "running_mean", "running_var")


@dataclass
class TensorBlock:
    """The tensors below one prefix, as a lookup for a pattern's names.

    A state dict holds neither stride nor padding nor eps: stride 1 and centred kernels are assumed
    (alignment is all that matters for the kernel), and eps is given.
    """

    tensors: Mapping[str, Tensor]
    prefix: str
    eps: float
    channels: int = 0  # of the input, where an identity arm tells; groups follow from it

    def __call__(self, name: str) -> Layer | None:
        """The layer of that name, or None. Raises NotFusable for a kernel that has no centre."""
        path = f"{self.prefix}{name}."
        weight = self.tensors.get(path + "weight")
        mean = self.tensors.get(path + "running_mean")
        bias = self.tensors.get(path + "bias")
        if mean is not None:
            variance = self.tensors.get(path + "running_var")
            return batch_norm(weight, bias, mean, variance, self.eps)
        if weight is not None and weight.ndim == 1:
            raise NotFusable(Reason.STATISTICS, f"{name} has no running statistics")
        if weight is None or weight.ndim not in (3, 4, 5):
            return None
        size = weight.shape[2:]
        if any(n % 2 == 0 for n in size):
            raise NotFusable(
                Reason.ASSUMPTION,
                f"{name} has an even kernel {tuple(size)}: only the code says where it is centred",
            )
        groups = max(self.channels // weight.shape[1], 1)
        ones = (1,) * len(size)
        pads = tuple((n // 2, n // 2) for n in size)
        return Conv(weight, bias, ones, pads, ones, groups)


def layers_at(pattern: Pattern, tensors: Mapping[str, Tensor], prefix: str) -> list[str]:
    """The layers of a pattern's block below `prefix`; none unless there are two convolutions."""

    def look(name: str) -> bool | None:
        keys = (f"{prefix}{name}.weight", f"{prefix}{name}.running_mean")
        return True if any(key in tensors for key in keys) else None

    names = pattern.layers(look)
    return names if convolutions_among(names, tensors, prefix) > 1 else []


def convolutions_among(names: Sequence[str], tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many of the layers are no BatchNorms."""
    return sum(f"{prefix}{name}.running_mean" not in tensors for name in names)


def value_of(pattern: Pattern, block: TensorBlock) -> tuple[LinearConv, TensorBlock]:
    """The one convolution of a block of bare tensors, and the block with its channels known.

    The number of groups is not stored: where an identity arm tells the channels of the input, it
    follows; where there is none, the kernels are added alike for any number. Raises NotFusable.
    """
    names = layers_at(pattern, block.tensors, block.prefix)
    widths = [layer.channels for layer in map(block, names) if isinstance(layer, Affine)]
    refusal: NotFusable | None = None
    for channels in dict.fromkeys([0, *(width for width in widths if width)]):
        known = replace(block, channels=channels)
        try:
            return pattern.value(known), known
        except NotFusable as error:
            if error.code != Reason.CHANNELS:
                raise
            refusal = refusal or error
    raise refusal or NotFusable(Reason.ASSUMPTION, "no layer was found")


def rebuilt(block: TensorBlock, name: str) -> nn.Module | None:
    """A layer of torch's own with the tensors of that name, under the block's assumptions."""
    record = block(name)
    if record is None:
        return None
    path = f"{block.prefix}{name}."
    tensors = {k: block.tensors.get(path + k) for k in LAYER_KEYS}
    if isinstance(record, Conv):
        out, per_group, *size = record.weight.shape
        layer: nn.Module = CONVOLUTION_LAYERS[len(record.stride)](
            per_group * record.groups,
            out,
            tuple(size),
            padding=tuple(before for before, _ in record.pads),
            groups=record.groups,
            bias=record.bias is not None,
        )
    else:
        mean = tensors["running_mean"]
        if mean is None:
            raise ValueError(name)
        axes = next(t.ndim - 2 for t in block.tensors.values() if t.ndim > 2)
        norms = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
        layer = norms[axes](mean.numel(), eps=block.eps, affine=tensors["weight"] is not None)
    present = {k: v.double() for k, v in tensors.items() if v is not None}
    layer.double().load_state_dict(present, strict=False)
    return layer.eval().requires_grad_(False)


def strangers(
    pattern: Pattern, names: Sequence[str], keys: Sequence[str], prefix: str
) -> list[str]:
    """What else stands below `prefix` that the pattern does not know: it may take part."""
    known = {n.partition(".")[0] for n in (*names, *pattern.tail, pattern.fused)}
    beside = {k.removeprefix(prefix).partition(".")[0] for k in keys if k.startswith(prefix)}
    return sorted(beside - known)
