"""QARepVGG: RepVGG for quantization, with one BatchNorm behind the sum.

    y = BN(BN(conv3x3(x)) + conv1x1(x) + x)

Source: arXiv:2212.01593 (AAAI 2024), github.com/meituan/YOLOv6. YOLOv6 keeps the last BatchNorm in
its deploy form, to calibrate; here it is part of the one convolution.
"""

from acfuse.patterns.expr import maybe, scaled, seq, x
from acfuse.patterns.pattern import Pattern

IDENTITY = (
    "an input that is added as it is leaves no tensor, and whether it is depends on the stride "
    "and the variant"
)
FIRST = (
    "nothing without tensors is added but the input, wherever it has as many channels as the "
    "output, and no layer is grouped"
)

QAREPVGG = (
    Pattern(
        family="qarepvgg",
        block=seq(seq("rbr_dense.conv", "rbr_dense.bn") + "rbr_1x1" + maybe(x), "bn"),
        fused="rbr_reparam",
        ignore=("nonlinearity", "se"),
        bn_eps=None,
        usual_eps="1e-3 in YOLOv6, 1e-5 in QARepVGG's own code",
        source="arXiv:2212.01593, github.com/meituan/YOLOv6, github.com/cxxgtxy/QARepVGG",
        ambiguity=IDENTITY,
        assumption=FIRST,
    ),
    Pattern(
        family="qarepvgg",
        dialect="super-gradients",
        block=seq(
            seq("branch_3x3.conv", "branch_3x3.bn") + scaled("alpha", "branch_1x1") + maybe(x),
            maybe("post_bn"),
        ),
        fused="rbr_reparam",
        ignore=("nonlinearity", "se"),
        bn_eps=1e-3,
        source="github.com/Deci-AI/super-gradients, YOLO-NAS",
        ambiguity=IDENTITY,
        assumption=FIRST,
    ),
)
