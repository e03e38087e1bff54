"""FastViT: a depthwise mixer less its norm, times a factor per channel, beside the input.

    y = x + gamma * (mixer(x) - norm(x))        mixer and norm are MobileOne blocks

Source: arXiv:2303.14189 (ICCV 2023), github.com/apple/ml-fastvit. Its large kernels are RepLKNet's.
"""

from acfuse.patterns.expr import Expr, each, layer, maybe, scaled, x
from acfuse.patterns.pattern import Pattern

INSIDE = (
    "its mixer is a MobileOne block and can be fused as one; what is added to it, and times which "
    "factor, stands in the code"
)
MIXED = "what mixer gives less what norm gives, times layer_scale, is added to the input"
WITHOUT = "an input that is added as it is leaves no tensor"


def _mixed(convs: str, scale: str, skip: str, norm: str, gamma: str) -> Expr:
    mixer = (
        maybe(f"mixer.{scale}.conv", f"mixer.{scale}.bn")
        + maybe(f"mixer.{skip}")
        + each(f"mixer.{convs}", "conv", "bn")
    )
    return x + scaled(gamma, mixer - f"norm.{norm}")


FASTVIT = (
    Pattern(
        family="repmixer",
        block=_mixed("rbr_conv", "rbr_scale", "rbr_skip", "rbr_skip", "layer_scale"),
        fused="reparam_conv",
        source="arXiv:2303.14189, github.com/apple/ml-fastvit",
        ambiguity=INSIDE,
        assumption=MIXED,
    ),
    Pattern(
        family="repmixer",
        dialect="timm",
        block=_mixed("conv_kxk", "conv_scale", "identity", "identity", "layer_scale.gamma"),
        fused="reparam_conv",
        source="github.com/huggingface/pytorch-image-models, fastvit",
        ambiguity=INSIDE,
        assumption=MIXED,
    ),
    Pattern(
        family="repcpe",
        block=layer("pe", 7, depthwise=True) + x,
        fused="reparam_conv",
        source="github.com/apple/ml-fastvit, RepCPE",
        ambiguity=WITHOUT,
        assumption="the input is added to what pe gives",
    ),
    Pattern(
        family="repcpe",
        dialect="timm",
        block=layer("pos_enc", 7, depthwise=True) + x,
        fused="reparam_conv",
        source="github.com/huggingface/pytorch-image-models, fastvit",
        ambiguity=WITHOUT,
        assumption="the input is added to what pos_enc gives",
    ),
)
