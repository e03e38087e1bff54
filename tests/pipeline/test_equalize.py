"""Channels of even range: no bit of the float model changes, and 8 bits lose less."""

import copy

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import acfuse
from acfuse.errors import InputError, NotEqual, UsageError
from acfuse.findings import Findings
from acfuse.int8 import evened as module
from acfuse.int8.channels import channels_of
from acfuse.int8.equalize import Scales, equalized, scale, tensor_named, times_power
from acfuse.int8.evened import evened
from acfuse.int8.unscaled import unscaled
from acfuse.proof import Inputs
from acfuse.proof.onnx_runtime import answers_in_onnx, image_of
from acfuse.proof.same_bits import check_same_bits
from acfuse.proof.trace_onnx import values_of
from acfuse.sources.live import LiveSource
from acfuse.system.limits import LIMITS
from sample_models import awake
from tests.int8.small import model_of
from tests.pipeline.converter import as_onnx


class Mixed(nn.Module):
    """One of everything that scales go through, drawn from a list of choices."""

    def __init__(self, choices: list[int], channels: int = 8) -> None:
        super().__init__()
        self.choices, c = choices, channels
        self.stem = nn.Conv2d(3, c, 3, padding=1)
        self.parts = nn.ModuleList(self.part(choice, c) for choice in choices)
        self.slopes = nn.ModuleList(nn.PReLU(c) for _ in choices)
        self.head = nn.Linear(c, 5)

    @staticmethod
    def part(choice: int, c: int) -> nn.Module:
        return [
            nn.Conv2d(c, c, 3, padding=1),
            nn.Conv2d(c, c, 3, padding=1, groups=c),
            nn.Conv2d(c, c, 3, padding=1, groups=2),
            nn.ConvTranspose2d(c, c, 3, padding=1, groups=2),
            nn.Conv2d(c // 2, c // 2, 1),
            nn.Conv2d(2 * c, c, 1),
            nn.Conv2d(c, c, (1, 3), padding=(0, 1), bias=False),
            nn.Conv2d(c, c, 1),
        ][choice]

    def forward(self, x):
        x = F.relu(self.stem(x))
        for choice, part, slope in zip(self.choices, self.parts, self.slopes, strict=True):
            if choice == 4:  # half of the channels, then a shuffle
                left, right = x.chunk(2, 1)
                x = torch.cat([left, part(right)], 1)
                n, c, h, w = x.shape
                x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            elif choice == 5:
                x = part(torch.cat([x, F.max_pool2d(x, 3, 1, 1)], 1))
            elif choice == 6:
                x = x + part(x)
            elif choice == 7:  # a gate
                x = x * part(x).mean((2, 3), keepdim=True).sigmoid()
            else:
                x = part(x)
            x = slope(x) if choice % 2 else F.leaky_relu(x, 0.1)
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


SHAPE = (2, 3, 9, 8)
INPUTS = Inputs(((None, SHAPE),))


def file_of(model):
    return as_onnx(model, SHAPE)


def shapes_of(model):
    return {n: tuple(v.shape) for n, v in values_of(model, image_of(model, INPUTS))}


def with_scales(model, seed=0):
    """The same function with each channel times a power of two from 2^-6 to 2^6."""
    shapes = shapes_of(model)
    channels = channels_of(model, shapes)
    drawn = np.random.default_rng(seed).integers(-6, 7, channels.count)
    drawn[[channels.find(n) for n in channels.pinned]] = 0
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    scale(twin, Scales(channels, drawn))
    return twin


def assert_same_bits(one, other):
    for optimised in (False, True):
        answers = [answers_in_onnx(model, LIMITS, optimised) for model in (one, other)]
        for sample, factor in ((0, 1.0), (1, 1e3), (2, 1e-3)):
            image = {n: factor * x for n, x in image_of(one, INPUTS, sample).items()}
            assert check_same_bits(*(answer(image) for answer in answers)) > 0


class Between(nn.Module):
    """Three convolutions, with something that has no weights between the first two."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 6), (6, 6), (6, 5))
        )
        self.function = function

    def forward(self, x):
        return self.c(F.relu(self.b(self.function(self.a(x)))))


def grouped(x):
    return x.view(x.shape[0], 2, 3, *x.shape[2:])


# Channels that go into one number, or to another place, by an operator that mostly is for pixels.
ACROSS_CHANNELS = {
    "pool": lambda x: F.max_pool3d(x.unsqueeze(1), (3, 1, 1), 1, (1, 0, 0)).squeeze(1),
    "mean": lambda x: F.avg_pool3d(x.unsqueeze(1), (3, 1, 1), 1, (1, 0, 0)).squeeze(1),
    "pool of groups": lambda x: F.max_pool3d(grouped(x), (3, 1, 1), 1, (1, 0, 0)).flatten(1, 2),
    "maximum of groups": lambda x: grouped(x).amax(2).repeat(1, 3, 1, 1),
    "moved by a pad": lambda x: F.pad(x, (0, 0, 0, 0, 1, -1)),
    "moved in groups": lambda x: F.pad(grouped(x), (0, 0, 0, 0, 1, -1)).flatten(1, 2),
}


@pytest.mark.parametrize("name", ACROSS_CHANNELS)
def test_what_reads_several_channels_keeps_their_scales(name):
    model = file_of(awake(Between(ACROSS_CHANNELS[name]), 0))
    scaled = with_scales(model)
    made = equalized(scaled, shapes_of(model), only_gains=False)
    assert made.changed
    assert_same_bits(model, scaled)
    assert_same_bits(scaled, made.model)


SAME_CHANNELS = {
    "larger": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "padded": lambda x: F.pad(x, (1, 2, -1, 0)),
    "pooled": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", SAME_CHANNELS)
def test_what_reads_pixels_alone_lets_scales_through(name):
    model = file_of(awake(Between(SAME_CHANNELS[name]), 0))
    made = equalized(with_scales(model), shapes_of(model), only_gains=False)
    assert [*made.reasons.values()] == ["it is an output of the model"]
    assert_same_bits(model, made.model)


NET = """
<ir_version: 10, opset_import: ["": 18]>
net (float[2, 3, 2, 8] x, int64[1] i) => (float[2, 4, N, M] y)
{
    a = Conv (x, w)
    r = Relu (a)
    %s
    y = Conv (s, v)
}
"""


MEAN = "axes = Constant <value_ints = [2, 3]> () m = ReduceMean <keepdims = 0> (r, axes)"


@pytest.mark.parametrize("lines", [
    f"{MEAN} s = Add (r, m)",
    f"{MEAN} s = Mul (m, r)",
    f"{MEAN} s = Mul (m, ones)",
    "none = Slice (no, no, no) m = ReduceMean (r, none) s = Add (r, m)",
    "s = Gather <axis = 1> (r, ids)",
    "e = Gather (table, i) s = Mul (r, e)",
    "e = Slice (table, no, one) s = Mul (r, e)",
])  # fmt: skip
def test_axes_are_told_from_behind(lines):
    model = onnx.parser.parse_model(NET % lines)
    generator = np.random.default_rng(0)
    stored = {"w": generator.normal(size=(8, 3, 1, 1)), "v": generator.normal(size=(4, 8, 1, 1)),
              "ones": np.ones((2, 8, 2, 8)), "table": generator.normal(size=(4, 8))}  # fmt: skip
    for name, array in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    for name, numbers in {"ids": [7, 6, 5, 4, 3, 2, 1, -8], "no": [0], "one": [1]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(numbers), name))
    x = torch.randn((2, 3, 2, 8), generator=torch.Generator().manual_seed(0))
    image = {"x": x, "i": torch.tensor([2])}
    shapes = {n: tuple(v.shape) for n, v in values_of(model, image)}
    channels = channels_of(model, shapes)
    drawn = generator.integers(-6, 7, channels.count)
    drawn[[channels.find(n) for n in channels.pinned]] = 0
    scaled = onnx.ModelProto()
    scaled.CopyFrom(model)
    scale(scaled, Scales(channels, drawn))
    answers = [answers_in_onnx(each, LIMITS, False)(image) for each in (model, scaled)]
    assert check_same_bits(*answers) > 0


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 2**16))
def test_no_bit_changes_whatever_the_network(choices, seed):
    torch.manual_seed(seed)
    model = with_scales(file_of(awake(Mixed(choices), seed)), seed)
    made = equalized(model, shapes_of(model), only_gains=False)
    assert made.changed
    assert_same_bits(model, made.model)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 2**16))
def test_scales_are_told_by_the_weights_and_taken_out_bit_by_bit(choices, seed):
    torch.manual_seed(seed)
    own = file_of(awake(Mixed(choices), seed))
    scaled, shapes = with_scales(own, seed), shapes_of(own)
    plain = unscaled(scaled, own, shapes)
    assert plain is not None
    assert plain == own != scaled
    assert unscaled(own, own, shapes) is None


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("change", [lambda x: np.nextafter(x, np.float32(9)), lambda x: -x])
def test_another_difference_stays_when_scales_are_taken_out(layer, change):
    own = file_of(awake(Mixed([0, 1]), 0))
    scaled = with_scales(own)
    name = channels_of(own, shapes_of(own)).layers[layer].weight
    tensor = tensor_named(scaled, name)
    array = np.array(numpy_helper.to_array(tensor))
    array[1, 0] = change(array[1, 0])
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    plain = unscaled(scaled, own, shapes_of(own))
    assert plain is None or plain != own


@pytest.mark.parametrize("is_scaled", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_faulty_layer_hides_no_scales_and_makes_up_none(layer, is_scaled):
    own = file_of(awake(Mixed([0, 1, 0]), 0))
    given = with_scales(own) if is_scaled else own
    file = onnx.ModelProto()
    file.CopyFrom(given)
    name = channels_of(own, shapes_of(own)).layers[layer].weight
    tensor = tensor_named(file, name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array[..., ::-1, ::-1]), name))
    plain = unscaled(file, own, shapes_of(own))
    if not is_scaled:
        assert plain is None
        return
    assert plain is not None
    names = {t.name for t in own.graph.initializer if t != tensor_named(plain, t.name)}
    assert name in names
    assert len(names) <= 3  # with the biases of channels that this layer alone tells


def test_other_tensors_have_no_scales():
    own = file_of(awake(Mixed([0]), 0))
    assert unscaled(file_of(awake(Mixed([2]), 0)), own, shapes_of(own)) is None
    assert unscaled(file_of(awake(Mixed([0], 12), 0)), own, shapes_of(own)) is None


def test_a_weight_that_is_an_output_as_well_stays():
    model = with_scales(file_of(awake(Mixed([0, 0]), 0)))
    stored = {t.name: t for t in model.graph.initializer}
    name = channels_of(model, shapes_of(model)).layers[1].weight
    shape = stored[name].dims
    value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    model.graph.output.append(value)
    made = equalized(model, shapes_of(model), only_gains=False)
    assert made.changed
    assert name not in made.changed
    assert_same_bits(model, made.model)


def test_a_weight_that_a_node_gives_is_scaled_as_well():
    model = with_scales(file_of(awake(Mixed([0, 0]), 0)))
    stored = {t.name: t for t in model.graph.initializer}
    name = channels_of(model, shapes_of(model)).layers[1].weight
    node = onnx.helper.make_node("Constant", [], [name], value=stored[name])
    model.graph.initializer.remove(stored[name])
    model.graph.node.insert(0, node)
    made = equalized(model, shapes_of(model), only_gains=False)
    assert name in made.changed
    assert_same_bits(model, made.model)


@pytest.mark.parametrize("choice", range(8))
def test_scales_that_were_put_in_are_taken_out_of_each_kind_of_layer(choice):
    model = file_of(awake(Mixed([choice, 0]), 0))
    rescaled = with_scales(model)
    assert_same_bits(model, rescaled)
    made = evened(rescaled, INPUTS)
    assert made.is_taken
    assert made.gain > 0
    assert made.compared > 0
    assert_same_bits(rescaled, made.model)


def spread(array):
    rows = np.abs(array).reshape(len(array), -1).max(1)
    return float(np.log2(rows.max() / rows.min()))


def test_ranges_are_even_afterwards():
    model = with_scales(file_of(awake(Mixed([0, 0]), 0)))
    made = equalized(model, shapes_of(model))
    name = made.scales.channels.layers[1].weight
    before, after = (numpy_helper.to_array(tensor_named(m, name)) for m in (model, made.model))
    assert spread(before) > 5
    # s = sqrt(r1 / r2), rounded to a power of two: each row is as large as what reads it, but for
    # what the rows of a trained layer differ by themselves.
    assert spread(after) < spread(before) - 3


def test_what_cannot_be_scaled_has_a_reason():
    class Gelu(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 3) for _ in range(3))

        def forward(self, x):
            return self.c(F.relu6(self.b(F.relu(self.a(x)))))

    model = file_of(awake(Gelu(), 0))
    made = equalized(model, shapes_of(model))
    assert [*made.reasons.values()] == ["Clip reads it", "it is an output of the model"]


SIZES = np.array([1], np.int64)
ENDS = np.array([4, 4], np.int64)


@pytest.mark.parametrize(
    ("node", "stored"),
    [
        (("Gather", ["table", "asked"], ["made"]), {}),
        (("Slice", ["table", "asked", "end"], ["made"]), {"end": SIZES * 4}),
        (("ReduceSum", ["table", "asked"], ["made"]), {}),
        (("Split", ["table", "asked"], ["made", "more"]), {}),
        # A part that nobody reads needs no name.
        (("Split", ["c", "ends"], ["made", ""], {"axis": 1}), {"ends": ENDS}),
    ],
)
def test_a_constant_of_which_an_input_chooses_has_no_channels(node, stored):
    operator, read, made, *attributes = node
    arrays = {"table": np.ones((10, 4), np.float32), "w": np.ones((8, 3, 1, 1), np.float32)}
    model = model_of(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node(operator, read, made, **dict(*attributes)),
        ],
        arrays | stored,
        inputs={"x": [1, 3, 8, 8], "asked": ["n"]},
        outputs={"made": onnx.TensorProto.FLOAT, "c": onnx.TensorProto.FLOAT},
    )
    shapes = {"x": (1, 3, 8, 8), "c": (1, 8, 8, 8), "asked": (1,), "made": (1, 4), "more": (9, 4)}
    found = channels_of(model, shapes)
    assert [layer.name for layer in found.layers] == ["conv"]
    assert {*found.layers[0].rows} <= {*found.pinned}


def test_a_weight_that_would_leave_its_range_is_refused():
    tiny = np.float32(1e-37)
    values = np.array([tiny, 0, 1], np.float32)
    with pytest.raises(InputError, match="no normal float32"):
        times_power(values, np.array(-9), "w")
    with pytest.raises(InputError, match="no normal float32"):
        times_power(np.array([3e38], np.float32), np.array(1), "w")
    assert np.array_equal(times_power(values, np.array(3), "w"), 8 * values)


def test_a_channel_that_would_leave_its_range_stays_and_the_others_are_scaled():
    model = Mixed([0, 0])
    with torch.no_grad():
        model.parts[0].weight[3, 3] = 1e-40  # no normal number: it is as good as zero
        model.parts[0].weight[:, 5] *= torch.logspace(0, -30, 8)[:, None, None]
        model.stem.weight[5] *= 1e-30
        model.stem.weight[2] *= 64
    own = file_of(model.eval())
    made = equalized(own, shapes_of(own), only_gains=False)
    first, second = made.scales.channels.layers[:2]
    assert made.scales.rows(first)[2] < 0
    assert made.scales.rows(first)[3] == made.scales.rows(second)[3] == 0
    assert_same_bits(own, made.model)


def test_a_layer_whose_channels_would_all_leave_their_range_says_so():
    model = Mixed([0])
    with torch.no_grad():
        model.stem.weight[:] = 1e-40
    own = file_of(model.eval())
    made = equalized(own, shapes_of(own), only_gains=False)
    assert next(iter(made.reasons.values())) == "a weight would leave its range"


def test_one_bit_that_changes_is_seen(monkeypatch):
    model = with_scales(file_of(awake(Mixed([0]), 0)))
    whole = module.equalized

    def wrong(*args, **settings):
        made = whole(*args, **settings)
        tensor = tensor_named(made.model, made.scales.channels.layers[0].weight)
        array = numpy_helper.to_array(tensor).copy()
        flat = array.reshape(-1).view(np.int32)
        flat[5] ^= 1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return made

    monkeypatch.setattr(module, "equalized", wrong)
    with pytest.raises(NotEqual, match="are not the same after scaling by powers of two"):
        evened(model, INPUTS)


def test_a_healthy_network_is_left_as_it_is():
    torch.manual_seed(0)
    model = file_of(Mixed([0, 1]).eval())
    made = evened(model, INPUTS)
    assert not made.is_taken or made.gain > 0
    if not made.is_taken:
        assert made.model.SerializeToString() == model.SerializeToString()


def test_a_network_of_pytorch_is_scaled_by_its_own_tensors():
    model = awake(Mixed([0, 1, 4, 6]), 0)
    with torch.no_grad():  # the same function, one channel of it much larger inside
        model.stem.weight[2] *= 64
        model.stem.bias[2] *= 64
        model.parts[0].weight[:, 2] /= 64
    before = copy.deepcopy(model.state_dict())
    form, made = LiveSource.of(model).fuse(Findings((), ())).evened(INPUTS)
    twin = form.model
    assert made.is_taken
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert torch.equal(model(image), twin(image))
    changed = [n for n, t in twin.state_dict().items() if not torch.equal(t, before[n])]
    assert "stem.weight" in changed


class Normed(nn.Module):
    """Convolutions, each with its BatchNorm, which the exporter folds."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def test_a_batch_norm_has_the_scales_of_the_convolution_before_it():
    model = awake(Normed(), 0)
    form, made = LiveSource.of(model).fuse(Findings((), ())).evened(INPUTS, everything=True)
    assert made.is_taken
    before = model.state_dict()
    changed = [n for n, t in form.model.state_dict().items() if not torch.equal(t, before[n])]
    assert {"layers.1.weight", "layers.1.bias", "layers.3.weight", "layers.6.weight"} <= {*changed}
    assert not [n for n in changed if "running" in n]
    image = torch.randn((2, 3, 12, 9), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert torch.equal(model(image), form.model(image))


def test_two_batch_norms_of_the_same_numbers_are_not_told_apart():
    model = awake(Normed(), 0)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(model.layers[4], name).copy_(getattr(model.layers[1], name))
    form, made = LiveSource.of(model).fuse(Findings((), ())).evened(INPUTS, everything=True)
    assert "is no tensor of its own" in made.rows[0].why
    before = model.state_dict()
    assert all(torch.equal(t, before[n]) for n, t in form.model.state_dict().items())


class Derived(nn.Module):
    """Three convolutions; the weight of the second, and what is added, are computed."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, o, 1) for i, o in ((3, 6), (6, 7), (7, 5)))
        self.d, self.shift = nn.Conv2d(5, 5, 1), nn.Parameter(torch.rand(5))

    def forward(self, x):
        weight = self.b.weight - self.b.weight.mean((1, 2, 3), keepdim=True)
        x = F.relu(F.conv2d(F.relu(self.a(x)), weight, self.b.bias))
        return self.d(F.relu(self.c(x) + 2 * self.shift.exp().view(1, -1, 1, 1)))


def test_channels_stay_whose_numbers_are_computed():
    model = awake(Derived(), 0)
    with torch.no_grad():
        for layer in (model.a, model.b, model.c):
            layer.weight[1] *= 64
    form, made = LiveSource.of(model).fuse(Findings((), ())).evened(INPUTS, everything=True)
    assert not made.is_taken
    assert all("is no tensor of its own" in row.why for row in made.rows[:3])
    assert form.model.state_dict().keys() == model.state_dict().keys()


def test_a_parameter_that_is_read_elsewhere_as_well_keeps_its_numbers():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(i, o) for i, o in ((8, 6), (6, 8), (6, 5)))

        def forward(self, x):
            x = F.relu(self.b(F.relu(self.a(x))))
            return self.c(F.relu(F.linear(x, self.b.weight.t())))

    model = awake(Tied(), 0)
    with torch.no_grad():
        model.a.weight[1] *= 64
        model.b.weight[2] *= 64
    own = Inputs(((None, (4, 8)),))
    form, _ = LiveSource.of(model).fuse(Findings((), ())).evened(own, everything=True)
    assert torch.equal(form.model.b.weight, model.b.weight)


def test_python_takes_networks_and_onnx_models_with_shapes_or_real_inputs():
    model = awake(Mixed([0, 1, 4, 6]), 0)
    scaled = with_scales(file_of(model))
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for inputs in ([], [SHAPE], [image]):
        assert_same_bits(scaled, acfuse.equalize(scaled, *inputs))
    network = acfuse.equalize(model, image, everything=True)
    with torch.no_grad():
        assert torch.equal(network(image), model(image))
    for odd in ("model.onnx", acfuse.fuse(model), None):
        with pytest.raises(UsageError, match="takes a network or an ONNX model"):
            acfuse.equalize(odd, SHAPE)
    with pytest.raises(UsageError, match="none is given for x"):
        acfuse.equalize(model)


def test_all_parts_of_a_split_keep_the_scales_of_their_channels():
    text = """
    <ir_version: 10, opset_import: ["": 17]>
    net (float[2, 3, 9, 8] x) => (float[2, 4, 9, 8] y)
    {
        a = Conv (x, w)
        r = Relu (a)
        left, right = Split <axis = 1> (r, sizes)
        s = Add (left, right)
        y = Conv (s, v)
    }
    """
    model, generator = onnx.parser.parse_model(text), np.random.default_rng(0)
    stored = {"w": generator.normal(size=(8, 3, 1, 1)), "v": generator.normal(size=(4, 4, 1, 1))}
    for name, array in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 4]), "sizes"))
    channels = channels_of(model, shapes_of(model))
    rows = channels.roots(channels.layers[0].rows)
    assert [*rows[:4]] == [*rows[4:]]
    assert [*channels.roots(channels.layers[1].columns)[0]] == [*rows[:4]]
    made = equalized(with_scales(model), shapes_of(model), only_gains=False)
    assert made.changed
    assert_same_bits(with_scales(model), made.model)
