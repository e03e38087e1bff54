"""What a user may say of an ONNX file: not to run it, another opset, that it may stay as it is."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.cli.command import refused, run, worked

node = helper.make_node
BRANCHES = [
    node("Conv", ["a", "w3"], ["b"], pads=[1, 1, 1, 1]),
    node("Conv", ["a", "w1"], ["c"]),
    node("Add", ["b", "c"], ["d"]),
]
PLUGIN = node("Plug", ["x"], ["a"], domain="maker")
ENDS = [node("Relu", ["x"], ["a"]), *BRANCHES, node("Softmax", ["d"], ["y"], axis=1)]


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def file_of(
    nodes: Sequence[onnx.NodeProto], opset: int = 17, more: Sequence[onnx.TensorProto] = ()
) -> onnx.ModelProto:
    channels = 4 if any(n.op_type == "Conv" for n in nodes) else 3
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(4, 3, k, k)).astype(np.float32), f"w{k}")
        for k in (3, 1)
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 8, 9])],
        [*weights, *more],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("maker", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, "net.onnx")
    return model


# ------------------------------------------------------------------------------ --no-runtime


def test_a_file_that_begins_with_a_plugin_is_proved_without_running_it() -> None:
    file_of([PLUGIN, *BRANCHES, node("Relu", ["d"], ["y"])])
    refused(run("convert", "net.onnx"), 3, "maker.Plug", "--no-runtime")
    done = worked(run("convert", "net.onnx", "--no-runtime"))
    assert "none    ONNX file in onnxruntime" in done.stdout
    assert "note    the file was not run (--no-runtime)" in done.stdout
    assert "certificate of 1 block, for all inputs" in done.stdout
    assert [n.op_type for n in onnx.load("net.fused.onnx").graph.node] == ["Plug", "Conv", "Relu"]
    again = worked(run("verify", "--format", "json"))
    assert again.json["no_runtime"]
    worked(run("verify", "net.onnx", "net.fused.onnx", "--no-runtime"))


@pytest.mark.parametrize("place", ["weight", "bias", "Relu"])
def test_a_fault_is_seen_without_running_the_file(place: str) -> None:
    file_of([PLUGIN, *BRANCHES, node("Relu", ["d"], ["y"])])
    worked(run("convert", "net.onnx", "--no-runtime"))
    model = onnx.load("net.fused.onnx")
    if place == "Relu":
        model.graph.node[-1].op_type = "Abs"
    else:
        tensor = next(t for t in model.graph.initializer if t.name.endswith(place))
        values = numpy_helper.to_array(tensor).copy()
        values.flat[1] += 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, "other.onnx")
    seen = run("verify", "net.onnx", "other.onnx", "--no-runtime")
    assert seen.exit_code == 1
    assert "error: not equal" in seen.stderr


def test_what_onnxruntime_cannot_run_is_told_with_what_helps() -> None:
    arm = node("Conv", ["x", "w3"], ["b"], auto_pad="SAME_UPPER", dilations=[2, 2])
    file_of([arm, node("Conv", ["x", "w1"], ["c"]), node("Add", ["b", "c"], ["y"])])
    refused(run("convert", "net.onnx"), 3, "onnxruntime cannot run", "--no-runtime")
    worked(run("convert", "net.onnx", "--no-runtime"))


def test_a_file_of_others_has_to_be_run() -> None:
    file_of(ENDS)
    worked(run("convert", "net.onnx"))
    model = onnx.load("net.fused.onnx")
    for tensor in model.graph.initializer:
        for reader in model.graph.node:
            reader.input[:] = [f"{n}_own" if n == tensor.name else n for n in reader.input]
        tensor.name += "_own"
    onnx.save(model, "other.onnx")
    worked(run("verify", "net.onnx", "other.onnx"))
    refused(run("verify", "net.onnx", "other.onnx", "--no-runtime"), 3, "Remove --no-runtime")


# ------------------------------------------------------------------------------ --opset


@pytest.mark.parametrize(("own", "opset"), [(9, 20), (11, 13), (17, 24), (17, 17)])
def test_a_file_is_converted_to_another_opset(own: int, opset: int) -> None:
    file_of(ENDS, own)
    done = worked(run("convert", "net.onnx", "--opset", str(opset)))
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("onnx  ")]
    assert f"opset {opset}," in told
    assert ("converted from opset" in done.stdout) is (own != opset)
    model = onnx.load("net.fused.onnx")
    assert {o.version for o in model.opset_import if not o.domain} == {opset}
    onnx.checker.check_model(model, full_check=True)
    assert [v.name for v in model.graph.input] == ["x"]
    worked(run("verify"))
    worked(run("verify", "net.onnx", "net.fused.onnx", "--opset", str(opset)))
    if own != opset:
        refused(run("verify", "net.onnx", "net.fused.onnx"), 3, f"Give --opset {opset}")


def test_a_conversion_that_changes_something_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = onnx.version_converter.convert_version

    def wrong(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        made = right(model, opset)
        next(n for n in made.graph.node if n.op_type == "Relu").op_type = "Abs"
        return made

    monkeypatch.setattr(onnx.version_converter, "convert_version", wrong)
    file_of(ENDS, 11)
    seen = run("convert", "net.onnx", "--opset", "20")
    assert seen.exit_code == 1
    assert "error: not equal: onnx" in seen.stderr
    assert not Path("net.fused.onnx").exists()


def test_what_the_converter_cannot_do_is_one_line() -> None:
    file_of(ENDS, 17)
    refused(run("convert", "net.onnx", "--opset", "11"), 3, "opset 11 of 17", "leave it out")
    inner = helper.make_graph(
        [node("Relu", ["d"], ["e"])], "i", [], [helper.make_empty_tensor_value_info("e")]
    )
    chosen = node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    yes = numpy_helper.from_array(np.array(True), "yes")
    file_of([node("Relu", ["x"], ["a"]), *BRANCHES, chosen], 17, [yes])
    refused(run("convert", "net.onnx", "--opset", "20"), 3, "graphs inside nodes")


def test_another_opset_has_to_be_run() -> None:
    file_of([PLUGIN, *BRANCHES, node("Relu", ["d"], ["y"])])
    refused(run("convert", "net.onnx", "--opset", "20"), 2, "--opset needs a run")
    file_of(ENDS)
    refused(run("convert", "net.onnx", "--opset", "20", "--no-runtime"), 2, "or --no-runtime")


# ------------------------------------------------------------------------------ --allow-empty


def test_what_is_not_changed_is_copied_byte_for_byte_and_not_run() -> None:
    model = file_of([PLUGIN, node("Relu", ["a"], ["y"])])
    first, second = onnx.ModelProto(), onnx.ModelProto()
    first.graph.CopyFrom(model.graph)
    first.opset_import.extend(model.opset_import)
    second.ir_version = 8
    data = first.SerializeToString() + second.SerializeToString()  # as no library writes it
    assert data != model.SerializeToString()
    Path("net.onnx").write_bytes(data)
    refused(run("convert", "net.onnx"), 5, "nothing to fuse")
    done = worked(run("convert", "net.onnx", "--allow-empty"))
    assert "onnxruntime against" not in done.stdout
    assert Path("net.fused.onnx").read_bytes() == data
    assert json.loads(Path("net.fused.acfuse.json").read_text())["passed"]
    worked(run("verify"))
