"""What layers do, written a second time and without the algebra: the oracle of these tests.

Edges are written out by index, windows by torch's own convolutions. Also here: which images to
try, and how to see whether a map is one convolution at all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from acfuse.algebra import AvgPool, Conv, Pad
from acfuse.algebra.layers import Pads
from tests.bounds import differ, linear_bound

Layer = Conv | Pad | AvgPool
Map = Callable[[Tensor], Tensor]
Window = tuple[int, int, int, int]  # taps (dilation spread into them), stride, before, after

BORDERS = ("zeros", "reflect", "replicate", "circular")
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


# --- layers and images ------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> Tensor:
    """Normal numbers, float64, that depend on the seed alone."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def image(channels: int, sides: Sequence[int], batch: int = 2) -> Tensor:
    """A random image. Shapes: [batch, channels, *sides]."""
    return normal(prod(sides), batch, channels, *sides)


def continued(x: Tensor, pads: Pads, border: str) -> Tensor:
    """The image past its edges: for each place there, the index of the pixel that is read."""
    for axis, (before, after) in enumerate(pads, start=2):
        side = x.shape[axis]
        place = torch.arange(-before, side + after)
        if border == "circular":
            source = place % side
        elif border == "reflect" and side > 1:
            source = (side - 1) - ((place % (2 * side - 2)) - (side - 1)).abs()
        else:
            source = place.clamp(0, side - 1)
        x = x.index_select(axis, source)
        if border == "zeros":
            x = x * (place == source).reshape(-1, *[1] * (x.ndim - axis - 1))
    return x


