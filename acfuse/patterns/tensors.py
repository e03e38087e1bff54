"""Looks names up among bare tensors: what a state dict holds, and what has to be assumed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from acfuse.algebra import Affine, Conv, LinearConv, batch_norm
from acfuse.algebra.lower import CONVOLUTION_LAYERS
from acfuse.errors import NotFusable, Reason
from acfuse.patterns.expr import MAYBE_INPUT
from acfuse.patterns.pattern import Pattern
from acfuse.patterns.values import Layer
from acfuse.system.devices import CPU

LAYER_KEYS = ("weight", "bias", "running_mean", "running_var")
KEYS = {*LAYER_KEYS, "num_batches_tracked"}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


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
    factors: frozenset[str] = frozenset()  # names that are one number per channel
    placed: frozenset[str] = frozenset()  # layers of which the pattern says where they stand
    device: torch.device = CPU  # where its layers are put, to be multiplied and run

    def tensor(self, name: str) -> Tensor | None:
        """A tensor of the block, on its device."""
        found = self.tensors.get(f"{self.prefix}{name}")
        return None if found is None else found.to(self.device)

    def __call__(self, name: str) -> Layer | None:
        """The layer of that name, or None. Raises NotFusable for a kernel that has no centre."""
        weight, bias, mean, variance = (self.tensor(f"{name}.{key}") for key in LAYER_KEYS)
        if mean is not None:
            return batch_norm(weight, bias, mean, variance, self.eps)
        if name in self.factors and weight is None:
            weight = self.tensor(name)  # a parameter of the block itself
        if name in self.factors and weight is not None:
            shift = 0.0 if bias is None else bias.detach().double().reshape(-1)
            return Affine(weight.detach().double().reshape(-1), shift)
        if weight is not None and weight.ndim == 1:
            raise NotFusable(Reason.STATISTICS, f"{name} has no running statistics")
        if weight is None or weight.ndim not in (3, 4, 5):
            return None
        size = weight.shape[2:]
        if any(n % 2 == 0 for n in size) and name not in self.placed:
            raise NotFusable(
                Reason.ASSUMPTION,
                f"{name} has an even kernel {tuple(size)}: only the code says where it is centred",
            )
        groups = max(self.channels // weight.shape[1], 1)
        ones = (1,) * len(size)
        pads = tuple((n // 2, n // 2) for n in size)
        return Conv(weight, bias, ones, pads, ones, groups)


def layers_at(pattern: Pattern, tensors: Mapping[str, Tensor], prefix: str) -> list[str]:
    """The layers of a pattern's block below `prefix`; none unless there is something to fuse.

    That is two convolutions, or one with another branch beside it, or with a BatchNorm behind it
    where the authors fuse that as well.
    """
    look = presence(pattern, tensors, prefix)
    names = pattern.layers(look)
    convolutions = convolutions_among(names, tensors, prefix)
    branches = convolutions + (pattern.arms(look) > 1) if convolutions else 0
    return names if names and branches >= pattern.least(look) else []


def presence(
    pattern: Pattern, tensors: Mapping[str, Tensor], prefix: str
) -> Callable[[str], bool | None]:
    """A lookup that says which of a pattern's names have tensors below `prefix`."""
    factors = pattern.factors

    def look(name: str) -> bool | None:
        path = f"{prefix}{name}"
        found = f"{path}.weight" in tensors or f"{path}.running_mean" in tensors
        return True if found or (name in factors and path in tensors) else None

    return look


def convolutions_among(names: Sequence[str], tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many of the layers have a kernel."""
    weights = [tensors.get(f"{prefix}{name}.weight") for name in names]
    return sum(weight is not None and weight.ndim > 2 for weight in weights)


def value_of(pattern: Pattern, block: TensorBlock) -> tuple[LinearConv, TensorBlock]:
    """The one convolution of a block of bare tensors, and the block with its channels known.

    The number of groups is not stored; it follows from how many channels the block reads. These are
    guessed: as many as one group takes, then the width of each BatchNorm or factor that might be an
    arm of its own, then that of each depthwise layer. The first with which the arms have the same
    channels is taken: a layer of another width cannot be added. Where nothing tells a width, the
    kernels are added alike for any number of groups. Raises NotFusable.
    """
    names = layers_at(pattern, block.tensors, block.prefix)
    block = replace(block, factors=pattern.factors, placed=pattern.placed)
    required = f"{block.prefix}{pattern.requires}"
    if pattern.requires and block.tensors.keys().isdisjoint((required, f"{required}.weight")):
        why = f"without {pattern.requires} beside them, these layers may be placed otherwise"
        raise NotFusable(Reason.ASSUMPTION, f"{why}. Give --model with the code")
    widths = [layer.channels for layer in map(block, names) if isinstance(layer, Affine)]
    if MAYBE_INPUT in pattern.block.everywhere():
        widths = []  # whether the input fits is known without groups alone
    weights = (block.tensors.get(f"{block.prefix}{n}.weight") for n in pattern.depthwise)
    widths += [weight.shape[0] for weight in weights if weight is not None]
    refusal: NotFusable | None = None
    for channels in dict.fromkeys([0, *filter(None, widths)]):
        known = replace(block, channels=channels)
        try:
            value = pattern.value(known, block.device)
        except NotFusable as error:
            if error.code != Reason.CHANNELS:
                raise
            refusal = refusal or error
            continue
        found = [layer for layer in map(known, names) if isinstance(layer, Conv)]
        branches, one = sum(conv.multiply_adds for conv in found), value.geometry.multiply_adds
        if one > branches:
            why = f"one convolution would take {one:,} multiply-adds per pixel, its layers"
            raise NotFusable(Reason.COST, f"{why} {branches:,}")
        return value, known
    raise refusal or NotFusable(Reason.ASSUMPTION, "no layer was found")


def rebuilt(block: TensorBlock, name: str) -> nn.Module | Affine | None:
    """A layer of torch's own with the tensors of that name, under the block's assumptions."""
    record = block(name)
    if record is None or name in block.factors:
        return record if isinstance(record, Affine) else None
    tensors = {k: block.tensor(f"{name}.{k}") for k in LAYER_KEYS}
    present = {k: v.double() for k, v in tensors.items() if v is not None}
    layer: nn.Module
    if isinstance(record, Conv):
        out, per_group, *size = record.weight.shape
        pads, bias = tuple(before for before, _ in record.pads), record.bias is not None
        channels, sizes = (per_group * record.groups, out), tuple(size)
        kind = CONVOLUTION_LAYERS[len(size)]
        settings = {"padding": pads, "groups": record.groups, "bias": bias}
        layer = kind(*channels, sizes, **settings, device="meta")  # nothing is drawn for it
        layer.load_state_dict(present, assign=True)
    else:
        axes = next(t.ndim - 2 for t in block.tensors.values() if t.ndim > 2)
        layer = NORMS[axes](len(present["running_mean"]), block.eps, affine="weight" in present)
        layer.to(block.device).double().load_state_dict(present, strict=False)
    return layer.eval().requires_grad_(False)


def strangers(
    pattern: Pattern, names: Sequence[str], keys: Sequence[str], prefix: str
) -> list[str]:
    """What else stands below `prefix` that the pattern does not know: it may take part."""
    layers = {*names, pattern.fused}
    ignored = tuple(f"{name}." for name in pattern.ignore)
    found = set()
    for key in (k.removeprefix(prefix) for k in keys if k.startswith(prefix)):
        layer, _, kind = key.rpartition(".")
        known = key in pattern.factors or (layer in layers and kind in KEYS)
        if not known and not key.startswith(ignored):
            found.add(layer or key)
    return sorted(found)
