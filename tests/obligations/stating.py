"""What obligations are made of: the paths of the code, and words that several of them use."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any
from unittest.mock import patch

import z3

from acfuse.errors import NotFusable
from tests.obligations.meaning import (
    Window,
    near,
    source,
)
from tests.obligations.symbolic import Path, Term, paths
from tests.obligations.verdicts import Claim

Obligation = Callable[[ModuleType], Iterator[Claim]]
Stated = dict[str, Obligation]

STEP, SIZE, COUNT, PLACE, TAP = z3.Ints("step size count place tap")
BORDER = z3.Int("border")  # of a convolution that would have to be the whole


def entered_in(stated: Stated) -> Callable[[Obligation], Obligation]:
    """A decorator: enters an obligation under its name, with dashes."""

    def obligation(state: Obligation) -> Obligation:
        stated[state.__name__.replace("_", "-")] = state
        return state

    return obligation


def explored(
    code: ModuleType, run: Callable[[], Any], given: tuple[Term, ...], **instead: Any
) -> list[Path]:
    """The paths of `run`; `instead` are functions that stand for others, under their own proofs.

    How large a window may be is left out: a limit of memory says nothing about equality.
    """
    with ExitStack() as stack:
        for cls, name, stand_in in (
            (code.Geometry, "__post_init__", lambda self: None),
            (code.Axis, "__add__", instead.get("add")),
            (code.Axis, "then", instead.get("then")),
            (code.Axis, "nearest_before", instead.get("nearest_before")),
            (code, "_border_between", instead.get("border_between")),
        ):
            if stand_in is not None:
                stack.enter_context(patch.object(cls, name, stand_in))
        return list(paths(run, given, NotFusable))


def layer(code: ModuleType, *axes: Any, channels: tuple[Any, Any] = (1, 1), **settings: Any) -> Any:
    """A geometry. How large a window may be is left out here as well. Channels: out and in."""
    with patch.object(code.Geometry, "__post_init__", lambda self: None):
        return code.Geometry(*channels, axes, **settings)


def refused(path: Path) -> bool:
    """Whether this path ends in a refusal."""
    return isinstance(path.result, NotFusable)


def one_of(value: Term, values: tuple[Term, ...]) -> Term:
    """Whether it is among them."""
    return z3.Or(*(value == other for other in values))


def in_order(stride: Term, low: Term, high: Term) -> Term:
    """A step for the solvers, which `scaling_keeps_order` proves: they don't multiply by guess."""
    return z3.Implies(z3.And(stride >= 1, low <= high), stride * low <= stride * high)


def beyond(f: Window) -> Term:
    """Whether some output of some image looks outside of it: `looks_outside` proves so."""
    return z3.Or(f.before > f.first, f.after > f.taps - 1 - f.last)


def seen_with_another(f: Window, border: Term) -> Term:
    """The first output, or one at the end, of a large image, seen with BORDER instead."""
    size = 8 * f.extent
    first = f.reads(z3.IntVal(0), f.first)
    step = f.stride * size
    end = f.reads(step, f.last)  # past an image of `end` pixels, if that has this output
    return z3.Or(
        z3.And(
            f.has(z3.IntVal(0), size),
            near(first, size),
            source(border, first, size) != source(BORDER, first, size),
        ),
        z3.And(
            f.has(step, end),
            near(end, end),
            source(border, end, end) != source(BORDER, end, end),
        ),
    )