def run(layer: Layer, x: Tensor) -> Tensor:
    """What the layer gives for an image, in float64."""
    if isinstance(layer, Pad):
        return continued(x, layer.pads, layer.border)
    if isinstance(layer, AvgPool):
        return POOLS[len(layer.size)](continued(x, layer.pads, "zeros"), layer.size, layer.stride)
    return CONVOLUTIONS[len(layer.stride)](
        continued(x, layer.pads, layer.border),
        layer.weight.double(),
        None if layer.bias is None else layer.bias.double(),
        layer.stride,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def run_chain(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """One layer after the other."""
    for layer in layers:
        x = run(layer, x)
    return x


def run_sum(branches: Sequence[Layer], x: Tensor) -> Tensor:
    """The branches of one input, added."""
    return sum((run(branch, x) for branch in branches[1:]), start=run(branches[0], x))


def windows(layer: Layer) -> list[Window]:
    """The window of the layer on each axis."""
    if isinstance(layer, Pad):
        return [(1, 1, *pads) for pads in layer.pads]
    if isinstance(layer, AvgPool):
        size, dilation = layer.size, (1,) * len(layer.size)
    else:
        size, dilation = layer.weight.shape[2:], layer.dilation
    each_axis = zip(size, layer.stride, layer.pads, dilation, strict=True)
    return [(d * (n - 1) + 1, s, *pads) for n, s, pads, d in each_axis]


def border_of(layer: Layer) -> str:
    """How the layer continues an image. A pool knows only zeros."""
    return "zeros" if isinstance(layer, AvgPool) else layer.border


def in_channels(layer: Layer) -> int:
    """How many channels it takes."""
    return layer.weight.shape[1] * layer.groups if isinstance(layer, Conv) else layer.channels


def out_channels(layer: Layer) -> int:
    """How many channels it gives."""
    return layer.weight.shape[0] if isinstance(layer, Conv) else layer.channels


# --- sizes of images --------------------------------------------------------------------------


def images(*chains: Sequence[Layer], beyond: int = 0) -> list[Tensor]:
    """Images that every chain can take, the smallest (plus `beyond` pixels) first."""
    channels = in_channels(chains[0][0])
    return [image(channels, sides) for sides in image_sides(*chains, beyond=beyond)]


def images_for(branches: Sequence[Layer], beyond: int = 0) -> list[Tensor]:
    """Images that every branch can take, the smallest (plus `beyond` pixels) first."""
    return images(*([branch] for branch in branches), beyond=beyond)


def image_sides(*chains: Sequence[Layer], beyond: int = 0, tries: int = 3) -> list[tuple[int, ...]]:
    """Sides of images that every chain can take: the smallest, then `tries` ever larger ones.

    `beyond` pixels are added to all. The larger ones have no two sides alike, and grow by one, so
    that odd and even sides occur and every rest of a stride up to `tries`.
    """
    axes = range(len(windows(chains[0][0])))
    smallest = [max(smallest_side(chain, axis) for chain in chains) + beyond for axis in axes]
    distinct: list[int] = []
    for side in smallest:
        distinct.append(next(n for n in count(side + 1) if n not in distinct))
    return [tuple(smallest), *(tuple(n + step for n in distinct) for step in range(tries))]


def smallest_side(layers: Sequence[Layer], axis: int) -> int:
    """The smallest side of an image that torch's own layers, one after the other, can take."""
    return next(side for side in count(1) if _fits(layers, axis, side))


def _fits(layers: Sequence[Layer], axis: int, side: int) -> bool:
    for layer in layers:
        taps, stride, before, after = windows(layer)[axis]
        longest = {"reflect": side - 1, "circular": side}.get(border_of(layer))
        if longest is not None and max(before, after) > longest:
            return False
        if side + before + after < taps:
            return False
        side = (side + before + after - taps) // stride + 1
    return True


# --- the one convolution that a map would have to be ------------------------------------------


def chained(layers: Sequence[Layer]) -> list[Window]:
    """The only window that one convolution could have which is this chain.

    What is read far from the edges fixes the stride and the places of the taps, the sizes of the
    outputs fix the sum of the pads, and empty taps with equally more pads change nothing.
    """
    whole = [(1, 1, 0, 0)] * len(windows(layers[0]))
    for layer in layers:
        whole = [
            (s * (n - 1) + t, s * step, s * before + b, s * after + a)
            for (t, s, b, a), (n, step, before, after) in zip(whole, windows(layer), strict=True)
        ]
    return whole


def united(branches: Sequence[Layer]) -> list[Window]:
    """The only window that one convolution could have which is the sum of these branches."""
    whole = []
    for axis in zip(*map(windows, branches), strict=True):
        taps, stride, before, after = axis[0]
        first, last = max(b for _, _, b, _ in axis), max(a for _, _, _, a in axis)
        whole.append((taps + first - before + last - after, stride, first, last))
    return whole


def borders_that_fit(
    given: Map, window: Sequence[Window], chains: Sequence[Sequence[Layer]]
) -> list[str]:
    """The borders with which one convolution is `given`, a map made of these chains.

    Its kernel and bias leave no choice: they are those of `given` far from the edges. What is left
    is tried on images; an empty list says that no single convolution is this map.
    """
    margins = [max(_reach(chain, axis) for chain in chains) for axis in range(len(window))]
    channels = in_channels(chains[0][0])
    kernel, bias = read_out(given, channels, window, margins)
    furthest = max(0, *(max(before, after) for _, _, before, after in window))
    rests = max(stride for _, stride, _, _ in window)
    sides = image_sides(*chains, beyond=furthest + 1, tries=max(2, rests))
    images = [image(channels, s, batch=1) for s in sides]
    expected = [(x, given(x), 2 * linear_bound(given, x)) for x in images]

    def fits(border: str) -> bool:
        pads = tuple((before, after) for _, _, before, after in window)
        stride, dilation = tuple(s for _, s, _, _ in window), (1,) * len(window)
        one = Conv(kernel, bias, stride, pads, dilation, border=border)
        return not any(
            differ(run(one, x), y, bound + linear_bound(partial(run, one), x))
            for x, y, bound in expected
        )

    return [border for border in BORDERS if fits(border)]


def read_out(
    given: Map, channels: int, window: Sequence[Window], margins: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The kernel and the bias of a map, `margins` pixels away from the edges.

    The map is linear but for its bias: a black image gives the bias, and the gradient of one
    output pixel is the kernel. Shapes: kernel [out, in, *taps], bias [out].
    """
    each_axis = list(zip(window, margins, strict=True))
    pixel = [-(-(margin + before) // stride) for (_, stride, before, _), margin in each_axis]
    seen = [
        slice(stride * n - before, stride * n - before + taps)
        for n, (taps, stride, before, _) in zip(pixel, window, strict=True)
    ]
    sides = [part.stop + margin for part, margin in zip(seen, margins, strict=True)]
    bias = given(torch.zeros(1, channels, *sides, dtype=torch.float64))[(0, ..., *pixel)]
    black = torch.zeros(len(bias), channels, *sides, dtype=torch.float64, requires_grad=True)
    one_of_each = given(black)[(..., *pixel)].diagonal().sum()
    (gradient,) = torch.autograd.grad(one_of_each, black)
    kernel = gradient[(..., *seen)]
    assert kernel.count_nonzero() == gradient.count_nonzero(), "the window is too small"
    return kernel, bias.detach()


def _reach(chain: Sequence[Layer], axis: int) -> int:
    """How many pixels away from an edge nothing of it can be seen any more."""
    far, step = 0, 1
    for layer in chain:
        taps, stride, before, after = windows(layer)[axis]
        far += step * (taps + abs(before) + abs(after))
        step *= stride
    return far
