"""What acfuse writes into an ONNX file is read back: its blocks, and the original around them."""

import copy

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from acfuse.pipeline.convert import prove
from acfuse.proof import Inputs, Tolerance
from acfuse.proof.onnx_rewriting import compare_rewriting
from acfuse.sources.onnx import fuse_onnx, rewritten
from tests.proof.onnx_faults import FAULTS, assign, attribute, first, node, put
from tests.proof.onnx_nets import NETS, fused_of

# Blocks that need more than one Conv: borders that are mirrored, axes in another order, the image
# itself, several sources, an output of a node that has another one as well.
MIRRORED = """
<ir_version: {ir}, opset_import: ["": {opset}]>
net (float[n, 4, h, w] x) => (float[n, 4, h, w] y)
{{
    p = Pad <mode = "reflect"{attribute}> (x{pads})
    a = Conv (p, w3, b)
    c = Conv (p, w0, b)
    s = Add (a, c)
    y = Relu (s)
}}
"""
TURNED = """
<ir_version: 8, opset_import: ["": 17]>
net (float[n, h, w, 4] x) => (float[n, h, w, 4] y)
{
    i = Transpose <perm = [0, 3, 1, 2]> (x)
    a = Conv <pads = [1, 1, 1, 1]> (i, w3, b)
    c = Conv (i, w1)
    ta = Transpose <perm = [0, 2, 3, 1]> (a)
    tc = Transpose <perm = [0, 2, 3, 1]> (c)
    s = Add (ta, tc)
    y = Relu (s)
}
"""
SOURCES = """
<ir_version: 8, opset_import: ["": 17]>
net (float[n, 4, h, w] x, float[n, 4, h, w] z) => (float[n, 4, h, w] y, float[n, 4, h, w] v)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w3, b)
    c = Conv (x, w1)
    d = Conv (z, w1)
    e = Conv <pads = [1, 1, 1, 1]> (z, w3)
    f = Add (a, d)
    g = Add (c, e)
    s = Add (f, g)
    r = Relu (s)
    t = Conv <pads = [1, 1, 1, 1]> (r, w3, b)
    u = Conv (r, w1)
    q = Add (t, x)
    v = Add (q, u)
    y = Relu (v)
}
"""


def _read(text, **more):
    model, generator = onnx.parser.parse_model(text), np.random.default_rng(1)
    sizes = {"w3": (4, 4, 3, 3), "w0": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "b": (4,)}
    tensors = {n: generator.normal(size=s).astype(np.float32) for n, s in sizes.items()} | more
    read = {name for each in model.graph.node for name in each.input}
    for name, array in tensors.items():
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
            if model.ir_version < 4:
                value = onnx.helper.make_tensor_value_info(
                    name, model.graph.initializer[-1].data_type, array.shape
                )
                model.graph.input.append(value)
    return model


def mirrored(opset, ir):
    amounts = [0, 0, 1, 1, 0, 0, 1, 1]
    if opset < 11:
        text = MIRRORED.format(ir=ir, opset=opset, attribute=f", pads = {amounts}", pads="")
        return _read(text)
    text = MIRRORED.format(ir=ir, opset=opset, attribute="", pads=", amounts")
    return _read(text, amounts=np.array(amounts))


BLOCKS = {
    "mirrored": lambda: mirrored(17, 8),
    "mirrored, old": lambda: mirrored(10, 3),
    "turned": lambda: _read(TURNED),
    "sources": lambda: _read(SOURCES),
}


def verdict(fused, model):
    blocks = [*map(rewritten, fused.found, fused.layers)]
    return compare_rewriting(fused.source.model, model, blocks)


@pytest.mark.parametrize("net", BLOCKS)
def test_what_acfuse_writes_is_what_it_says(net):
    fused = fuse_onnx(BLOCKS[net]())
    assert fused.found
    assert verdict(fused, fused.model).passed
    shape = (2, 9, 8, 4) if net == "turned" else (2, 4, 9, 8)
    inputs = Inputs(((None, shape),) * (2 if net == "sources" else 1))
    proofs = prove(fused, inputs, Tolerance())
    assert proofs.passed, proofs.fault


