"""The network of the example in docs/patterns.md, and its checkpoint."""

from pathlib import Path

import torch
from torch import Tensor, nn

from sample_models import awake

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "patterns.md").read_text(encoding="utf-8")


class House(nn.Module):
    """A 3x3, a 1x1 and the input, a BatchNorm each."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.main, self.main_bn = nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)
        self.side, self.side_bn = nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)
        self.skip_bn = nn.BatchNorm2d(a) if a == b else None
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.main_bn(self.main(x)) + self.side_bn(self.side(x))
        return self.act(out if self.skip_bn is None else out + self.skip_bn(x))


def network() -> nn.Module:
    """Two blocks, and a third that lacks a layer."""
    torch.manual_seed(0)
    third = House(8, 8)
    del third.side_bn
    stages = nn.Sequential(House(6, 6), House(6, 8), third)
    model = nn.Module()
    model.stages = stages
    return awake(model, 0)


def toml() -> str:
    """The file of the example."""
    return PAGE.split("```toml\n")[1].split("```")[0]


def write(folder: Path) -> None:
    """house.toml and house.pth."""
    (folder / "house.toml").write_text(toml(), encoding="utf-8")
    torch.save(network().state_dict(), folder / "house.pth")
