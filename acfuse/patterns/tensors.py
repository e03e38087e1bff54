"""Looks names up among bare tensors: what a state dict holds, and what has to be assumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from acfuse.algebra import Affine, Conv, LinearConv, batch_norm
from acfuse.errors import NotFusable, Reason
from acfuse.patterns.expr import Layer, Pattern

NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


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
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __call__(self, name: str) -> Layer | None:
        """The layer of that name, or None. Raises NotFusable for a kernel that has no centre."""
        path = f"{self.prefix}{name}."
        weight = self.tensors.get(path + "weight")
        mean = self.tensors.get(path + "running_mean")
        bias = self.tensors.get(path + "bias")
        if mean is not None:
            self.keys[name] = tuple(path + k for k in NORM_KEYS if path + k in self.tensors)
            variance = self.tensors.get(path + "running_var")
            return batch_norm(weight, bias, mean, variance, self.eps)
        if weight is None or weight.ndim not in (3, 4, 5):
            return None
        self.keys[name] = tuple(path + k for k in ("weight", "bias") if path + k in self.tensors)
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


def block_at(
    pattern: Pattern, tensors: Mapping[str, Tensor], prefix: str, eps: float
) -> TensorBlock | None:
    """The tensors of a pattern's block below `prefix`; None if it is not there."""
    block = TensorBlock(tensors, prefix, eps)
    names = pattern.layers(block)
    has_convolution = any(isinstance(block(name), Conv) for name in names)
    return block if has_convolution and len(names) > 1 else None


def value_of(pattern: Pattern, block: TensorBlock) -> LinearConv:
    """The one convolution of a block of bare tensors. Raises NotFusable.

    The number of groups is not stored: where an identity arm tells the channels of the input, it
    follows; where there is none, the kernels are added alike for any number.
    """
    names = pattern.layers(block)
    widths = [layer.channels for layer in map(block, names) if isinstance(layer, Affine)]
    for channels in dict.fromkeys(width for width in widths if width):
        try:
            return pattern.value(replace(block, channels=channels))
        except NotFusable as refusal:
            if refusal.code != Reason.CHANNELS:
                raise
    return pattern.value(block)


def strangers(
    pattern: Pattern, names: Sequence[str], keys: Sequence[str], prefix: str
) -> list[str]:
    """What else stands below `prefix` that the pattern does not know: it may take part in the sum."""
    known = {n.partition(".")[0] for n in (*names, *pattern.tail)}
    beside = {k.removeprefix(prefix).partition(".")[0] for k in keys if k.startswith(prefix)}
    return sorted(beside - known)
