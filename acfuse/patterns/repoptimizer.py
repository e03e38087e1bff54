"""RepOptimizer's hyper-search block: each branch times a factor per channel, then one BatchNorm.

    y = BN(s0 * conv3x3(x) + s1 * conv1x1(x) + s2 * x)

Source: arXiv:2205.15242 (ICLR 2023), github.com/DingXiaoH/RepOptimizers. The target network is
trained as plain convolutions.
"""

from acfuse.patterns.expr import maybe, scaled, seq, x
from acfuse.patterns.pattern import Pattern

REPOPTIMIZER = (
    Pattern(
        family="repoptimizer",
        block=seq(
            scaled("scale_conv", "conv")
            + scaled("scale_1x1", "conv_1x1")
            + maybe(scaled("scale_identity", x)),
            "bn",
        ),
        fused="fused_conv",
        bn_eps=None,
        usual_eps="1e-3 in YOLOv6, 1e-5 in RepOptimizers' own code",
        ignore=("relu", "se", "post_se", "act"),
        source="arXiv:2205.15242, github.com/DingXiaoH/RepOptimizers; YOLOv6 LinearAddBlock",
    ),
)
