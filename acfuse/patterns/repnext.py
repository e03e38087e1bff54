"""RepNeXt: a depthwise square with thin, dilated or oblong kernels beside it, biased, added.

    small: y = 3x3(x) + 1x3(x) + 3x1(x) + 2x2 dilated by 2 (x)            at stride 1
    large: y = 7x7(x) + 5x3(x) + 3x5(x) + 7x1(1x7(x)) + 5x1(1x5(x))

Source: arXiv:2406.16004, github.com/suous/RepNeXt. The authors replace the block by its square.
"""

from acfuse.patterns.expr import layer, maybe, seq
from acfuse.patterns.pattern import Pattern

REPNEXT = (
    Pattern(
        family="repnext",
        block=seq("conv_3_3")
        + maybe("conv_3_w")
        + maybe("conv_3_h")
        + maybe(layer("conv_2_2", 2, 2, depthwise=True)),
        fused="conv_3_3",
        source="arXiv:2406.16004, github.com/suous/RepNeXt",
        ambiguity="the same names are parallel at stride 1 and one after the other at stride 2",
        assumption="all kernels are parallel, as they are at stride 1",
        requires="conv_3_w.bias",  # one after the other, they have none
    ),
    Pattern(
        family="repnext",
        dialect="large",
        block=layer("conv_7_7", 7, depthwise=True)
        + layer("conv_5_3", (5, 3), depthwise=True)
        + layer("conv_3_5", (3, 5), depthwise=True)
        + (seq("conv_7_w", "conv_7_h") + seq("conv_5_w", "conv_5_h")),
        fused="conv_7_7",
        source="arXiv:2406.16004, github.com/suous/RepNeXt",
        ambiguity="the thin kernels may be parallel or one after the other",
        assumption="the thin kernels stand one after the other, the wide one first",
    ),
)
