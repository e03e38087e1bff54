"""The same input gives the same bytes, and nothing is asked of the network or of other programs."""

import tempfile
from pathlib import Path

from tests.trust.forked import Server
from tests.trust.rows import Row
from tests.trust.sample import converted, held, sample

SECONDS = 30


def measure(forks: Server, scale: float) -> Row:
    """Converts twice, in two folders and with two seeds of Python's hashes."""
    pairs = different = 0
    touched: set[str] = set()
    runs = 0
    with tempfile.TemporaryDirectory() as name:
        for seed in range(max(int(5 * scale), 1)):
            folders = [Path(name) / f"{seed}-{n}" / ("sub" * n) for n in range(2)]
            results = [converted(forks, folder, seed=seed, onnx=True) for folder in folders]
            pairs += 1
            different += results[0] != results[1]
            for args in (
                ["verify"],
                ["inspect", "model.pth"],
                ["export-onnx", "--force"],
                ["convert", "model.pth", "--force"],
                ["convert", "model.pth", "--force", "--no-onnx", "--format", "json"],
                ["patterns"],
            ):
                before = held(folders[1])
                ended = forks.run(*args, folder=folders[1], env={"PYTHONHASHSEED": "7"})
                assert ended.exit == 0, (args, ended.stderr)
                touched |= {*ended.touched}
                runs += 1
                if "--no-onnx" not in args:
                    different += held(folders[1]) != before
    return Row(
        "sockets opened, programs started; the same input twice",
        "0; byte-identical outputs",
        f"{len(touched)} in {runs} runs; {different} of {pairs} conversions differ",
        not touched and not different,
    )


def test_the_same_input_twice(forks):
    row = measure(forks, 0.2)
    assert row.holds, row.measured


def test_a_socket_would_be_seen(forks, tmp_path):
    sample(tmp_path)
    with (tmp_path / "digits.py").open("a") as file:
        file.write("\nimport socket\nsocket.socket().close()\n")
    assert "socket.__new__" in forks.run("convert", "model.pth", folder=tmp_path).touched
