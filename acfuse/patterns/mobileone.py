"""MobileOne: any number of kxk convolutions, a 1x1 one and the input, each with its BatchNorm.

    y = BN(conv1x1(x)) + BN(x) + sum_i BN(conv_i(x))

Source: arXiv:2206.04040 (CVPR 2023), github.com/apple/ml-mobileone.
"""

from acfuse.patterns.expr import each, maybe
from acfuse.patterns.pattern import Pattern


def _mobileone(dialect: str, names: str, fused: str, source: str) -> Pattern:
    """One dialect, with the names of the convolutions, of the 1x1 one, of the skip and of norms."""
    convs, scale, skip, norm = names.split()
    return Pattern(
        family="mobileone",
        dialect=dialect,
        block=maybe(f"{scale}.conv", f"{scale}.{norm}") + maybe(skip) + each(convs, "conv", norm),
        fused=fused,
        ignore=("se", "se_layer", "attn", "act", "activation"),
        source=source,
    )


MOBILEONE = (
    _mobileone(
        "original", "rbr_conv rbr_scale rbr_skip bn", "reparam_conv",
        "arXiv:2206.04040, github.com/apple/ml-mobileone, ml-fastvit, ml-mobileclip",
    ),
    _mobileone(
        "timm", "conv_kxk conv_scale identity bn", "reparam_conv",
        "github.com/huggingface/pytorch-image-models, byobnet and fastvit",
    ),
    _mobileone(
        "mmpretrain", "branch_conv_list branch_scale branch_norm norm", "branch_reparam",
        "github.com/open-mmlab/mmpretrain",
    ),
)  # fmt: skip
