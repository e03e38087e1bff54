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
        anchored="conv_kxk.0.conv",
        fused="reparam_conv",
        tail=("lab", "act"),
        source="github.com/PaddlePaddle/PaddleOCR, github.com/frotms/PaddleOCR2Pytorch",
        alone="whether lab's factor and the activation take part depends on the stride",
    ),
)
