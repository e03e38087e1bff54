"""What wide ranges do to accuracy in 8 bits per tensor: `python -m benchmarks.ranges [--seeds N]`.

Both trained samples are fused, and their channels are scaled by powers of two, drawn from 2^-k to
2^k for k from 0 to 4: the float network stays the same, bit by bit. Each is quantized per tensor by
onnxruntime, and answers the test images of sample_models/train.py. A row for each step of the bits
that one grid for all channels costs beside a grid for each, in the layer where that is most. It
gives the table of docs/int8.md, in about two minutes.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import acfuse
from acfuse.int8.channels import Channels, channels_of
from acfuse.int8.equalize import Scales, scale
from acfuse.int8.layers import ranges_of_onnx
from acfuse.int8.quantized import quantized
from acfuse.proof import Inputs
from acfuse.proof.onnx_runtime import answers_in_onnx, image_of
from acfuse.proof.trace_onnx import shapes_in
from acfuse.system.limits import LIMITS
from acfuse.targets.onnx_export import to_onnx
from sample_models import digits
from sample_models.train import digits_split

SAMPLES = Path(digits.__file__).parent
NETWORKS = {"model.pth": digits.AcNet, "repvgg.pth": digits.RepVgg}
BATCH = 60  # images that are run together
STEPS = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, float("inf"))
FEW = 2.0  # points of accuracy
HEAD = ("bits", "networks", "lost over 2 points", "median, points lost", "most, points lost")


@dataclass(frozen=True)
class Trial:
    """A network: the most bits that sharing a grid costs in one of its layers, and accuracies."""

    network: str
    shared: float
    float_accuracy: float
    accuracy: float

    @property
    def lost(self) -> float:
        """Points of accuracy."""
        return 100 * (self.float_accuracy - self.accuracy)


def trials(seeds: int, powers: Sequence[int] = range(5)) -> Iterator[Trial]:
    """Every network, rescaled so many times with each power."""
    train, _, images, answers = digits_split()
    for file, kind in NETWORKS.items():
        model = exported(trained(SAMPLES / file, kind))
        name = model.graph.input[0].name
        shape = Inputs(((None, (BATCH, 1, 8, 8)),))
        channels = channels_of(model, shapes_in(model, image_of(model, shape)))
        given = [{name: batch} for batch in train[: 5 * BATCH].split(BATCH)]
        in_float = accuracy(model, name, images, answers)
        for power in powers:
            for seed in range(seeds if power else 1):
                twin = rescaled(model, channels, power, seed)
                shared = max(own.shared for own in ranges_of_onnx(twin).values())
                reached = accuracy(quantized(twin, given), name, images, answers)
                yield Trial(file, shared, in_float, reached)


def trained(path: Path, kind: type[nn.Module]) -> nn.Module:
    """A trained sample."""
    stored: dict[str, Any] = torch.load(path, weights_only=True)
    model = kind()
    model.load_state_dict(stored.get("state_dict", stored))
    return model.eval()


def exported(model: nn.Module) -> onnx.ModelProto:
    """Its fused form as an ONNX model."""
    shape = Inputs(((None, (BATCH, 1, 8, 8)),))
    return to_onnx(acfuse.fuse(model).model, shape, dynamic="none").model


def rescaled(model: onnx.ModelProto, channels: Channels, power: int, seed: int) -> onnx.ModelProto:
    """The same function, its channels times powers of two."""
    drawn = np.random.default_rng(seed).integers(-power, power + 1, channels.count)
    drawn[[channels.find(n) for n in channels.pinned]] = 0
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    scale(twin, Scales(channels, drawn))
    return twin


def accuracy(model: onnx.ModelProto, name: str, images: Tensor, answers: Tensor) -> float:
    """The share of right answers, as the model is written."""
    run = answers_in_onnx(model, LIMITS, False)
    given = [next(iter(run({name: batch}).values())) for batch in images.split(BATCH)]
    scores = torch.cat([part for part in given if isinstance(part, Tensor)])
    return (scores.argmax(1) == answers).double().mean().item()


def table(found: Sequence[Trial]) -> list[str]:
    """The table of the page."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|---:|---:|---:|---:|"]
    for low, high in pairwise(STEPS):
        lost = [trial.lost for trial in found if low < trial.shared <= high]
        if lost:
            bits = f"over {low:g}" if high == STEPS[-1] else f"{low:g} to {high:g}"
            told = [bits, len(lost), sum(x > FEW for x in lost), f"{median(lost):.1f}"]
            lines.append(f"| {' | '.join(map(str, told))} | {max(lost):.1f} |")
    return lines


def main() -> int:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=24, help="of each power of two")
    found = [*trials(parser.parse_args().seeds)]
    for name in NETWORKS:
        own = next(trial for trial in found if trial.network == name)
        print(f"{name} as it was trained: {own.shared:.2f} bits, {own.float_accuracy:.2%} in float")
    print("\n".join(["", *table(found)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
