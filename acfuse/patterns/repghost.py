"""RepGhost: a cheap depthwise convolution with the normalised input beside it.

    y = BN(conv3x3(x)) + BN(x)      x is what the pointwise convolution before gives

Source: arXiv:2211.06088, github.com/ChengpengChen/RepGhost. The deploy form has the name of the
branch: there the sequence `cheap_operation` is one convolution.
"""

from acfuse.patterns.expr import seq
from acfuse.patterns.pattern import Pattern

REPGHOST = (
    Pattern(
        family="repghost",
        block=seq("cheap_operation.0", "cheap_operation.1") + "fusion_bn.0",
        fused="cheap_operation",
        ignore=("primary_conv", "fusion_conv", "relu"),
        source="arXiv:2211.06088, github.com/ChengpengChen/RepGhost",
        ambiguity="an input that is added as it is leaves no tensor",
        assumption="the input is a branch through fusion_bn alone",
    ),
)
