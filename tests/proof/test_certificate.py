"""What a certificate sees of a weight beside a bias of any size, and what it does not mind."""

from dataclasses import replace
from functools import cache

import pytest
import torch

import acfuse
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.proof import certify, random_probes
from acfuse.rewrite import fused_copy
from acfuse.sources.live import stored_in
from acfuse.sources.onnx import fuse_onnx
from sample_models import awake
from tests.graph.fusing import Net, conv, norm
from tests.graph.onnx_files import exported
from tests.proof import verdicts
from tests.proof.proving import certified, further
from tests.proof.verdicts import drawn


@pytest.fixture(autouse=True, params=["by impulses", "claimed"])
def _reading(request, monkeypatch):
    """Kernels of few channels are read by impulses; all is tested with random numbers as well."""
    if request.param == "claimed":
        monkeypatch.setattr(random_probes, "FEW", 0)


SCALES = (1.0, 1e-5, 1e-13, 1e-30)  # of the weights of each output channel


def dead_channels(bias, arms, inputs=3):
    """Branches of convolution and BatchNorm, some of whose channels have all but died.

    The bias of a convolution and the mean behind it are large and cancel.
    """
    parts = {}
    for i in range(arms):
        layer = conv(3 - 2 * (i % 2), channels=(inputs, 4))
        layer.weight.data *= torch.tensor(SCALES).reshape(4, 1, 1, 1)
        parts |= {f"conv{i}": layer, f"norm{i}": norm()}

    def run(m, x):
        return sum(getattr(m, f"norm{i}")(getattr(m, f"conv{i}")(x)) for i in range(arms))

    net = awake(Net(run, **parts), 0).float()
    for i in range(arms):
        layer, bn = parts[f"conv{i}"], parts[f"norm{i}"]
        layer.bias.data = bias * torch.tensor([1.0, -1.0, 0.7, -0.3])
        bn.running_mean.data = layer.bias.data.clone()
        bn.bias.data = torch.tensor([0.0, 0.1, 0.0, -0.2])
    return net


@cache
def fused(bias, arms):
    torch.manual_seed(0)
    net = dead_channels(bias, arms)
    findings = find_in_module(net, PATTERNS, folds=True)
    assert len(findings.found) == 1
    return fused_copy(net, findings.found), findings.found[0]


CASES = [(bias, arms) for bias in (0.0, 30.0, 1e4, 1e8) for arms in (1, 2, 3)]


@pytest.mark.parametrize(("bias", "arms"), CASES)
def test_a_large_bias_that_cancels_makes_no_false_alarm(bias, arms):
    certificate = certified(*fused(bias, arms))
    assert certificate.fault == ""


@pytest.mark.parametrize("channel", range(4))
@pytest.mark.parametrize(("bias", "arms"), CASES)
def test_a_weight_is_seen_beside_a_bias_of_any_size(bias, arms, channel):
    network, block = fused(bias, arms)
    layer = network.get_submodule(block.names[0])
    right = layer.weight.detach().clone()
    try:
        further(layer.weight.data, channel, 2)
        certificate = certified(network, block)
    finally:
        layer.weight.data = right
    assert certificate.wrong == 1
    assert f"weight[{channel}, " in certificate.fault


@pytest.mark.parametrize("arms", [1, 2])
@pytest.mark.parametrize("bias", [30.0, 1e4])
def test_a_file_is_read_as_exactly(bias, arms):
    torch.manual_seed(0)
    model = exported(dead_channels(bias, arms, inputs=4).double(), 1)
    result = fuse_onnx(model, fold_bn=True)
    assert result.found
    for block in result.found:
        right = result.stored(block)
        certificate = certify(block, right)
        assert certificate.fault == ""
        for channel in range(4):
            wrong = result.stored(block)
            wrong[0].kernel[channel] *= 1 + 1e-6
            assert not certify(block, wrong).passed


def test_a_bias_that_is_wrong_is_seen_where_biases_cancel():
    network, block = fused(30.0, 2)
    layer = network.get_submodule(block.names[0])
    right = layer.bias.detach().clone()
    try:
        layer.bias.data[1] *= 1 + 1e-5
        assert not certified(network, block).passed
    finally:
        layer.bias.data = right


@pytest.mark.parametrize("number", [2.0**-148, 1e-9, 2.0**-25])
def test_a_bias_that_should_be_zero_is_that(number):
    """However small it is: no unit of a number near 1 is that of zero."""
    torch.manual_seed(0)
    arms = {"a": conv(3, bias=False), "b": conv(1, bias=False)}
    result = acfuse.fuse(Net(lambda m, x: m.a(x) + m.b(x), **arms).eval())
    (block,) = result.found
    assert certified(result.model, block).passed
    result.model.get_submodule(block.names[0]).bias.data[1] = number
    certificate = certified(result.model, block)
    assert certificate.wrong == 1
    assert "bias[1] is" in certificate.fault


