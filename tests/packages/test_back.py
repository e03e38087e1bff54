"""Fused tensors load, strictly, into what the packages' own converters make of their networks."""

import copy
from functools import partial

import pytest
import torch

import acfuse
from acfuse.patterns import known_patterns
from tests.bounds import assert_within, rounding
from tests.packages.networks import BRANCHED

ASSUMED = ("repmixer/timm", "repcpe/timm", "repghost")
BY_NAME = ("repvgg_a0", "repvgg_d2se", "mobileone_s0", "fastvit_t8", "repghostnet_100",
           "lcnetv2_base")  # fmt: skip
FOLDED = ("textnet_tiny", "yolov10n", "yolov9t")
"""Their converters take up lone BatchNorms as well."""
RENAMED = ("repvit_m0_9", "textnet.TextNet")
"""Their converters give the layers other names, or there is none."""


def each(*names):
    networks = [n for n in BRANCHED if n.name in names]
    assert len(networks) == len(names)
    return pytest.mark.parametrize(
        "case", networks, ids=lambda n: n.name, indirect=True, scope="module"
    )


def overwritten(network):
    """A copy in float64 whose numbers are all others."""
    network = copy.deepcopy(network).double()
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(0.5)
    return network


def assert_as_converted(case, tensors):
    """The converted network, with these tensors in it, is what its own converter made."""
    network, own = overwritten(case.own), copy.deepcopy(case.own).double()
    network.load_state_dict(tensors, strict=True)
    image = torch.randn(case.shape, dtype=torch.float64)
    expected, given = (run(model, image) for model in (own, network))
    # Both hold the weights in float32; what runs them is float64.
    assert_within(given, expected, rounding(partial(run, own), image, dtype=torch.float32))


def run(model, image):
    """The output, or the largest of several."""
    with torch.no_grad():
        out = model(image)
    while not isinstance(out, torch.Tensor):
        out = max(out.values() if isinstance(out, dict) else out, key=_size)
    return out


def _size(part):
    return part.numel() if isinstance(part, torch.Tensor) else 0


@each(*BY_NAME)
def test_a_fused_model_loads_into_the_converted_one(case):
    assert_as_converted(case, acfuse.fuse(case.model).model.state_dict())


@each(*BY_NAME)
def test_so_do_tensors_that_were_fused_without_their_code(case):
    patterns = known_patterns(assume=ASSUMED)
    state = case.model.state_dict()
    assert_as_converted(case, acfuse.fuse_tensors(state, bn_eps=1e-5, patterns=patterns).tensors)


@each(*FOLDED)
def test_with_lone_batch_norms_folded_it_is_the_converted_one(case):
    assert_as_converted(case, acfuse.fuse(case.model, fold_bn=True).model.state_dict())


@each(*RENAMED)
def test_where_names_differ_the_training_form_takes_them(case):
    fused = acfuse.fuse(case.model).model
    network = acfuse.load_fused(case.network.build(), fused.state_dict())
    before, after = fused.state_dict(), network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
