"""Networks that others wrote, and what their own converters make of them."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from acfuse.proof.whole import randomize_batchnorm
from tests.packages.imports import imported, undisturbed


@dataclass(frozen=True)
class Network:
    """A network of a package, with random weights."""

    package: str
    name: str
    before: int
    """How many convolutions it has in training form."""
    after: int
    """How many are left when every block is one convolution."""
    size: tuple[int, int] = (64, 48)
    """Height and width of the image that it is tested with."""

    def __str__(self) -> str:
        return self.name

    def build(self) -> nn.Module:
        """The network in float64 and eval mode. Nothing is downloaded."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _BUILD[self.package](self.name)
        return randomize_batchnorm(model).eval().requires_grad_(False)

    def converted(self, model: nn.Module) -> nn.Module | None:
        """A copy of the network as its package converts it, if the package has a converter."""
        convert = _CONVERT.get(self.package)
        if convert is None:
            return None
        with undisturbed(), torch.no_grad():
            return convert(copy.deepcopy(model))


def _timm(name: str) -> nn.Module:
    """A network of timm; the largest of them with an eighth of its channels."""
    if name == "repvgg_d2se":
        byobnet = imported("timm.models.byobnet")
        return byobnet.ByobNet(replace(byobnet.model_cfgs[name], width_factor=1 / 8))
    return imported("timm").create_model(name, pretrained=False)


def _doctr(name: str) -> nn.Module:
    return getattr(imported("doctr.models.classification.textnet"), name)(pretrained=False)


def _ultralytics(name: str) -> nn.Module:
    """A detector, without that branch of its head which only training needs."""
    tasks = imported("ultralytics.nn.tasks")
    with undisturbed():
        model = tasks.DetectionModel(f"{name}.yaml", verbose=False)
        model.model[-1].fuse()
    return model


def _transformers(name: str) -> nn.Module:
    folder, _, kind = name.partition(".")
    package = imported(f"transformers.models.{folder}")
    return getattr(package, f"{kind}Model")(getattr(package, f"{kind}Config")())


_BUILD = {
    "timm": _timm,
    "doctr": _doctr,
    "ultralytics": _ultralytics,
    "transformers": _transformers,
}

_CONVERT = {
    "timm": lambda model: imported("timm").utils.reparameterize_model(model, inplace=True),
    "doctr": lambda model: imported("doctr.models.detection.fast.pytorch").reparameterize(model),
    "ultralytics": lambda model: model.fuse(verbose=False),
}

BRANCHED = (
    Network("timm", "repvgg_a0", 44, 22),
    Network("timm", "repvgg_d2se", 192, 144),
    Network("timm", "mobileone_s0", 191, 43),
    Network("timm", "mobileone_s1", 65, 43),
    Network("timm", "fastvit_t8", 68, 52, (96, 64)),
    Network("timm", "repvit_m0_9", 126, 103),
    Network("timm", "repghostnet_100", 95, 95),
    Network("timm", "ghostnetv3_100", 309, 137),
    Network("timm", "lcnetv2_base", 60, 46),
    Network("doctr", "textnet_tiny", 40, 16),
    Network("ultralytics", "yolov10n", 84, 83, (96, 64)),
    Network("ultralytics", "yolov9t", 228, 186, (96, 64)),
    Network("transformers", "textnet.TextNet", 40, 16),
)

PLAIN = (
    Network("timm", "resnet18", 20, 20),
    Network("timm", "mobilenetv2_100", 52, 52),
    Network("timm", "convnext_atto", 40, 40),
)

PADDED = (
    Network("timm", "tf_mobilenetv3_small_100", 53, 53),
    Network("transformers", "mobilenet_v1.MobileNetV1", 27, 27),
)
"""They pad by the size of their input."""


def convolutions(model: nn.Module) -> int:
    """How many convolutions a network has."""
    return sum(isinstance(m, _ConvNd) for m in model.modules())


def batch_norms(model: nn.Module) -> int:
    """How many BatchNorms a network has."""
    return sum(isinstance(m, _BatchNorm) for m in model.modules())
