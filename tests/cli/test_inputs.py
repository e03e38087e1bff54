"""Inputs as people give them: by name or in order, of any dtype and rank, or from a file."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from acfuse.options import INPUT
from tests.cli import nets
from tests.cli.command import refused, run, worked
from tests.cli.project import make_project, state, trained

IMAGE = "1,3,9,7"


def _convert(tmp_path, monkeypatch, name, *options, onnx_file=False):
    make_project(tmp_path, state(getattr(nets, name)()))
    monkeypatch.chdir(tmp_path)
    files = () if onnx_file else ("--no-onnx",)
    return run("convert", "model.pth", "--model", f"nets.py:{name}", *files, *options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,3,9,7", (None, (1, 3, 9, 7), "")),
        ("1x3x9x7", (None, (1, 3, 9, 7), "")),
        ("[1, 3]", (None, (1, 3), "")),
        ("x:1,3", ("x", (1, 3), "")),
        ("tokens:int64:1,77", ("tokens", (1, 77), "int64")),
        ("tokens:int64=0..99:1,77", ("tokens", (1, 77), "int64=0..99")),
        ("t:int32=-5..-1:4", ("t", (4,), "int32=-5..-1")),
        ("flag:bool:", ("flag", (), "bool")),
        ("int64:1,77", (None, (1, 77), "int64")),
        ("a:b:1,3", ("a:b", (1, 3), "")),
    ],
)
def test_an_input_is_its_name_dtype_and_shape(text, expected):
    assert INPUT.parse(text) == expected


@pytest.mark.parametrize("text", ["", "x:", "1,0", "t:int64=9..0:1", "t:int64=a..b:1", "x:1,n"])
def test_what_is_no_input(text):
    with pytest.raises(ValueError, match=r"expected|every size|there is no number"):
        INPUT.parse(text)


GIVEN = {
    "tokens": ("Tokens", ("x:" + IMAGE, "tokens:int64:1,5")),
    "tokens_in_order": ("Tokens", (IMAGE, "int64:1,5")),
    "tokens_in_another_order": ("Tokens", ("tokens:int32=0..6:1,5", "x:" + IMAGE)),
    "flag": ("Switched", (IMAGE, "flag:bool:")),
    "number": ("Switched", (IMAGE, "flag:int64=1..1:")),
    "bytes": ("Bytes", ("uint8:" + IMAGE,)),
    "optional_in_order": ("Optional", (IMAGE,)),
    "optional_by_name": ("Optional", ("depth:1,2,9,7", "pixel_values:" + IMAGE)),
    "by_keyword": ("Optional", (IMAGE, "more:2,3")),
}


@pytest.mark.parametrize(("name", "inputs"), GIVEN.values(), ids=list(GIVEN))
def test_inputs_of_any_dtype_and_rank(tmp_path, monkeypatch, name, inputs):
    options = [word for text in inputs for word in ("--input", text)]
    result = worked(_convert(tmp_path, monkeypatch, name, *options, "--format", "json"))
    assert result.json["passed"]
    assert worked(run("verify"))


def test_integers_are_given_to_the_exported_file_too(tmp_path, monkeypatch):
    options = ("--input", IMAGE, "--input", "tokens:int64:1,5")
    result = _convert(tmp_path, monkeypatch, "Tokens", *options, onnx_file=True)
    assert worked(result)
    (file,) = tmp_path.glob("*.onnx")
    assert onnx.load(file).graph.input[1].type.tensor_type.elem_type == TensorProto.INT64


def test_a_free_size_that_the_model_itself_does_not_take(tmp_path, monkeypatch):
    options = ("--input", IMAGE, "--input", "tokens:int64:2,5")  # a batch of 1 is spread over 2
    result = _convert(tmp_path, monkeypatch, "Tokens", *options, onnx_file=True)
    refused(result, 3, "--dynamic")


def test_an_input_that_the_model_does_not_have(tmp_path, monkeypatch):
    result = _convert(tmp_path, monkeypatch, "Tokens", "--input", "y:" + IMAGE)
    refused(result, 2, "y", "x, tokens")


def test_real_inputs_from_a_file(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tokens = np.array([[6, 0, 3]])
    np.savez(tmp_path / "in.npz", x=rng.normal(size=(1, 3, 9, 7)), tokens=tokens)
    given = ("--inputs", "in.npz", "--format", "json")
    result = worked(_convert(tmp_path, monkeypatch, "Tokens", *given))
    assert result.json["inputs"]["shapes"] == [["x", [1, 3, 9, 7]], ["tokens", [1, 3]]]
    assert worked(run("verify"))
    np.savez(tmp_path / "in.npz", x=rng.normal(size=(1, 3, 9, 7)), tokens=tokens + 1)
    assert run("verify").exit_code != 0  # 7 is no row of the table, and the file is another


@pytest.mark.parametrize("content", ["text", "objects", "nothing"])
def test_a_file_of_inputs_that_cannot_be_read(tmp_path, monkeypatch, content):
    path = tmp_path / "in.npz"
    if content == "text":
        path.write_text("1,2,3")
    elif content == "objects":
        np.savez(path, x=np.array([{}], dtype=object))
    else:
        np.savez(path)
    result = _convert(tmp_path, monkeypatch, "Tokens", "--inputs", "in.npz")
    refused(result, 3, "--inputs", "in.npz")


def test_a_fused_module_asserts_that_optional_tensors_are_given():
    import acfuse

    class Halved(nets.ACBlock):
        def forward(self, x, mask=None):
            y = super().forward(x)
            return y * 2 if mask is None else y

    model, image = trained(Halved((3, 4))), torch.randn(1, 3, 9, 7)
    fused = acfuse.fuse(model, {"x": image, "mask": image})
    assert len(fused.found) == 1
    torch.testing.assert_close(fused.model(image, image), model(image, image))
    with pytest.raises(AssertionError, match="mask was a tensor"):
        fused.model(image)


def test_a_fused_module_asserts_how_many_tensors_a_list_has():
    import acfuse

    class Counted(nets.ACBlock):
        def forward(self, x, more):
            return super().forward(x) + len(more) + more[0][:, :1]

    model, image = trained(Counted((3, 4))), torch.randn(1, 3, 9, 7)
    fused = acfuse.fuse(model, (image, [image, image]))
    assert len(fused.found) == 1
    with pytest.raises(AssertionError, match="a list of 2"):
        fused.model(image, [image, image, image])


def test_tensors_deep_in_an_argument_do_not_become_constants():
    import acfuse

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nets.ACBlock((3, 4))

        def forward(self, batch):
            return self.block(batch["image"]) * batch["mask"]

    model, image = trained(Deep()), torch.randn(2, 3, 9, 7)
    fused = acfuse.fuse(model, ({"image": image, "mask": image[:, :1]},))
    assert len(fused.found) == 1
    other = {"image": image + 1, "mask": image[:, 1:2]}
    torch.testing.assert_close(fused.model(other), model(other), atol=1e-4, rtol=1e-4)


# ONNX files take what they say themselves.


def _file(path: Path, value, nodes, opset: int = 18) -> None:
    """Two branches, and `z` that is made of their sum `y` and one more input."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(4, 3, k, k)).astype(np.float32), name)
        for name, k in (("w", 3), ("v", 1))
    ]
    branches = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "h", "w"])
        for name, channels in (("x", 3), ("z", 4))
    ]
    graph = helper.make_graph([*branches, *nodes], "net", [ends[0], value], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)


