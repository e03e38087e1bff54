"""The trained samples in 8 bits, evened out or not: `python -m benchmarks.int8 [--write]`.

Both are fused, as they were trained and with channels times powers of two from 2^-6 to 2^6, which
the float network does not show. Each is quantized per tensor by onnxruntime as it is, and evened
out by acfuse as `acfuse equalize` does, and answers the test images of sample_models/train.py. It
gives the table of docs/int8.md in some three minutes; with --write it draws its pictures as well.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from torch import Tensor

from acfuse.int8.channels import channels_of
from acfuse.int8.equalize import arrays_of
from acfuse.int8.evened import Evened, evened
from acfuse.int8.quantized import quantized
from acfuse.proof import Inputs
from acfuse.proof.onnx_runtime import image_of
from acfuse.proof.trace_onnx import shapes_in
from benchmarks.picture import LEFT, TOP, drawing, text
from benchmarks.processes import ROOT
from benchmarks.ranges import (
    BATCH,
    NETWORKS,
    SAMPLES,
    accuracy,
    exported,
    rescaled,
    trained,
)
from sample_models.train import digits_split

LARGEST = 6  # the exponents are drawn from -6 to 6
CALIBRATION = 5 * BATCH  # images
WIDE, HIGH = 112, 190  # pixels of a layer's picture
LOWEST, TALLEST = -9, 13  # powers of two that it spans
BAR = 320  # pixels of one hundred per cent
HEAD = ("network", "float", "8 bits", "8 bits, evened out", "most points lost then", "evened out")


@dataclass(frozen=True)
class Outcome:
    """A network: what it is right on in float, in 8 bits per tensor, and so evened out."""

    in_float: float
    in_8_bits: float
    evened_out: float
    is_taken: bool


def outcome(model: onnx.ModelProto, images: Sequence[Tensor]) -> tuple[Outcome, Evened]:
    """That of one model. `images` are to calibrate with, and to test with, with their answers."""
    train, test, answers = images
    name = model.graph.input[0].name
    given = [{name: batch} for batch in train.split(BATCH)]
    inputs = Inputs(((name, tuple(train[:BATCH].shape)),), data=(train[:BATCH],))
    made = evened(model, inputs)
    reached = [
        accuracy(m, name, test, answers)
        for m in (model, quantized(model, given), quantized(made.model, given))
    ]
    return Outcome(*reached, made.is_taken), made


def outcomes(seeds: int) -> Iterator[tuple[str, bool, Outcome]]:
    """Each network as it was trained, and with scales of so many seeds."""
    images = split()
    for file in NETWORKS:
        model = fused(file)
        yield file, False, outcome(model, images)[0]
        for seed in range(seeds):
            yield file, True, outcome(uneven(model, seed), images)[0]


def split() -> tuple[Tensor, Tensor, Tensor]:
    """Images to calibrate with, and those of the test with their answers."""
    train, _, images, answers = digits_split()
    return train[:CALIBRATION], images, answers


def fused(file: str) -> onnx.ModelProto:
    """A trained sample, fused."""
    return exported(trained(SAMPLES / file, NETWORKS[file]))


def uneven(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same function with channels times powers of two."""
    image = image_of(model, Inputs(((None, (BATCH, 1, 8, 8)),)))
    return rescaled(model, channels_of(model, shapes_in(model, image)), LARGEST, seed)


