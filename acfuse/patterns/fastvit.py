"""FastViT: a depthwise mixer less its norm, times a factor per channel, beside the input.

    y = x + gamma * (mixer(x) - norm(x))        mixer and norm are MobileOne blocks

Source: arXiv:2303.14189 (ICCV 2023), github.com/apple/ml-fastvit. Its large kernels are RepLKNet's.
"""

from acfuse.patterns.expr import Expr, Pattern, each, maybe, scaled, x

INSIDE = (
    "its mixer is a MobileOne block and can be fused as one; what is added to it, and times which "
    "factor, stands in the code"
)


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
        anchored="mixer.rbr_conv.0.conv",
        fused="reparam_conv",
        source="arXiv:2303.14189, github.com/apple/ml-fastvit",
        alone=INSIDE,
    ),
    Pattern(
        family="repmixer",
        dialect="timm",
        block=_mixed("conv_kxk", "conv_scale", "identity", "identity", "layer_scale.gamma"),
        anchored="mixer.conv_kxk.0.conv",
        fused="reparam_conv",
        source="github.com/huggingface/pytorch-image-models, fastvit",
        alone=INSIDE,
    ),
)
