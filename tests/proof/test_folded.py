"""What others folded in float32 is right; what is wrong in such a file is still found and named."""

import copy
import math

import pytest
import torch
from torch import nn

import acfuse
from acfuse.algebra import lower
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.pipeline.convert import concluded, prove
from acfuse.pipeline.job import Job
from acfuse.proof import Inputs, Tolerance
from acfuse.proof.certificate import certify
from acfuse.proof.folded import FEW, allowed, judged_as_folded
from acfuse.rewrite import fused_copy
from acfuse.sources.live import stored_in
from tests.bounds import gamma
from tests.proof.folding import SHAPE, Block, folded, network
from tests.proof.proving import as_fused


def _verdict(net, fused, found):
    """The fault of a file of others, and what it looks like."""
    given = as_fused(net, fused, found)
    proofs = prove(given, None, Tolerance(), by_others=True)
    return proofs, concluded(Job("x"), given.source, given, proofs).diagnosis


@pytest.mark.parametrize("seed", range(4))
def test_a_fold_in_float32_is_right_and_said_to_be_one(seed):
    net = network(seed)
    fused, found = folded(net)
    given = as_fused(net, fused, found)
    assert not prove(given, None, Tolerance()).passed  # acfuse itself rounds once
    proofs = prove(given, Inputs(((None, SHAPE),)), Tolerance(), by_others=True)
    assert proofs.passed, proofs.fault
    assert {c.folded for c in proofs.certificates} == {"float32"}


def test_rounding_is_allowed_no_more_than_theory_gives_it_where_nothing_cancels():
    net = network()
    fused, found = folded(net)
    for block in found:
        for part in allowed(block, stored_in(fused, block), block.reference()):
            # Each of the arms: a product, its factor of three roundings, and a sum of each.
            assert bool((part.most >= gamma(3, torch.float32) * part.exact.abs()).all())
            assert float(part.worst) <= 1


def test_the_python_call_takes_a_fold_in_float32_as_well():
    net = network()
    fused, _ = folded(net)
    assert acfuse.verify(net, fused, SHAPE).passed
    assert acfuse.verify(net, fused, SHAPE, atol=1e-3).passed
    assert not acfuse.verify(net, fused, SHAPE, atol=1e-12).passed


MISTAKES = {
    "eps_1e-6": ({"eps": 1e-6}, "eps 1e-06"),
    "eps_1e-3": ({"eps": 1e-3}, "eps 0.001"),
    "eps_0": ({"eps": 0.0}, "eps"),
    "no_identity": ({"without": ("rbr_identity",)}, "rbr_identity is missing"),
    "no_1x1": ({"without": ("rbr_1x1",)}, "rbr_1x1.conv is missing"),
    "transposed": ({"turned": True}, "transposed"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_float32_is_found_and_named(mistake):
    change, word = MISTAKES[mistake]
    net = network()
    proofs, diagnosis = _verdict(net, *folded(net, **change))
    assert not proofs.passed
    assert word in diagnosis


@pytest.mark.parametrize("variance", [(20.0, 60.0), (100.0, 300.0)])
def test_an_eps_that_hides_below_rounding_is_told_by_all_weights_together(variance):
    net = network(variance=variance)
    assert _verdict(net, *folded(net))[0].passed
    proofs, diagnosis = _verdict(net, *folded(net, eps=1e-4))
    assert not proofs.passed
    assert "eps 0.0001" in diagnosis


def test_batch_statistics_are_named():
    net = network()
    other = copy.deepcopy(net)
    for norm in (m for m in other.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean += 0.05
        norm.running_var *= torch.rand_like(norm.running_var) + 0.5
    proofs, diagnosis = _verdict(net, *folded(net, other))
    assert not proofs.passed
    assert "training mode" in diagnosis


@pytest.mark.parametrize("place", ["largest", "last"])
def test_one_weight_that_is_wrong_by_more_than_rounding_is_found(place):
    net = network()
    fused, found = folded(net)
    flat = fused.get_submodule(found[1].names[0]).weight.data.view(-1)
    flat[int(flat.abs().argmax()) if place == "largest" else -1] *= 1 + 1e-4
    proofs, diagnosis = _verdict(net, fused, found)
    assert not proofs.passed
    assert proofs.fault.startswith(found[1].where + ":")
    assert "1 altered weight" in diagnosis


@pytest.mark.parametrize("number", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_what_is_no_number_or_nothing_at_all_is_no_rounding(tensor, number):
    net = network()
    fused, found = folded(net)
    getattr(fused.get_submodule(found[1].names[0]), tensor).data.fill_(number)
    assert not _verdict(net, fused, found)[0].passed


@pytest.mark.parametrize("count", [1, FEW])
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_what_acfuse_wrote_may_not_be_off_by_a_unit(count, steps):
    net = network()
    found = find_in_module(net, PATTERNS).found
    fused = fused_copy(net, found)
    flat = fused.get_submodule(found[0].names[0]).weight.data.view(-1)
    exact = lower(found[0].terms[0].value, torch.float64).weight.view(-1)
    for place in range(0, 7 * count, 7):
        away = torch.tensor(math.inf if flat[place].double() >= exact[place] else -math.inf)
        for _ in range(steps):
            flat[place] = torch.nextafter(flat[place], away)
    proofs, _ = _verdict(net, fused, found)
    assert not proofs.passed
    assert f"{count} of " in proofs.fault


def test_one_block_of_float32_among_exact_ones_is_no_file_of_others():
    torch.manual_seed(0)
    net = nn.Sequential(*(Block(6, 6) for _ in range(6))).eval()
    by_others, found = folded(net)
    fused = fused_copy(net, found)
    fused[3].load_state_dict(by_others[3].state_dict())
    certificates = [certify(block, stored_in(fused, block)) for block in found]
    judged = judged_as_folded(
        found, certificates, lambda block: stored_in(fused, block), lambda *_: None
    )
    assert judged == tuple(certificates)
    assert sum(not c.passed for c in judged) == 1
