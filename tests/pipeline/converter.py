"""A converter of others: it folds by hand, under its own names, and makes mistakes if told to."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sample_models import awake

SHAPE = (2, 3, 13, 10)


class Arms(nn.Module):
    """A 3x3 convolution with a 3x1 and a 1x3 beside it, each with its BatchNorm, as ACNet's."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        given = {"stride": stride, "bias": False}
        self.square = nn.Conv2d(channels, out, 3, padding=1, **given)
        self.ver = nn.Conv2d(channels, out, (3, 1), padding=(1, 0), **given)
        self.hor = nn.Conv2d(channels, out, (1, 3), padding=(0, 1), **given)
        self.square_bn, self.ver_bn, self.hor_bn = (nn.BatchNorm2d(out) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.square_bn(self.square(x)) + self.ver_bn(self.ver(x)) + self.hor_bn(self.hor(x))


class Net(nn.Module):
    """Two blocks, a lone convolution with its BatchNorm, a matrix, and what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.first, self.second = Arms(8, 8), Arms(8, 6, stride=2)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem_bn(self.stem(x)), 0.2)
        x = F.relu(self.first(x))
        x = self.second(x)
        x = self.norm(x * x.sigmoid())
        return self.head(F.max_pool2d(x, 2, 1).mean((2, 3)))


class Deploy(nn.Module):
    """What the converter makes of it. Its settings are there to be set wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.c0 = nn.Conv2d(3, 8, 3, padding=1)
        self.c1 = nn.Conv2d(8, 8, 3, padding=1)
        self.c2 = nn.Conv2d(8, 6, 3, padding=1, stride=2)
        self.bn, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 5)
        self.slope, self.rectifies, self.gates, self.window = 0.2, True, True, 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.c0(x), self.slope)
        x = F.relu(self.c1(x)) if self.rectifies else self.c1(x)
        x = self.c2(x)
        x = self.bn(x * x.sigmoid() if self.gates else x)
        return self.fc(F.max_pool2d(x, self.window, 1).mean((2, 3)))


@dataclass
class Arm:
    """A kernel and the BatchNorm behind it, as the converter folds them."""

    kernel: Tensor
    norm: nn.BatchNorm2d
    times: float = 1.0
    eps: float | None = None

    def folded(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        eps = norm.eps if self.eps is None else self.eps
        scale = norm.weight.double() / (norm.running_var.double() + eps).sqrt()
        kernel = torch.zeros(*self.kernel.shape[:2], 3, 3, dtype=torch.float64)
        top, left = ((3 - n) // 2 for n in self.kernel.shape[2:])
        height, width = self.kernel.shape[2:]
        kernel[:, :, top : top + height, left : left + width] = self.kernel.double()
        bias = norm.bias.double() - norm.running_mean.double() * scale
        return self.times * kernel * scale.reshape(-1, 1, 1, 1), self.times * bias


Arms3 = list[Arm]
Fold = Callable[[Arms3], Arms3]


def converted(
    model: Net, fold: Fold = lambda arms: arms, wrong: Callable[[Deploy], object] = lambda _: None
) -> Deploy:
    """The deploy form. `fold` changes the arms of the first block, `wrong` the result."""
    deploy = Deploy()
    arms = {
        "c0": [Arm(model.stem.weight, model.stem_bn)],
        "c1": fold(_arms(model.first)),
        "c2": _arms(model.second),
    }
    with torch.no_grad():
        for name, own in arms.items():
            parts = [arm.folded() for arm in own]
            deploy.get_submodule(name).weight.copy_(sum(kernel for kernel, _ in parts))
            deploy.get_submodule(name).bias.copy_(sum(bias for _, bias in parts))
        deploy.bn.load_state_dict(model.norm.state_dict())
        deploy.fc.load_state_dict(model.head.state_dict())
        deploy.eval()
        wrong(deploy)
    return deploy


def _arms(block: Arms) -> Arms3:
    pairs = (block.square, block.square_bn), (block.ver, block.ver_bn), (block.hor, block.hor_bn)
    return [Arm(conv.weight, norm) for conv, norm in pairs]


@cache
def trained() -> Net:
    """The network with every number drawn."""
    model = awake(Net(), 0)
    with torch.no_grad():  # so that no eps is hidden by large variances
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_var.mul_(0.01)
    return model


def as_onnx(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> onnx.ModelProto:
    """What PyTorch's exporter writes of it, with nothing folded and a free batch."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.randn(shape),),
            file,
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["image"],
            dynamic_axes={"image": {0: "n"}},
        )
    return onnx.load_from_string(file.getvalue())