def test_rounding_is_measured_where_layers_write_through_views():
    """Moved copies of what a view reads would lead nowhere, and any answer would be noise."""

    @torch.no_grad()
    def reference(x):
        y = net.a(x)
        y[:, :].add_(net.b(x))
        return y

    torch.manual_seed(0)
    net = awake(Net(lambda m, x: m.a(x) + m.b(x), a=conv(3), b=conv(1)), 0).float()
    network, block = fused_copy(net, found := find_in_module(net, PATTERNS).found), found[0]
    block = replace(block, reference=lambda: reference)
    net.double()
    assert certified(network, block).fault == ""
    network.get_submodule(block.names[0]).weight.data[2, 1, 1, 1] *= 1 + 1e-5
    certificate = certified(network, block)
    assert certificate.wrong == 1
    assert "weight[2, 1, 1, 1]" in certificate.fault


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arithmetic_on_buffers_is_read_in_float64(dtype):
    """A BatchNorm that was written out: its scale is no number of the dtype that ships."""
    model = drawn(verdicts.Frozen)
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        low = 0.3 if name.endswith(("weight", "var")) else -0.5
        buffer.copy_(torch.empty_like(buffer).uniform_(low, 1.2, generator=generator))
    result = acfuse.fuse(model.to(dtype))
    assert len(result.found) == 2
    proofs = acfuse.verify(model, result.model, verdicts.SHAPE)
    assert proofs.passed, proofs.fault
    result.model.second.fused_conv.weight.data[3, 1, 1, 0] *= 1.02
    assert not acfuse.verify(model, result.model).passed


class Wide(torch.nn.Module):
    """Three branches of so many channels, in groups, with strides, whose norms are large."""

    def __init__(self, channels=72, groups=1, stride=(1, 1)):
        super().__init__()
        rest = {"stride": stride, "groups": groups, "bias": False}
        self.square = torch.nn.Conv2d(channels, 12, 3, padding=1, **rest)
        self.tall = torch.nn.Conv2d(channels, 12, (3, 1), padding=(1, 0), **rest)
        self.flat = torch.nn.Conv2d(channels, 12, (1, 3), padding=(0, 1), **rest)
        self.norm = torch.nn.BatchNorm2d(12)

    def forward(self, x):
        return torch.relu(self.norm(self.square(x) + self.tall(x) + self.flat(x)))


@cache
def wide(**settings):
    torch.manual_seed(0)
    net = awake(Wide(**settings), 0).float()
    findings = find_in_module(net, PATTERNS)
    assert len(findings.found) == 1
    return net, findings.found[0], fused_copy(net, findings.found)


def claiming(block, change):
    """The block, whose algebra makes an error."""
    (term,) = block.terms

    def multiply():
        value = term.value
        return replace(value, kernel=change(value.kernel.clone()))

    return replace(block, terms=(replace(term, multiply=multiply),))


def _scaled(factor, *place):
    def change(kernel):
        kernel[place] *= factor
        return kernel

    return change


WRONG_ALGEBRA = {
    "one weight": _scaled(1 + 2**-20, 5, 3, 1, 2),
    "one corner": _scaled(1.5, 0, 1, 0, 0),
    "one channel": _scaled(1 + 1e-6, slice(None), 4),
    "one output": _scaled(1 + 1e-6, 11),
    "a tap": _scaled(0.0, slice(None), slice(None), 2, 0),
    "transposed": lambda kernel: kernel.transpose(2, 3),
    "mirrored": lambda kernel: kernel.flip(3),
    "rounded": lambda kernel: kernel.float().double(),
    "not a number": _scaled(float("nan"), 2, 2),
}
KINDS = [{}, {"groups": 3}, {"stride": (2, 3)}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("change", WRONG_ALGEBRA.values(), ids=list(WRONG_ALGEBRA))
def test_an_error_of_the_algebra_is_not_believed(change, kind):
    """What is stored is what a wrong kernel rounds to: only the layers know better."""
    _, block, network = wide(**kind)
    wrong = claiming(block, change)
    layer = network.get_submodule(block.names[0])
    right, exact = layer.weight.detach().clone(), wrong.terms[0].value
    believed = wrong if random_probes.FEW == 0 else block
    try:
        layer.weight.data = exact.kernel.float()
        certificate = certified(network, believed)
    finally:
        layer.weight.data = right
    same = torch.equal(exact.kernel.float(), right)
    assert (certificate.fault == "") == same
    assert change is WRONG_ALGEBRA["rounded"] or not same


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_shown_by_random_numbers_is_what_impulses_show(kind):
    _, block, network = wide(**kind)
    for exhaustive in (False, True):
        certificate = certify(block, stored_in(network, block), exhaustive=exhaustive)
        assert certificate.fault == ""
        assert certificate.ulp <= 0.5


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("which", [torch.argmax, torch.argmin])
def test_any_weight_of_a_wide_kernel_is_seen(kind, which):
    _, block, network = wide(**kind)
    layer = network.get_submodule(block.names[0])
    right = layer.weight.detach().clone()
    for tap in ((0, 0), (1, 1), (2, 1)):
        sizes = right[:, :, *tap].abs()
        place = int(which(sizes.flatten()))
        out, channel = divmod(place, right.shape[1])
        wrong = right.clone()
        wrong[out, channel, *tap] *= 1 + 4 * torch.finfo(torch.float32).eps
        try:
            layer.weight.data = wrong
            certificate = certified(network, block)
        finally:
            layer.weight.data = right
        assert certificate.wrong == 1
        assert f"weight[{out}, {channel}, {tap[0]}, {tap[1]}]" in certificate.fault
