"""Evening out ranges of networks of others changes no bit, whoever exported them."""

import pytest
import torch

import acfuse
from acfuse.findings import Findings
from acfuse.int8.evened import evened
from acfuse.proof import Inputs
from acfuse.sources.live import LiveSource
from acfuse.targets.onnx_export import to_onnx
from sample_models import awake
from tests.packages.imports import imported
from tests.pipeline.converter import as_onnx

NAMES = ("repvgg_a0", "mobileone_s0", "fastvit_t8")
SHAPE = (1, 3, 64, 64)
INPUTS = Inputs(((None, SHAPE),), samples=1)


@pytest.fixture(params=NAMES, scope="module")
def fused(request):
    timm = imported("timm")
    torch.manual_seed(0)
    return acfuse.fuse(awake(timm.create_model(request.param, num_classes=10), 0), fold_bn=True)


def rescaled(made):
    return sum(
        int(x.any()) for x in map(made.scaled.scales.rows, made.scaled.scales.channels.layers)
    )


def test_no_bit_changes_in_pytorch(fused):
    source = LiveSource.of(fused.model)
    form, made = source.fuse(Findings((), ())).evened(INPUTS, everything=True)
    assert made.is_taken
    assert made.compared > 0
    before, after = fused.model.state_dict(), form.model.state_dict()
    changed = [n for n, t in after.items() if not torch.equal(t, before[n])]
    assert len(changed) >= 2 * rescaled(made) > 0
    images = torch.randn((2, 3, 96, 64), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(fused.model(images), form.model(images))


EXPORTERS = {
    "dynamo": lambda model: to_onnx(model, INPUTS).model,
    "older": lambda model: as_onnx(model, SHAPE),
}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_no_bit_changes_in_files_of_both_exporters(fused, exporter):
    made = evened(EXPORTERS[exporter](fused.model), INPUTS, everything=True)
    assert made.is_taken
    assert rescaled(made) > 0
    assert made.compared > 0
