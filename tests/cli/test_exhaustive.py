"""`--exhaustive`: every weight of the layers is read by impulses, and nothing is believed."""

import pytest
import torch
from torch import nn

from acfuse.proof import random_probes
from sample_models import awake
from sample_models.acnet import ACBlock
from tests.cli.command import run


@pytest.fixture
def probed(tmp_path, monkeypatch):
    """Where a wide block lies; the list of kernels of which random numbers are asked."""
    monkeypatch.chdir(tmp_path)
    model = awake(nn.Sequential(ACBlock(24, 6, 3, 1, 1)), 0).float()
    torch.save(model.state_dict(), "wide.pth")
    asked, hidden = [], random_probes.Claims.hidden

    def counted(self, index, output):
        asked.append(index)
        return hidden(self, index, output)

    monkeypatch.setattr(random_probes.Claims, "hidden", counted)
    return asked


def test_convert_asks_random_numbers_first(probed):
    assert run("convert", "wide.pth", "--no-onnx").exit_code == 0
    assert probed == [0]


def test_convert_and_verify_read_every_weight_where_that_is_asked_for(probed):
    assert run("convert", "wide.pth", "--no-onnx", "--exhaustive").exit_code == 0
    assert run("verify", "--exhaustive").exit_code == 0
    assert run("verify", "wide.pth", "wide.fused.pth", "--exhaustive").exit_code == 0
    assert probed == []
