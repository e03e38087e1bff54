"""Random small networks as ONNX files: whatever is fused in them, they stay what they were.

Both of torch's exporters write the networks, in float64: a difference is then no rounding.
"""

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, seed, settings

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.proof.certificate import certify
from acfuse.rewrite import fused_copy
from acfuse.sources.onnx import fuse_onnx
from sample_models import awake
from tests.bounds import assert_within, rounding
from tests.graph.fusing import images
from tests.graph.onnx_files import answers, convolutions, exported
from tests.graph.programs import CANCELLED, SIZES, Program, programs

BORDERS = ("reflect", "circular", "replicate")


@torch.no_grad()
def check(program: Program, *, dynamo: bool = False, opset: int = 17, folds: bool = False) -> str:
    """Fuses the file of a network and compares the two files; tells what happened."""
    program.returned = list(dict.fromkeys(program.returned))  # an exporter fails for one twice
    model = awake(program.double(), 0)
    original = exported(model, len(program.returned), dynamo=dynamo, opset=opset)
    fused = fuse_onnx(original, fold_bn=folds)
    names = [[v.name for v in (*m.graph.input, *m.graph.output)] for m in (original, fused.model)]
    assert names[0] == names[1]
    # The batch, too, is of a size that is not the exported one, where it is free.
    for image in images(SIZES if not dynamo else (SIZES[0], (2, 4, 18, 25))):
        expected, given = (answers(m, image) for m in (original, fused.model))
        assert_within(given, expected, rounding(model, image))
    for block in fused.found:
        values = [s.value.kernel.abs().max() for s in block.terms if s.value is not None]
        if min(values) > CANCELLED:
            assert certify(block, fused.stored(block)).fault == ""
    live = find_in_module(model, PATTERNS, folds=folds)
    plain = exported(
        fused_copy(model, live.found), len(program.returned), dynamo=dynamo, opset=opset
    )
    if not set(BORDERS).intersection(str(program).split()):  # in a file these are further nodes
        assert convolutions(fused.model) <= convolutions(plain)
    return "fused" if fused.found else "nothing fused"


@given(programs())
def test_a_random_file_stays_what_it_was(program):
    event(check(program))


@pytest.mark.parametrize(
    ("count", "options"),
    [(120, {"opset": 11}), (120, {"opset": 13, "folds": True}), (6, {"dynamo": True})],
)
def test_files_of_other_exporters_and_opsets(count, options):
    outcomes = Counter()

    @seed(1)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def run(program):
        outcomes[check(program, **options)] += 1

    run()
    assert outcomes["fused"], outcomes
