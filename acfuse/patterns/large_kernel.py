"""Large kernels: a large depthwise convolution with small or dilated ones beside it, added.

    RepLKNet:    y = BN(large(x)) + BN(small(x))
    SLaK:        y = BN(tall(x)) + BN(wide(x)) + BN(small(x))
    UniRepLKNet: y = BN(large(x)) + sum BN(small, dilated by r (x))

Source: arXiv:2203.06717 (CVPR 2022), arXiv:2207.03620 (ICLR 2023), arXiv:2311.15599 (CVPR 2024).
"""

from itertools import product

from acfuse.patterns.expr import layer, maybe, seq
from acfuse.patterns.pattern import Pattern

# Every kernel and dilation that the authors pair with one of their kernels of 5 to 17.
DILATED = tuple(product((3, 5, 7, 9), (1, 2, 3, 4, 5, 7)))

LARGE_KERNEL = (
    Pattern(
        family="replknet",
        block=seq("lkb_origin.conv", "lkb_origin.bn") + seq("small_conv.conv", "small_conv.bn"),
        fused="lkb_reparam",
        ignore=("activation", "se"),
        source="arXiv:2203.06717, github.com/DingXiaoH/RepLKNet-pytorch; apple/ml-fastvit",
    ),
    Pattern(
        family="replknet",
        dialect="timm",
        block=seq("large_conv.conv", "large_conv.bn") + seq("small_conv.conv", "small_conv.bn"),
        fused="reparam_conv",
        ignore=("se", "act"),
        source="github.com/huggingface/pytorch-image-models, fastvit",
    ),
    Pattern(
        family="slak",
        block=seq("LoRA1.conv", "LoRA1.bn")
        + seq("LoRA2.conv", "LoRA2.bn")
        + maybe("small_conv.conv", "small_conv.bn"),
        fused="lkb_reparam",
        source="arXiv:2207.03620, github.com/VITA-Group/SLaK",
    ),
    Pattern(
        family="unireplknet",
        block=sum(
            (maybe(layer(f"dil_conv_k{k}_{r}", k, r), f"dil_bn_k{k}_{r}") for k, r in DILATED),
            start=seq("lk_origin", "origin_bn"),
        ),
        fused="lk_origin",
        source="arXiv:2311.15599, github.com/AILab-CVC/UniRepLKNet",
    ),
)
