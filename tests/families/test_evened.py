"""Evening out ranges changes no bit of a network of any family, or says why there is nothing to do.

One network of each module of sample_models; all of them take minutes.
"""

import pytest
import torch

import acfuse
from acfuse.findings import Findings
from acfuse.proof import Inputs
from acfuse.sources.live import LiveSource
from sample_models import samples

SAMPLES = samples()
LAST = {name.partition("/")[0]: name for name in SAMPLES}  # of each module


@pytest.mark.parametrize("name", LAST.values())
def test_no_bit_of_a_family_changes(name):
    sample = SAMPLES[name]
    model = acfuse.fuse(sample.build(), fold_bn=True).model
    inputs = Inputs(((None, sample.input_shapes[0]),), samples=1)
    form, made = LiveSource.of(model).fuse(Findings((), ())).evened(inputs, everything=True)
    scales = made.scaled.scales
    if not made.is_taken:
        assert len(made.scaled.reasons) == len(scales.channels.layers)
        return
    assert any(scales.rows(layer).any() for layer in scales.channels.layers)
    assert made.compared > 0
    with torch.no_grad():
        for shape in sample.input_shapes:
            image = 7 * torch.randn(shape, generator=torch.Generator().manual_seed(4))
            assert torch.equal(model(image), form.model(image))
