"""HDF5, as the code of ACNet's authors writes it: flat, a dataset for each tensor."""

import sys
from pathlib import Path

import numpy
import pytest
import torch

from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, fused_tensors, snapshot, state

h5py = pytest.importorskip("h5py")


def save(tensors, name="finish.hdf5"):
    """What `save_hdf5` of the authors does."""
    with h5py.File(name, "w") as file:
        for key, tensor in tensors.items():
            file.create_dataset(key, data=tensor.numpy())


def read(name="finish.fused.hdf5"):
    """What `read_hdf5` of the authors does."""
    with h5py.File(name, "r") as file:
        return {key: torch.from_numpy(numpy.asarray(file[key])) for key in file}


@pytest.mark.parametrize("flags", [CHECKPOINT, ("--no-onnx",)], ids=["with code", "bare"])
def test_hdf5_becomes_hdf5(project, flags):
    save(state())
    worked(run("convert", "finish.hdf5", *flags))
    worked(run("convert", "model.pth", *flags))
    fused, expected = read(), fused_tensors(project)
    assert set(fused) == set(expected)
    assert all(torch.equal(fused[key], expected[key]) for key in expected)


def test_an_hdf5_conversion_is_proved_again(project):
    save(state())
    worked(run("convert", "finish.hdf5", *CHECKPOINT))
    worked(run("verify"))
    with h5py.File("finish.fused.hdf5", "r+") as file:
        file["head.bias"][0] += 1
    assert run("verify").exit_code == 1


def test_half_and_double_stay(project):
    tensors = {k: v.double() if v.is_floating_point() else v for k, v in state().items()}
    tensors["head.weight"] = tensors["head.weight"].half()
    save(tensors)
    worked(run("convert", "finish.hdf5", "--no-onnx"))
    fused = read()
    assert fused["head.weight"].dtype == torch.float16
    assert fused["first.fused_conv.weight"].dtype == torch.float64


def test_the_other_byte_order(project):
    with h5py.File("finish.hdf5", "w") as file:
        for key, tensor in state().items():
            array = tensor.numpy()
            file.create_dataset(key, data=array.astype(array.dtype.newbyteorder(">")))
    worked(run("convert", "finish.hdf5", *CHECKPOINT))


def test_two_conversions_write_the_same_bytes(project):
    save(state())
    worked(run("convert", "finish.hdf5", *CHECKPOINT))
    before = snapshot(project)
    worked(run("convert", "finish.hdf5", *CHECKPOINT, "--force"))
    assert snapshot(project) == before


def alter(key, make):
    save({k: v for k, v in state().items() if k != key})
    with h5py.File("finish.hdf5", "r+") as file:
        make(file)


ODD = {
    "soft link": (4, "a link", lambda f: f.__setitem__("x", h5py.SoftLink("/head.bias"))),
    "external link": (4, "a link", lambda f: f.__setitem__("x", h5py.ExternalLink("o.h5", "/a"))),
    "group": (3, "a group", lambda f: f.create_group("x")),
    "text": (3, "real numbers", lambda f: f.__setitem__("x", "words")),
    "complex": (3, "real numbers", lambda f: f.__setitem__("x", numpy.ones(2, complex))),
    "compressed": (
        3,
        "compressed",
        lambda f: f.create_dataset("x", data=[1, 2], compression="gzip"),
    ),
    "inflated": (
        3,
        "not stored in full",
        lambda f: f.create_dataset("x", (2**40,), "f4", chunks=(64,)),
    ),
    "elsewhere": (
        4,
        "in another file",
        lambda f: f.create_dataset("x", (3,), "f4", external=[("elsewhere.bin", 0, 12)]),
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_leads_elsewhere_or_is_no_tensor_is_refused(project, odd):
    code, words, make = ODD[odd]
    alter("", make)
    before = snapshot(project)
    refused(run("convert", "finish.hdf5"), code, "finish.hdf5: x", words)
    assert snapshot(project) == before


def test_a_damaged_file(project):
    save(state())
    Path("finish.hdf5").write_bytes(Path("finish.hdf5").read_bytes()[:2000])
    refused(run("convert", "finish.hdf5"), 3, "damaged HDF5")


def test_without_the_extra_it_is_named(project, monkeypatch):
    save(state())
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(run("convert", "finish.hdf5"), 2, "pip install 'acfuse[hdf5]'")


def test_the_result_is_named_as_what_it_is(project):
    save(state())
    refused(run("convert", "finish.hdf5", "-o", "net.pth"), 2, ".hdf5 file; name it so")


ATTRIBUTES = {
    "a reference": lambda file: file["head.bias"].ref,
    "nothing": lambda file: h5py.Empty("f"),
    "words": lambda file: ["a", "b"],
    "numbers": lambda file: numpy.arange(3),
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attributes_of_the_file_stay_or_are_refused(project, kind):
    save(state())
    with h5py.File("finish.hdf5", "a") as file:
        file.attrs["own"] = ATTRIBUTES[kind](file)
    result = run("convert", "finish.hdf5", "--no-onnx")
    if kind == "a reference":
        refused(result, 3, "finish.hdf5", "own")
        return
    worked(result)
    with h5py.File("finish.fused.hdf5") as file:
        assert str(file.attrs["own"]) == str(h5py.File("finish.hdf5").attrs["own"])


def _time(file, where):
    space = h5py.h5s.create_simple((2,))
    make = h5py.h5a.create if where == "attribute" else h5py.h5d.create
    make(file.id, b"own", h5py.h5t.UNIX_D32LE, space)


@pytest.mark.parametrize("kind", ["time attribute", "time dataset", "empty", "long double", "type"])
def test_types_that_torch_does_not_have(project, kind):
    save(state())
    with h5py.File("finish.hdf5", "a") as file:
        if kind.startswith("time"):
            _time(file, kind.split()[1])
        elif kind == "empty":
            file["own"] = h5py.Empty("f")
        elif kind == "long double":
            file["own"] = numpy.ones(2, numpy.longdouble)
        else:
            file["own"] = numpy.dtype("f4")
    refused(run("convert", "finish.hdf5", "--no-onnx"), 3, "finish.hdf5")