def table(found: Sequence[tuple[str, bool, Outcome]]) -> list[str]:
    """The table of the page: medians, and the worst."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|---:|---:|---:|---:|---:|"]
    for file, is_scaled in dict.fromkeys((file, scaled) for file, scaled, _ in found):
        own = [o for name, scaled, o in found if (name, scaled) == (file, is_scaled)]
        told = [f"`{file}`, {f'{len(own)} times rescaled' if is_scaled else 'as trained'}"]
        told += [
            f"{100 * median(values):.2f} %"
            for values in zip(*((o.in_float, o.in_8_bits, o.evened_out) for o in own), strict=True)
        ]
        told.append(f"{max(100 * (o.in_float - o.evened_out) for o in own):.2f}")
        told.append(f"{sum(o.is_taken for o in own)} of {len(own)}")
        lines.append(f"| {' | '.join(told)} |")
    return lines


def pictures() -> dict[Path, str]:
    """The pictures of the page, by their path: the first network of those that are rescaled."""
    model, images = fused("model.pth"), split()
    wide = uneven(model, 0)
    as_trained, (as_scaled, made) = outcome(model, images)[0], outcome(wide, images)
    folder = ROOT / "docs/img"
    return {
        folder / "int8-ranges.svg": of_ranges(wide, made),
        folder / "int8-accuracy.svg": of_accuracy(as_trained, as_scaled),
    }


def of_ranges(model: onnx.ModelProto, made: Evened) -> str:
    """The largest weight of each output channel, layer by layer, before and after."""
    layers = made.scaled.scales.channels.layers
    names = [layer.weight for layer in layers]
    before, after = arrays_of(model, names), arrays_of(made.model, names)
    parts = []
    for power in range(LOWEST + 1, TALLEST, 4):
        parts.append(text(8, round(_height(power)) + 4, f"2^{power}"))
        parts.append(f'<path class="line" d="M48 {_height(power):.1f}H{48 + WIDE * len(layers)}"/>')
    for place, layer in enumerate(layers):
        x = 56 + place * WIDE
        name = layer.label.removesuffix(".fused_conv").removesuffix(".acb")
        parts.append(text(x, TOP - 18, name))
        for kind, arrays in (("before", before), ("after", after)):
            largest = np.abs(layer.matrix(arrays[layer.weight])).max((1, 2))
            step = (WIDE - 20) / max(len(largest) - 1, 1)
            parts += [
                f'<circle class="{kind}" cx="{x + i * step:.1f}" '
                f'cy="{_height(float(np.log2(value))):.1f}" r="3"/>'
                for i, value in enumerate(largest)
                if value
            ]
    y = TOP + HIGH + 26
    told = ("as it is", "evened out by powers of two: the float network gives the same bits")
    for x, kind, words in zip((60, 150), ("before", "after"), told, strict=True):
        parts.append(f'<circle class="{kind}" cx="{x}" cy="{y - 4}" r="4"/>')
        parts.append(text(x + 10, y, words))
    title = "The largest weight of each output channel, by layer, before and after evening out"
    style = (
        ".before { fill: #cf222e }\n.after { fill: #1a7f37 }\n"
        ".line { stroke: #8c959f; stroke-opacity: .4 }\n"
    )
    return drawing(title, 64 + WIDE * len(layers), y + 14, parts, style)


def _height(power: float) -> float:
    return TOP + HIGH * (TALLEST - power) / (TALLEST - LOWEST)


def of_accuracy(as_trained: Outcome, as_scaled: Outcome) -> str:
    """What is right of the test images, a bar for each form of the network."""
    rows = [
        ("float, as trained", as_trained.in_float),
        ("8 bits, as trained", as_trained.in_8_bits),
        ("float, uneven channels", as_scaled.in_float),
        ("8 bits, uneven channels", as_scaled.in_8_bits),
        ("8 bits, evened out", as_scaled.evened_out),
    ]
    parts = []
    for place, (name, share) in enumerate(rows):
        y = 16 + 26 * place
        kind = "ours" if place == len(rows) - 1 else "bar"
        parts.append(text(8, y + 14, name, "head" if kind == "ours" else ""))
        parts.append(
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{round(BAR * share)}" height="18"/>'
        )
        parts.append(text(LEFT + round(BAR * share) + 6, y + 14, f"{100 * share:.1f} %"))
    title = "Right answers of the trained sample on 360 images, in float and in 8 bits per tensor"
    return drawing(title, LEFT + BAR + 70, 16 + 26 * len(rows), parts)


def main() -> int:
    """Measures, prints the table, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, help="of the powers of two")
    parser.add_argument("--write", action="store_true", help="draw the pictures in docs/img")
    given = parser.parse_args()
    print("\n".join(table([*outcomes(given.seeds)])))
    for path, drawn in pictures().items() if given.write else ():
        path.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
