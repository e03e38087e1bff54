"""Forwards that write borders in place are not read: a pattern knows the block, if it fits."""

import copy

import pytest

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from sample_models import samples
from tests.graph.fusing import assert_same

NOT_READ = {name: sample for name, sample in samples().items() if not sample.live}


@pytest.mark.parametrize("name", NOT_READ)
def test_such_a_block_is_one_convolution(name):
    sample = NOT_READ[name]
    model = sample.build().double()
    findings = find_in_module(model, PATTERNS)
    assert [str(b.pattern).partition("/")[0] for b in findings.found] == [sample.pattern]
    fused = fused_copy(model, findings.found)
    assert set(sample.deploy_keys) <= set(fused.state_dict())
    assert_same(model, fused, sample.input_shapes)


@pytest.mark.parametrize("name", NOT_READ)
def test_one_that_computes_something_else_is_left(name):
    model = copy.deepcopy(NOT_READ[name].build().double())
    block = model.get_submodule(find_in_module(model, PATTERNS).found[0].where)
    plain = type(block).forward

    class Other(type(block)):
        def forward(self, *args):
            return plain(self, *args) * 1.001

    block.__class__ = Other
    findings = find_in_module(model, PATTERNS)
    fused = fused_copy(model, findings.found)
    assert not any(b.layers and b.where == "body" and b.forward is None for b in findings.found)
    assert_same(model, fused, NOT_READ[name].input_shapes[:1])
