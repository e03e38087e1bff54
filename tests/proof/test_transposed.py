"""A fused transposed convolution with a fault in it: every one is seen, and named."""

import copy
from dataclasses import replace
from functools import cache

import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.pipeline.convert import prove
from acfuse.proof import Inputs, Tolerance, certify
from acfuse.proof.planted import planted_in_onnx, planted_in_tensors
from acfuse.rewrite import fused_copy
from acfuse.sources.live import stored_in
from acfuse.sources.onnx import fuse_onnx, with_tensors
from sample_models import awake
from tests.graph.fusing import Net, conv, norm
from tests.proof.onnx_nets import exported
from tests.proof.proving import certified, diagnosed, further

KINDS = {
    "square": {},
    "groups": {"groups": 2},
    "steps": {"stride": (3, 2), "output_padding": (1, 0), "small": (3, 2)},
    "dilated": {
        "dilation": 2,
        "padding": 2,
        "kernel": 3,
        "output_padding": 1,
        "small": 1,
        "more": 1,
    },
}
CERTIFICATES = pytest.mark.parametrize("exhaustive", [False, True])


def network(kernel=4, stride=2, padding=1, output_padding=0, groups=1, dilation=1, small=2, more=0):
    """Two branches of a norm each: of 4 to 6 channels, whose outputs are of one size."""
    settings = {"groups": groups, "bias": False}
    wide = nn.ConvTranspose2d(4, 6, kernel, stride, padding, output_padding, dilation=dilation,
                              **settings)  # fmt: skip
    rest = nn.ConvTranspose2d(4, 6, small, stride, 0, more, **settings)
    return Net(lambda m, x: m.n(m.a(x)) + m.o(m.b(x)), a=wide, b=rest, n=norm(6), o=norm(6))


@cache
def fused(kind):
    torch.manual_seed(0)
    net = awake(network(**KINDS[kind]), 0).float()
    (block,) = find_in_module(net, PATTERNS).found
    return net, fused_copy(net, [block]), block


def certificate_of(kind, change, *, exhaustive):
    """That of the block, with a change of the stored layer."""
    _, model, block = fused(kind)
    model = copy.deepcopy(model)
    with torch.no_grad():
        change(model.get_submodule(block.names[0]))
    return certify(block, stored_in(model, block), exhaustive=exhaustive)


@pytest.mark.parametrize("kind", KINDS)
@CERTIFICATES
def test_what_is_right_passes(kind, exhaustive):
    certificate = certificate_of(kind, lambda layer: None, exhaustive=exhaustive)
    assert certificate.fault == ""
    assert certificate.ulp <= 0.5


@pytest.mark.parametrize("kind", KINDS)
@CERTIFICATES
def test_two_units_of_any_weight_are_seen_and_named(kind, exhaustive):
    _, model, block = fused(kind)
    weight = model.get_submodule(block.names[0]).weight
    for place in ((0, 0, 0, 0), (3, 1, 2, 1), (1, len(weight[0]) - 1, -1, -1), (2, 2, 1, 0)):
        at = tuple(n % size for n, size in zip(place, weight.shape, strict=True))
        if float(weight[at].detach()) == 0.0:
            continue

        def change(layer, at=at):
            row = layer.weight.data[at].reshape(1, 1)
            further(row, 0, 2)
            layer.weight.data[at] = row[0, 0]

        certificate = certificate_of(kind, change, exhaustive=exhaustive)
        assert certificate.wrong == 1
        spread = model.get_submodule(block.names[0]).dilation
        told = [*at[:2], *(n * d for n, d in zip(at[2:], spread, strict=True))]
        assert f"weight{told} is" in certificate.fault


def _weight(change):
    def changed(layer):
        layer.weight.data = change(layer.weight.data).contiguous()

    return changed


def _bias(change):
    def changed(layer):
        layer.bias.data = change(layer.bias.data)

    return changed


def _moved(layer):
    """The same size, one pixel further along."""
    before, more = layer.padding[0], layer.output_padding[0]
    layer.padding = (before + 1, *layer.padding[1:])
    layer.output_padding = (more + 2, *layer.output_padding[1:])
    layer.stride = layer.stride


