"""What came out of an attempt to fuse: a value, or the reason why there is none."""

from collections.abc import Callable
from typing import TypeVar

from hypothesis import currently_in_test_context, event

from acfuse.errors import NotFusable

Made = TypeVar("Made")


def attempt(make: Callable[[], Made]) -> Made | NotFusable:
    """What is made, or why it is not; counted, so that both show in hypothesis' statistics."""
    try:
        made: Made | NotFusable = make()
    except NotFusable as refusal:
        made = refusal
    if currently_in_test_context():
        event(f"refused: {made.code.name}" if isinstance(made, NotFusable) else "accepted")
    return made


def exists(made):
    """Whether there is something, not a refusal."""
    return not isinstance(made, NotFusable)
