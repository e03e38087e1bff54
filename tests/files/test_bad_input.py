"""Input that cannot be used: one line, the right exit code, and every file still whole."""

import errno
import gzip
import io
import json
import os
import random
import resource
import threading
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from acfuse.errors import InputError
from acfuse.files.read import read_tensors
from tests.cli.command import refused, run, worked
from tests.cli.nets import Net, TwoInputs
from tests.cli.project import CHECKPOINT, MODEL, make_project, snapshot, state, trained
from tests.waiting import HANG

NOT_A_CHECKPOINT = 3
OUTPUTS = ("model.fused.pth", "model.fused.onnx", "model.fused.acfuse.json")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the files of an earlier conversion, which no mistake may touch."""
    folder = make_project(tmp_path / "project")
    for name in OUTPUTS:
        (folder / name).write_text(f"the {name} that was there before")
    monkeypatch.chdir(folder)
    return folder


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n"
NOISE = random.Random(0).randbytes(5000)
WEIGHT = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}

FOREIGN = {
    "empty": (b"", "is empty"),
    "html": (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "web page"),
    "html, indented": (b"\n\n  <html>", "web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
    "git-lfs": (LFS, "git lfs pull"),
    "gzip": (gzip.compress(saved({"a": torch.ones(2)}), mtime=0), "gzip"),
    "7-zip": (b"7z\xbc\xaf\x27\x1c" + NOISE, "7-zip"),
    "bzip2": (b"BZh91AY&SY" + NOISE, "bzip2"),
    "xz": (b"\xfd7zXZ\x00" + NOISE, "xz"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + NOISE, "HDF5"),
    "onnx": (b"\x08\x0a\x12\x07pytorch\x1a\x052.13.0:" + NOISE, "ONNX"),
    "png": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + NOISE, "no checkpoint"),
    "text": (b"epoch 1, loss 0.5\n", "no checkpoint"),
    "json": (b'{"model": "resnet"}', "no checkpoint"),
    "noise": (NOISE, "no checkpoint"),
    "zeros": (bytes(5000), "no checkpoint"),
    "one byte": (b"P", "no checkpoint"),
    "noise as a zip": (b"PK\x03\x04" + NOISE, "damaged"),
    "noise as a pickle": (b"\x80\x02" + NOISE, "damaged"),
    "safetensors cut off": (safetensors_bytes(WEIGHT, b"\0" * 4), "damaged"),
    "safetensors with a hole": (
        safetensors_bytes({"a": {**WEIGHT["a"], "data_offsets": [4, 12]}}, bytes(12)),
        "damaged",
    ),
    "safetensors without json": (safetensors_bytes(b"{" + b"x" * 20), "damaged"),
    "safetensors of a strange type": (
        safetensors_bytes({"a": {**WEIGHT["a"], "dtype": "F33"}}, bytes(8)),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_recognised(project, name):
    data, words = FOREIGN[name]
    Path("model.pth").write_bytes(data)
    before = snapshot(project)
    flags = () if name == "onnx" else MODEL  # which is read as one, whatever it is called
    refused(run("convert", "model.pth", "--force", *flags), NOT_A_CHECKPOINT, "model.pth", words)
    refused(run("inspect", "model.pth"), NOT_A_CHECKPOINT, "model.pth", words)
    assert snapshot(project) == before


@pytest.mark.parametrize("command", ["convert", "inspect", "export-onnx"])
def test_a_file_that_is_not_there(project, command):
    before = snapshot(project)
    flags = MODEL if command == "export-onnx" else ()
    refused(run(command, "nothing.pth", *flags), 3, "nothing.pth does not exist")
    assert snapshot(project) == before


def test_a_directory(project):
    Path("folder.pth").mkdir()
    refused(run("convert", "folder.pth"), 3, "folder.pth is a directory")


def test_a_link_to_nothing(project):
    Path("link.pth").symlink_to("nothing.pth")
    refused(run("convert", "link.pth"), 3, "link.pth does not exist")


def test_a_pipe_does_not_keep_us_waiting(project):
    os.mkfifo("pipe.pth")
    errors = []

    def look():
        try:
            read_tensors(Path("pipe.pth"))
        except InputError as error:
            errors.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(timeout=HANG)
    waiting = thread.is_alive()
    if waiting:
        os.close(os.open("pipe.pth", os.O_WRONLY))  # lets it go
        thread.join()
    assert not waiting
    assert len(errors) == 1


@pytest.mark.parametrize("place", ["source", "output"])
def test_a_name_that_is_too_long(project, place):
    name = "x" * 300 + ".pth"
    arguments = [name] if place == "source" else ["model.pth", "--output", name]
    result = run("convert", *arguments, "--no-onnx")
    assert result.exit_code in (3, 6)
    assert result.stderr.startswith("error: ")


WHOLE = saved({"state_dict": state(), "epoch": 3})


@pytest.mark.parametrize(
    "length", [2, 3, 4, 30, 64, 600, len(WHOLE) // 2, len(WHOLE) - 100, len(WHOLE) - 1]
)
def test_a_file_that_is_cut_off(project, length):
    Path("model.pth").write_bytes(WHOLE[:length])
    before = snapshot(project)
    refused(run("convert", "model.pth", "--force", *MODEL), 3, "model.pth")
    assert snapshot(project) == before


@pytest.mark.parametrize("length", [2, 10, 200, 2000])
def test_a_file_of_the_older_format_that_is_cut_off(project, length):
    torch.save(state(), "model.pth", _use_new_zipfile_serialization=False)
    Path("model.pth").write_bytes(Path("model.pth").read_bytes()[:length])
    refused(run("convert", "model.pth", "--force"), 3, "model.pth")


def test_a_file_with_one_wrong_bit(project):
    with zipfile.ZipFile("model.pth") as archive:
        first = next(i for i in archive.infolist() if "/data/" in i.filename)
    data = bytearray(Path("model.pth").read_bytes())
    data[first.header_offset + 30 + len(first.filename) + 200] ^= 0x10
    Path("model.pth").write_bytes(data)
    refused(run("convert", "model.pth", "--force", "--no-onnx"), 3, "model.pth")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(3), "Tensor"),
        ([torch.ones(3)], "list"),
        (3, "int"),
        (None, "NoneType"),
        ("weights", "str"),
        ({}, "no tensors"),
        ({"epoch": 3}, "no tensors"),
        ({1: torch.ones(3)}, "no tensors"),
        ({"optimizer": {"state": {}}}, "no tensors"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_file_without_a_state_dict(project, value, words):
    torch.save(value, "model.pth")
    before = snapshot(project)
    refused(run("convert", "model.pth", "--force"), 3, "model.pth holds", words)
    assert snapshot(project) == before


def test_a_dict_that_holds_itself(project):
    whole = {"epoch": 1}
    whole["more"] = whole
    torch.save(whole, "model.pth")
    refused(run("convert", "model.pth", "--force"), 3, "no tensors")


ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_of_another_kind(project, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: quantized tensors are on their way out
        torch.save({**state(), "odd": ODD[kind]()}, "model.pth")
    refused(run("convert", "model.pth", "--force"), 3, "odd is not a dense tensor of real numbers")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_weights_that_are_no_floating_numbers(project, dtype):
    torch.save({k: v.to(dtype) for k, v in state().items()}, "model.pth")
    before = snapshot(project)
    result = run("convert", "model.pth", "--force", "--no-onnx")
    assert result.exit_code in (3, 5)
    assert "Traceback" not in result.stderr
    assert snapshot(project) == before


# ------------------------------------------------------------------------------ the model


def without(*keys):
    return {k: v for k, v in state().items() if k not in keys}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without("head.bias"), ["1 key", "missing", "head.bias"]),
        (without("first.ver_conv.weight", "head.bias"), ["2 keys", "first.ver_conv.weight"]),
        ({**state(), "extra.weight": torch.ones(1)}, ["1 key", "not the model's", "extra.weight"]),
        (
            {**without("head.bias"), "neck.bias": torch.ones(2)},
            ["missing", "head.bias", "not the model's", "neck.bias"],
        ),
        (state(Net(outputs=7)), ["2 tensors", "head.weight", "(7, 6, 1, 1)", "(2, 6, 1, 1)"]),
        ({"a.weight": torch.ones(1)}, ["missing", "first.square_conv.weight", "a.weight"]),
    ],
    ids=["missing", "two missing", "unknown", "renamed", "shape", "another model"],
)
def test_keys_that_do_not_fit_the_model(project, tensors, words):
    torch.save(tensors, "model.pth")
    before = snapshot(project)
    refused(run("convert", "model.pth", "--force", *CHECKPOINT), 3, "does not fit", *words)
    assert snapshot(project) == before


def test_a_counter_of_batches_may_be_missing(project):
    tensors = {k: v for k, v in state().items() if "num_batches" not in k}
    torch.save(tensors, "model.pth")
    worked(run("convert", "model.pth", "--force", *CHECKPOINT))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "key", ["first.square_conv.weight", "second.hor_bn.running_var", "head.bias"]
)
def test_a_number_that_is_none_names_its_tensor(project, key, value):
    tensors = state()
    tensors[key].view(-1)[-1] = float(value)
    torch.save(tensors, "model.pth")
    before = snapshot(project)
    kind = "NaN" if value == "nan" else "Inf"
    refused(run("convert", "model.pth", "--force", *CHECKPOINT), 3, f"{key} holds {kind}")
    refused(run("convert", "model.pth", "--force"), 3, f"{key} holds {kind}")
    refused(run("inspect", "model.pth"), 3, f"{key} holds {kind}")
    assert snapshot(project) == before


@pytest.mark.parametrize("flags", [MODEL, ()], ids=["with code", "without"])
def test_a_negative_variance_is_no_number_either(project, flags):
    tensors = state()
    tensors["first.ver_bn.running_var"].fill_(-1)
    torch.save(tensors, "model.pth")
    before = snapshot(project)
    refused(run("convert", "model.pth", "--force", "--no-onnx", *flags), 3, "first", "NaN or Inf")
    assert snapshot(project) == before


def test_weights_that_overflow_when_fused(project):
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in state().items()}
    tensors["first.ver_bn.weight"].fill_(60000)
    tensors["first.ver_bn.running_var"].fill_(1e-4)
    torch.save(tensors, "model.pth")
    before = snapshot(project)
    refused(run("convert", "model.pth", "--force", "--no-onnx"), 3, "first")
    assert snapshot(project) == before


def test_a_norm_without_statistics_keeps_its_block_from_being_fused(project):
    torch.save(trained(Net(statistics=False)).state_dict(), "model.pth")
    model = ("--model", "nets.py:Net", "--model-args", '{"statistics": false}', *MODEL[2:])
    result = worked(run("convert", "model.pth", "--force", "--no-onnx", *model))
    assert "fused   1 block" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("refused first")]
    assert "statistics" in line
    assert "ACF207" in line
    fused = torch.load("model.fused.pth", weights_only=True)
    assert "first.square_conv.weight" in fused
    assert "second.fused_conv.weight" in fused


# ------------------------------------------------------------------------------ --input-shape


@pytest.mark.parametrize(
    ("shapes", "code", "words"),
    [
        (["3,9,7,7,7"], 3, ["3,9,7,7,7", "--input-shape"]),
        (["1,3"], 3, ["1,3", "--input-shape"]),
        (["3"], 3, ["--input-shape"]),
        (["1,4,9,7"], 3, ["1,4,9,7", "channels", "--input-shape"]),
        (["1,3,9,7", "1,3,9,7"], 2, ["one too many", "the model's inputs are x"]),
        (["y:1,3,9,7"], 2, ["given for y", "the model's inputs are x"]),
        (["x:1,3,9,7", "y:1"], 2, ["given for y"]),
    ],
    ids=str,
)
def test_a_shape_that_the_model_cannot_take(project, shapes, code, words):
    before = snapshot(project)
    flags = [part for shape in shapes for part in ("--input-shape", shape)]
    result = run("convert", "model.pth", "--force", "--no-onnx", *MODEL[:2], *flags)
    refused(result, code, *words)
    assert snapshot(project) == before


def test_too_few_shapes(project):
    torch.save(trained(TwoInputs()).state_dict(), "model.pth")
    flags = ("--no-onnx", "--model", "nets.py:TwoInputs", "--input-shape", "1,3,9,7")
    refused(run("convert", "model.pth", "--force", *flags), 2, "none is given for depth")


# ------------------------------------------------------------------------------ the output


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_exists(project, name):
    for other in set(OUTPUTS) - {name}:
        Path(other).unlink()
    before = snapshot(project)
    refused(run("convert", "model.pth", *MODEL), 6, f"{name} exists", "--force")
    assert snapshot(project) == before


def test_an_output_folder_that_does_not_exist(project):
    before = snapshot(project)
    refused(run("convert", "model.pth", "-o", "no/such/net.pth"), 6, "no/such", "not a directory")
    assert snapshot(project) == before


def test_an_output_folder_that_is_a_file(project):
    refused(run("convert", "model.pth", "-o", "nets.py/net.pth"), 6, "nets.py", "not a directory")


@pytest.mark.parametrize(
    "spelling", ["model.pth", "./model.pth", "../project/model.pth", "link.pth"]
)
def test_an_output_that_is_the_input(project, spelling):
    Path("link.pth").symlink_to("model.pth")
    before = snapshot(project)
    for force in ([], ["--force"]):
        result = run("convert", "model.pth", "-o", spelling, *force, "--no-onnx")
        refused(result, 6, "is the input itself")
    assert snapshot(project) == before


def test_an_output_that_is_a_hard_link_to_the_input(project):
    os.link("model.pth", "twin.pth")
    refused(run("convert", "model.pth", "-o", "twin.pth", "--force"), 6, "is the input itself")


@pytest.mark.parametrize("kind", ["directory", "pipe"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_is_no_file(project, name, kind):
    Path(name).unlink()
    Path(name).mkdir() if kind == "directory" else os.mkfifo(name)
    result = run("convert", "model.pth", "--force", *MODEL)
    refused(result, 6, name, "not a regular file")
    assert not Path(name).is_file()


def test_an_output_folder_that_cannot_be_written_to(project, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and real(path, mode))
    before = snapshot(project)
    refused(run("convert", "model.pth", "--force", *MODEL), 6, "cannot be written to", "--output")
    assert snapshot(project) == before


def test_a_read_only_folder(project):
    folder = project / "closed"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    refused(run("convert", "model.pth", "-o", "closed"), 6, "closed cannot be written to")


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_at_any_write(project, monkeypatch, code, call):
    calls, sync = [], os.fsync

    def fail(number):
        calls.append(number)
        if len(calls) == call:
            raise OSError(code, os.strerror(code))
        sync(number)

    before = snapshot(project)
    monkeypatch.setattr(os, "fsync", fail)
    words = "are needed" if code != errno.EIO else os.strerror(code)
    refused(run("convert", "model.pth", "--no-onnx", "--force"), 6, words, "Nothing was written")
    assert len(calls) == call
    assert snapshot(project) == before


@pytest.mark.parametrize("limit", [0, 100, 3000])
def test_a_disk_that_is_really_full(project, limit):
    """The file that would exceed the limit is not written, and so none is."""
    before = snapshot(project)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        result = run("convert", "model.pth", "--no-onnx", "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(result, 6, "bytes are needed", "Nothing was written")
    assert snapshot(project) == before


def test_after_all_of_this_a_conversion_still_works(project):
    worked(run("convert", "model.pth", "--force", *CHECKPOINT))
    assert not [name for name in snapshot(project) if name.endswith(".partial")]
