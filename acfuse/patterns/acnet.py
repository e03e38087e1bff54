"""ACNet: a square convolution with a vertical and a horizontal one beside it, added.

    y = BN(square(x)) + BN(vertical(x)) + BN(horizontal(x))

Source: arXiv:1908.03930 (ICCV 2019), github.com/DingXiaoH/ACNet. The dialects are the attribute
names that other repositories give the same block.
"""

from acfuse.patterns.expr import Expr, maybe, seq
from acfuse.patterns.pattern import Pattern


def _acnet(
    dialect: str, square: str, *others: str, fused: str = "fused_conv", norm: str = "last_bn",
    ignore: tuple[str, ...] = ("nonlinearity", "relu", "act"), ambiguity: str = "",
    source: str = "github.com/DingXiaoH/ACNet",
) -> Pattern:  # fmt: skip
    """One dialect. An arm is the name of a convolution and, where there is one, its BatchNorm's."""

    def arm(names: str) -> Expr:
        conv, *norms = names.split()
        return seq(conv, *map(maybe, norms))

    branches = sum((maybe(arm(names)) for names in others), start=arm(square))
    return Pattern(
        family="acnet",
        dialect=dialect,
        block=seq(branches, maybe(norm)),
        fused=fused,
        ignore=ignore,
        source=source,
        ambiguity=ambiguity,
    )


ACNET = (
    _acnet(
        "original", "square_conv square_bn", "ver_conv ver_bn", "hor_conv hor_bn", "rbr_identity"
    ),
    _acnet(
        "article", "conv3x3 bn3x3", "conv3x1 bn3x1", "conv1x3 bn1x3",
        fused="fusion_conv", source="the names used by tutorials on ACNet",
    ),
    _acnet(
        "branch", "square_branch.conv square_branch.bn", "ver_branch.conv ver_branch.bn",
        "hor_branch.conv hor_branch.bn",
        fused="fused_branch", source="github.com/PaddlePaddle/PaddleSlim",
    ),
    _acnet(
        "brb", "brb_3x3.conv brb_3x3.bn", "brb_3x1.conv brb_3x1.bn", "brb_1x3.conv brb_1x3.bn",
        fused="brb_rep", source="github.com/xmu-xiaoma666/External-Attention-pytorch",
    ),
    _acnet(
        "cross", "squre", "cross_ver", "cross_hor",
        norm="bn", ignore=("ReLU", "relu"), source="segmentation networks with a misspelt square",
    ),
    _acnet(
        "shadow", "square_conv square_bn", "shadow_conv shadow_bn", "shadow_conv2 shadow_bn2",
        source="github.com/zhangxin-xd/BPL",
    ),
    _acnet(
        "kxk", "conv_kxk.conv conv_kxk.bn", "conv_kx1.conv conv_kx1.bn",
        "conv_1xk.conv conv_1xk.bn", source="detectors built on mmcv's ConvModule",
    ),
    _acnet(
        "textnet", "main_conv main_bn", "ver_conv ver_bn", "hor_conv hor_bn", "rbr_identity",
        source="arXiv:2111.02394, github.com/czczup/FAST",
    ),
    _acnet(
        "doctr", "conv bn", "ver_conv ver_bn", "hor_conv hor_bn", "rbr_identity",
        ignore=("activation",), source="github.com/mindee/doctr",
    ),
    _acnet(
        "transformers", "main_conv main_batch_norm", "vertical_conv vertical_batch_norm",
        "horizontal_conv horizontal_batch_norm", "rbr_identity",
        ignore=("activation_function",), source="github.com/huggingface/transformers, TextNet",
    ),
    _acnet(
        "inlined", "conv1 bn1", "ver_conv ver_bn", "hor_conv hor_bn",
        source="residual blocks that hold the arms themselves",
        ambiguity="the layers stand in a larger block, whose other layers do not say where the sum "
        "is",
    ),
)  # fmt: skip
