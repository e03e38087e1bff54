"""Results, attributes, shapes and settings of kinds that are seldom met."""

import re

import pytest
import torch
from torch import nn

import acfuse
from acfuse.errors import UsageError
from sample_models import awake


def _of_itself(y):
    held = [y]
    held.append(held)
    return held


ODD_RESULTS = {
    "sparse": lambda y: y.to_sparse(),
    "rows": lambda y: y[0, 0].to_sparse_csr(),
    "beside": lambda y: [y, {"sparse": y.to_sparse()}],
    "nested": lambda y: torch.nested.nested_tensor([y[0], y[0]]),
    "eight bits": lambda y: y.to(torch.float8_e4m3fn),
    "unsigned": lambda y: y.abs().to(torch.uint16),
    "complex": torch.fft.fft2,
    "meta": lambda y: y.to("meta"),
    "mkldnn": lambda y: y.to_mkldnn(),
    "quantized": lambda y: torch.quantize_per_tensor(y.float(), 0.1, 0, torch.qint8),
    "in a circle": _of_itself,
    "empty": lambda y: [],
    "none": lambda y: None,
}


class Gives(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what
        self.wide, self.point = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)

    def forward(self, x):
        return self.what(self.wide(x) + self.point(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ODD_RESULTS.values(), ids=list(ODD_RESULTS))
def test_a_result_of_an_odd_kind_is_compared_or_said_to_be_none(what):
    model = awake(Gives(what), 0)
    fused = acfuse.fuse(model)
    assert acfuse.verify(model, fused.model, (1, 4, 6, 5)).passed
    if fused.found:
        with torch.no_grad():
            fused.model.fused_conv.weight[1, 2, 0, 1] *= 1.001
        assert not acfuse.verify(model, fused.model, (1, 4, 6, 5)).passed


@pytest.mark.parametrize("shape", [(), [], "1,4,6,5", (1, 4, -1, 5), (0, 4, 6, 5), (1, 4.0), None])
def test_what_is_no_shape_is_told(shape):
    model = awake(Gives(lambda y: y), 0)
    with pytest.raises(UsageError, match="is no shape"):
        acfuse.verify(model, acfuse.fuse(model).model, shape)


def test_the_default_device_of_a_caller_does_not_matter():
    model = awake(Gives(lambda y: y), 0)
    with torch.device("meta"):
        fused = acfuse.fuse(model)
        assert len(fused.found) == 1
        assert acfuse.verify(model, fused.model, (1, 4, 6, 5)).passed


class Holds(Gives):
    def __init__(self):
        super().__init__(torch.relu)
        self.pattern = re.compile("a+")
        self.functions = {torch.relu, len}
        self.frozen = frozenset({("a", 1), ("b", (2, 3))})


CHANGES = {
    "pattern": lambda m: setattr(m, "pattern", re.compile("b+")),
    "flags": lambda m: setattr(m, "pattern", re.compile("a+", re.IGNORECASE)),
    "functions": lambda m: setattr(m, "functions", {torch.relu, max}),
    "frozen": lambda m: setattr(m, "frozen", frozenset({("a", 1), ("b", (2, 4))})),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_an_attribute_holds_is_looked_into(change):
    model = awake(Holds(), 0)
    fused = acfuse.fuse(model).model
    assert acfuse.verify(model, fused).passed
    change(fused)
    assert "program" in acfuse.verify(model, fused).fault
