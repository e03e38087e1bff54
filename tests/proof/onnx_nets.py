"""Small ONNX files with blocks in them, in every style that a program may be written in."""

import io
import re
import warnings
from functools import cache

import numpy as np
import onnx
import onnx.parser
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from acfuse.sources.onnx import OnnxFused, fuse_onnx
from tests.proof.verdicts import Block, drawn

SHAPE = (2, 4, 9, 8)
WEIGHTS = {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "b": (4,), "head": (6, 4, 1, 1)}
NUMBERS = {
    "low": np.float32(-1.5),
    "high": np.float32(2.5),
    "rows": np.array([0, -1], np.int64),
    "scale": np.array([1, 1, 2, 2], np.float32),
    "times": np.array(2, np.int64),
    "yes": np.array(True),
}

PLAIN = """
<ir_version: 10, opset_import: ["": 17], producer_name: "us", domain: "net",
 metadata_props: ["author": "nobody", "classes": "6"]>
net (float[n, 4, h, w] x) => (float[n, 6, h2, w2] y, float[n, k] flat)
<float[n, 4, h, w] s, float[n, 4, h, w] l, float[n, 4, h2, w2] u>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w3, b)
    c = Conv (x, w1)
    s = Add (a, c)
    l = LeakyRelu <alpha = 0.2> (s)
    t = Clip (l, low, high)
    u = Resize <mode = "nearest"> (t, , scale)
    k = Constant <value = float[1, 4, 1, 1] {0.5, 1.0, 2.0, -1.0}> ()
    m = Mul (u, k)
    y = Conv <kernel_shape = [1, 1]> (m, head)
    flat = Reshape (t, rows)
}
"""

BRANCHES = """
<ir_version: 10, opset_import: ["": 17]>
net (float[n, 4, h, w] x) => (float[n, 4, h, w] y)
{
    z = If (yes) <
        then_branch = yes_graph () => (float[n, 4, h, w] t) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w3, b)
            c = Conv (x, w1)
            s = Add (a, c)
            t = LeakyRelu <alpha = 0.3> (s)
        },
        else_branch = no_graph () => (float[n, 4, h, w] e) { e = Elu <alpha = 0.5> (x) }
    >
    y = Loop (times, , z) <
        body = body (int64 i, bool go, float[n, 4, h, w] v)
            => (bool on, float[n, 4, h, w] next) {
            on = Identity (go)
            la = Conv <pads = [1, 1, 1, 1]> (v, w3, b)
            lc = Conv (v, w1)
            ls = Add (la, lc)
            next = Tanh (ls)
        }
    >
}
"""

FUNCTIONS = """
<ir_version: 10, opset_import: ["": 17, "own": 1]>
net (float[n, 4, h, w] x) => (float[n, 4, h, w] y)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w3, b)
    c = Conv (x, w1)
    s = Add (a, c)
    y = own.gate <slope = 0.4> (s)
}
<domain: "own", opset_import: ["": 17]>
gate <slope> (v) => (r) {
    p = LeakyRelu <alpha: float = @slope> (v)
    q = HardSigmoid <alpha = 0.15, beta = 0.6> (v)
    r = Mul (p, q)
}
"""


def _read(text: str) -> onnx.ModelProto:
    """A file from its text, with the tensors that it names."""
    model, generator = onnx.parser.parse_model(text), np.random.default_rng(0)
    drawn = {n: generator.normal(size=s).astype(np.float32) for n, s in WEIGHTS.items()}
    for name, value in {**drawn, **NUMBERS}.items():
        if re.search(rf"\b{name}\b", text.partition("{")[2]):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(model, full_check=True)
    return model


class Network(nn.Module):
    """What torch's exporters write: two blocks, and other layers between and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = Block(3, 8), nn.BatchNorm2d(8)
        self.second, self.head = Block(8, 8), nn.Conv2d(8, 5, 3, stride=2)

    def forward(self, x):
        y = self.norm(F.leaky_relu(self.first(x), 0.1))
        y = self.head(F.hardtanh(self.second(y), -0.5, 4.0))
        return F.interpolate(y, scale_factor=2).flatten(2).softmax(1)


def exported(model: nn.Module, *, dynamo: bool = False) -> onnx.ModelProto:
    """What one of torch's exporters writes, nothing folded by it, with a free batch."""
    image = torch.randn(2, 3, 15, 18)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            free = {"x": {0: torch.export.Dim.DYNAMIC}}
            program = torch.onnx.export(
                model, (image,), dynamo=True, verbose=False, dynamic_shapes=free
            )
            return program.model_proto
        buffer = io.BytesIO()
        torch.onnx.export(
            model, image, buffer, dynamo=False, opset_version=17, do_constant_folding=False,
            input_names=["x"], dynamic_axes={"x": {0: "n"}},
            training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


NETS = {
    "plain": lambda: _read(PLAIN),
    "branches": lambda: _read(BRANCHES),
    "functions": lambda: _read(FUNCTIONS),
    "script": lambda: exported(drawn(Network)),
    "dynamo": lambda: exported(drawn(Network), dynamo=True),
}


@cache
def fused_of(name: str) -> OnnxFused:
    """One of these networks, fused. Nobody may write to it."""
    fused = fuse_onnx(NETS[name]())
    assert fused.found
    return fused
