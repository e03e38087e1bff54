"""How much memory a conversion takes: `python -m benchmarks.memory [--all]`.

A checkpoint of 200 MB (with --all, 1 GB), most of it tensors that no block needs, is converted
without its code, from torch's format and from safetensors; then one that is all RepVGG blocks; then
a model of such blocks with its code: found and fused alone, and converted, whose own weights count
as well. Every one is a process of its own. What counts is the peak of its resident memory above
that of the same command for one such block, for each byte of the weights beyond that block's.
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
print(sum(t.nbytes for t in tensors.values()))
"""
NET = """
from torch import nn
from sample_models.repvgg import RepVGGBlock

def build(blocks, channels):
    return nn.Sequential(*(RepVGGBlock(channels, channels) for _ in range(blocks)))
"""
FUSE = """
import sys, torch
sys.path.insert(0, ".")
from net import build
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy

model = build(*map(int, sys.argv[1:])).eval()
fused_copy(model, find_in_module(model, PATTERNS).found)
"""
BARE = ("--bn-eps", "1e-5", "--no-onnx", "--quiet", "--force")
LIVE = ("--model", "net.py:build", "--no-onnx", "--quiet", "--force")
ARENA = {"MALLOC_ARENA_MAX": "1"}
# glibc keeps what is freed in pieces of up to 32 MB; with a fixed threshold it gives them back.
FREED = {**ARENA, "MALLOC_MMAP_THRESHOLD_": "1000000"}
LIMIT = Target(high=1.5)


def made(folder: Path, file: str, size: int, blocks: int, channels: int) -> int:
    """The bytes of all tensors of a file that is written."""
    given = map(str, (size, blocks, channels))
    return int(python("-c", MAKE, file, *given, folder=folder).last_line)


def bare(file_type: str, size: int, blocks: int, channels: int, what: str) -> Figure:
    """The figure of a checkpoint without its code."""
    weights, peaks = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for least, count in ((0, 1), (size, blocks)):
            weights.append(made(folder, f"net{file_type}", least, count, channels))
            peaks.append(acfuse("convert", f"net{file_type}", *BARE, folder=folder, **ARENA).peak)
    return _figure(f"memory, {file_type[1:]}, {what}", peaks, weights)


def live(blocks: int, channels: int) -> Iterator[Figure]:
    """The figures of a model with its code."""
    fused, converted, weights = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "net.py").write_text(NET, encoding="utf-8")
        for count in (1, blocks):
            weights.append(made(folder, "net.pth", 0, count, channels))
            sizes = (str(count), str(channels))
            fused.append(python("-c", FUSE, *sizes, folder=folder, **FREED).peak)
            arguments = json.dumps({"blocks": count, "channels": channels})
            shape = ("--input-shape", f"1,{channels},8,8")
            given = ("net.pth", *LIVE, "--model-args", arguments, *shape)
            converted.append(acfuse("convert", *given, folder=folder, **ARENA).peak)
    yield _figure("memory, live, find and fuse", fused, weights, held=1)
    yield _figure("memory, live, whole convert", converted, weights)


def _figure(name: str, peaks: list[int], weights: list[int], held: int = 0) -> Figure:
    """For each byte of the weights, less what the caller holds of them himself."""
    raw = {
        "weights, of one block and of all, MB": [count / 1e6 for count in weights],
        "peak, of one block and of all, MB": [peak / 1e6 for peak in peaks],
    }
    ratio = (peaks[1] - peaks[0]) / (weights[1] - weights[0])
    return Figure(name, LIMIT, (ratio - held,), raw=raw)


def figures(
    everything: bool = False,
    size: int = 200_000_000,
    channels: int = 512,
    file_types: Sequence[str] = (".pth", ".safetensors"),
) -> Iterator[Figure]:
    """Two formats, two kinds of files, and a model with its code."""
    size = 1_000_000_000 if everything else size
    blocks = max(size // (channels * channels * 10 * 4), 2)
    few = max(blocks // 8, 1)
    for file_type in file_types:
        yield bare(file_type, size, few, channels, "most unrelated")
    yield bare(".pth", 0, blocks, channels, "all in blocks")
    yield from live(blocks, channels)


if __name__ == "__main__":
    told(figures, __doc__)
