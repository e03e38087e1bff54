"""PP-LCNetV3: MobileOne's branches, then one learned factor and shift for all channels.

Source: PaddleOCR's PP-LCNetV3, ported as frotms/PaddleOCR2Pytorch.
"""

from acfuse.patterns.expr import Pattern, each, maybe

PPLCNET = (
    Pattern(
        family="pplcnet",
        block=maybe("identity")
        + each("conv_kxk", "conv", "bn")
        + maybe("conv_1x1.conv", "conv_1x1.bn"),
        fused="reparam_conv",
        tail=("lab", "act"),  # they stay, as in the authors' deploy form
        source="github.com/PaddlePaddle/PaddleOCR, github.com/frotms/PaddleOCR2Pytorch",
    ),
)
