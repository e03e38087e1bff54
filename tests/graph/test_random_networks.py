"""Random small networks: whatever is fused in them, they stay what they were."""

from collections import Counter

import torch
from hypothesis import HealthCheck, Phase, event, given, seed, settings

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from sample_models import awake
from tests.bounds import assert_within, rounding
from tests.graph.fusing import images
from tests.graph.programs import CANCELLED, SIZES, Program, programs
from tests.proof.proving import certified


@torch.no_grad()
def check(program: Program, *, prove: bool = True) -> str:
    """Fuses a network and compares it with itself; tells what happened."""
    model = awake(program.double(), 0)
    findings = find_in_module(model, PATTERNS)
    fused = fused_copy(model, findings.found)
    for image in images(SIZES):
        assert_within(fused(image.clone()), model(image.clone()), rounding(model, image))
    if not findings.found:
        return "nothing fused"
    if prove:
        for block in findings.found:
            weights = [s.value.kernel.abs().max() for s in block.terms if s.value is not None]
            if max(weights) > CANCELLED:
                assert certified(fused, block).fault == ""
    nested = any("." in block.where or block.where for block in findings.found)
    return "fused within a module" if nested else "fused"


@given(programs())
def test_a_random_network_stays_what_it_was(program):
    outcome = check(program)
    event(outcome)


def test_a_random_network_that_overwrites_values_stays_what_it_was():
    @seed(0)
    @settings(max_examples=300, database=None, phases=[Phase.generate])
    @given(programs(bold=True))
    def run(program):
        check(program, prove=False)

    run()


def test_random_networks_are_fused_about_as_often_as_not():
    outcomes = Counter()

    @seed(1)
    @settings(
        max_examples=100,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def run(program):
        outcomes[check(program, prove=False)] += 1

    run()
    total = sum(outcomes.values())
    assert outcomes["nothing fused"] >= 0.2 * total, outcomes
    assert outcomes["fused"] + outcomes["fused within a module"] >= 0.2 * total, outcomes