def _longer(layer):
    layer.output_padding = (layer.output_padding[0], 1 - layer.output_padding[1])


def _cropped(layer):
    layer.padding = (layer.padding[0], layer.padding[1] + 1)


def _in_one_group(layer):
    """The groups that are missing are taken for one: each channel sees the wrong ones."""
    layer.weight.data = layer.weight.data.roll(1, 1)


def _two_units_of_the_bias(layer):
    further(layer.bias.data, 4, 2)


FAULTS = {
    "cropped at the other end": _cropped,
    "one pixel longer": _longer,
    "the next phase": _weight(lambda w: w.roll(1, 2)),
    "the kernel of the last phase": _weight(lambda w: w.roll(-1, 3)),
    "turned": _weight(lambda w: w.transpose(2, 3) if w.shape[2] == w.shape[3] else w.flip(2)),
    "flipped": _weight(lambda w: w.flip(2, 3)),
    "input channels in another order": _weight(lambda w: w.roll(1, 0)),
    "output channels in another order": _weight(lambda w: w.roll(1, 1)),
    "one channel is off": _weight(lambda w: torch.cat([w[:3], w[3:] * (1 + 1e-6)])),
    "the bias is dropped": _bias(torch.zeros_like),
    "the bias is doubled": _bias(lambda b: 2 * b),
    "two units of the bias": _two_units_of_the_bias,
    "not a number": _weight(lambda w: w * torch.tensor(float("nan"))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
@CERTIFICATES
def test_a_fault_is_seen(fault, kind, exhaustive):
    assert not certificate_of(kind, FAULTS[fault], exhaustive=exhaustive).passed


def test_a_window_that_stands_one_pixel_further_is_seen_though_the_size_is_right():
    _, model, block = fused("square")
    (value,) = stored_in(model, block)
    for step in (-1, 1):
        axes = tuple(
            replace(a, before=a.before + step, after=a.after - step) for a in value.geometry.axes
        )
        of = replace(value.of.geometry, axes=axes)
        moved = replace(
            value,
            of=replace(value.of, geometry=of),
            geometry=replace(value.geometry, of=of),
        )
        certificate = certify(block, [moved])
        assert "padding" in certificate.fault


def test_groups_that_meet_are_seen():
    _, model, block = fused("groups")
    (value,) = stored_in(model, block)
    dense = replace(value.of.regroup(1))
    geometry = replace(value.geometry, of=dense.geometry)
    assert certify(block, [replace(value, of=dense, geometry=geometry)]).fault == ""
    dense.kernel[0, 5] = dense.kernel[0, 1]
    assert not certify(block, [replace(value, of=dense, geometry=geometry)]).passed


MISTAKES = {
    "the bias was dropped": _bias(torch.zeros_like),
    "the kernel is flipped": _weight(lambda w: w.flip(2, 3)),
    "the kernel is transposed": _weight(lambda w: w.transpose(2, 3)),
    "1 altered weight, the rest is right": _weight(lambda w: w.index_put(
        tuple(map(torch.tensor, (1, 2, 3, 3))), torch.tensor(0.5))),
    "the weights went through bfloat16": _weight(lambda w: w.bfloat16().float()),
}  # fmt: skip


@pytest.mark.parametrize("told", MISTAKES)
def test_what_happened_is_told(told):
    net, model, block = fused("square")
    model = copy.deepcopy(model)
    with torch.no_grad():
        MISTAKES[told](model.get_submodule(block.names[0]))
    assert diagnosed(net, model, block).startswith(f"{told}: ")


def test_a_mistake_of_the_norms_is_told():
    net, _, block = fused("square")
    other = copy.deepcopy(net)
    other.n.eps = other.o.eps = 1e-3
    (wrong,) = find_in_module(other, PATTERNS).found
    model = fused_copy(other, [wrong])
    assert not certified(model, block).passed
    assert diagnosed(net, model, block).startswith("BatchNorm eps 0.001: take the eps")


def test_planted_faults_in_a_checkpoint_are_seen():
    net, model, block = fused("groups")
    for planted in planted_in_tensors(net.state_dict(), model.state_dict(), 40):
        other = copy.deepcopy(model)
        try:
            other.load_state_dict(dict(planted.held))
        except RuntimeError:  # another key, or shape
            continue
        if planted.place in model.state_dict() and planted.what != "two tensors exchanged":
            assert not certified(other, block).passed, planted


# --- ONNX ---------------------------------------------------------------------------------------

SHAPE = (2, 3, 15, 18)


@cache
def fused_file(kind):
    net, _, _ = fused(kind)
    whole = Net(
        lambda m, x: m.c(torch.relu(m.a(torch.relu(m.b(x))))),
        a=net,
        b=conv(3, 1, (3, 4)),
        c=conv(1, 0, (6, 3)),
    )
    return fuse_onnx(exported(whole.eval()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_becomes_one_and_is_proved(kind):
    result = fused_file(kind)
    assert len(result.found) == 1
    kinds = [n.op_type for n in result.model.graph.node if "Conv" in n.op_type]
    assert kinds == ["Conv", "ConvTranspose", "Conv"]
    proofs = prove(result, Inputs(((None, SHAPE),)), Tolerance())
    assert proofs.passed, proofs.fault
    (block,) = result.found
    assert certify(block, result.stored(block), exhaustive=True).fault == ""


@pytest.mark.parametrize("kind", KINDS)
def test_planted_faults_in_a_file_are_seen(kind):
    result = fused_file(kind)
    planted = planted_in_onnx(result.source.program, result.model, 60)
    assert len(planted) == 60
    for fault in planted:
        given = with_tensors(result, fault.held, "it")
        certificates = [certify(b, given.stored(b)) for b in given.found]
        assert not (given.program.passed and all(c.passed for c in certificates)), fault.what


def _set(name, change):
    def changed(node):
        attribute = next(a for a in node.attribute if a.name == name)
        attribute.ints[:] = change([*attribute.ints])

    return changed


def _another_operator(node):
    node.op_type = "Conv"


FILE_FAULTS = {
    "strides": _set("strides", lambda n: [n[0] + 1, *n[1:]]),
    "pads": _set("pads", lambda n: [n[0] + 1, n[1], n[2] - 1, n[3]]),
    "output_padding": _set("output_padding", lambda n: [n[0], n[1] + 1]),
    "dilations": _set("dilations", lambda n: [n[0], n[1] + 1]),
    "operator": _another_operator,
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_another_node_than_was_certified_is_seen(fault):
    result = fused_file("square")
    model = onnx.ModelProto()
    model.CopyFrom(result.model)
    FILE_FAULTS[fault](next(n for n in model.graph.node if n.op_type == "ConvTranspose"))
    checks = replace(result, model=model).compare(None, Tolerance())
    assert not checks[-1].passed
    assert "ConvTranspose" in checks[-1].detail or "Conv" in checks[-1].detail


def test_a_group_too_many_is_seen():
    result = fused_file("groups")
    model = onnx.ModelProto()
    model.CopyFrom(result.model)
    node = next(n for n in model.graph.node if n.op_type == "ConvTranspose")
    kept = [a for a in node.attribute if a.name != "group"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("group", 1)])
    checks = replace(result, model=model).compare(None, Tolerance())
    assert not checks[-1].passed


def test_a_weight_in_a_file_is_named():
    result = fused_file("groups")
    (block,), (placed,) = result.found, result.layers[0]
    model = onnx.ModelProto()
    model.CopyFrom(result.model)
    stored = next(t for t in model.graph.initializer if t.name == placed.weight)
    array = numpy_helper.to_array(stored).copy()
    array[3, 2, 1, 0] *= 1 + 1e-6
    stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    given = with_tensors(result, model, "it")
    certificate = certify(block, given.stored(block))
    assert certificate.wrong == 1
    assert "weight[3, 2, 1, 0] is" in certificate.fault
