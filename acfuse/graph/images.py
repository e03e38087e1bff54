"""What an operator is told of a value that depends on the input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from acfuse.errors import NotFusable, Reason
from acfuse.graph.steps import Rule

Parts = Callable[[int], Rule | None]  # the rule of each of several results, by its index


@dataclass(frozen=True)
class Image:
    """A value that depends on the input, its channels second, as far as anything tells of it.

    Without spatial axes (0) it is rows: of any number of axes, its channels last. `parts` are the
    rules of its parts, where it is what an operator with several results reads. What is equal
    in `rows` has the same axes before the channels.
    """

    value: str = ""
    spatial_rank: int | None = None
    channels: int | None = None
    rows: tuple[Any, ...] = ()
    parts: Parts | None = None

    def is_channel_dim(self, dim: Any) -> bool:
        """Whether a dimension is certainly that of the channels."""
        if self.spatial_rank == 0:
            return bool(dim == -1)
        return dim == 1 or (self.spatial_rank is not None and dim == -1 - self.spatial_rank)


def not_linear(what: str) -> NotFusable:
    """The reason to stop at an operator that is not linear, or that no rule describes."""
    return NotFusable(Reason.ACTIVATION, f"{what} is not linear")


def are_ints(value: Any) -> bool:
    """Whether it is a list of plain numbers."""
    return isinstance(value, (tuple, list)) and all(isinstance(n, int) for n in value)


def as_rows(image: Tensor, axes: int) -> Tensor:
    """Rows [n, channels] as a tensor of so many axes, three if any do; some zeros may be added."""
    axes = axes or 3
    if axes < 3:
        return image
    even = F.pad(image, (0, 0, 0, len(image) % 2))
    return even.reshape(*[1] * (axes - 3), 2, -1, image.shape[1])
