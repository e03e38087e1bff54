"""Small networks whose outputs are hard to compare: what ends in something that is not smooth."""

import dataclasses
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE = (2, 3, 15, 18)


class Block(nn.Module):
    """Two branches, each with its BatchNorm, that are one convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.square = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.square_bn = nn.BatchNorm2d(outputs)
        self.point = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.point_bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.square_bn(self.square(x)) + self.point_bn(self.point(x))


class Body(nn.Module):
    """Two blocks and a head; `end` makes the result of what the head gives."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.first = Block(3, 8)
        self.second = Block(8, 8)
        self.head = nn.Conv2d(8, channels, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))))

    def forward(self, x: Tensor):
        return self.end(self.features(x))

    def end(self, y: Tensor):
        return y


class Sigmoid(Body):
    def end(self, y):
        return torch.sigmoid(8 * y)


class Softmax(Body):
    def end(self, y):
        return torch.softmax(20 * y, 1)


class Argmax(Body):
    def end(self, y):
        return y.argmax(1)


class TopK(Body):
    """The boxes of the best scores: (N, 20, 5)."""

    def end(self, y):
        boxes, scores = 100 * y[:, :4].flatten(2), torch.sigmoid(y[:, 4]).flatten(1)
        best, index = scores.topk(20, 1)
        taken = boxes.gather(2, index.unsqueeze(1).expand(-1, 4, -1))
        return torch.cat([taken.transpose(1, 2), best.unsqueeze(2)], 2), index


class Above(Body):
    """Boxes whose score is above a threshold: a list, one tensor of (K, 5) for each image."""

    threshold = 0.6

    def end(self, y):
        rows = torch.cat([100 * y[:, :4], torch.sigmoid(y[:, 4:5])], 1).flatten(2).transpose(1, 2)
        return [image[image[:, 4] > self.threshold] for image in rows]


class Never(Above):
    threshold = 2.0


class Rarely(Above):
    threshold = 1 - 1e-5


class Mask(Body):
    def end(self, y):
        return {"mask": y[:, 0] > 0, "image": (255 * torch.sigmoid(y[:, 1:4])).to(torch.uint8)}


class Halves(Body):
    """Large boxes and small scores in one tensor."""

    def end(self, y):
        return torch.cat([1e5 * y[:, :4], 1e-2 * torch.sigmoid(y[:, 4:])], 1)


class Rows(Body):
    """The same, channels last: (N, places, 6)."""

    def end(self, y):
        return torch.cat([1e5 * y[:, :4], torch.sigmoid(y[:, 4:])], 1).flatten(2).transpose(1, 2)


class Pinned(Body):
    def features(self, x):
        return super().features(x.float())


class PinnedWithin(Body):
    """Its end alone is in float32, and nobody fails."""

    def end(self, y):
        return torch.softmax(y.float(), 1).to(y.dtype)


class Gated(Body):
    """Ten gates, each of which may amplify what comes in."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__(channels)
        self.gates = nn.ModuleList(Block(8, 8) for _ in range(10))

    def features(self, x):
        y = F.relu(self.first(x))
        for gate in self.gates:
            y = y + 3 * torch.tanh(5 * gate(y))
        return self.head(F.relu(self.second(y)))


class FrozenBatchNorm2d(nn.Module):
    """A BatchNorm that was written out as arithmetic on its buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        var, mean = self.running_var.reshape(1, -1, 1, 1), self.running_mean.reshape(1, -1, 1, 1)
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Frozen(Body):
    def __init__(self, channels: int = 6) -> None:
        super().__init__(channels)
        for block in (self.first, self.second):
            block.square_bn, block.point_bn = FrozenBatchNorm2d(8), FrozenBatchNorm2d(8)


@dataclasses.dataclass
class Detections:
    boxes: Tensor
    count: int
    kind: str = "boxes"


class Named(OrderedDict):
    """A dict that is written as attributes too."""


class AsDataclass(Body):
    factor, kind, count = 1.0, "boxes", 3

    def end(self, y):
        return Detections(self.factor * y, self.count, self.kind)


class AsNamed(Body):
    keys = ("boxes", "scores")
    dtype = torch.int64

    def end(self, y):
        first, second = self.keys
        size = torch.tensor(y.shape[2:]).to(self.dtype)
        return Named([(first, y[:, :4]), (second, y[:, 4:]), ("size", size)])


class Overflow(Body):
    """A channel of +inf, as a mask of scores has it."""

    filler = float("inf")

    def end(self, y):
        return torch.cat([y, torch.full_like(y[:, :1], self.filler)], 1)


def drawn(kind: type[Body], seed: int = 0, **given: object) -> Body:
    """A network in eval mode with random weights and BatchNorm statistics."""
    torch.manual_seed(seed)
    model = kind(**given)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            with torch.no_grad():
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.copy_(torch.empty_like(module.weight).uniform_(0.5, 1.5))
                module.bias.copy_(torch.empty_like(module.bias).uniform_(-0.3, 0.3))
    return model.eval()
