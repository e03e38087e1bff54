"""`acfuse diff`: what is different between two files, and by how many units of the last place."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from acfuse.pipeline.diff import diff_tensors, ulps
from tests.cli.command import refused, run
from tests.cli.project import state

pytestmark = pytest.mark.usefixtures("project")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def saved(name: str, change=lambda tensors: None) -> str:
    tensors = {key: tensor.clone() for key, tensor in state().items()}
    change(tensors)
    torch.save(tensors, name)
    return name


def differences(first: str, second: str) -> list[dict]:
    result = run("diff", first, second, "--format", "json")
    found = result.json["differences"]
    assert result.exit_code == bool(found)
    return found


def test_a_file_and_its_copy_are_equal():
    result = run("diff", "model.pth", saved("b.pth"))
    assert result.exit_code == 0
    assert result.stdout.endswith("tensors in both files: equal, number for number\n")


def test_each_kind_of_difference_is_told():
    key = "head.weight"

    def change(tensors):
        tensors["new"] = tensors.pop("head.bias")
        tensors[key][0, 0] = torch.nextafter(tensors[key][0, 0], torch.tensor(math.inf))
        tensors[kernel] = torch.zeros(1, 2)
        tensors[other] = tensors[other].double()

    kernel, other = [name for name in state() if name.endswith(".weight") and name != key][:2]
    found = {one["name"]: one for one in differences("model.pth", saved("b.pth", change))}
    assert found["head.bias"]["what"] == "only in the first"
    assert found["new"]["what"] == "only in the second"
    assert (found[key]["ulp"], found[key]["count"]) == (1, 1)
    assert found[key]["numbers"] == state()[key].numel()
    assert found[other]["what"] == "float32 and float64"
    assert found[other]["count"] == 0
    assert "shape" in found[kernel]["what"]
    assert len(found) == 5


@pytest.mark.parametrize("dtype", FLOATS)
def test_steps_are_those_of_nextafter(dtype):
    """Over zero, the smallest numbers and powers of two, as many steps as were made."""
    tiny = torch.finfo(dtype).smallest_normal
    for start in (0.0, tiny, 1.0, -1.0, 3.7, -2.0):
        first = torch.tensor([start], dtype=dtype)
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
        for steps in (1, 5, 1000):
            moved = first.clone()
            number = moved.view(bits)
            number += steps if start >= 0 else -steps  # away from zero, or towards it and on
            assert float(ulps(first, moved)) == steps
            assert float(ulps(moved, first)) == steps


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_are_one_number_and_nan_is_none(dtype):
    zero, nan = torch.tensor([0.0], dtype=dtype), torch.tensor([math.nan], dtype=dtype)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    least = torch.tensor([smallest], dtype=dtype)
    assert float(ulps(zero, -zero)) == 0
    assert float(ulps(least, -least)) == 2
    assert float(ulps(nan, nan)) == 0
    assert float(ulps(nan, zero)) == math.inf
    ends = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
    assert float(ulps(ends, -ends)) > 2 ** (8 * ends.element_size() - 3)


def test_a_zero_is_a_zero():
    for a, b in ((0.0, -0.0), (math.nan, -math.nan)):
        assert diff_tensors({"a": torch.tensor([a])}, {"a": torch.tensor([b])}).differences == ()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
def test_integers_that_float64_does_not_hold_are_told_apart(dtype):
    one, two = (torch.tensor([2**62 + n, 3], dtype=dtype) for n in (0, 1))
    (found,) = diff_tensors({"n": one}, {"n": two}).differences
    assert (found.absolute, found.count) == (1.0, 1)
    (found,) = diff_tensors({"n": one}, {"n": torch.tensor([2, 3], dtype=dtype)}).differences
    assert (found.absolute, found.count) == (2.0**62, 1)


def graph(name: str, weight: np.ndarray, kind: str = "Relu") -> str:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node(kind, ["y"], ["z"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xz"]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]), name)
    return name


def test_onnx_files_are_compared_as_well():
    weight = np.ones((2, 3, 1, 1), np.float32)
    first = graph("a.onnx", weight)
    assert differences(first, graph("b.onnx", weight)) == []
    weight[1, 2] = np.nextafter(weight[1, 2], np.float32(2))
    found = {one["name"]: one for one in differences(first, graph("b.onnx", weight, "Sigmoid"))}
    assert found["w"]["ulp"] == 1
    assert found["Relu"]["what"] == "1 nodes and 0"
    assert found.keys() == {"w", "Relu", "Sigmoid"}


def test_two_kinds_of_files_are_not_compared():
    graph("a.onnx", np.ones((2, 3, 1, 1), np.float32))
    refused(run("diff", "model.pth", "a.onnx"), 2, "acfuse verify ORIGINAL FUSED")
    refused(run("diff", "model.pth", "none.pth"), 3, "none.pth does not exist")


def test_names_are_text():
    saved("b.pth", lambda tensors: tensors.update({"\x1b[31m::error::": torch.zeros(1)}))
    assert "\x1b" not in run("diff", "model.pth", "b.pth").stdout
