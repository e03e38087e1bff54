"""A whole conversion beside loading and exporting: `python -m benchmarks.convert`.

An ACNet of 17 blocks (76 MB) on images of 224 x 224 is converted with its ONNX file; beside it the
same model unfused is loaded and exported by torch alone. Seconds of CPU time on one thread, of a
process of its own each, from when torch is imported; and where they go.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Target, told
from benchmarks.processes import ROOT, in_turn, python, ratios

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


def figures(
    everything: bool = False, width: int = 64, size: int = 224, rounds: int = 2
) -> Iterator[Figure]:
    """The ratio of each round."""
    sizes = (str(width), str(size))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(ROOT / "benchmarks" / "nets.py", folder / "net.py")
        python("-c", MAKE, str(width), folder=folder)

        def converted() -> dict[str, Any]:
            return dict(json.loads(python("-c", CONVERT, *sizes, folder=folder).last_line))

        def exported() -> dict[str, Any]:
            return {"total": float(python("-c", EXPORT, *sizes, folder=folder).last_line)}

        whole, plain = in_turn(converted, exported, rounds if not everything else 3 * rounds)
    above, below = ([one["total"] for one in column] for column in (whole, plain))
    raw = {"convert, CPU s": above, "load and export, CPU s": below}
    for stage in whole[0]["stages"]:
        raw[f"  {stage}"] = [one["stages"].get(stage, 0.0) for one in whole]
    name = "convert with ONNX / load + export"
    yield Figure(name, Target(high=1.5), ratios(above, below), raw=raw)


if __name__ == "__main__":
    told(figures, __doc__)
