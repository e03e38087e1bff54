"""Networks of published packages: how each is built, with random weights, and what it is given."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.packages.imports import imported, undisturbed

WIDE = (1, 3, 64, 48)
SQUARE = (1, 3, 64, 64)


@dataclass(frozen=True)
class Model:
    """A network of a package. `options` are what its constructor is told, often to make it small.

    Where the options name other configurations, each is a pair: its class, and its options.
    """

    package: str
    name: str
    shapes: tuple[tuple[int, ...], ...] = (WIDE,)
    options: Mapping[str, Any] = field(default_factory=dict)
    fold_bn: bool = False

    @property
    def title(self) -> str:
        """What tells it from all others."""
        return f"{self.package}/{self.name}" + ("+fold_bn" if self.fold_bn else "")

    def build(self) -> nn.Module:
        """The network in float32 and eval mode, with random numbers in place of fresh constants."""
        torch.manual_seed(0)
        model = _BUILD[self.package](self.name, dict(self.options))
        return randomized(model.float()).eval().requires_grad_(False)

    def converted(self, model: nn.Module) -> nn.Module | None:
        """The network as its package's own converter makes it, if there is one. Changes it."""
        convert = _CONVERT.get(self.package)
        if convert is None:
            return None
        with undisturbed(), torch.no_grad():
            return convert(model)

    def branched(self, model: nn.Module) -> list[str]:
        """Where the package's own re-parameterizable blocks are, the outermost of them."""
        rule = BLOCKS.get(self.package)
        found: list[str] = []
        for path, module in model.named_modules():
            inside = any(path.startswith(f"{outer}.") for outer in found)
            if rule and not inside and rule.search(type(module).__name__) and _is_branched(module):
                found.append(path)
        return found


BLOCKS = {
    "timm": re.compile(
        r"^(RepVggBlock|MobileOneBlock|ReparamLargeKernelConv|RepMixer|RepConditionalPosEnc|RepCPE"
        r"|GhostModuleV3|RepDepthwiseSeparable|RepGhostModule|RepVggDw|Residual)$"
    ),
    "transformers": re.compile(
        r"^(?!LwDetr|RfDetr).*(RepVggBlock|RepVGGBlock|RepConvLayer|LearnableRepLayer)$"
    ),  # those two call a chain of convolutions so
    "ultralytics": re.compile(r"^(RepConv|RepVGGDW|Conv2)$"),
    "doctr": re.compile(r"^FASTConvLayer$"),
}
"""Names of the classes that a package has for branches that become one convolution."""


def _is_branched(module: nn.Module) -> bool:
    """Whether a block has more than one branch: some are built with one alone."""
    kind = type(module).__name__
    if kind in ("RepConditionalPosEnc", "RepCPE"):
        return True  # a convolution and the image itself
    if kind == "Residual":  # of shvit; around anything but a convolution it is none
        return type(getattr(module, "m", None)).__name__ == "Conv2dNorm"
    if kind == "RepDepthwiseSeparable":  # the convolutions behind the block have norms as well
        return getattr(module, "dw_conv_list", None) is not None
    if kind == "RepGhostModule":
        return len(module.fusion_bn) > 0
    return sum(hasattr(m, "running_mean") for m in module.modules()) > 1


def randomized(model: nn.Module) -> nn.Module:
    """The same network, without a constant that could hide a fault: statistics, factors, zeros."""
    ranges = {
        "running_mean": (-0.3, 0.3),
        "running_var": (0.5, 2.0),
        "weight": (0.2, 0.8),  # on the whole smaller: no layer may explode
        "bias": (-0.3, 0.3),
    }
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                for name, (low, high) in ranges.items():
                    tensor = getattr(module, name, None)
                    if isinstance(tensor, Tensor):
                        tensor.uniform_(low, high, generator=generator)
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                drawn = torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator)
                parameter.add_(drawn)
    return model


def _timm(name: str, options: dict[str, Any]) -> nn.Module:
    return imported("timm").create_model(name, pretrained=False, **options)


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    room = "torchvision.models"
    if name.partition("_")[0] in ("fcn", "deeplabv3", "lraspp"):
        room += ".segmentation"
        options = {"weights_backbone": None, **options}
    return getattr(imported(room), name)(weights=None, **options)


