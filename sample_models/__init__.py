"""Small networks in training form, one family of blocks a file, written as their authors would.

Attribute names and key layouts are the published ones, the code is not. Whoever adds a family adds
a module with a dict ``SAMPLES`` here, and nothing else: the tests iterate over ``samples()``.
"""

import importlib
import pkgutil
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

Shape = tuple[int, ...]


class Sample(NamedTuple):
    """One network, and what fusing must make of it."""

    build: Callable[[], nn.Module]
    """The network: seeded, in eval mode, with BatchNorms awake."""
    input_shapes: tuple[Shape, ...]
    """Inputs that it takes: H != W, odd and even sizes, batches of 1 and 3."""
    blocks: int
    """How many blocks must become one convolution each; 0 for a look-alike."""
    pattern: str | None
    """The family that a named pattern gives the blocks; None where none is meant to match."""
    deploy_keys: tuple[str, ...] = ()
    """Weights that the fused model must have, in the authors' deploy form; () if they have none."""
    reason: str = ""
    """A word that the refusal of a look-alike must say."""
    absorbed: tuple[str, ...] = ()
    """What the block takes up besides its layers: bare factors, and a fused tensor out of date."""
    bn_eps: float | None = None
    """What the network's BatchNorms are built with, where the pattern does not say it."""
    assume: tuple[str, ...] = ()
    """The patterns that have to be assumed for bare tensors."""
    bare: bool = True
    """False where the tensors do not tell the network, so that its code is needed."""


def samples() -> dict[str, Sample]:
    """Collect the samples of every module of this folder, under the keys "module/variant"."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        variants = getattr(importlib.import_module(f"{__name__}.{module.name}"), "SAMPLES", {})
        found.update({f"{module.name}/{variant}": s for variant, s in variants.items()})
    return dict(sorted(found.items()))


@torch.no_grad()
def awake(model: nn.Module, seed: int) -> nn.Module:
    """Randomise what a fresh network leaves at 0 or 1, and return the model in eval mode.

    A BatchNorm of mean 0, variance 1, scale 1 and shift 0 hides nearly every mistake of a fusion,
    and so does a convolution's bias near 0. Some of the scales are negative.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            if layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.normal_(0.0, 0.5, generator=generator)
                layer.running_var.uniform_(0.5, 2.0, generator=generator)
            if layer.affine:
                layer.weight.normal_(0.7, 0.7, generator=generator)
                layer.bias.normal_(0.0, 0.5, generator=generator)
        elif isinstance(layer, _ConvNd) and layer.bias is not None:
            layer.bias.normal_(0.0, 0.5, generator=generator)
    return model.eval()


def built(make: Callable[[], nn.Module], seed: int = 0) -> Callable[[], nn.Module]:
    """Wrap a factory so that every call gives the same awake network, and leaves torch's seed."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return awake(make(), seed)

    return build


def images(channels: int) -> tuple[Shape, ...]:
    """Give three image shapes that break every symmetry."""
    return ((1, channels, 13, 16), (3, channels, 12, 9), (1, channels, 7, 10))


def framed(block: nn.Module, in_channels: int, out_channels: int) -> nn.Module:
    """Put a block, as ``body``, where blocks live: a convolution and a ReLU on both sides.

    The image has 3 channels. The stem's BatchNorm may be folded, but is no block.
    """
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, in_channels, 3, padding=1, bias=False),
            stem_norm=nn.BatchNorm2d(in_channels),
            stem_relu=nn.ReLU(inplace=True),
            body=block,
            relu=nn.ReLU(),
            head=nn.Conv2d(out_channels, 5, 1),
        )
    )