def of(model, kind):
    """The first node of a kind that acfuse named."""
    return next(n for n in model.graph.node if n.op_type == kind and n.name)


def amounts(model):
    name = of(model, "Pad").input[1]
    put(model.graph, name, lambda a: first(a[::-1], 1))


def swapped_inputs(model):
    one, other = (n for n in model.graph.node if n.op_type == "Conv" and n.name[:1] == "s")
    one.input[0], other.input[0] = other.input[0], one.input[0]


def exchanged_biases(model):
    one, other = (n for n in model.graph.node if n.op_type == "Conv" and n.name[:1] == "s")
    one.input[2], other.input[2] = other.input[2], one.input[2]


def summed_twice(model):
    node(model.graph, "v").input[1] = node(model.graph, "v").input[0]


WRONG = {
    "another border": ("mirrored", lambda m: assign(attribute(of(m, "Pad"), "mode"), s=b"edge")),
    "another pad": ("mirrored", amounts),
    "the image before its pad": (
        "mirrored",
        lambda m: of(m, "Conv").input.__setitem__(0, "x"),
    ),
    "a pad of an old opset": (
        "mirrored, old",
        lambda m: attribute(of(m, "Pad"), "pads").ints.__setitem__(2, 2),
    ),
    "another order of axes": (
        "turned",
        lambda m: attribute(of(m, "Transpose"), "perm").ints.__setitem__(slice(None), [0, 3, 2, 1]),
    ),
    "a stride": ("turned", lambda m: attribute(of(m, "Conv"), "strides").ints.__setitem__(0, 2)),
    "groups": ("turned", lambda m: assign(attribute(of(m, "Conv"), "group"), i=2)),
    "images exchanged": ("sources", swapped_inputs),
    "biases exchanged": ("sources", exchanged_biases),
    "another sum": ("sources", summed_twice),
    "a product": ("sources", lambda m: assign(node(m.graph, "s"), op_type="Mul")),
    "a weight": ("sources", lambda m: put(m.graph, "s.weight", lambda a: 2 * a)),
    "another value under its name": (
        "sources",
        lambda m: m.graph.node.remove(node(m.graph, "s")) or assign_output(m),
    ),
}


def assign_output(model):
    model.graph.node[0].output[0] = "s"


@pytest.mark.parametrize("wrong", WRONG)
def test_a_block_that_is_not_what_it_should_be_is_seen(wrong):
    net, change = WRONG[wrong]
    fused = fuse_onnx(BLOCKS[net]())
    model = copy.deepcopy(fused.model)
    change(model)
    assert model != fused.model
    check = verdict(fused, model)
    assert not check.passed
    assert check.detail


@pytest.mark.parametrize(("net", "fault"), [(n, f) for n, each in FAULTS.items() for f in each])
def test_a_fault_outside_of_the_blocks_is_seen(net, fault):
    fused = fused_of(net)
    model = copy.deepcopy(fused.model)
    FAULTS[net][fault][0](model)
    assert not verdict(fused, model).passed


@pytest.mark.parametrize("net", [*NETS, *BLOCKS])
def test_a_sweep_that_takes_too_much_or_writes_too_much_is_seen(net):
    fused = fused_of(net) if net in NETS else fuse_onnx(BLOCKS[net]())
    for number in range(len(fused.model.graph.node)):
        less, more = copy.deepcopy(fused.model), copy.deepcopy(fused.model)
        del less.graph.node[number]
        assert not verdict(fused, less).passed
        twin = more.graph.node.add()
        twin.CopyFrom(more.graph.node[number])
        twin.output[:] = [f"{name}_again" for name in twin.output]
        assert not verdict(fused, more).passed