def _ultralytics(name: str, options: dict[str, Any]) -> nn.Module:
    """By the name of its .yaml, the scale included; the task is in the name."""
    tasks = imported("ultralytics.nn.tasks")
    kind = next((kind for word, kind in TASKS.items() if word in name), "DetectionModel")
    with undisturbed():
        return getattr(tasks, kind)(f"{name}.yaml", verbose=False, **options)


TASKS = {
    "-seg": "SegmentationModel",
    "-pose": "PoseModel",
    "-obb": "OBBModel",
    "-cls": "ClassificationModel",
    "rtdetr": "RTDETRDetectionModel",
}


def _doctr(name: str, options: dict[str, Any]) -> nn.Module:
    for room in ("classification", "detection", "recognition"):
        package = imported(f"doctr.models.{room}")
        if hasattr(package, name):
            whole = {} if room == "classification" else {"pretrained_backbone": False}
            whole |= {"exportable": True} if room == "detection" else {}  # no boxes drawn with cv2
            return getattr(package, name)(pretrained=False, **whole, **options)
    raise ValueError(f"doctr has no model {name}.")


class _OfFeatures(nn.Module):
    """Calls a part of a detector, which takes a list of feature maps, with three images."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Any:
        return self.part([fine, middle, coarse])


def _transformers(name: str, options: dict[str, Any]) -> nn.Module:
    """A class by its folder and name. What takes feature maps is called through a wrapper."""
    folder, _, kind = name.partition(".")
    package = imported("transformers")
    model_class = getattr(imported(f"transformers.models.{folder}.modeling_{folder}"), kind)
    is_part = kind.endswith("HybridEncoder")
    config_class = (
        getattr(package, f"{kind.removesuffix('HybridEncoder')}Config")
        if is_part
        else model_class.config_class
    )
    built = {
        key: getattr(package, value[0])(**value[1]) if isinstance(value, tuple) else value
        for key, value in options.items()
    }
    with undisturbed():
        model = model_class(config_class(**built))
    return _OfFeatures(model) if is_part else model


_BUILD: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "ultralytics": _ultralytics,
    "doctr": _doctr,
    "transformers": _transformers,
}

_CONVERT: dict[str, Callable[[nn.Module], nn.Module]] = {
    "timm": lambda model: imported("timm").utils.reparameterize_model(model, inplace=True),
    "doctr": lambda model: imported("doctr.models.detection.fast.pytorch").reparameterize(model),
    "ultralytics": lambda model: model.fuse(verbose=False),
}


def _each(package: str, names: str, *shapes: tuple[int, ...], **options: Any) -> Iterator[Model]:
    for name in names.split():
        yield Model(package, name, shapes or (WIDE,), options)


def _folded(
    package: str, names: str, shape: tuple[int, ...] = WIDE, **options: Any
) -> Iterator[Model]:
    for name in names.split():
        yield Model(package, name, (shape,), options, fold_bn=True)


RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1],
          "layer_type": "basic"}  # fmt: skip
HGNET = {
    "embedding_size": 16,
    "stem_channels": [3, 8, 16],
    "stage_in_channels": [16, 32, 64, 128],
    "stage_mid_channels": [8, 16, 32, 64],
    "stage_out_channels": [32, 64, 128, 256],
    "hidden_sizes": [32, 64, 128, 256],
}
STAGES = {"out_features": ["stage2", "stage3", "stage4"]}
ENCODER = {"encoder_hidden_dim": 32, "encoder_ffn_dim": 32, "encoder_attention_heads": 4}
DETECTOR = {
    **ENCODER,
    "d_model": 32,
    "decoder_in_channels": [32] * 3,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "num_queries": 10,
}
ON_RESNET = {
    **DETECTOR,
    "backbone_config": ("RTDetrResNetConfig", {**RESNET, **STAGES}),
    "encoder_in_channels": [32, 64, 128],
}
ON_HGNET = {
    **DETECTOR,
    "backbone_config": ("HGNetV2Config", {**HGNET, **STAGES}),
    "encoder_in_channels": [64, 128, 256],
}
OMDET = {"encoder_in_channels": [16, 32, 64], "encoder_hidden_dim": 32, "d_model": 32,
         "encoder_dim_feedforward": 32}  # fmt: skip
LOFTR = {
    "stage_num_blocks": [1, 2, 2, 2],
    "out_features": [16, 16, 32, 64],
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_attention_layers": 1,
}
TEXTNET = {"stem_out_channels": 16, "hidden_sizes": [16, 16, 32, 32, 64]}
BOXES = (1, 3, 64, 96)
MAPS = ((1, 16, 16, 24), (1, 32, 8, 12), (1, 64, 4, 6))

MODELS = (
    *_each("timm", "repghostnet_050 lcnetv2_base shvit_s1 mobileone_s0 repvit_m0_9"),
    *_each("timm", "repvgg_a0 repvgg_b1g4 repvgg_d2se", width_factor=0.125),
    *_each(
        "transformers",
        "textnet.TextNetModel",
        stem_out_channels=16,
        hidden_sizes=[16, 16, 32, 32, 64],
    ),
    *_each("transformers", "rt_detr.RTDetrForObjectDetection", BOXES, **ON_RESNET),
    *_each("transformers", "efficientloftr.EfficientLoFTRModel", (1, 2, 3, 64, 96), **LOFTR),
    *_each("transformers", "omdet_turbo.OmDetTurboHybridEncoder", *MAPS, **OMDET),
    *_each("transformers", "pp_lcnet_v3.PPLCNetV3Backbone", scale=0.25),
    *_each("transformers", "d_fine.DFineForObjectDetection", BOXES, **ON_HGNET),
    *_each("torchvision", "resnet18 mobilenet_v3_small shufflenet_v2_x0_5 squeezenet1_1"),
    *_each("ultralytics", "yolov10n yolov9t yolo26n", BOXES),
    *_folded("timm", "resnet10t repvit_m0_9"),
    *_folded("torchvision", "mobilenet_v2"),
    *_folded("ultralytics", "yolo11n", BOXES),
    *_each("doctr", "textnet_tiny"),
    *_each("timm", "efficientvit_m0", SQUARE, img_size=64),
    *_folded("timm", "levit_128s levit_conv_128s", SQUARE, img_size=64),
    *_each("timm", "poolformerv2_s12 caformer_s18", SQUARE),
    *_each("timm", "fastvit_t8", SQUARE),
    *_each("timm", "ghostnetv3_050 ghostnet_050 lcnet_050 resnet10t starnet_s050"),
    *_each("doctr", "vip_tiny mobilenet_v3_small_r crnn_mobilenet_v3_small", (1, 3, 32, 128)),
    *_each("transformers", "rt_detr.RTDetrModel", BOXES, **ON_RESNET),
    *_each("transformers", "rt_detr_v2.RTDetrV2ForObjectDetection", BOXES, **ON_RESNET),
    *_each("transformers", "deimv2.Deimv2ForObjectDetection", BOXES, **ON_HGNET),
    *_each("transformers", "levit.LevitForImageClassification", SQUARE, image_size=64),
    *_each("transformers", "hgnet_v2.HGNetV2ForImageClassification", **HGNET),
    *_each("transformers", "resnet.ResNetForImageClassification", **RESNET),
    *_each("transformers", "superpoint.SuperPointForKeypointDetection"),
    *_each("torchvision", "mnasnet0_5 regnet_y_400mf mobilenet_v2"),
    *_each("ultralytics", "yolov5n yolov6n yolov8n yolo11n yolo12n yolo11n-seg", BOXES),
    *_each("ultralytics", "yolo11n-pose yolo11n-cls yolo11n-obb yolov3-tiny", BOXES),
    *_each("timm", "mobilenetv4_conv_small_050 ghostnetv2_100 hgnetv2_b0 efficientvit_b0"),
    *_each("doctr", "db_mobilenet_v3_large fast_tiny", SQUARE),
    *_folded("timm", "mobilenetv2_050 repghostnet_050"),
    *_folded("timm", "tf_mobilenetv3_small_100 tf_efficientnet_b0"),
    *_folded("torchvision", "resnet18"),
    *_folded("ultralytics", "yolov10n", BOXES),
    *_each("timm", "fastvit_mci0", SQUARE),
    *_each("timm", "repghostnet_100 ghostnetv3_100 repvit_m1_0 lcnetv2_large mobileone_s1"),
    *_each("torchvision", "efficientnet_b0 densenet121"),
    *_each("doctr", "linknet_resnet18", SQUARE),
)
