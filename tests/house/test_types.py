"""A user's type checker knows every public call, and what each gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import acfuse

ROOT = Path(__file__).parents[2]

RIGHT = """
import acfuse
import onnx
import torch
from acfuse import (
    AcfuseError,
    BusyError,
    Exit,
    InputError,
    NotEqual,
    NotFusable,
    NothingToFuse,
    OutputError,
    Reason,
    UnsafeError,
    UsageError,
)
from torch import Tensor, nn


def live(model: nn.Module) -> nn.Module:
    fused = acfuse.fuse(model, fold_bn=True)
    print([block.where for block in fused.found], [refused.why for refused in fused.refused])
    proofs = acfuse.verify(model, fused.model, (1, 3, 224, 224), atol=1e-4)
    if not proofs.passed:
        raise SystemExit(proofs.fault)
    return fused.model


def graph(model: onnx.ModelProto) -> onnx.ModelProto:
    fused = acfuse.fuse_onnx(model)
    print([block.where for block in fused.found], [refused.why for refused in fused.refused])
    return fused.model


def bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    fused = acfuse.fuse_tensors(tensors, bn_eps=1e-5)
    print([block.where for block in fused.found], [refused.why for refused in fused.refused])
    return fused.tensors


def files(network: nn.Module) -> nn.Module:
    try:
        done = acfuse.convert("model.pth", model="nets:Net", input_shape=(1, 3, 224, 224))
    except AcfuseError as error:
        raise SystemExit(int(error.exit_code)) from error
    if not done.proofs.passed:
        raise SystemExit(Exit.NOT_EQUAL)
    print(acfuse.__version__.partition("."), [path.name for path in done.written])
    in_8_bits: onnx.ModelProto = acfuse.quantize("model.fused.onnx", "images", keep=["a"]).model
    print(in_8_bits.ir_version, acfuse.quantize(in_8_bits, torch.zeros(8, 3)).loss.executed)
    lost: list[float] = [own.per_tensor for own in acfuse.ranges(network).values()]
    print(lost, [own.spread for own in acfuse.ranges("model.fused.onnx").values()])
    evened: nn.Module = acfuse.equalize(network, (1, 3, 224, 224), everything=True)
    return acfuse.load_fused(evened, "model.fused.pth")


def told(error: Exception) -> str:
    match error:
        case NotFusable(code=Reason.STRIDES, why=why):
            return why
        case BusyError() | UnsafeError() | UsageError() | NothingToFuse():
            return f"{error.exit_code.name}: {error}"
        case InputError() | OutputError() | NotEqual():
            return str(error)
    return ""
"""

# Each line below the one that makes the values is wrong in its own way.
WRONG = """
import acfuse
from torch import Tensor, nn
model, tensors = nn.Module(), dict[str, Tensor]()
acfuse.fuse(model).tensors
acfuse.fuse_tensors(tensors).model.relu
acfuse.fuse(tensors)
acfuse.fuse_onnx(model)
acfuse.fuse_tensors(model)
acfuse.verify(model, acfuse.fuse(model), (1, 3, 8, 8))
acfuse.verify(model, model).nothing
acfuse.convert(None)
acfuse.load_fused(model, None)
acfuse.quantize(model)
acfuse.fuze(model)
acfuse.Exit.NOTHING_AT_ALL
acfuse.AcfuseError("").nothing
"""


def test_a_type_checker_takes_right_calls_and_no_wrong_one(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    command = "-m mypy --strict --no-error-summary --cache-dir cache right.py wrong.py"
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # packages there are installed ones to mypy
        capture_output=True,
        text=True,
        check=False,
    )
    assert "right.py" not in done.stdout
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert lines == set(range(5, len(WRONG.splitlines()) + 1)), done.stdout + done.stderr


@pytest.mark.parametrize("name", acfuse.__all__)
def test_every_public_name_is_there_and_used_above(name: str) -> None:
    assert getattr(acfuse, name).__doc__
    assert name in RIGHT


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fuze'"):
        acfuse.fuze  # noqa: B018
