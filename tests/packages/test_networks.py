"""Networks of published packages are fused as far as by their own converters, and exactly."""

import copy
import io
from collections.abc import Sequence

import onnx
import pytest
import torch
from torch import nn

import acfuse
from acfuse.proof.onnx_runtime import run_session, session_of
from acfuse.targets.onnx_export import count_nodes
from tests.bounds import assert_within, rounding
from tests.graph.fusing import (
    assert_same,
    assert_same_bits,
    images,
    run_convolutions,
    same_bits,
)
from tests.packages.imports import undisturbed
from tests.packages.networks import BRANCHED, PADDED, PLAIN, Network, batch_norms, convolutions

STRICT = ("repvgg_a0", "repvgg_d2se", "mobileone_s0", "mobileone_s1", "fastvit_t8", "lcnetv2_base")
WITHOUT_LONE = (
    "repvgg_a0",
    "repvgg_d2se",
    "mobileone_s0",
    "mobileone_s1",
)  # each BatchNorm is inside a block


def each(networks: Sequence[Network]) -> pytest.MarkDecorator:
    """A test for each of these networks."""
    params = [pytest.param(n, id=n.name) for n in networks]
    return pytest.mark.parametrize("case", params, indirect=True, scope="module")


@each(BRANCHED)
def test_fuses_what_the_packages_own_converter_fuses(case):
    fused = acfuse.fuse(case.model).model
    assert convolutions(case.model) == case.network.before
    assert convolutions(fused) == case.network.after
    assert case.network.name not in WITHOUT_LONE or batch_norms(fused) == 0
    assert run_convolutions(fused, *images([case.shape])) == case.network.after
    assert_same(case.model, fused, [case.shape])
    if case.own is not None:
        assert convolutions(fused) <= convolutions(case.own)


@each([n for n in BRANCHED if n.name in STRICT])
def test_the_fused_tensors_are_those_of_the_packages_own_deploy_form(case):
    fused = acfuse.fuse(case.model).model
    own = copy.deepcopy(case.own)
    own.load_state_dict(fused.state_dict())
    assert_same(case.model, own, [case.shape])


@each([n for n in BRANCHED if n.name in STRICT and n.name != "fastvit_t8"])
def test_and_so_are_those_of_bare_tensors(case):
    fused = acfuse.fuse_tensors(case.model.state_dict()).tensors
    own = copy.deepcopy(case.own)
    own.load_state_dict(fused)
    assert_same(case.model, own, [case.shape])


@each([n for n in (*BRANCHED, *PLAIN) if n.name not in WITHOUT_LONE])
def test_leaves_no_more_batch_norms_than_the_packages_own_converter(case):
    fused = acfuse.fuse(case.model, fold_bn=True).model
    assert convolutions(fused) == case.network.after
    assert_same(case.model, fused, [case.shape])
    counts = [batch_norms(m) for m in (case.model, fused, case.own) if m is not None]
    print(f"{case.network.name}: BatchNorms before, fused, by its own converter: {counts}")
    assert batch_norms(fused) <= counts[-1]


@each(PADDED)
def test_folds_every_batch_norm_where_the_padding_depends_on_the_size(case):
    (image,) = images([case.shape])
    fused = acfuse.fuse(case.model, image, fold_bn=True).model
    assert convolutions(fused) == case.network.after
    assert batch_norms(fused) == 0
    assert_same(case.model, fused, [case.shape, (2, 3, 49, 66)])


@each(PLAIN)
def test_leaves_a_plain_network_bit_for_bit_as_it_is(case):
    model = copy.deepcopy(case.model).float()
    fused = acfuse.fuse(model)
    assert fused.found == ()
    before, after = model.state_dict(), fused.model.state_dict()
    assert list(before) == list(after)
    assert all(same_bits(after[key], tensor) for key, tensor in before.items())
    assert_same_bits(model, fused.model, [case.shape])


def exported(model: nn.Module, image: torch.Tensor) -> onnx.ModelProto:
    """The file that torch's older exporter writes, with BatchNorms left as nodes."""
    buffer = io.BytesIO()
    with undisturbed():
        torch.onnx.export(
            model,
            image,
            buffer,
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    return onnx.load_from_string(buffer.getvalue())


@each([n for n in BRANCHED if n.name == "textnet_tiny"])
def test_a_file_exported_before_fusing_is_fused_as_the_network_is(case):
    network, model = case.network, copy.deepcopy(case.model).float()
    (image,) = images([case.shape], torch.float32)
    original = exported(model, image)
    fused = acfuse.fuse_onnx(original).model
    by_torch = exported(acfuse.fuse(model).model, image)
    counts = [count_nodes(file, "Conv") for file in (original, fused, by_torch)]
    assert counts == [network.before, network.after, network.after]
    name = original.graph.input[0].name
    expected, given = (
        run_session(session_of(file.SerializeToString(), optimised=False), {name: image})[0]
        for file in (original, fused)
    )
    bound = rounding(model, image, dtype=torch.float32)[:1]
    assert_within(torch.tensor(given), torch.tensor(expected), bound)
