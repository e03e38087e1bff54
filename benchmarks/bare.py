"""A checkpoint without its code beside `cp`: `python -m benchmarks.bare [--all]`.

ACNet blocks of 256, 512 and 1,024 channels, eight of each: 660 MB. CPU seconds on one thread of
`acfuse convert` beyond those of `import torch`, for each of `cp`, the median of several on the same
disk. Then files of 10 and 100 MB (with --all, 1,000) of equal blocks: with which power of the bytes
CPU time grows.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, Target, exponent, told
from benchmarks.processes import Ran, acfuse, in_turn, python, ratios, run

CHANNELS = (256, 512, 1024)
MEGABYTES = (10, 100)
WIDE = 256
COPIES = 5
BLOCK = WIDE * WIDE * (9 + 3 + 3) * 4  # bytes
MAKE = """
import sys, torch
from torch import nn
from sample_models import awake
from sample_models.acnet import ACBlock
blocks, *channels = map(int, sys.argv[2:])
net = nn.Sequential(*(ACBlock(c, c, 3, 1, 1) for c in channels for _ in range(blocks)))
torch.save(awake(net, 0).state_dict(), sys.argv[1])
"""
OPTIONS = ("--bn-eps", "1e-5", "--no-onnx", "--quiet", "--force")


def against_cp(folder: Path, channels: Sequence[int], blocks: int, rounds: int) -> Figure:
    """How many times as long as `cp` it takes."""
    python("-c", MAKE, "net.pth", str(blocks), *map(str, channels), folder=folder)
    size = (folder / "net.pth").stat().st_size / 1e6

    def convert() -> tuple[Ran, Ran]:
        torch = python("-c", "import torch")
        return acfuse("convert", "net.pth", *OPTIONS, folder=folder), torch

    def copy() -> list[Ran]:
        copied = []
        for _ in range(COPIES):
            (folder / "copy.pth").unlink(missing_ok=True)
            copied.append(run("cp", "net.pth", "copy.pth", folder=folder))
        return copied

    converted, copied = in_turn(convert, copy, rounds)
    beyond = [whole.cpu - torch.cpu for whole, torch in converted]
    once = [median(one.cpu for one in several) for several in copied]
    raw = {
        "convert, CPU s": [whole.cpu for whole, _ in converted],
        "import torch, CPU s": [torch.cpu for _, torch in converted],
        "cp, CPU s": [one.cpu for several in copied for one in several],
        "convert, s": [whole.wall for whole, _ in converted],
        "cp, s": [one.wall for several in copied for one in several],
    }
    name = f"bare checkpoint of {size:.0f} MB / cp"
    return Figure(name, Target(high=3), ratios(beyond, once), raw=raw)


def against_bytes(folder: Path, megabytes: Sequence[int], rounds: int) -> Figure:
    """The exponent of the bytes."""
    sizes, taken = [], []
    for size in megabytes:
        blocks = max(round(size * 1e6 / BLOCK), 1)
        file = f"{size}.pth"
        python("-c", MAKE, file, str(blocks), str(WIDE), folder=folder)
        sizes.append((folder / file).stat().st_size)
    for _ in range(rounds):
        torch = python("-c", "import torch").cpu
        files = [f"{size}.pth" for size in megabytes]
        taken.append([acfuse("convert", f, *OPTIONS, folder=folder).cpu - torch for f in files])
    raw = {f"{size} MB, CPU s": [round_[i] for round_ in taken] for i, size in enumerate(megabytes)}
    powers = tuple(exponent(sizes, round_) for round_ in taken)
    name = f"bare, {megabytes[0]}..{megabytes[-1]} MB: power"
    return Figure(name, Target(high=1.1), powers, raw=raw)


def figures(
    everything: bool = False,
    channels: Sequence[int] = CHANNELS,
    blocks: int = 8,
    megabytes: Sequence[int] = MEGABYTES,
    rounds: int = 1,
) -> Iterator[Figure]:
    """Both."""
    repeated = 3 * rounds if everything else rounds
    with tempfile.TemporaryDirectory() as folder:
        yield against_cp(Path(folder), channels, blocks, repeated)
    with tempfile.TemporaryDirectory() as folder:
        sizes = (*megabytes, 1000) if everything else megabytes
        yield against_bytes(Path(folder), sizes, repeated)


if __name__ == "__main__":
    told(figures, __doc__)
