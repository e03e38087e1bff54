"""An ONNX model with channels of even range, of which every bit of what it gives is proved."""

from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from acfuse.int8.equalize import Equalized, Fixed, equalized, none_fixed
from acfuse.int8.quantized import Loss, loss_of, quantized
from acfuse.proof.onnx_runtime import images_of
from acfuse.proof.running import Inputs
from acfuse.proof.same_bits import same_bits_in_onnx
from acfuse.proof.trace_onnx import shapes_in
from acfuse.system.limits import LIMITS, Limits


@dataclass(frozen=True)
class Row:
    """A layer: the bits that 8 bits per tensor lose of its median channel, and why it stays."""

    name: str
    before: float
    after: float
    why: str


@dataclass(frozen=True)
class Evened:
    """An equalized model, what 8 bits per tensor lose before and after, and whether it is taken.

    It is taken where it gains, or where that is asked for; else the model is the given one.
    """

    model: onnx.ModelProto = field(repr=False)
    scaled: Equalized = field(repr=False)
    before: Loss
    after: Loss
    is_taken: bool
    is_random: bool  # the inputs on which the loss was measured were made up
    compared: int  # numbers that are the same, bit by bit

    @property
    def rows(self) -> tuple[Row, ...]:
        """What 8 bits per tensor lose of each layer, before and after."""
        after = {layer.name: lost for layer, lost in self.scaled.lost_after}
        return tuple(
            Row(layer.label, lost, after[layer.name] if self.is_taken else lost,
                self.scaled.reasons.get(layer.name, ""))
            for layer, lost in self.scaled.lost_before
        )  # fmt: skip

    @property
    def summary(self) -> str:
        """What 8 bits per tensor lose before and after, in words."""
        before, after = self.before, self.after
        inputs = ", on inputs that were made up" if self.is_random else ""
        return (
            f"per tensor, as written: {before.written:.1f} dB -> {after.written:.1f} dB, executed "
            f"here: {before.executed:.1f} dB -> {after.executed:.1f} dB{inputs}"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it but the model, for a program."""
        return {
            "taken": self.is_taken,
            "gain_db": self.gain,
            "before_db": vars(self.before),
            "after_db": vars(self.after),
            "random_inputs": self.is_random,
            "compared": self.compared,
            "layers": [
                {"name": row.name, "before_bits": row.before, "after_bits": row.after,
                 "why": row.why}
                for row in self.rows
            ],
        }  # fmt: skip

    @property
    def gain(self) -> float:
        """What is gained in dB, as written and as executed: the smaller of both."""
        before, after = self.before, self.after
        pairs = (after.written, before.written), (after.executed, before.executed)
        return min(0.0 if a == b else a - b for a, b in pairs)  # both may be infinite


def evened(
    model: onnx.ModelProto,
    inputs: Inputs | None = None,
    limits: Limits = LIMITS,
    *,
    everything: bool = False,
    fixed: Fixed = none_fixed,
) -> Evened:
    """Equalizes an ONNX model where that gains something, and proves that no bit changes.

    Tensors that `fixed` names keep their numbers. Raises NotEqual where the outputs differ by a
    bit.
    """
    data = images_of(model, inputs)
    shapes = shapes_in(model, data[0], limits)
    scaled = equalized(model, shapes, only_gains=not everything, fixed=fixed)
    compared = same_bits_in_onnx(model, scaled.model, inputs, limits) if scaled.changed else 0
    before = after = loss_of(model, quantized(model, data), data, limits)
    if scaled.changed:
        after = loss_of(model, quantized(scaled.model, data), data, limits)
    made = Evened(
        scaled.model,
        scaled,
        before,
        after,
        is_taken=bool(scaled.changed),
        is_random=inputs is None or not any(x is not None for x in inputs.data),
        compared=compared,
    )
    if made.is_taken and made.gain <= 0 and not everything:
        return replace(made, model=model, is_taken=False)
    return made
