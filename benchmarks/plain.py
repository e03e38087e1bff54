"""What is fused beside what one would write by hand, and beside what it was.

`python -m benchmarks.plain [--all]`: the ACNet of 17 blocks on one image of 224 x 224. CPU seconds
of one thread, which is all that runs: by the clock, neighbours count as well. Each network is a
process of its own, and both are run in turn, a tenth of a second each, as `acfuse bench` does it.
By hand: a convolution for each block, with the same numbers. Backends that are missing are skipped
by name.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

import acfuse
from acfuse.pipeline.bench import Skipped, measure
from acfuse.pipeline.bench_worker import Call, _compiled, turn, warmed
from acfuse.proof.onnx_runtime import session_of
from acfuse.system.threads import bind_threads
from benchmarks.figures import Figure, Target, told
from benchmarks.nets import build, plain
from benchmarks.processes import ratios
from sample_models import awake

SAME = Target(0.98, 1.02)
ROWS = (
    *(("fused", "by hand", backend, SAME) for backend in ("onnxruntime", "eager", "compile")),
    ("unfused", "fused", "onnxruntime", Target(low=1.5)),
)
SECONDS = 0.1  # of a turn


def networks(width: int) -> dict[str, nn.Module]:
    """The ACNet, what acfuse makes of it, and the same numbers in a network written by hand."""
    torch.manual_seed(0)
    original = awake(build(width), 0).float()
    fused = acfuse.fuse(original).model
    by_hand = plain(width).eval()
    numbers = fused.state_dict().values()
    by_hand.load_state_dict(dict(zip(by_hand.state_dict(), numbers, strict=True)))
    return {"unfused": original, "fused": fused, "by hand": by_hand}


def call_of(model: nn.Module, backend: str, size: int) -> Call:
    """What runs a network once. Raises Skipped where a backend is missing."""
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    if backend == "onnxruntime":
        return _in_onnxruntime(model, image)
    run: Callable[..., object] = model
    if backend == "compile":
        run = _compiled(model, {"input": image}, "cpu")

    def call() -> object:
        with torch.no_grad():
            return run(input=image)

    return call


def _in_onnxruntime(model: nn.Module, image: torch.Tensor) -> Call:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        torch.onnx.export(model, (image,), path, dynamo=True, verbose=False, external_data=False)
        session = session_of(path.read_bytes(), optimised=True, count=1)
    feeds = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feeds)


def worker(backend: str, name: str, width: int, size: int) -> None:
    """Runs one network when it is told to, as the processes of `acfuse bench` do."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the exporter prints is no answer

    def tell(what: object) -> None:
        answers.write(f"{json.dumps(what)}\n")
        answers.flush()

    bind_threads()
    torch.set_num_threads(1)
    try:
        call = call_of(networks(width)[name], backend, size)
    except Skipped as reason:
        tell({"skipped": str(reason)})
        return
    tell({"ready": True})
    calls = 0
    for line in sys.stdin:
        if line.strip() == "warm":
            calls = warmed(call, SECONDS)
            tell({"calls": calls})
        else:
            tell(turn(call, calls))


def compared(
    above: str, below: str, backend: str, target: Target, rounds: int, *sizes: int
) -> Figure:
    """How many times as long one network takes as another."""
    roles = {"original": above, "fused": below}

    def start(backend: str, role: str) -> Sequence[str]:
        given = ["--worker", backend, roles[role], *map(str, sizes)]
        return ["-W", "ignore", "-m", "benchmarks.plain", *given]

    name = f"{above} / {below}, {backend}"
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        measured = measure(backend, rounds, start)
    except Skipped as reason:
        return Figure(name, target, note=str(reason))
    sides = {above: measured.original, below: measured.fused}
    raw = {f"{which}, CPU s": [turn.cpu for turn in turns] for which, turns in sides.items()}
    first, second = raw.values()
    raw |= {f"{which}, s": [turn.wall for turn in turns] for which, turns in sides.items()}
    return Figure(name, target, ratios(first, second), raw=raw)


def figures(
    everything: bool = False,
    rows: Sequence[tuple[str, str, str, Target]] = ROWS,
    width: int = 64,
    size: int = 224,
    rounds: int = 15,
) -> Iterator[Figure]:
    """Fused beside the one by hand on each backend, and unfused beside fused in onnxruntime."""
    for row in rows:
        yield compared(*row, 4 * rounds if everything else rounds, width, size)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        told(figures, __doc__)
