"""RepVGG: a 3x3 convolution, a 1x1 one and the input itself, each with its BatchNorm, added.

    y = BN(conv3x3(x)) + BN(conv1x1(x)) + BN(x)

Source: arXiv:2101.03697 (CVPR 2021), github.com/DingXiaoH/RepVGG. The dialects are the attribute
names that other repositories give the same block.
"""

from acfuse.patterns.expr import layer, maybe, scaled, seq
from acfuse.patterns.pattern import Pattern

SEQUENTIAL = (
    "two layers of these names may as well stand one after the other, where the channels "
    "stay the same"
)
ADDED = "the two read the same input and are added"

REPVGG = (
    Pattern(
        family="repvgg",
        block=seq("rbr_dense.conv", "rbr_dense.bn")
        + seq("rbr_1x1.conv", "rbr_1x1.bn")
        + maybe("rbr_identity"),
        fused="rbr_reparam",
        ignore=("nonlinearity", "se", "post_se"),
        bn_eps=None,
        usual_eps="1e-5 in RepVGG's own code, 1e-3 in YOLOv6 and mmyolo",
        source="arXiv:2101.03697, github.com/DingXiaoH/RepVGG; YOLOv6, mmyolo, DAMO-YOLO",
    ),
    Pattern(
        family="repvgg",
        dialect="folded",
        block=seq("rbr_dense.conv") + "rbr_1x1.conv" + maybe("rbr_identity"),
        fused="rbr_reparam",
        ignore=("nonlinearity", "se"),
        bn_eps=None,  # the identity alone still needs it
        usual_eps="1e-3 in YOLOv6",
        source="github.com/meituan/YOLOv6, after its fuse_model took up the BatchNorms of the arms",
    ),
    Pattern(
        family="repvgg",
        dialect="mmpretrain",
        block=seq("branch_3x3.conv", "branch_3x3.norm")
        + seq("branch_1x1.conv", "branch_1x1.norm")
        + maybe("branch_norm"),
        fused="branch_reparam",
        ignore=("act", "se_layer"),
        source="github.com/open-mmlab/mmpretrain",
    ),
    Pattern(
        family="repvgg",
        dialect="numbered",
        block=seq("rbr_dense.0", "rbr_dense.1")
        + seq("rbr_1x1.0", "rbr_1x1.1")
        + maybe("rbr_identity"),
        fused="rbr_reparam",
        ignore=("act", "nonlinearity", "se"),
        bn_eps=None,
        usual_eps="1e-3 in YOLOv7, 1e-5 in NanoDet",
        source="arXiv:2207.02696, github.com/WongKinYiu/yolov7; github.com/RangiLyu/nanodet",
    ),
    Pattern(
        family="repvgg",
        dialect="timm",
        block=seq(layer("conv_1x1.conv", 1), "conv_1x1.bn")
        + seq("conv_kxk.conv", "conv_kxk.bn")
        + maybe("identity"),
        fused="reparam_conv",
        ignore=("attn", "act"),
        source="github.com/huggingface/pytorch-image-models, byobnet",
    ),
    Pattern(
        family="repvgg",
        dialect="detr",
        block=seq("conv1.conv", "conv1.norm") + seq("conv2.conv", "conv2.norm"),
        fused="conv",
        ignore=("act",),
        source="github.com/lyuwenyu/RT-DETR, github.com/Peterande/D-FINE",
        ambiguity=SEQUENTIAL,
        assumption=ADDED,
    ),
    Pattern(
        family="repvgg",
        dialect="yolov9",
        block=seq("conv1.conv", "conv1.bn") + seq("conv2.conv", "conv2.bn") + maybe("bn"),
        fused="conv",
        ignore=("act",),
        bn_eps=None,
        usual_eps="1e-3 in YOLOv9 and ultralytics, 1e-5 in PP-YOLOE",
        source="github.com/WongKinYiu/yolov9, github.com/ultralytics/ultralytics, PP-YOLOE",
        ambiguity=SEQUENTIAL,
        assumption=ADDED,
    ),
    Pattern(
        family="repvgg",
        dialect="ppyoloe",
        block=seq("conv1.conv", "conv1.bn") + scaled("alpha", seq("conv2.conv", "conv2.bn")),
        fused="conv",
        ignore=("act",),
        source="github.com/PaddlePaddle/PaddleDetection, PP-YOLOE with alpha, in torch",
        ambiguity=SEQUENTIAL,
        assumption=ADDED,
    ),
    Pattern(
        family="repvgg",
        dialect="conv2",
        block=seq(seq("conv") + "cv2", "bn"),
        fused="conv",
        ignore=("act",),
        bn_eps=1e-3,
        source="github.com/ultralytics/ultralytics, Conv2",
        ambiguity=SEQUENTIAL,
        assumption=ADDED,
    ),
    Pattern(
        family="repvgg",
        dialect="yolov10",
        block=seq(layer("conv.conv", 7, depthwise=True), "conv.bn")
        + seq(layer("conv1.conv", 3, depthwise=True), "conv1.bn"),
        fused="conv",
        ignore=("act",),
        bn_eps=1e-3,
        source="arXiv:2405.14458, github.com/THU-MIG/yolov10, RepVGGDW",
    ),
)
