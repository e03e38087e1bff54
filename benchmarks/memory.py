"""How much memory a conversion takes: `python -m benchmarks.memory [--all]`.

A checkpoint of 200 MB (with --all, 1 GB), most of it tensors that no block needs, is converted
without its code, from torch's format and from safetensors; then one that is all RepVGG blocks; then
a model of such blocks with its code, whose own weights count as well. Every conversion is a process
of its own. What counts is the peak of its resident memory above that of the same command for one
small block, less one block in float64, for each byte of the weights.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figures import Figure, Target, told
from benchmarks.processes import acfuse, python

MAKE = """
import sys, torch, safetensors.torch
from sample_models import awake
from sample_models.repvgg import RepVGGBlock

size, blocks, channels = (int(n) for n in sys.argv[2:])
net = torch.nn.Sequential(*(RepVGGBlock(channels, channels) for _ in range(blocks)))
tensors = awake(net, 0).state_dict()
own = sum(t.nbytes for t in tensors.values())
for i in range(max(size - own, 0) // 2**24):
    tensors[f"other.{i}.weight"] = torch.randn(2**11, 2**11)
if sys.argv[1].endswith("safetensors"):
    safetensors.torch.save_file(tensors, sys.argv[1])
else:
    torch.save(tensors, sys.argv[1])
print(own // blocks, sum(t.nbytes for t in tensors.values()))
"""
NET = """
from torch import nn
from sample_models.repvgg import RepVGGBlock

def build(blocks, channels):
    return nn.Sequential(*(RepVGGBlock(channels, channels) for _ in range(blocks)))
"""
BARE = ("--bn-eps", "1e-5", "--no-onnx", "--quiet", "--force")
LIVE = ("--model", "net.py:build", "--no-onnx", "--quiet", "--force")
ARENA = {"MALLOC_ARENA_MAX": "1"}
LIMIT = Target(high=1.5)


def made(folder: Path, file: str, size: int, blocks: int, channels: int) -> tuple[int, int]:
    """The bytes of one block, and of all tensors, of a file that is written."""
    given = map(str, (size, blocks, channels))
    one, whole = map(int, python("-c", MAKE, file, *given, folder=folder).last_line.split())
    return one, whole


def bare(file_type: str, size: int, blocks: int, channels: int, what: str) -> Figure:
    """The figure of a checkpoint without its code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made(folder, f"small{file_type}", 0, 1, 8)
        one, whole = made(folder, f"large{file_type}", size, blocks, channels)
        peaks = [
            acfuse("convert", f"{which}{file_type}", *BARE, folder=folder, **ARENA).peak
            for which in ("small", "large")
        ]
    return _figure(f"memory, {file_type[1:]}, {what}", peaks, one, whole)


def live(blocks: int, channels: int) -> Figure:
    """The figure of a model with its code."""
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "net.py").write_text(NET, encoding="utf-8")
        for count, width in ((1, 8), (blocks, channels)):
            one, whole = made(folder, "net.pth", 0, count, width)
            arguments = json.dumps({"blocks": count, "channels": width})
            shape = ("--input-shape", f"1,{width},8,8")
            given = ("net.pth", *LIVE, "--model-args", arguments, *shape)
            peaks.append(acfuse("convert", *given, folder=folder, **ARENA).peak)
    return _figure("memory, live model, all in blocks", peaks, one, whole)


def _figure(name: str, peaks: list[int], one: int, whole: int) -> Figure:
    small, large = peaks
    raw = {
        "weights, MB": [whole / 1e6],
        "one block, MB": [one / 1e6],
        "peak, MB": [large / 1e6],
        "peak of a small file, MB": [small / 1e6],
    }
    return Figure(name, LIMIT, ((large - small - 2 * one) / whole,), raw=raw)


def figures(
    everything: bool = False,
    size: int = 200_000_000,
    channels: int = 512,
    file_types: Sequence[str] = (".pth", ".safetensors"),
) -> Iterator[Figure]:
    """Two formats, two kinds of files, and a model with its code."""
    size = 1_000_000_000 if everything else size
    blocks = max(size // (channels * channels * 10 * 4), 1)
    few = max(blocks // 8, 1)
    for file_type in file_types:
        yield bare(file_type, size, few, channels, "most unrelated")
    yield bare(".pth", 0, blocks, channels, "all in blocks")
    yield live(blocks, channels)


if __name__ == "__main__":
    told(figures, __doc__)
