"""A file is opened once, hashed, and held to what was said about it."""

import hashlib
import importlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acfuse.errors import InputError, UnsafeError
from acfuse.files.opened_file import opened
from acfuse.files.read import read_tensors
from acfuse.files.records import ReadOptions
from acfuse.system.limits import LIMITS
from tests.cli.command import Result, run, run_line
from tests.cli.command import refused as is_refused
from tests.cli.command import worked as did

CHECKPOINT = "model.pth"

pytestmark = pytest.mark.usefixtures("project")


def worked(line: str) -> Result:
    return did(run_line(f"acfuse {line}"))


def refused(line: str | list[str], code: int) -> Result:
    result = run(*(line.split() if isinstance(line, str) else line))
    is_refused(result, code)
    return result


def misused(arguments: list[str]) -> Result:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    return result


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_was_hashed_is_what_is_read(tmp_path):
    path, other = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"w": torch.zeros(3)}, path)
    torch.save({"w": torch.ones(3)}, other)
    with opened(path) as file:
        digest = sha256(path)
        os.replace(other, path)  # another file takes its name meanwhile
        assert file.sha256 == digest
        assert torch.load(file, weights_only=True)["w"].sum() == 0
    assert read_tensors(path)[1]["w"].sum() == 3


def test_the_hash_is_that_of_sha256sum():
    digest = sha256(Path(CHECKPOINT))
    for given in (digest, digest.upper()):
        worked(f"convert {CHECKPOINT} --no-onnx --force --sha256 {given}")
    manifest = json.loads(next(Path().glob("*.acfuse.json")).read_text())
    assert manifest["source"]["sha256"] == digest


@pytest.mark.parametrize("command", ["convert --no-onnx", "inspect", "convert --dry-run"])
def test_another_file_is_refused(command):
    wrong = "0" * 64
    result = refused(f"{command} {CHECKPOINT} --sha256 {wrong}", 4)
    assert sha256(Path(CHECKPOINT)) in result.stderr
    assert wrong in result.stderr


def test_every_flipped_bit_of_a_safetensors_file_is_refused_where_its_hash_is_known(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file({"w": torch.randn(3, 5)}, path)
    good, digest = path.read_bytes(), sha256(path)
    read_tensors(path, ReadOptions(sha256=digest))
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UnsafeError, match="not the expected file"):
            read_tensors(path, ReadOptions(sha256=digest))


@pytest.mark.parametrize("text", ["", "12", "g" * 64, "0" * 63])
def test_what_is_no_hash_is_refused(text):
    assert "--sha256" in misused(["inspect", CHECKPOINT, "--sha256", text]).stderr


def test_a_limit_names_the_flag_that_lifts_it(tmp_path):
    path = tmp_path / "many.pth"
    torch.save({f"w{n}": torch.zeros(1) for n in range(30)}, path)
    for name, most in {"tensors": 29, "records": 29, "operations": 300, "values": 29, "bytes": 99,
                       "levels": 1}.items():  # fmt: skip
        low = replace(LIMITS, **{name: most})
        with pytest.raises(UnsafeError, match=f"--limit {name}=") as caught:
            read_tensors(path, ReadOptions(limits=low))
        given = str(caught.value).rpartition("=")[2].rstrip(".")
        lifted = replace(LIMITS, **{name: int(given) * 10})
        assert len(read_tensors(path, ReadOptions(limits=lifted))[1]) == 30


def test_a_limit_given_to_convert_holds_for_verify():
    worked(f"convert {CHECKPOINT} --no-onnx --force --limit operations=2000000 --limit tensors=500")
    manifest = next(Path().glob("*.acfuse.json"))
    limits = json.loads(manifest.read_text())["limits"]
    assert (limits["operations"], limits["tensors"]) == (2_000_000, 500)
    worked("verify")
    assert "--limit tensors=" in refused("verify --limit tensors=2", 4).stderr


@pytest.mark.parametrize("text", ["operations", "operations=", "operations=0", "x=3", "bytes=-1"])
def test_what_is_no_limit_is_refused(text):
    assert "--limit" in misused(["inspect", CHECKPOINT, "--limit", text]).stderr


def test_a_link_is_opened_as_what_it_leads_to(tmp_path):
    shutil.copy(CHECKPOINT, tmp_path / "real.pth")
    (tmp_path / "link.pth").symlink_to("real.pth")
    (state,) = read_tensors(tmp_path / "link.pth")[0].files.items()
    assert state[0] == tmp_path / "link.pth"
    assert state[1].sha256 == sha256(tmp_path / "real.pth")


def touch(path: Path) -> None:
    """Another time of change, and the same bytes."""
    os.utime(path, ns=(1, 1))


def one_bit(path: Path) -> None:
    """The same size, other numbers: what is mapped into memory changes as well."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def longer(path: Path) -> None:
    """Somebody goes on writing."""
    with path.open("ab") as file:
        file.write(b"more")


def another(path: Path) -> None:
    """Another file takes its name, as a training that saves its best model does."""
    torch.save({"w": torch.zeros(3)}, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def when(stage: str, change, path: Path, monkeypatch) -> None:
    """Changes a file when a stage of the pipeline begins."""
    module, _, name = stage.rpartition(".")
    stage_of = getattr(importlib.import_module(module), name)

    def changed_first(*args, **kwargs):
        change(path)
        return stage_of(*args, **kwargs)

    monkeypatch.setattr(stage, changed_first)


STAGES = ("acfuse.pipeline.convert.find", "acfuse.pipeline.convert.prove")
CHANGES = (one_bit, longer, another)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_file_that_changes_meanwhile_is_its_own_error(stage, change, monkeypatch):
    when(stage, change, Path(CHECKPOINT), monkeypatch)
    result = refused(f"convert {CHECKPOINT} --no-onnx", 3)
    assert f"{CHECKPOINT} was written to while it was read" in result.stderr
    assert not [*Path().glob("*fused*"), *Path().glob("*.json")]


@pytest.mark.parametrize("change", CHANGES)
def test_so_it_is_when_it_is_verified(change, monkeypatch):
    worked(f"convert {CHECKPOINT} --no-onnx")
    when("acfuse.pipeline.replay.prove", change, Path(CHECKPOINT), monkeypatch)
    assert "was written to while it was read" in refused("verify", 3).stderr


def test_a_file_that_is_touched_has_not_changed(monkeypatch):
    when(STAGES[0], touch, Path(CHECKPOINT), monkeypatch)
    worked(f"convert {CHECKPOINT} --no-onnx")
    worked("verify")


def test_a_file_that_changes_while_it_is_open_is_told(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"abc")

    def read(fails: bool) -> None:
        with opened(tmp_path / "a.pth"):
            longer(tmp_path / "a.pth")
            if fails:  # what reads half a file says whatever it says
                raise ValueError

    for fails, size in ((False, "3 bytes are 7 now"), (True, "7 bytes are 11 now")):
        with pytest.raises(InputError, match=size):
            read(fails)
