"""What several processes at once save: `python benchmarks/batch.py [CHECKPOINTS [ROUNDS]]`.

Converts 20 copies of a sample's checkpoint with `acfuse batch -j 1` and with `-j 2`, in turn (A B,
B A, ...), every run with a template of its own, and each process with one thread. Prints the wall
seconds of each, and the ratio of each round. With --memory it prints the peak of one conversion
beside the size of its checkpoint, for ACNets of several widths.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAMPLE = ("--model", "digits.py:AcNet", "--input-shape", "1,1,8,8")
NET = """
from torch import nn
from sample_models.acnet import ACBlock

class Net(nn.Sequential):
    def __init__(self, channels):
        super().__init__(*(ACBlock(channels, channels, 3, padding=1) for _ in range(8)))
"""
MAKE = "import sys, torch, net; torch.save(net.Net(int(sys.argv[1])).state_dict(), sys.argv[2])"


def run(*arguments: str, folder: Path) -> tuple[float, list[dict[str, object]]]:
    """The wall seconds of a batch, and its lines."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "acfuse", "batch", "--force", "--quiet", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - start, [json.loads(line) for line in done.stdout.splitlines()]


def speed(checkpoints: int, rounds: int) -> None:
    """Prints the seconds of both, and the ratios."""
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(ROOT / "sample_models" / "digits.py", folder)
        files = [f"m{i}.pth" for i in range(checkpoints)]
        for file in files:
            shutil.copy(ROOT / "sample_models" / "model.pth", folder / file)
        for number in range(rounds):
            seconds = {}
            for jobs in (1, 2) if number % 2 == 0 else (2, 1):
                threads = ("--threads", str(jobs))  # of the whole batch: one for each process
                given = (*files, "-j", str(jobs), *threads, *SAMPLE)
                seconds[jobs], lines = run(*given, folder=folder)
                cpu = sum(float(str(line["cpu_seconds"])) for line in lines) / len(lines)
                print(
                    f"-j {jobs}: {seconds[jobs]:6.1f} s, {cpu:.2f} CPU s a checkpoint", flush=True
                )
            ratios.append(seconds[1] / seconds[2])
    print(
        f"ratio of {rounds} rounds: median {statistics.median(ratios):.2f}",
        *map("{:.2f}".format, ratios),
    )


def memory() -> None:
    """Prints the peak of one conversion, and the file's size, for several widths."""
    for channels in (16, 256, 512):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "net.py").write_text(NET)
            variables = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
            make = [sys.executable, "-c", MAKE, str(channels), "net.pth"]
            subprocess.run(make, cwd=folder, env=variables, check=True)
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
        given = [int(text) for text in sys.argv[1:]]
        speed(*[*given, *(20, 3)[len(given) :]])
