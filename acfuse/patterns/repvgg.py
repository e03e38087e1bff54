"""RepVGG: a 3x3 convolution, a 1x1 one and the input itself, each with its BatchNorm, added.

    y = BN(conv3x3(x)) + BN(conv1x1(x)) + BN(x)

Source: arXiv:2101.03697 (CVPR 2021), github.com/DingXiaoH/RepVGG.
"""

from acfuse.patterns.expr import Pattern, maybe, seq

REPVGG = (
    Pattern(
        family="repvgg",
        block=seq("rbr_dense.conv", "rbr_dense.bn")
        + seq("rbr_1x1.conv", "rbr_1x1.bn")
        + maybe("rbr_identity"),
        fused="rbr_reparam",
        tail=("nonlinearity", "se", "post_se"),
        source="arXiv:2101.03697, github.com/DingXiaoH/RepVGG",
    ),
)
