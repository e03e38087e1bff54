"""Random small networks as ONNX files: whatever is fused in them, they stay what they were.

Networks are those of `test_random_networks`; both of torch's exporters write them. The files are
of float64: a difference is then no rounding.
"""

import io
import warnings
from collections import Counter

import numpy as np
import onnx
import onnx.version_converter
import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, seed, settings
from onnx.reference import ReferenceEvaluator
from torch import nn

from acfuse.find import find_in_module
from acfuse.graph.onnx_values import opset_of
from acfuse.patterns import PATTERNS
from acfuse.proof.certificate import compare
from acfuse.rewrite import fused_copy
from acfuse.sources.onnx import REFERENCE_OPSET, ConvTranspose, count_nodes, fuse_onnx
from sample_models import awake

from .fusing import images
from .test_random_networks import Program, programs

SIZES = ((2, 4, 21, 16), (1, 4, 18, 25))
BORDERS = ("reflect", "circular", "replicate")
NOISE = 1e-10  # float64, of the largest output


def exported(
    model: nn.Module, outputs: int, *, dynamo: bool = False, opset: int = 17
) -> onnx.ModelProto:
    """What one of torch's exporters writes, nothing folded by it, with free sizes."""
    image = images(SIZES)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            free = dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
            program = torch.onnx.export(
                model, (image,), dynamo=True, opset_version=20, verbose=False,
                dynamic_shapes=[free],
            )  # fmt: skip
            return program.model_proto
        buffer = io.BytesIO()
        torch.onnx.export(
            model, image, buffer, dynamo=False, opset_version=opset, input_names=["x"],
            output_names=[f"y{i}" for i in range(outputs)],
            dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}}, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def answers(model: onnx.ModelProto, image: np.ndarray) -> list[np.ndarray]:
    """The outputs in float64, node by node."""
    if opset_of(model) < REFERENCE_OPSET:  # older BatchNormalizations it takes to be in training
        model = onnx.version_converter.convert_version(model, REFERENCE_OPSET)
    return ReferenceEvaluator(model, new_ops=[ConvTranspose]).run(
        None, {model.graph.input[0].name: image}
    )


def convolutions(model: onnx.ModelProto) -> int:
    return count_nodes(model, "Conv") + count_nodes(model, "ConvTranspose")


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
        expected, given = (answers(m, image.numpy()) for m in (original, fused.model))
        scale = max(1.0, *(float(np.abs(e).max()) for e in expected))
        for a, b in zip(given, expected, strict=True):
            assert a.shape == b.shape
            assert float(np.abs(a - b).max()) <= NOISE * scale
    for block, layers in zip(fused.found, fused.layers, strict=True):
        values = [s.value.kernel.abs().max() for s in block.terms if s.value is not None]
        if min(values) > 1e-9:  # of arms that cancel altogether nothing but rounding is left
            stored = [placed and placed.layer.linear() for placed in layers]
            assert compare(block.rebuilt, stored, block).fault == ""
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
