"""Planted faults: each is one, at one place, and no file that they are planted in changes."""

import onnx
import pytest
import torch

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.proof.onnx_program import differences
from acfuse.proof.planted import (
    LIST_FAULTS,
    NODE_FAULTS,
    TENSOR_FAULTS,
    planted_in_onnx,
    planted_in_tensors,
)
from acfuse.rewrite import fused_copy
from acfuse.sources.onnx import fuse_onnx
from sample_models import awake, samples
from tests.graph.fusing import Net, conv
from tests.graph.onnx_files import exported


def network():
    model = samples()["acnet/digits"].build()
    return model, fused_copy(model, find_in_module(model, PATTERNS).found)


def changed(fused, held):
    """The tensors in which a checkpoint is another."""
    keys = fused.keys() | held.keys()
    same = [
        k for k in fused.keys() & held.keys()
        if fused[k].dtype == held[k].dtype and torch.equal(fused[k], held[k])
    ]  # fmt: skip
    return keys - set(same)


def test_each_fault_changes_one_tensor_at_the_place_that_it_names():
    before, fused = (m.state_dict() for m in network())
    kept = {key: tensor.clone() for key, tensor in fused.items()}
    planted = planted_in_tensors(before, fused, 40)
    assert len(planted) == 40
    for fault in planted:
        places = changed(fused, fault.held)
        assert fault.place in places
        assert len(places) == 1 + (fault.what == "two tensors exchanged")
    assert changed(kept, fused) == set()


def test_every_kind_comes_before_any_comes_twice():
    before, fused = (m.state_dict() for m in network())
    planted = planted_in_tensors(before, fused, 40)
    kinds = {fault.what for fault in planted}
    first = [fault.what for fault in planted[: len(kinds)]]
    assert set(first) == kinds
    assert len(kinds) >= len(TENSOR_FAULTS) - 1 + len(LIST_FAULTS) - 1
    places = {(fault.what, fault.place) for fault in planted}
    assert len(places) == 40


def test_what_is_fused_and_what_is_left_are_told_apart():
    before, fused = (m.state_dict() for m in network())
    for fault in planted_in_tensors(before, fused, 40):
        if fault.what in TENSOR_FAULTS:
            is_new = fault.place not in before or not torch.equal(
                before[fault.place], fused[fault.place]
            )
            assert is_new == TENSOR_FAULTS[fault.what][0]


ENDS = {
    "scores": lambda m, x: m.c(torch.relu(m.a(x) + m.b(x))).sigmoid(),
    "rows": lambda m, x: 1 - torch.cat([m.a(x) + m.b(x), m.c(x)], 1).flatten(2).transpose(1, 2),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_fault_of_a_file_makes_it_another_program(end):
    network = Net(ENDS[end], a=conv(3), b=conv(1), c=conv(1)).double()
    model = exported(awake(network, 0), 1)
    fused = fuse_onnx(model)
    assert len(fused.found) == 1
    bytes_before = fused.model.SerializeToString()
    planted = planted_in_onnx(model, fused.model, 30)
    assert len(planted) == 30
    assert len({fault.what for fault in planted}) >= len(NODE_FAULTS)
    for fault in planted:
        assert isinstance(fault.held, onnx.ModelProto)
        said = [*differences(fused.model, fault.held)]
        assert said
        assert fault.place in said[0]
    assert fused.model.SerializeToString() == bytes_before
    assert [*differences(fused.model, fused.model)] == []
