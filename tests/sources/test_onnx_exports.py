"""Files that torch's present exporter writes and does not tidy: every block of the live model."""

import warnings

import onnx
import pytest
import torch

from acfuse.pipeline.convert import prove
from acfuse.proof import Tolerance
from acfuse.sources.onnx import fuse_onnx
from sample_models import Sample, samples

FUSED = {name: sample for name, sample in samples().items() if sample.blocks}
FIRST = {name.partition("/")[0]: name for name in reversed(FUSED)}.values()  # one of each family


def exported(sample: Sample, opset: int) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            sample.build(),
            (torch.randn(*sample.input_shapes[0]),),
            dynamo=True,
            optimize=False,
            opset_version=opset,
            verbose=False,
        )
    return program.model_proto


@pytest.mark.parametrize(
    ("name", "opset"),
    [*((name, 20) for name in sorted(FIRST)), ("acnet/no_affine", 20), ("acnet/no_affine", 18)],
)
def test_a_file_that_is_not_tidied_has_every_block(name: str, opset: int) -> None:
    fused = fuse_onnx(exported(FUSED[name], opset))
    assert len(fused.findings.blocks) == FUSED[name].blocks
    proofs = prove(fused, None, Tolerance())
    assert proofs.passed, proofs.fault
