"""A checkpoint with a single bit flipped is refused, or holds exactly what it held before."""

import hashlib
import random
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acfuse.errors import AcfuseError
from acfuse.files.read import read_tensors
from acfuse.files.records import DEFAULTS, ReadOptions
from tests.trust.forked import Server
from tests.trust.rows import Row
from tests.trust.sample import converted

SECONDS = 120


def saved(folder: Path) -> tuple[bytearray, dict[str, Tensor]]:
    """The bytes of a small checkpoint, and its tensors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, (3, 1)), nn.BatchNorm2d(2))
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, folder / "good.pth")
    return bytearray((folder / "good.pth").read_bytes()), model.state_dict()


def fate(path: Path, data: bytes, good: dict[str, Tensor], how: ReadOptions = DEFAULTS) -> str:
    """What becomes of a file: "refused", "harmless", or "changed"."""
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, tensors = read_tensors(path, how)
    except AcfuseError:
        return "refused"
    same = set(tensors) == set(good) and all(torch.equal(tensors[k], good[k]) for k in good)
    return "harmless" if same else "changed"


@pytest.mark.parametrize("part", range(4))
def test_no_flipped_bit_changes_a_tensor(tmp_path, part):
    data, good = saved(tmp_path)
    assert fate(tmp_path / "flipped.pth", bytes(data), good) == "harmless"
    bits = random.Random(part).sample(range(8 * len(data)), 250)
    fates = []
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
        fates.append(fate(tmp_path / "flipped.pth", bytes(data), good))
        data[bit // 8] ^= 1 << bit % 8
    assert "changed" not in fates
    assert fates.count("refused") > 100  # the others are in padding, dates and the like


def test_no_truncated_file_is_read(tmp_path):
    data, good = saved(tmp_path)
    for length in random.Random(0).sample(range(len(data)), 150):
        assert fate(tmp_path / "cut.pth", bytes(data[:length]), good) == "refused"


def flipped(data: bytes, chance: random.Random) -> bytes:
    """The same bytes, and one bit another."""
    bit = chance.randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def fate_of_an_output(forks: Server, folder: Path, name: str, chance: random.Random) -> str:
    """What `acfuse verify` says of an output with a bit flipped."""
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(flipped(good, chance))
    ended = forks.run("verify", folder=folder)
    (folder / name).write_bytes(good)
    refused = ended.exit in (1, 3, 4) and ended.is_clean and not ended.touched
    return "refused" if refused else "changed" if ended.exit == 0 else f"exit {ended.exit}"


def measure(forks: Server, scale: float) -> Row:
    """Flips bits of checkpoints that are read, and of outputs that are verified."""
    count = max(int(250 * scale), 4)
    chance = random.Random(0)
    fates: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, good = saved(folder)
        for _ in range(count):
            fates[fate(folder / "it.pth", flipped(bytes(data), chance), good)] += 1
        save_file(good, folder / "good.safetensors")
        plain = (folder / "good.safetensors").read_bytes()
        known = ReadOptions(sha256=hashlib.sha256(plain).hexdigest())
        assert fate(folder / "it.safetensors", plain, good, known) == "harmless"
        for _ in range(count):
            fates[fate(folder / "it.safetensors", flipped(plain, chance), good, known)] += 1
        converted(forks, folder, seed=1, onnx=True)
        assert forks.run("verify", folder=folder).exit == 0
        for output in ("model.fused.pth", "model.fused.onnx"):
            for _ in range(count):
                fates[fate_of_an_output(forks, folder, output, chance)] += 1
    total = sum(fates.values())
    fine = fates["refused"] + fates["harmless"]
    return Row(
        "single-bit flips (pth, safetensors with its hash known, ONNX with its manifest)",
        "1,000 of 1,000 refused or proven harmless",
        f"{fine:,} of {total:,}: {fates['refused']:,} refused, {fates['harmless']:,} harmless"
        + ("" if fine == total else f" {dict(fates)}"),
        fine == total and fates["refused"] > total / 2,
    )


def test_a_flipped_bit_is_noticed_in_every_kind_of_file(forks):
    row = measure(forks, 0.012)
    assert row.holds, row.measured
