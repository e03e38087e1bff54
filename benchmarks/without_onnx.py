"""Converting timm's models without ONNX: `python -m benchmarks.without_onnx [--all]`.

CPU seconds on one thread of the whole process of `acfuse convert --no-onnx`, with certificates,
beyond those of a process that imports torch, builds the same model and loads the same checkpoint.
Random weights, with statistics that hide nothing.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figures import Figure, Target, told
from benchmarks.processes import acfuse, in_turn, python

MODELS = ("repvgg_a0", "mobileone_s0")
NET = """
from tests.packages.imports import imported

def build(name):
    return imported("timm").create_model(name).eval()
"""
MAKE = """
import sys, torch
sys.path.insert(0, ".")
from net import build
from sample_models import awake
torch.manual_seed(0)
torch.save(awake(build(sys.argv[1]), 0).state_dict(), "net.pth")
"""
LOAD = """
import sys, torch
sys.path.insert(0, ".")
from net import build
build(sys.argv[1]).load_state_dict(torch.load("net.pth", weights_only=True))
"""


def figures(
    everything: bool = False, models: Sequence[str] = MODELS, rounds: int = 2, shape: int = 224
) -> Iterator[Figure]:
    """A figure for each model."""
    for model in models:
        name = f"convert {model}, no ONNX"
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "net.py").write_text(NET, encoding="utf-8")
            given = ("--model", "net.py:build", "--model-args", f'{{"name": "{model}"}}')
            given = (*given, "--input-shape", f"1,3,{shape},{shape}", "--no-onnx")

            def convert(folder: Path = folder, given: Sequence[str] = given) -> float:
                return acfuse("convert", "net.pth", *given, "--force", "-q", folder=folder).cpu

            def load(folder: Path = folder, model: str = model) -> float:
                return python("-c", LOAD, model, folder=folder).cpu

            try:
                python("-c", MAKE, model, folder=folder)
            except RuntimeError as error:
                if "MissingPackage" not in str(error):
                    raise
                yield Figure(name, Target(high=3), note="timm is not installed")
                continue
            whole, loading = in_turn(convert, load, 3 * rounds if everything else rounds)
        beyond = tuple(a - b for a, b in zip(whole, loading, strict=True))
        raw = {"convert, CPU s": whole, "import torch and load, CPU s": loading}
        yield Figure(name, Target(high=3), beyond, "s", raw)


if __name__ == "__main__":
    told(figures, __doc__)
