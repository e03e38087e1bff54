"""Small networks, as a user's own file holds them. Tests copy this file beside a checkpoint."""

import torch
from torch import Tensor, nn


class ACBlock(nn.Module):
    def __init__(
        self,
        channels: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
        statistics: bool = True,
    ) -> None:
        super().__init__()

        def conv(kernel: tuple[int, int], pads: tuple[int, int]) -> nn.Conv2d:
            return nn.Conv2d(*channels, kernel, stride, pads, groups=groups, bias=False)

        def norm() -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels[1], track_running_stats=statistics)

        self.square_conv, self.square_bn = conv((3, 3), (1, 1)), norm()
        self.ver_conv, self.ver_bn = conv((3, 1), (1, 0)), norm()
        self.hor_conv, self.hor_bn = conv((1, 3), (0, 1)), norm()

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(x))
        return square + self.ver_bn(self.ver_conv(x)) + self.hor_bn(self.hor_conv(x))


class Net(nn.Module):
    """Two blocks and a head: 3 channels of any size to `outputs` channels of half the width."""

    def __init__(self, outputs: int = 2, statistics: bool = True) -> None:
        super().__init__()
        self.first = ACBlock((3, 4), statistics=statistics)
        self.relu = nn.ReLU()
        self.second = ACBlock((4, 6), stride=(1, 2), groups=2)
        self.head = nn.Conv2d(6, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.second(self.relu(self.first(x)))))


class Wrapped(nn.Module):
    """A network whose only child is really called `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = ACBlock((3, 4))
        self.right = ACBlock((2, 4))

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        return torch.relu(self.left(image)) + torch.relu(self.right(depth))


class Plain(nn.Module):
    """Nothing to fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def factory(outputs: int = 2) -> nn.Module:
    return Net(outputs)


def raises() -> nn.Module:
    raise ValueError("no such\nsize")


def number() -> int:
    return 3


instance = Net()


class NormAct(nn.BatchNorm2d):
    """A norm that brings its activation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class WithNorms(nn.Module):
    """Lone convolutions with norms of both kinds, around a block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 3, 3, 2, 1, bias=False), NormAct(3)
        self.block = ACBlock((3, 4))
        self.head, self.head_bn = nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head_bn(self.head(self.block(self.stem_bn(self.stem(x))).relu()))


class Normed(nn.Module):
    """Lone convolutions with norms, with a bias and transposed, around a block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.next, self.next_bn = nn.Conv2d(4, 6, 1, groups=2), nn.BatchNorm2d(6)
        self.block = ACBlock((6, 6))
        self.up, self.up_bn = nn.ConvTranspose2d(6, 4, 2, groups=2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.next_bn(self.next(self.stem_bn(self.stem(x)).relu())).relu()
        return self.up_bn(self.up(self.block(x).relu()))


class Tokens(nn.Module):
    """An image and a row of numbers, of which each is below 7."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.table = ACBlock((3, 4)), nn.Embedding(7, 4)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.block(x) + self.table(tokens).mean(1)[:, :, None, None]


class Switched(nn.Module):
    """An image and a single number of another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ACBlock((3, 4))

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        return torch.where(flag == 1, self.block(x), -self.block(x) + flag)


class Bytes(nn.Module):
    """An image of bytes, which it checks."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ACBlock((3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.to(self.block.square_conv.weight.dtype) / 255)


class Optional(nn.Module):
    """A forward as transformers writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = ACBlock((3, 4)), ACBlock((2, 4))

    def forward(
        self, pixel_values: Tensor | None = None, depth: Tensor | None = None, **kwargs: Tensor
    ) -> dict[str, Tensor]:
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        y = self.left(pixel_values)
        if depth is not None:
            y = y + self.right(depth)
        return {"y": y, **kwargs}


class Lone(nn.Module):
    """Two convolutions with a norm each, and no branches."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.one_bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.two, self.two_bn = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.two_bn(self.two(torch.relu(self.one_bn(self.one(x)))))


class OnCuda(nn.Module):
    """A forward that asks for a device by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ACBlock((3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + torch.ones(1, device="cuda")


class Dear(nn.Module):
    """Chains that would be dearer as one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 3, 5, groups=3), nn.Conv2d(3, 3, 5, groups=3))
            for _ in range(3)
        )
        self.block = ACBlock((3, 4))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = torch.relu(part(x))
        return self.block(x)


class UpBlock(nn.Module):
    """Two transposed convolutions that double the size, with a norm each."""

    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.wide = nn.ConvTranspose2d(taken, given, 4, 2, 1, bias=False)
        self.small = nn.ConvTranspose2d(taken, given, 2, 2)
        self.wide_bn, self.small_bn = nn.BatchNorm2d(given), nn.BatchNorm2d(given)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide_bn(self.wide(x)) + self.small_bn(self.small(x))


class Decoder(nn.Module):
    """Two such blocks, and a lone transposed convolution with its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = UpBlock(3, 6), UpBlock(6, 4)
        self.last = nn.ConvTranspose2d(4, 2, 3, 2, 1, output_padding=1)
        self.last_bn = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last_bn(self.last(y))
