"""Files that are nearly right: each is read or refused, and nothing else ever happens.

`make test` draws a few of each kind, `make fuzz` many. What a fuzzer finds is kept, as the file
that it is, in the folder `finds`, and tried in each run of the tests from then on.
"""

import hashlib
import os
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings
from hypothesis import strategies as st

from acfuse.errors import AcfuseError, InputError
from acfuse.files.onnx_reading import read_onnx
from acfuse.files.read import read_tensors
from acfuse.files.tensor_check import check_numbers, norms_of
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS, known_patterns
from acfuse.patterns.match import find_in_tensors
from acfuse.pipeline.convert import prove
from acfuse.proof import Tolerance
from acfuse.sources.base import OpenOptions
from acfuse.sources.live import LiveSource
from acfuse.sources.onnx import fuse_onnx, numbers_of
from acfuse.sources.open_source import open_source
from tests.trust import fuzzing
from tests.trust.forked import LIMIT

FINDS = Path(__file__).parent / "finds"
BLOCK = {
    "a.weight": torch.randn(4, 4, 3, 3),
    "b.c.weight": torch.randn(4, 4, 1, 1),
    "b.c.bias": torch.randn(4),
    "a.0.weight": torch.randn(4),
    "a.1.weight": torch.randn(4, 4, 1, 3),
}


def told(what: str) -> None:
    """Counts how often a thing happens, for `--hypothesis-show-statistics`."""
    if currently_in_test_context():
        event(what)


def loaded(path: Path) -> None:
    """Reads a checkpoint, and looks for blocks in it."""
    _, tensors = read_tensors(path)
    check_numbers(tensors, norms_of(tensors), path.name)
    find_in_tensors(tensors, PATTERNS)


def exported(path: Path) -> None:
    """Reads a program of torch.export, and looks for blocks in it."""
    source = open_source(path, OpenOptions())
    assert isinstance(source, LiveSource)
    find_in_module(source.model, PATTERNS)


def patterned(path: Path) -> None:
    """Reads a file of patterns, and looks for them in a checkpoint."""
    find_in_tensors(BLOCK, known_patterns([path]))


def graphed(path: Path) -> None:
    """Reads an ONNX file, fuses it, and proves what was fused."""
    model, _ = read_onnx(path)
    check_numbers(*numbers_of(model), path.name)
    fused = fuse_onnx(model)
    if fused.found:
        told("fused")
        proofs = prove(fused, None, Tolerance())
        assert all(certificate.passed for certificate in proofs.certificates), proofs.fault


TARGETS: dict[str, tuple[Callable[[Path], None], st.SearchStrategy[bytes]]] = {
    "zip.pth": (loaded, fuzzing.zips()),
    "stream.pth": (loaded, fuzzing.streams()),
    "header.safetensors": (loaded, fuzzing.safetensors()),
    "m.safetensors.index.json": (loaded, fuzzing.INDEXES),
    "program.pt2": (exported, fuzzing.programs()),
    "own.toml": (patterned, fuzzing.patterns()),
    "net.onnx": (graphed, fuzzing.onnx_files()),
}


def tried(kind: str, data: bytes, folder: Path) -> None:
    """Asserts that a file is read or refused, with little work; what is not is kept."""
    act, _ = TARGETS[kind]
    path = folder / kind
    path.write_bytes(data)
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            act(path)
        told("read")
    except AcfuseError as refusal:
        told(f"refused: {type(refusal).__name__}")
    except BaseException as error:
        place = "".join(traceback.format_tb(error.__traceback__)[-1:])
        name = hashlib.sha256(f"{type(error)} {place}".encode()).hexdigest()[:8]
        if os.environ.get("ACFUSE_FUZZ"):
            FINDS.mkdir(exist_ok=True)
            (FINDS / f"{name}-{kind}").write_bytes(data)  # a smaller one of the same replaces it
        raise
    assert time.process_time() - began < LIMIT


@pytest.mark.parametrize("kind", TARGETS)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_is_nearly_right(kind, data, tmp_path):
    tried(kind, data.draw(TARGETS[kind][1]), tmp_path)


def kept() -> list[Path]:
    return sorted(path for path in FINDS.glob("*-*") if path.is_file())


@pytest.mark.parametrize("find", kept(), ids=lambda path: path.name)
def test_what_was_found_once_is_mended(find, tmp_path):
    tried(find.name.partition("-")[2], find.read_bytes(), tmp_path)


def test_a_fault_would_be_found(tmp_path, monkeypatch):
    def broken(path: Path) -> None:
        raise KeyError(path)

    monkeypatch.delenv("ACFUSE_FUZZ", raising=False)
    monkeypatch.setitem(TARGETS, "own.toml", (broken, st.just(b"")))
    with pytest.raises(KeyError):
        tried("own.toml", b"", tmp_path)
    with pytest.raises(InputError):
        patterned(tmp_path / "own.toml")
