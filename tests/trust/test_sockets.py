"""Nothing is asked of the network, and no program is started."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.trust.forked import SAMPLES, Ended, Server
from tests.trust.rows import Row
from tests.trust.sample import converted, sample

SECONDS = 20
RUNS = (
    ["inspect", "model.pth"],
    ["convert", "model.pth", "--force"],
    ["convert", "model.pth", "--force", "--no-onnx", "--format", "json"],
    ["verify"],
    ["export-onnx", "--force"],
    ["convert", "model.fused.onnx"],
    ["convert", "repvgg.pth", "-o", "other.pth"],
    ["convert", "missing.pth"],
    ["convert", "model.pth", "--model", "digits.py:Missing"],
    ["patterns"],
    ["patterns", "show", "acnet"],
    ["--help"],
)


def measure(forks: Server, scale: float) -> Row:
    """Runs every command where a socket, asked for by Python or by C, ends the process."""
    chosen = RUNS[:: max(round(0.5 / scale), 1)]
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        converted(forks, folder, seed=1, onnx=True)
        shutil.copy(SAMPLES / "repvgg.pth", folder)
        for args in chosen:
            ended = forks.run(*args, folder=folder)
            if acted(ended) or not ended.is_clean:
                bad.append(f"{args}: {acted(ended)} {ended.stderr[-200:]}")
    return Row(
        "sockets opened, programs started",
        "0",
        f"{len(bad)} in {len(chosen)} kinds of runs (every other row is measured so as well)"
        + (f" ({bad[0]})" if bad else ""),
        not bad,
    )


def acted(ended: Ended) -> str:
    """What a run did that none may do; empty if nothing."""
    return "a socket" if ended.exit == -31 else " ".join(ended.touched)


def test_no_socket_is_opened(forks):
    row = measure(forks, 0.1)
    assert row.holds, row.measured


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import socket\nsocket.socket().close()", "a socket"),
        ("import ctypes\nctypes.CDLL(None).socket(2, 1, 0)", "a socket"),
        ("import subprocess\nsubprocess.run(['true'])", "subprocess.Popen"),
        ("import os\nos.system('true')", "os.system"),
    ],
)
def test_what_the_users_own_code_does_is_seen(forks, tmp_path, code, what):
    sample(tmp_path)
    with (tmp_path / "digits.py").open("a") as file:
        file.write(f"\n{code}\n")
    assert what in acted(forks.run("convert", "model.pth", folder=tmp_path))
