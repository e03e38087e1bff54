"""Blocks of super-resolution networks: thin, wide and thin again, with the padding at the front.

    Conv3XC: y = conv1x1(conv3x3(conv1x1(pad(x)))) + skip1x1(x)
    RRRB:    y = reduce(fea(e) + e) + x,  e = expand(x), padded with its own bias

Source: arXiv:2311.12770 (SPAN), arXiv:2204.08397 (FMEN). A fused tensor that lies beside
the branches is computed anew: while a network is trained it is out of date.
"""

from acfuse.patterns.expr import layer, padded, seq, x
from acfuse.patterns.pattern import Pattern

SUPER_RESOLUTION = (
    Pattern(
        family="conv3xc",
        block=padded("conv.1", layer("conv.0", 1), layer("conv.1", 3), layer("conv.2", 1))
        + layer("sk", 1),
        fused="eval_conv",
        requires="eval_conv",  # copies without it pad the 3x3 in the middle
        source="arXiv:2311.12770, github.com/hongyuanyu/SPAN",
    ),
    Pattern(
        family="rrrb",
        block=seq(
            padded("fea_conv", layer("expand_conv", 1), layer("fea_conv", 3)) + "expand_conv",
            layer("reduce_conv", 1),
        )
        + x,
        fused="rep_conv",
        source="arXiv:2204.08397, github.com/NJU-Jet/FMEN",
    ),
)
