"""Small networks of parallel branches, a family each, on which other tools are tried as well.

A convolution from 3 to 16 channels, three blocks, an activation behind each; statistics that hide
nothing, and an image that is higher than wide.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sample_models import awake
from sample_models.acnet import ACBlock
from sample_models.added_input import RepCPE
from sample_models.mobileone import RepMixer, TimmBlock
from sample_models.padded_middle import DiverseBranchBlock
from sample_models.repvgg import RepVGGBlock
from tests.packages.imports import imported

Make = Callable[[], list[nn.Module]]
SHAPE = (1, 3, 40, 28)
WIDE = 16

NETS: Mapping[str, Make] = {
    "ACNet": lambda: [ACBlock(WIDE, WIDE, 3, padding=1) for _ in range(3)],
    "RepVGG": lambda: [RepVGGBlock(WIDE, WIDE) for _ in range(3)],
    "MobileOne": lambda: [TimmBlock(WIDE, WIDE, groups=g) for g in (WIDE, 1, WIDE)],
    "DBB": lambda: [DiverseBranchBlock(WIDE, WIDE) for _ in range(3)],
    "FastViT": lambda: [RepMixer(WIDE), RepCPE(WIDE), RepMixer(WIDE)],
}


def _of_timm(module: str, name: str, *given: int, **more: int) -> Make:
    """Three blocks of a class of timm's. Raises MissingPackage where it is not installed."""

    def make() -> list[nn.Module]:
        kind = getattr(imported(f"timm.models.{module}"), name)
        return [kind(*given, **more) for _ in range(3)]

    return make


OF_TIMM: Mapping[str, Make] = {
    "RepVGG": _of_timm("byobnet", "RepVggBlock", WIDE, WIDE),
    "MobileOne": _of_timm("byobnet", "MobileOneBlock", WIDE, WIDE, num_conv_branches=3),
    "FastViT": _of_timm("fastvit", "RepMixer", WIDE),
}
"""The families of which timm has a class, with a method that fuses it."""


def net(make: Make) -> nn.Module:
    """A network around these blocks."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, WIDE, 3, 2, 1), nn.ReLU()]
    for block in make():
        layers += [block, nn.ReLU()]
    return awake(nn.Sequential(*layers), 0).float()


def image() -> Tensor:
    """What every network is given."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
