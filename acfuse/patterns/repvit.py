"""RepViT: a depthwise 3x3 with its BatchNorm, a depthwise 1x1 and the input, added.

    y = BN(BN(conv3x3(x)) + conv1x1(x) + x)

Source: arXiv:2307.09283 (CVPR 2024), github.com/THU-MIG/RepViT. The authors' deploy form replaces
the whole block, so that its one convolution has no name of its own.
"""

from acfuse.patterns.expr import layer, seq, x
from acfuse.patterns.pattern import Pattern

REPVIT = (
    Pattern(
        family="repvit",
        block=seq(
            seq(layer("conv.c", 3, depthwise=True), "conv.bn")
            + layer("conv1", 1, depthwise=True)
            + x,
            "bn",
        ),
        fused="fused_conv",
        source="arXiv:2307.09283, github.com/THU-MIG/RepViT",
    ),
    Pattern(
        family="repvit",
        dialect="legacy",
        block=seq(layer("conv.c", 3, depthwise=True), "conv.bn")
        + seq(layer("conv1.c", 1, depthwise=True), "conv1.bn")
        + x,
        fused="fused_conv",
        source="github.com/THU-MIG/RepViT, its first version, and legacy models of timm",
    ),
)
