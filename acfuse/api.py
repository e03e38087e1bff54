"""The Python calls: a few functions on values. None of them changes what it is given."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from acfuse.files import BareTensors, Container
from acfuse.find import find_in_module
from acfuse.findings import Block, Refused
from acfuse.patterns import PATTERNS, Pattern
from acfuse.patterns.match import find_in_tensors
from acfuse.pipeline.convert import convert as convert_job
from acfuse.pipeline.convert import rewrite
from acfuse.pipeline.job import Conversion, Job
from acfuse.pipeline.replay import load_fused
from acfuse.proof import Inputs, Proofs, Tolerance, verify_models
from acfuse.rewrite import fused_copy
from acfuse.sources.onnx import fuse_onnx

__all__ = [
    "Fused",
    "FusedTensors",
    "convert",
    "fuse",
    "fuse_onnx",
    "fuse_tensors",
    "load_fused",
    "verify",
]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fused:
    """A fused model in eval mode, what was found in the original, and what was refused and why."""

    model: nn.Module
    found: tuple[Block, ...]
    refused: tuple[Refused, ...]


@dataclass(frozen=True)
class FusedTensors:
    """A fused state dict, what was found and refused, and what had to be assumed."""

    tensors: dict[str, Tensor]
    found: tuple[Block, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]


def fuse(
    model: nn.Module, *, fold_bn: bool = False, patterns: Sequence[Pattern] = PATTERNS
) -> Fused:
    """Fuses every block of a model for inference. The given model is untouched.

    With `fold_bn`, lone convolutions take up the BatchNorm behind them as well. A model in training
    mode is read as it would be in eval mode.
    """
    model = copy.deepcopy(model).eval() if model.training else model
    findings = find_in_module(model, patterns, folds=fold_bn)
    return Fused(fused_copy(model, findings.found), findings.found, findings.refused)


def fuse_tensors(
    tensors: Mapping[str, Tensor],
    *,
    bn_eps: float | None = None,
    patterns: Sequence[Pattern] = PATTERNS,
) -> FusedTensors:
    """Fuses the blocks of a state dict whose code is not at hand, by named patterns.

    What a state dict does not hold (eps, stride, alignment) is assumed and listed in `notes`.
    """
    findings = find_in_tensors(tensors, patterns, bn_eps)
    checkpoint = BareTensors(tensors, Container("state_dict"))
    fused = rewrite(checkpoint, findings)
    return FusedTensors(fused.tensors, findings.found, findings.refused, findings.messages)


def verify(
    original: nn.Module,
    fused: nn.Module,
    *input_shapes: Shape,
    atol: float | None = None,
    rtol: float | None = None,
    fold_bn: bool = False,
    patterns: Sequence[Pattern] = PATTERNS,
) -> Proofs:
    """Proves that a fused model is the original one, block by block, and on inputs of given shapes.

    `fused` has the structure that `fuse` gives. The result is passed, or says what is wrong.
    """
    original = copy.deepcopy(original).eval()

    def find(model: nn.Module) -> tuple[Block, ...]:
        return find_in_module(model, patterns, folds=fold_bn).found

    inputs = Inputs(tuple((None, shape) for shape in input_shapes)) if input_shapes else None
    return verify_models(original, fused, find(original), inputs, Tolerance(atol, rtol), find)


def convert(source: str | Path, *, input_shape: Shape | None = None, **options: Any) -> Conversion:
    """What `acfuse convert` does: files in, files out. Options are the fields of a `Job`.

    Raises AcfuseError for what a user can mend. A failed proof is a result; nothing is written.
    """
    if input_shape is not None:
        options["inputs"] = Inputs(((None, tuple(input_shape)),))
    if options.get("output") is not None:
        options["output"] = Path(options["output"])
    return convert_job(Job(Path(source), **options))
