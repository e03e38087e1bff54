"""Diverse branch block: a kxk, a 1x1, a 1x1 before a kxk and a 1x1 before a pooling, added.

The map in the middle of an arm is padded with what BatchNorm makes of zero. That is the same as to
pad what the arm reads, and so exact. In the third arm, a 1x1 from and to the same channels is
stored as its difference from the identity.

Source: arXiv:2103.13425 (CVPR 2021), github.com/DingXiaoH/DiverseBranchBlock.
"""

from acfuse.patterns.expr import Expr, maybe, padded, pool, seq, x
from acfuse.patterns.pattern import Pattern


def _dbb(dialect: str, norm: str, source: str) -> Pattern:
    """`norm` stands behind the name of a BatchNorm that pads."""
    k = "dbb_1x1_kxk"
    pointwise: tuple[Expr, ...] = (seq(f"{k}.idconv1") + x, seq(f"{k}.conv1"))
    deep = [
        maybe(padded(f"{k}.conv2", first, f"{k}.bn1{norm}", f"{k}.conv2", f"{k}.bn2"))
        for first in pointwise
    ]
    like = "dbb_origin.conv"
    pooled = [
        maybe(
            padded(
                like,
                maybe("dbb_avg.conv", f"dbb_avg.bn{norm}"),
                pool(like),
                "dbb_avg.avgbn",
            )
        ),
    ]
    origin = seq("dbb_origin.conv", "dbb_origin.bn")
    return Pattern(
        family="dbb",
        dialect=dialect,
        block=sum([*deep, *pooled], start=origin + maybe("dbb_1x1.conv", "dbb_1x1.bn")),
        fused="dbb_reparam",
        ignore=("nonlinear",),
        source=source,
    )


DBB = (
    _dbb("original", ".bn", "arXiv:2103.13425, github.com/DingXiaoH/DiverseBranchBlock"),
    _dbb("old", "", "github.com/DingXiaoH/DiverseBranchBlock, before its pull request 10"),
)
