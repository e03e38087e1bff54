"""PP-LCNetV3: MobileOne's branches, then one learned factor and shift for all channels.

PP-LCNetV2: depthwise kernels of falling size, each with its BatchNorm.

Source: PaddleOCR's PP-LCNetV3, ported as frotms/PaddleOCR2Pytorch.
"""

from acfuse.patterns.expr import each, maybe
from acfuse.patterns.pattern import Pattern

PPLCNET = (
    Pattern(
        family="pplcnet",
        block=maybe("identity")
        + each("conv_kxk", "conv", "bn")
        + maybe("conv_1x1.conv", "conv_1x1.bn"),
        fused="reparam_conv",
        ignore=("lab", "act"),  # they stay, as in the authors' deploy form
        source="github.com/PaddlePaddle/PaddleOCR, github.com/frotms/PaddleOCR2Pytorch",
    ),
    Pattern(
        family="pplcnet",
        dialect="v2",
        block=each("dw_conv_list", "conv", "bn"),
        fused="dw_conv",
        ignore=("dw_act", "se", "pw_conv"),
        source="github.com/huggingface/pytorch-image-models, lcnetv2",
    ),
)
