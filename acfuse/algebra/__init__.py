"""What one convolution is, and what keeps a sum or a chain of them one convolution.

`geometry` decides (integers only), `linear_conv` multiplies (float64), `adjoint_geometry` and
`adjoint` do that for transposed ones, `layers` reads what a layer stores, `lower` writes a layer
again. Nothing here knows a module, a file or a name.
"""

from acfuse.algebra.adjoint import (
    Adjoint,
    Planned,
    Value,
    added,
    adjoint_of,
    as_adjoint,
    chain,
)
from acfuse.algebra.adjoint_geometry import AdjointGeometry
from acfuse.algebra.geometry import Axis, Geometry
from acfuse.algebra.layers import (
    Affine,
    AvgPool,
    Conv,
    Pad,
    batch_norm,
    combined,
    per_channel,
    transposed_conv,
)
from acfuse.algebra.linear_conv import LinearConv, identity
from acfuse.algebra.lower import ConvLayer, lower

__all__ = [
    "Adjoint",
    "AdjointGeometry",
    "Affine",
    "AvgPool",
    "Axis",
    "Conv",
    "ConvLayer",
    "Geometry",
    "LinearConv",
    "Pad",
    "Planned",
    "Value",
    "added",
    "adjoint_of",
    "as_adjoint",
    "batch_norm",
    "chain",
    "combined",
    "identity",
    "lower",
    "per_channel",
    "transposed_conv",
]
