"""A model without the powers of two by which its channels were scaled, told by its weights.

Of two files with the same tensors, one is the other with channels scaled if for each weight
log2(other / one) = e[row] - e[column], e being 0 for what may not be scaled. That is solved for e
from the inputs and outputs of the model on. A ratio that is no power of two tells nothing, and what
does not follow e is another difference, and stays. Scales are believed only if more of the weights
are explained with them than without.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from acfuse.errors import InputError
from acfuse.int8.channels import Channels, Layer, Shapes, channels_of
from acfuse.int8.equalize import Scales, arrays_of, scale

Exponents = NDArray[np.int64]
NEAR = 2.0**-8  # of a power of two: a ratio that is no nearer is none; float16 rounds by less


def unscaled(file: onnx.ModelProto, own: onnx.ModelProto, shapes: Shapes) -> onnx.ModelProto | None:
    """A copy of `file` with the scales of `own`. None where it is not scaled, or has other tensors.

    `shapes` are those of `own`'s values.
    """
    scales = scales_between(own, file, shapes)
    if scales is None:
        return None
    twin = onnx.ModelProto()
    twin.CopyFrom(file)
    try:
        scale(twin, scales.turned())
    except (InputError, KeyError, ValueError):  # a bias is not there, or of another shape
        return None
    return twin


def scales_between(own: onnx.ModelProto, file: onnx.ModelProto, shapes: Shapes) -> Scales | None:
    """The scales that make `file` of `own`; None where there are none, or it has other tensors."""
    channels = channels_of(own, shapes)
    names = [layer.weight for layer in channels.layers]
    one, other = arrays_of(own, names), arrays_of(file, names)
    if any(
        name not in other or (array.shape, array.dtype) != (other[name].shape, other[name].dtype)
        for name, array in one.items()
    ):
        return None
    pairs = ((layer, one[layer.weight], other[layer.weight]) for layer in channels.layers)
    differences = [_Difference.of(channels, *pair) for pair in pairs]
    exponents = _solved(channels, differences)
    explained = [sum(d.explained(e) for d in differences) for e in (exponents, 0 * exponents)]
    return Scales(channels, exponents) if explained[0] > explained[1] else None


class _Difference:
    """A layer of two models: by which power of two each weight of the one is the other's."""

    def __init__(self, rows: Exponents, columns: Exponents, powers: NDArray[np.float64]) -> None:
        self.rows, self.columns, self.powers = rows, columns, powers  # NaN: nothing is told

    @classmethod
    def of(
        cls,
        channels: Channels,
        layer: Layer,
        one: NDArray[np.floating],
        other: NDArray[np.floating],
    ) -> "_Difference":
        """That of a layer with these weights: each pair of channels is told by its largest tap."""
        before, after = layer.matrix(one), layer.matrix(other)
        largest = np.abs(before).argmax(2)[:, :, None]
        a, b = (np.take_along_axis(x, largest, 2)[:, :, 0].astype(np.float64)
                for x in (before, after))  # fmt: skip
        with np.errstate(divide="ignore", invalid="ignore"):
            powers = np.rint(np.log2(b / a))
            powers[~(np.abs(b / a / np.exp2(powers) - 1) < NEAR)] = np.nan
        return cls(channels.roots(layer.rows), channels.roots(layer.columns), powers)

    def explained(self, exponents: Exponents) -> int:
        """How many pairs of channels are those of the other model, scaled so."""
        return int((self.powers == exponents[self.rows][:, None] - exponents[self.columns]).sum())

    def tell(self, exponents: NDArray[np.float64]) -> bool:
        """Fills in those exponents that follow from what is known. Whether there were any."""
        rows = np.broadcast_to(self.rows[:, None], self.powers.shape)
        told = _filled(exponents, rows, self.powers + exponents[self.columns])
        return _filled(exponents, self.columns, exponents[rows] - self.powers) or told


def _filled(
    exponents: NDArray[np.float64], classes: Exponents, values: NDArray[np.float64]
) -> bool:
    """Gives each class that is not known yet the middle one of the values told for it."""
    is_new = np.isnan(exponents[classes]) & ~np.isnan(values)
    order = np.lexsort((values[is_new], classes[is_new]))
    found, start, count = np.unique(classes[is_new][order], return_index=True, return_counts=True)
    exponents[found] = values[is_new][order][start + count // 2]
    return bool(len(found))


def _solved(channels: Channels, differences: list[_Difference]) -> Exponents:
    """The exponent of each class; 0 where nothing tells it."""
    exponents = np.full(channels.count, np.nan)
    exponents[[channels.find(n) for n in channels.pinned]] = 0
    while sum(difference.tell(exponents) for difference in differences):
        pass
    found: Exponents = np.nan_to_num(exponents).astype(np.int64)
    return found
