"""What is wrong with a command, as far as it can be told before PyTorch is imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acfuse.errors import UsageError
from acfuse.files.cost_table import read_cost_table
from acfuse.files.detect import check_source, is_onnx
from acfuse.files.opened_file import check_given
from acfuse.files.pattern_file import pattern_table
from acfuse.files.user_modules import check_model
from acfuse.system.limits import Limits


def check_early(
    source: Path | None,
    fused: Path | None = None,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    inputs: Path | None = None,
    patterns: Sequence[Path] | None = None,
    cost: Path | None = None,
    sha256: str | None = None,
    limits: Limits,
    has_inputs: bool,
) -> None:
    """Raises what the command would end with; what is raised here is worded where it is read.

    `source` is None where the last conversion is meant: what it was given is not known yet.
    `has_inputs` says whether inputs are given, or not needed.
    """
    if inputs is not None:
        check_given(inputs, "--inputs")
    for path in patterns or ():
        pattern_table(path)
    if cost is not None:
        read_cost_table(cost)
    if source is not None:
        check_source(source, limits, sha256)
    if fused is not None:
        check_source(fused, limits)
    if model is None or (source is not None and is_onnx(source)):
        return
    check_model(model, (model_args or {}) if source is not None else None)
    if source is not None and not has_inputs:
        raise without_inputs()


def without_inputs() -> UsageError:
    """That a network is to be proved, and no input is given."""
    return UsageError(
        "--input-shape is missing: the whole model is compared on inputs, and exported with "
        "one. Give for instance --input-shape 1,3,224,224."
    )
