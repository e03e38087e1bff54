"""Nothing that a file holds is run, imported or called: however it is pickled, packed, or read."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from acfuse.system.escape import safe
from tests.trust.forked import ROOT, Ended, Server
from tests.trust.payloads import CANARY, CONTAINERS, NAMES_IT, Payload, payloads, put_modules
from tests.trust.rows import Row
from tests.waiting import HANG

SECONDS = 200
ALLOWED = """
import os
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(1, 2)
"""
WAYS = {
    "inspect": ["inspect", "it.pth"],
    "convert": ["convert", "it.pth"],
    "no weights_only": ["convert", "it.pth"],
    "--allow-class": ["convert", "it.pth", "--allow-class", "own.py:Net",
                      "--allow-class", "torch.nn:Conv2d"],
    "--model": ["convert", "it.pth", "--model", "own.py:Net", "--input-shape", "1,3,9,7"],
    "a shard": ["convert", "it.safetensors.index.json"],
}  # fmt: skip
ENV = {"no weights_only": {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}}


def cases() -> Iterator[tuple[Payload, str, str]]:
    for payload in payloads():
        for container in CONTAINERS:
            for way in WAYS:
                yield payload, container, way


def fault(ended: Ended, payload: Payload, container: str, folder: Path) -> str:
    """What is wrong with a run, in a word; empty where it was refused as it should be."""
    touched = (folder / CANARY).exists()
    return (
        "canary" if touched
        else "signal or traceback" if not ended.is_clean
        else "acted" if ended.touched
        else f"exit {ended.exit}" if ended.exit not in (3, 4)
        else "not one line" if not ended.is_one_line
        else "name" if is_told(payload, container) and safe(payload.name) not in ended.stderr
        else ""
    )  # fmt: skip


def is_told(payload: Payload, container: str) -> bool:
    """Whether a refusal tells the name; a tar file, or a pickle in text, is none that is read."""
    return container in NAMES_IT and not (container == "plain" and payload.protocol < 2)


def measure(forks: Server, scale: float) -> Row:
    """Gives every payload in every container to acfuse in every way."""
    faults: list[str] = []
    every = list(cases())
    chosen = every[:: max(round(1 / scale), 1)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put_modules(folder)
        (folder / "own.py").write_text(ALLOWED)
        index = '{"weight_map": {"a.weight": "it.pth"}}'
        (folder / "it.safetensors.index.json").write_text(index)
        for payload, container, way in chosen:
            (folder / "it.pth").write_bytes(CONTAINERS[container](payload))
            ended = forks.run(*WAYS[way], folder=folder, env=ENV.get(way, {}))
            found = fault(ended, payload, container, folder)
            if found:
                case = f"{payload.technique} in {container} by {way}"
                faults.append(f"{found}: {case}: {ended.stderr.strip()[-300:]!r}")
            if (folder / CANARY).exists():
                (folder / CANARY).rmdir()
    return Row(
        "payload techniques x containers x ways in",
        "at least 300 cases, 0 canaries touched, 0 signals, 0 tracebacks, the name in the refusal",
        f"{len(payloads())} x {len(CONTAINERS)} x {len(WAYS)}, {len(chosen):,} run: "
        + (f"{len(faults)} fall short ({faults[0]})" if faults else "all refused, each by name"),
        not faults and (scale < 1 or len(chosen) >= 300),
    )


def test_payloads_are_refused(forks):
    row = measure(forks, 1 / 17)  # has no factor in common with the containers and the ways
    assert row.holds, row.measured


def test_payloads_act_where_pickles_are_loaded(tmp_path):
    """Those that do nothing anywhere would prove nothing."""
    command = [sys.executable, "-m", "tests.trust.payloads", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(payloads()) >= 25


def test_a_canary_is_noticed(tmp_path):
    (tmp_path / CANARY).mkdir()
    clean = Ended(4, 0.1, 0, "", "error: posix.mkdir\n")
    payload = payloads()[0]
    assert fault(clean, payload, "zip", tmp_path) == "canary"
    (tmp_path / CANARY).rmdir()
    assert fault(clean, payload, "zip", tmp_path) == ""
    assert fault(Ended(4, 0.1, 0, "", "error: a\n"), payload, "zip", tmp_path) == "name"
    assert fault(Ended(0, 0.1, 0, "", ""), payload, "zip", tmp_path) == "exit 0"


def test_the_containers_without_a_payload_are_read(forks, tmp_path):
    """What is refused is the payload, not the way in which the test packs it."""
    harmless = Payload("harmless", b"K\x01", "")
    for container in ("zip", "legacy"):
        (tmp_path / "it.pth").write_bytes(CONTAINERS[container](harmless))
        assert torch.load(tmp_path / "it.pth", weights_only=True)["extra"] == 1
        ended = forks.run("inspect", "it.pth", folder=tmp_path)
        assert (ended.exit, ended.is_clean) == (5, True), ended.stderr  # there is nothing to fuse
