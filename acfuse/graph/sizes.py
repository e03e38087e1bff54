"""Sizes that nobody knows: what works for them works for all.

A forward that asks for one of them, or for what follows from it, decides by its input. Operators
ask as well, of their own: torch answers them only where every size has the same answer.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from acfuse.errors import NotFusable
from acfuse.graph.fx_frames import PLACING
from acfuse.graph.fx_operators import NAMES
from acfuse.graph.fx_trace import DECIDES

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
# Operators without a rule, and not element by element, that `has_one_shape`.
ONE_SHAPE = {
    "_adaptive_avg_pool2d", "_log_softmax", "_prelu_kernel", "_softmax", "_to_copy", "_unsafe_view",
    "addmm", "amax", "amin", "arange", "bmm", "hardswish",
    "max_pool2d_with_indices", "mean", "mm", "native_group_norm",
    "native_layer_norm", "permute", "sum", "t", "transpose", "unsqueeze", "upsample_bilinear2d",
    "upsample_nearest2d", "view",
}  # fmt: skip


class Sizes(ShapeEnv):
    """The sizes that nobody knows: a question for one of them is a decision of the forward.

    Operators ask too, of their own. What they are told of a size without a number holds for all;
    of `channels` they may know how many there are, and `fixed` are those that a convolution or a
    BatchNorm asked for, which take no other.
    """

    def __init__(self) -> None:
        super().__init__(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
        self.channels: dict[Any, int] = {}
        self.fixed: dict[Any, int] = {}
        self.told: set[Any] = set()  # channels that an operator was told the number of
        self.operators: list[str] = []  # that run
        self.asked = False  # by the forward
        self.unknown = False  # to an operator, which would have to know

    def evaluate_expr(self, orig_expr: sympy.Basic, *args: Any, **kwargs: Any) -> sympy.Basic:
        """Answers an operator where all sizes have the same answer.

        What has none counts even if the forward catches the error.
        """
        unknown = orig_expr.free_symbols
        if not self.operators and unknown:
            self.asked = True
            raise NotFusable(DECIDES.code, DECIDES.why)
        if unknown and unknown <= self.channels.keys():
            self.told |= unknown
            self.note(orig_expr)
            return orig_expr.subs(self.channels)
        try:
            return super().evaluate_expr(orig_expr, *args, **kwargs)
        except Exception:
            self.unknown = True
            raise

    def note(self, expression: sympy.Basic) -> None:
        """Notes if it says how many channels there are, and whoever says so takes no other."""
        if isinstance(expression, sympy.Eq) and any(map(_takes_no_other, self.operators)):
            for channel, number in self.channels.items():
                if set(expression.args) == {channel, sympy.Integer(number)}:
                    self.fixed[channel] = number

    def guard_or_defer_runtime_assert(  # type: ignore[override]
        self, orig_expr: sympy.Basic, *args: Any, **kwargs: Any
    ) -> bool:
        """What has to be so, or an operator raises an error."""
        unknown = orig_expr.free_symbols
        if unknown and unknown <= self.channels.keys():
            self.told |= unknown
            self.note(orig_expr)
            if not orig_expr.subs(self.channels):
                raise ValueError("it takes another number of channels")
            return True
        if unknown and isinstance(orig_expr, sympy.Eq):
            self.unknown = True
        return super().guard_or_defer_runtime_assert(orig_expr, *args, **kwargs)

    def size(self, channels: int | None = None) -> Any:
        """A size of at least one, of which operators may know that it is so many channels."""
        size = self.create_unbacked_symint()
        with self.operator("size"):
            torch._check(size >= 1)  # type: ignore[no-untyped-call]
        if channels is not None:
            self.channels[size.node.expr] = channels
        return size

    @contextlib.contextmanager
    def unwritten(self) -> Iterator[None]:
        """Within it a size cannot be written down: `str(height) == "64"` is a question as well."""
        plain = SymNode._graph_repr

        def asked(node: Any) -> str:
            if self.operators:
                return plain(node)
            self.asked = True
            raise NotFusable(DECIDES.code, DECIDES.why)

        SymNode._graph_repr = asked  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            SymNode._graph_repr = plain  # type: ignore[method-assign]

    @contextlib.contextmanager
    def operator(self, name: str) -> Iterator[None]:
        """Within it torch asks, and not the forward."""
        self.operators.append(name)
        try:
            yield
        finally:
            self.operators.pop()


def _takes_no_other(operator: str) -> bool:
    return "conv" in operator or "batch_norm" in operator


def is_elementwise(func: Any) -> bool:
    """Whether torch says of an operator that it works element by element."""
    return func.namespace == "aten" and torch.Tag.pointwise in func.tags


def has_one_shape(func: Any) -> bool:
    """Whether the shapes that an operator gives follow from those that it takes by one formula.

    That of `squeeze` does not: it has fewer axes for one image than for two.
    """
    name = func.overloadpacket.__name__
    known = is_elementwise(func) or func in PLACING or name in NAMES or name in ONE_SHAPE
    return known or func.namespace == "prim"


def is_sized(value: Any) -> bool:
    """Whether a value is a size that nobody knows, or has one."""
    sizes = value.shape if isinstance(value, Tensor) else (value,)
    return any(isinstance(size, SYMBOLIC) for size in sizes)