CAST = [helper.make_node("Cast", ["k"], ["f"], to=1), helper.make_node("Mul", ["y", "f"], ["z"])]
INTEGERS = ("INT64", "INT32", "INT8", "UINT8", "UINT16", "UINT32", "UINT64", "DOUBLE", "FLOAT16")


@pytest.mark.parametrize("kind", [*INTEGERS, "BOOL"])
def test_an_onnx_input_gets_its_own_dtype(tmp_path, monkeypatch, kind):
    value = helper.make_tensor_value_info("k", getattr(TensorProto, kind), [])
    _file(tmp_path / "net.onnx", value, CAST)
    monkeypatch.chdir(tmp_path)
    assert worked(run("convert", "net.onnx", "--input", "x:1,3,9,7"))


def test_an_onnx_input_is_given_by_name_and_dtype(tmp_path, monkeypatch):
    value = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", "t"])
    table = [helper.make_node("ReduceMax", ["tokens"], ["k"], keepdims=0), *CAST]
    _file(tmp_path / "net.onnx", value, table, opset=13)
    monkeypatch.chdir(tmp_path)
    given = ("--input", "tokens:int64=0..99:1,77", "--input", "x:1,3,9,7")
    assert worked(run("convert", "net.onnx", *given))
    refused(run("convert", "net.onnx", "-f", "--input", "x:1,3,9,7"), 2, "tokens", "1,16")
    other = ("--input", "x:1,3,9,7", "--input", "tokens:bool:1,77")
    refused(run("convert", "net.onnx", "-f", *other), 2, "tokens", "int64", "bool")
    refused(run("convert", "net.onnx", "-f", "--input", "y:1,3,9,7"), 2, "y", "x, tokens")


FLOAT = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
NO_TENSORS = {
    "sequence": (helper.make_sequence_type_proto(FLOAT), "SequenceLength"),
    "optional": (helper.make_optional_type_proto(FLOAT), "OptionalHasElement"),
}


@pytest.mark.parametrize(("kind", "operator"), NO_TENSORS.values(), ids=list(NO_TENSORS))
def test_an_onnx_input_that_is_no_tensor_is_refused_by_name(tmp_path, monkeypatch, kind, operator):
    nodes = [helper.make_node(operator, ["parts"], ["k"]), *CAST]
    _file(tmp_path / "net.onnx", helper.make_value_info("parts", kind), nodes)
    monkeypatch.chdir(tmp_path)
    refused(run("convert", "net.onnx", "--input", "x:1,3,9,7"), 2, "parts", "not one tensor")


def test_the_manifest_says_what_was_given(tmp_path, monkeypatch):
    options = ("--input", "x:" + IMAGE, "--input", "tokens:int64=0..6:1,5")
    worked(_convert(tmp_path, monkeypatch, "Tokens", *options))
    (file,) = tmp_path.glob("*.acfuse.json")
    assert json.loads(file.read_text())["inputs"]["kinds"] == ["", "int64=0..6"]


def test_one_output_may_have_its_own_tolerance(fused):
    worked(run("verify", "--atol", "1e-4"))
    result = run("verify", "--atol", "1e-4,logits:1")
    assert result.exit_code == 2
    assert "logits is no output; the outputs are one that has no name" in result.stderr
    Path("acfuse.toml").write_text("atol = 0\nrtol = 0\n")
    assert run("verify").exit_code == 1
    Path("acfuse.toml").write_text('atol = "1e-4"\n')
    worked(run("verify"))
