"""What several processes at once save: `python -m benchmarks.batch [--all] [--memory]`.

Converts 20 copies of a sample's checkpoint with `acfuse batch -j 1` and with `-j 2`, in turn (A B,
B A, ...), every run with a template of its own, and each process with one thread. The ratio of the
seconds by the clock is what counts; what two processes that only count gain on this machine at that
time stands beside it: on a busy one, hardly anything can be gained. With --memory it prints the
peak of one conversion beside the size of its checkpoint, for ACNets of several widths.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, Target, told
from benchmarks.processes import ROOT, acfuse, in_turn, python, ratios

SAMPLE = ("--model", "digits.py:AcNet", "--input-shape", "1,1,8,8")
NET = """
from torch import nn
from sample_models.acnet import ACBlock

class Net(nn.Sequential):
    def __init__(self, channels):
        super().__init__(*(ACBlock(channels, channels, 3, padding=1) for _ in range(8)))
"""
MAKE = """
import sys, torch
sys.path.insert(0, ".")
import net
torch.save(net.Net(int(sys.argv[1])).state_dict(), sys.argv[2])
"""


COUNT = "sum(range(10**8))"  # about a second


def run(*arguments: str, folder: Path) -> tuple[float, list[dict[str, object]]]:
    """The wall seconds of a batch, and its lines."""
    # Each batch says itself how many threads it has.
    done = acfuse("batch", "--force", "--quiet", *arguments, folder=folder, OMP_NUM_THREADS="")
    return done.wall, [json.loads(line) for line in done.text.splitlines()]


def figures(everything: bool = False, checkpoints: int = 20, rounds: int = 2) -> Iterator[Figure]:
    """The ratio of each round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(ROOT / "sample_models" / "digits.py", folder)
        files = [f"m{i}.pth" for i in range(checkpoints)]
        for file in files:
            shutil.copy(ROOT / "sample_models" / "model.pth", folder / file)

        def batch(jobs: int) -> float:
            threads = ("--threads", str(jobs))  # of the whole batch: one for each process
            return run(*files, "-j", str(jobs), *threads, *SAMPLE, folder=folder)[0]

        gains: list[float] = []

        def both() -> float:
            gains.append(gain())
            return batch(2)

        one, two = in_turn(lambda: batch(1), both, 3 * rounds if everything else rounds)
    raw = {"-j 1, s": one, "-j 2, s": two, "what two that count gain": gains}
    yield Figure(f"batch of {checkpoints}, -j 1 / -j 2", Target(low=1.7), ratios(one, two), raw=raw)


def gain() -> float:
    """How many times as fast two processes count at once as one after the other."""
    commands = [[sys.executable, "-c", COUNT]] * 2
    start = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True)
    middle = time.perf_counter()
    for process in [subprocess.Popen(command) for command in commands]:
        process.wait()
    return (middle - start) / (time.perf_counter() - middle)


def memory() -> None:
    """Prints the peak of one conversion, and the file's size, for several widths."""
    for channels in (16, 256, 512):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "net.py").write_text(NET, encoding="utf-8")
            python("-c", MAKE, str(channels), "net.pth", folder=folder)
            arguments = json.dumps({"channels": channels})
            options = ("--model", "net.py:Net", "--model-args", arguments)
            shape = f"1,{channels},16,16"
            _, (line,) = run("net.pth", *options, "--input-shape", shape, folder=folder)
            size, peak = (folder / "net.pth").stat().st_size, float(str(line["peak_bytes"]))
            cpu = float(str(line["cpu_seconds"]))
            print(f"{size / 1e6:7.1f} MB: peak {peak / 1e6:5.0f} MB, {cpu:5.1f} CPU s", flush=True)


if __name__ == "__main__":
    if "--memory" in sys.argv:
        memory()
    else:
        told(figures, __doc__)
