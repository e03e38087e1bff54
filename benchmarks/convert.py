"""Where the time of a conversion goes: `python benchmarks/convert.py [WIDTH [SIZE]]`.

An ACNet of 17 blocks, up to 8 * WIDTH channels (64: 70 MB), on images of SIZE x SIZE, is converted
with its ONNX file; beside it the same model unfused is loaded and exported by torch alone. Seconds
of CPU time on one thread, of a process of its own each, from when torch is imported.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

NET = """
from torch import nn
from sample_models.acnet import ACBlock

def build(width):
    layers, before = [], 3
    for stage, count in enumerate((1, 4, 4, 4, 4)):
        channels = width * 2 ** max(stage - 1, 0)
        for i in range(count):
            stride = 2 if i == 0 else 1
            layers += [ACBlock(before, channels, 3, stride, 1), nn.ReLU()]
            before = channels
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000)]
    return nn.Sequential(*layers, *head)
"""
MAKE = """
import sys, torch
sys.path.insert(0, ".")
from net import build
from sample_models import awake
torch.save(awake(build(int(sys.argv[1])), 0).float().state_dict(), "net.pth")
"""
EXPORT = """
import io, sys, time, torch
sys.path.insert(0, ".")
torch.set_num_threads(1)
start = time.process_time()
from net import build
model = build(int(sys.argv[1])).eval()
model.load_state_dict(torch.load("net.pth", weights_only=True))
image = torch.randn(1, 3, int(sys.argv[2]), int(sys.argv[2]))
torch.onnx.export(model, (image,), "plain.onnx", dynamo=True, verbose=False)
print(time.process_time() - start)
"""
CONVERT = """
import contextlib, io, json, sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
start = time.process_time()
from acfuse.pipeline.convert import convert
from acfuse.pipeline.job import Job
from acfuse.proof import Inputs
stages, last = {}, ["importing acfuse", start]

def progress(what):
    now = time.process_time()
    stages[last[0]] = stages.get(last[0], 0.0) + now - last[1]
    last[:] = ["certificates" if what.startswith("certificate") else what, now]

size = int(sys.argv[2])
inputs = Inputs(((None, (1, 3, size, size)),))
args = {"width": int(sys.argv[1])}
job = Job(Path("net.pth"), model="net.py:build", model_args=args, inputs=inputs, force=True)
with contextlib.redirect_stdout(sys.stderr):
    done = convert(job, progress)
progress("")
assert done.proofs.passed, done.proofs.fault
print(json.dumps({"total": time.process_time() - start, "stages": stages}))
"""
ROOT = Path(__file__).parents[1]


def run(code: str, *arguments: str, folder: str) -> str:
    """The last line that a program prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=folder, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    return done.stdout.splitlines()[-1] if done.stdout else ""


def main() -> None:
    """Prints a line for each stage, and the ratio."""
    width, size = [*sys.argv[1:], *("64", "224")[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.py").write_text(NET)
        run(MAKE, width, folder=folder)
        megabytes = (Path(folder) / "net.pth").stat().st_size / 1e6
        plain = float(run(EXPORT, width, size, folder=folder))
        told = json.loads(run(CONVERT, width, size, folder=folder))
    print(f"ACNet of 17 blocks, {megabytes:.0f} MB, images of {size} x {size}")
    for stage, seconds in told["stages"].items():
        print(f"  {stage:55} {seconds:7.1f} s")
    print(
        f"convert {told['total']:.1f} s; load and export {plain:.1f} s: {told['total'] / plain:.1f}"
    )


if __name__ == "__main__":
    main()
