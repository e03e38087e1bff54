"""A checkpoint with a single bit flipped is refused, or holds exactly what it held before."""

import random
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from acfuse.checkpoint import read_tensors
from acfuse.errors import AcfuseError


def saved(folder: Path) -> tuple[bytearray, dict[str, Tensor]]:
    """The bytes of a small checkpoint, and its tensors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, (3, 1)), nn.BatchNorm2d(2))
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, folder / "good.pth")
    return bytearray((folder / "good.pth").read_bytes()), model.state_dict()


def fate(path: Path, data: bytes, good: dict[str, Tensor]) -> str:
    """What becomes of a file: "refused", "harmless", or "changed"."""
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, tensors = read_tensors(path)
    except AcfuseError:
        return "refused"
    same = list(tensors) == list(good) and all(torch.equal(tensors[k], good[k]) for k in good)
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
