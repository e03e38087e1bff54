"""The same input gives the same bytes."""

import tempfile
from pathlib import Path

from tests.trust.forked import Server, server
from tests.trust.rows import Row
from tests.trust.sample import converted, held

SECONDS = 60
AGAIN = (
    ["verify"],
    ["export-onnx", "--force"],
    ["convert", "model.pth", "--force"],
)


def measure(forks: Server, scale: float) -> Row:
    """Converts twice: in two folders, by processes with other seeds of Python's hashes."""
    pairs = different = 0
    with tempfile.TemporaryDirectory() as name, server(PYTHONHASHSEED="7") as other:
        for seed in range(max(int(5 * scale), 1)):
            folders = [Path(name) / f"{seed}-{n}" / ("sub" * n) for n in range(2)]
            results = [
                converted(running, folder, seed=seed, onnx=True)
                for running, folder in zip((forks, other), folders, strict=True)
            ]
            pairs += 1
            different += results[0] != results[1]
            for args in AGAIN if scale == 1 else ():
                ended = other.run(*args, folder=folders[0])
                assert ended.exit == 0, (args, ended.stderr)
                pairs += 1
                different += held(folders[0]) != results[0]
    return Row(
        "the same input twice (in another folder, with other seeds of hashes; exported again)",
        "byte-identical outputs",
        f"{different} of {pairs} pairs differ",
        not different,
    )


def test_the_same_input_twice(forks):
    row = measure(forks, 0.2)
    assert row.holds, row.measured
