"""Another mode than the one in which forwards are read, to see which of them ask for it.

What a forward is told is in no graph: `if torch.is_autocast_enabled()` leaves the one way that was
taken. So it is read in two modes that have nothing in common, and has to do the same in both.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

FLAGS = (
    ("torch.compiler", "_is_compiling_flag"),
    ("torch.compiler", "_is_exporting_flag"),
    ("torch.onnx._internal.exporter._flags", "_is_onnx_exporting"),
)
QUESTIONS = (
    ("torch._C", "_is_tracing"),
    ("torch", "are_deterministic_algorithms_enabled"),
    ("torch", "get_num_threads"),
)
MODES = (  # that change what an operator does
    ("torch", "is_autocast_enabled"),
    ("torch", "is_autocast_cpu_enabled"),
    ("torch", "is_inference_mode_enabled"),
)


@contextmanager
def told_otherwise(questions: tuple[tuple[str, str], ...] = QUESTIONS + MODES) -> Iterator[None]:
    """Within it forwards are told that they are traced, compiled, exported, and so on."""
    known = [(sys.modules[where], name) for where, name in FLAGS if where in sys.modules]
    asked = [(sys.modules[where], name) for where, name in questions]
    before = [(place, name, getattr(place, name)) for place, name in known + asked]
    try:
        for place, name, value in before:
            setattr(place, name, _otherwise(value) if callable(value) else not value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


@contextmanager
def another_mode() -> Iterator[None]:
    """The same, and the modes are others in truth: autocast, inference mode, the default dtype."""
    dtype = torch.get_default_dtype()
    autocast = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
    with torch.inference_mode(not torch.is_inference_mode_enabled()), told_otherwise(QUESTIONS):
        try:
            torch.set_default_dtype(torch.float32 if dtype == torch.float64 else torch.float64)
            for device, enabled in autocast.items():
                torch.set_autocast_enabled(device, not enabled)
            yield
        finally:
            torch.set_default_dtype(dtype)
            for device, enabled in autocast.items():
                torch.set_autocast_enabled(device, enabled)


def _otherwise(ask: Callable[..., int]) -> Callable[..., Any]:
    """A question that is answered by another truth value, or one more."""

    def told(*args: Any) -> Any:
        answer = ask(*args)
        return not answer if isinstance(answer, bool) else answer + 1

    return told
