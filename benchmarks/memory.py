"""How much memory a conversion takes: `python benchmarks/memory.py [GIGABYTES]`.

A checkpoint of 1 GB, most of it tensors that no block needs, is converted without its code, from
torch's format and from safetensors; and a model of RepVGG blocks is found and fused with its code.
Every conversion is a process of its own, and what counts is the peak of its resident memory above
that of the same command for a checkpoint of one small block.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

MEGABYTE = 2**20
MAKE = """
import sys, torch, safetensors.torch
from torch import nn
from sample_models.repvgg import RepVGGBlock

def block(channels):
    return RepVGGBlock(channels, channels).state_dict()

size, blocks, channels = (int(n) for n in sys.argv[2:])
tensors = {f"stage.{i}.{k}": t for i in range(blocks) for k, t in block(channels).items()}
own = sum(t.nbytes for t in tensors.values())
for i in range(max(size - own, 0) // 2**26):
    tensors[f"other.{i}.weight"] = torch.randn(2**12, 2**12)
if sys.argv[1].endswith("safetensors"):
    safetensors.torch.save_file(tensors, sys.argv[1])
else:
    torch.save(tensors, sys.argv[1])
print(own, sum(t.nbytes for t in tensors.values()))
"""
LIVE = """
import sys, torch
from torch import nn
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from sample_models.repvgg import RepVGGBlock

blocks, channels, fuse = (int(n) for n in sys.argv[1:])
model = nn.Sequential(*(RepVGGBlock(channels, channels) for _ in range(blocks))).eval()
if fuse:
    fused_copy(model, find_in_module(model, PATTERNS).found)
print(sum(t.nbytes for t in model.state_dict().values()))
"""


def run(*command: str, **variables: str) -> tuple[int, str]:
    """The peak of a process's resident memory in bytes, and what it printed."""
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "MALLOC_ARENA_MAX": "1", **variables},
    )
    text = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, text
    return usage.ru_maxrss * 1024, text


def converted(path: Path) -> int:
    """The peak of converting a checkpoint without its code."""
    options = ("--bn-eps", "1e-5", "--no-onnx", "--quiet", "--force")
    peak, _ = run("-m", "acfuse", "convert", str(path), *options)
    return peak


def main() -> None:
    """Prints a line for each format, and one for a model with its code."""
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else 1.0) * 1000**3)
    for suffix in (".pth", ".safetensors"):
        with tempfile.TemporaryDirectory() as folder:
            small, large = Path(folder) / f"small{suffix}", Path(folder) / f"large{suffix}"
            run("-c", MAKE, str(small), "0", "1", "8")
            _, text = run("-c", MAKE, str(large), str(size), "10", "512")
            own, whole = map(int, text.split())
            above = converted(large) - converted(small)
        print(
            f"{suffix}: {whole / MEGABYTE:.0f} MB, of it {own / MEGABYTE:.0f} MB in blocks: "
            f"{above / MEGABYTE:.0f} MB above a converter that reads nothing, "
            f"{above / whole:.2f} of the file, {above / own:.2f} of the blocks' tensors"
        )
    # glibc keeps what is freed in pieces of up to 32 MB; with a fixed threshold it gives them back.
    for told, variables in (("", {}), (" (freed at once)", {"MALLOC_MMAP_THRESHOLD_": "1000000"})):
        before, text = run("-c", LIVE, "60", "512", "0", **variables)
        after, _ = run("-c", LIVE, "60", "512", "1", **variables)
        print(
            f"live{told}: {int(text) / MEGABYTE:.0f} MB of weights: finding and fusing take "
            f"{(after - before) / MEGABYTE:.0f} MB more, {(after - before) / int(text):.2f} of them"
        )


main()
