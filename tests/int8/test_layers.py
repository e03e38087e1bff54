"""`acfuse.ranges`: each layer of a network, of an ONNX model and of a file, by its name."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import acfuse
from acfuse.errors import InputError, UsageError
from acfuse.int8.quantized import quantized
from acfuse.int8.ranges import NOTHING, ranges_of
from acfuse.proof import Inputs
from acfuse.proof.onnx_runtime import image_of
from sample_models import awake
from tests.pipeline.converter import as_onnx

SHAPE = (2, 4, 5, 6)


def mixed():
    """A layer of each kind, of which the second channel of the first has small weights."""
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, (3, 2), groups=2),
        nn.Flatten(),
        nn.Linear(6 * 5 * 5, 3),
    )
    with torch.no_grad():
        model[0].weight[1] /= 64
        model[4].weight[:4, 2] *= 8  # the third channel of the first group
    return awake(model, 0).float()


def same(one, other):
    assert [*map(vars, one)] == [pytest.approx(vars(own)) for own in other]


def test_a_network_is_told_by_its_layers():
    model = mixed()
    found = acfuse.ranges(model)
    assert [*found] == ["0", "2", "4", "6"]
    assert found["0"] == ranges_of(model[0].weight)
    assert found["6"] == ranges_of(model[6].weight)
    parts = model[4].weight.detach().chunk(2)  # [4, 3, ...] of each group
    same([found["4"]], [ranges_of(torch.cat([part.transpose(0, 1) for part in parts]))])


def test_an_onnx_model_says_the_same(tmp_path):
    model = mixed()
    file = as_onnx(model, SHAPE)
    same(acfuse.ranges(file).values(), acfuse.ranges(model).values())
    onnx.save(file, tmp_path / "net.onnx")
    assert acfuse.ranges(tmp_path / "net.onnx") == acfuse.ranges(file)
    assert acfuse.ranges(str(tmp_path / "net.onnx")) == acfuse.ranges(file)


def test_of_what_is_in_8_bits_already_it_is_what_is_read():
    file = as_onnx(mixed(), SHAPE)
    in_8_bits = quantized(file, [image_of(file, Inputs(((None, SHAPE),)))])
    before, after = acfuse.ranges(file), acfuse.ranges(in_8_bits)
    assert len(after) == len(before)
    for own, other in zip(before.values(), after.values(), strict=True):
        # The largest weight of a channel is off by up to half a step, of 127 for the largest.
        least = 1 / own.spread - 0.5 / 127
        assert other.spread <= 1 / least
        assert math.isfinite(other.per_tensor)


def net(nodes, **stored):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def matrix(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_nodes_without_a_name_or_with_the_same_have_that_of_their_output():
    w, v = matrix(0, 4, 4, 1, 1), matrix(1, 4, 4, 1, 1)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Conv", ["a", "v"], ["b"], "conv"),
        helper.make_node("Conv", ["b", "w"], ["y"]),
        helper.make_node("Conv", ["b", "x"], ["z"]),  # its weight is not stored
    ]
    found = acfuse.ranges(net(nodes, w=w, v=v))
    assert [*found] == ["conv", "b", "y"]
    assert found["conv"] == found["y"] == ranges_of(torch.from_numpy(w))
    assert found["b"] == ranges_of(torch.from_numpy(v))


@pytest.mark.parametrize("turned", [0, 1])
def test_matrices_have_their_outputs_where_the_operator_reads_them(turned):
    w = matrix(0, 6, 3)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=turned)]
    (found,) = acfuse.ranges(net(nodes, w=w)).values()
    same([found], [ranges_of(torch.from_numpy(w if turned else w.T.copy()))])


def test_a_batch_of_matrices_is_no_layer():
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert acfuse.ranges(net([node], w=matrix(0, 2, 3, 3))) == {}


def test_a_weight_that_fits_no_such_layer_is_named():
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", group=3)
    why = r"up: its weight w \[4, 2, 3, 3\] cannot be read: it is none of a ConvTranspose"
    with pytest.raises(InputError, match=why):
        acfuse.ranges(net([node], w=matrix(0, 4, 2, 3, 3)))


@pytest.mark.parametrize(
    "tensor",
    [
        helper.make_tensor("w", onnx.TensorProto.FLOAT, [], [3.0]),
        onnx.TensorProto(name="w", data_type=1, dims=[2, 1, 3, 3], raw_data=bytes(8)),
        onnx.TensorProto(name="w", data_type=8, dims=[2, 1], string_data=[b"a", b"b"]),
        onnx.TensorProto(name="w", data_type=99, dims=[2, 1]),
    ],
    ids=["a number", "too few bytes", "words", "an unknown type"],
)
def test_a_weight_that_cannot_be_read_is_named(tensor):
    file = net([helper.make_node("Conv", ["x", "w"], ["y"], "c")])
    file.graph.initializer.append(tensor)
    with pytest.raises(InputError, match=r"c: its weight w .* cannot be read: "):
        acfuse.ranges(file)


def test_of_a_weight_without_numbers_nothing_is_lost():
    for shape in ((0, 1, 3, 3), (2, 0, 3, 3)):
        file = net([helper.make_node("Conv", ["x", "w"], ["y"], "c")], w=matrix(0, *shape))
        assert acfuse.ranges(file) == {"c": NOTHING}


def test_bfloat16_is_read_as_it_is():
    file = net([helper.make_node("Conv", ["x", "w"], ["y"], "c")])
    kind = onnx.TensorProto.BFLOAT16
    file.graph.initializer.append(helper.make_tensor("w", kind, [2, 1, 1, 1], [1.0, 4.0]))
    assert acfuse.ranges(file) == {"c": ranges_of(torch.tensor([[1.0], [4.0]]))}


def test_a_weight_that_lies_elsewhere_is_not_looked_for(tmp_path):
    file = net([helper.make_node("Conv", ["x", "w"], ["y"], "c")], w=matrix(0, 64, 64, 3, 3))
    path = tmp_path / "net.onnx"
    onnx.save(file, path, save_as_external_data=True, location="w.bin")
    assert acfuse.ranges(path) == acfuse.ranges(net([*file.graph.node], w=matrix(0, 64, 64, 3, 3)))
    without = onnx.load(path, load_external_data=False)
    with pytest.raises(InputError, match=r"c: its weight w lies in a file of its own"):
        acfuse.ranges(without)


def test_a_layer_without_numbers_is_named():
    lazy = nn.Sequential(nn.ReLU(), nn.LazyConv2d(3, 3))
    for model, name in ((lazy, "1"), (nn.Linear(2, 3, device="meta"), "the model")):
        with pytest.raises(InputError, match=f"{name} has no weights yet"):
            acfuse.ranges(model)


def test_what_is_neither_is_refused(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"no checkpoint")
    for given, why in (
        (tmp_path / "none.onnx", "does not exist"),
        (tmp_path / "model.pth", "model.pth is no ONNX file"),
        (3, "and not int"),
        (acfuse.fuse(mixed()), "of what acfuse.fuse gives, take .model"),
    ):
        with pytest.raises(UsageError, match=why):
            acfuse.ranges(given)


def test_nothing_changes_and_a_network_without_layers_has_none():
    model = mixed().half()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert len(acfuse.ranges(model)) == 4
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert acfuse.ranges(nn.ReLU()) == {}
    assert [*acfuse.ranges(nn.Conv2d(1, 1, 1))] == [""]
