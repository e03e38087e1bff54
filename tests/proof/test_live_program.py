"""Whatever a user's fused model is, and does, besides its outputs is compared with acfuse's own."""

import collections
import copy
import enum
import functools
import io
import pickle
import random
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import acfuse
from acfuse.proof.live_program import compare_programs
from tests.proof.verdicts import SHAPE, Block, Sigmoid, drawn


class Mode(enum.Enum):
    SUM = 1
    MEAN = 2


class Settings:
    """A plain object, compared by what it holds."""

    def __init__(self):
        self.gain, self.names = 1.5, ["a", "b"]


class Slotted:
    __slots__ = ("low", "more")

    def __init__(self):
        self.low = 0.25


class Alike:
    """Says of all of its kind that they are equal."""

    def __init__(self):
        self.gain = 2

    def __eq__(self, other):
        return isinstance(other, Alike)

    __hash__ = None


def double(x):
    return 2 * x


def triple(x):
    return 3 * x


def hook(module, args, *rest):
    """Does nothing, and is there."""


class Odd(nn.Module):
    """A part that holds a value of every kind."""

    def __init__(self):
        super().__init__()
        self.slope, self.size, self.flag = 0.1, (2, 2), True
        self.mode, self.name, self.nothing = Mode.SUM, "odd", None
        self.act, self.part = double, functools.partial(F.leaky_relu, negative_slope=0.1)
        self.table = {"a": 1, "b": [1, 2, {"deep": 3}]}
        self.kinds, self.tail = {1, 2}, collections.deque([1, 2], maxlen=4)
        self.array, self.number = np.arange(6.0).reshape(2, 3), np.float32(2)
        self.objects = np.array([1, "a"], dtype=object)
        self.settings, self.slotted, self.alike = Settings(), Slotted(), Alike()
        self.draw, self.generator = random.Random(3), torch.Generator().manual_seed(1)
        self.rows = iter([1, 2, 3])
        self.kind = nn.ReLU
        self.plain = torch.arange(3.0)  # a tensor that is no buffer
        self.not_a_number, self.dtype = float("nan"), torch.float32
        self.method = self.settings.names.append
        self.register_buffer("kept", torch.tensor([1.0, float("nan"), 0.0]))
        self.register_buffer("loose", torch.ones(2), persistent=False)

    def forward(self, x):
        return F.leaky_relu(x, self.slope) * self.plain[1] * self.loose[0]


class Rich(nn.Module):
    """Two blocks, and around them whatever may be changed there."""

    offset = 0.0

    def __init__(self):
        super().__init__()
        self.first, self.second = Block(3, 8), Block(8, 8)
        self.between = nn.Sequential(nn.LeakyReLU(0.1), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.odd = Odd()
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.right.weight = self.left.weight
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.again = self.pool
        self.head = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x):
        y = self.between(self.first(x))
        y = self.odd(self.second(y))
        return self.head(self.pool(F.relu(self.left(y))) + self.right(y) + self.offset)


def _reordered(module):
    module._modules["0"] = module._modules.pop("0")


def _other_class(module):
    module.__class__ = type("Conv2d", (nn.Conv2d,), {"forward": lambda self, x: x})


def _same_name(module):
    """A class of the same name and place, one method of which is another."""
    kind = type(module)
    own = {"forward": kind.forward, "extra_repr": lambda self: "", "__module__": kind.__module__}
    module.__class__ = type(kind.__name__, (nn.Module,), own)


class _Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def _set(path, **values):
    def plant(model):
        owner = model.get_submodule(path)
        for name, value in values.items():
            object.__setattr__(owner, name, value)

    return plant


def _do(path, change):
    return lambda model: change(model.get_submodule(path))


@torch.no_grad()
def _one_unit(tensor):
    tensor.view(-1)[0] = torch.nextafter(tensor.view(-1)[0], torch.tensor(9.0))


def _buffer_for_parameter(layer):
    value = layer.bias.detach()
    del layer.bias
    layer.register_buffer("bias", value)


# What is planted, and the place that has to be named.
FAULTS = {
    "stride": (_set("head", stride=(2, 2)), "head.stride[0]"),
    "padding": (_set("head", padding=(0, 0)), "head.padding[0]"),
    "padding mode": (_set("head", padding_mode="circular"), "head.padding_mode"),
    "groups": (_set("left", groups=2), "left.groups"),
    "slope of a layer": (_set("between.0", negative_slope=0.2), "between.0.negative_slope"),
    "in place": (_set("between.0", inplace=True), "between.0.inplace"),
    "eps": (_set("between.1", eps=1e-3), "between.1.eps"),
    "momentum": (_set("between.1", momentum=0.2), "between.1.momentum"),
    "p of dropout": (_set("between.2", p=0.4), "between.2.p"),
    "ceil mode": (_set("pool", ceil_mode=True), "pool.ceil_mode"),
    "type of a number": (_set("pool", stride=1.0), "pool.stride"),
    "mode of a part": (lambda m: m.between.train(), "between.training"),
    "mode of a layer": (lambda m: m.between[2].train(), "between.2.training"),
    "mode of all": (lambda m: m.train(), "training"),
    "mode inside a block": (lambda m: m.first.train(), "first.training"),
    "slope": (_set("odd", slope=0.2), "odd.slope"),
    "tuple": (_set("odd", size=(2, 3)), "odd.size[1]"),
    "list for a tuple": (_set("odd", size=[2, 2]), "odd.size"),
    "flag": (_set("odd", flag=False), "odd.flag"),
    "number for a flag": (_set("odd", flag=1), "odd.flag"),
    "enum": (_set("odd", mode=Mode.MEAN), "odd.mode"),
    "string": (_set("odd", name="even"), "odd.name"),
    "nothing": (_set("odd", nothing=0), "odd.nothing"),
    "function": (_set("odd", act=triple), "odd.act"),
    "lambda": (_set("odd", act=lambda x: 2 * x), "odd.act"),
    "partial": (_set("odd", part=functools.partial(F.leaky_relu, negative_slope=0.2)), "odd.part"),
    "deep in a dict": (lambda m: m.odd.table["b"][2].update(deep=4), "odd.table['b'][2]['deep']"),
    "order of keys": (_set("odd", table={"b": [1, 2, {"deep": 3}], "a": 1}), "odd.table"),
    "set": (_set("odd", kinds={1, 3}), "odd.kinds"),
    "deque": (_set("odd", tail=collections.deque([1, 2], maxlen=5)), "odd.tail"),
    "numpy array": (lambda m: m.odd.array.__setitem__((1, 2), 7), "odd.array"),
    "numpy dtype": (_set("odd", array=np.arange(6).reshape(2, 3)), "odd.array"),
    "numpy number": (_set("odd", number=np.float64(2)), "odd.number"),
    "numpy objects": (lambda m: m.odd.objects.__setitem__(1, "b"), "odd.objects"),
    "object": (lambda m: setattr(m.odd.settings, "gain", 2.0), "odd.settings.gain"),
    "slot": (lambda m: setattr(m.odd.slotted, "low", 0.5), "odd.slotted.low"),
    "new slot": (lambda m: setattr(m.odd.slotted, "more", 1), "odd.slotted.more"),
    "object that equals all": (lambda m: setattr(m.odd.alike, "gain", 3), "odd.alike.gain"),
    "random numbers": (lambda m: m.odd.draw.random(), "odd.draw"),
    "torch's random numbers": (lambda m: m.odd.generator.manual_seed(2), "odd.generator"),
    "iterator": (lambda m: next(m.odd.rows), "odd.rows"),
    "class as a value": (_set("odd", kind=nn.GELU), "odd.kind"),
    "plain tensor": (lambda m: _one_unit(m.odd.plain), "odd.plain"),
    "NaN": (_set("odd", not_a_number=0.0), "odd.not_a_number"),
    "dtype": (_set("odd", dtype=torch.float64), "odd.dtype"),
    "bound to another list": (_set("odd", method=[].append), "odd.method"),
    "new attribute": (_set("odd", more=1), "odd.more"),
    "attribute gone": (lambda m: delattr(m.odd, "slope"), "odd.slope"),
    "number of a buffer": (lambda m: m.odd.kept.mul_(2), "odd.kept"),
    "sign of zero": (lambda m: m.odd.kept[2:].neg_(), "odd.kept"),
    "number that is none": (lambda m: m.odd.kept[1:2].fill_(1), "odd.kept"),
    "buffer in no checkpoint": (lambda m: m.odd.loose.mul_(2), "odd.loose"),
    "buffer that becomes persistent": (
        lambda m: m.odd._non_persistent_buffers_set.clear(), "odd._non_persistent_buffers_set"),
    "weight": (lambda m: _one_unit(m.head.weight), "head.weight"),
    "dtype of a layer": (lambda m: m.head.double(), "head.weight"),
    "shape of a weight": (
        lambda m: setattr(m.head, "bias", nn.Parameter(torch.zeros(1))), "head.bias"),
    "buffer for a parameter": (lambda m: _buffer_for_parameter(m.head), "head.bias"),
    "no bias": (lambda m: setattr(m.head, "bias", None), "head.bias"),
    "tied weights are two": (
        lambda m: setattr(m.right, "weight", nn.Parameter(m.left.weight.detach().clone())),
        "right.weight"),
    "two weights are tied": (lambda m: setattr(m.right, "bias", m.left.bias), "right.bias"),
    "one layer becomes two": (lambda m: setattr(m, "again", nn.MaxPool2d(3, 1, 1).eval()), "again"),
    "two layers become one": (lambda m: setattr(m, "right", m.left), "right"),
    "forward hook": (lambda m: m.head.register_forward_hook(hook), "head._forward_hooks"),
    "forward pre-hook": (
        lambda m: m.head.register_forward_pre_hook(hook), "head._forward_pre_hooks"),
    "backward hook": (lambda m: m.head.register_full_backward_hook(hook), "head."),
    "hook of a block": (lambda m: m.first.register_forward_hook(hook), "first._forward_hooks"),
    "hook of the model": (lambda m: m.register_forward_hook(hook), "_forward_hooks"),
    "patched forward": (_set("head", forward=lambda x: x), "head.forward"),
    "patched forward of the model": (_set("", forward=lambda x: x), "forward"),
    "patched inside": (_set("head", _conv_forward=lambda *_: None), "head._conv_forward"),
    "class of a layer": (_do("head", _other_class), "head"),
    "class of the same name": (_do("odd", _same_name), "odd (class)"),
    "parametrization": (
        lambda m: parametrize.register_parametrization(m.head, "weight", _Half()), "head"),
    "new layer": (lambda m: m.add_module("more", nn.ReLU()), "more"),
    "layer gone": (lambda m: delattr(m, "again"), "again"),
    "layer in a Sequential": (lambda m: m.between.append(nn.Identity()), "between.3"),
    "order of layers": (_do("between", _reordered), "between"),
    "another layer": (lambda m: m.between.__setitem__(0, nn.PReLU(8)), "between.0"),
    "None for a layer": (lambda m: setattr(m, "again", None), "again"),
    "forward of a block": (
        lambda m: setattr(type(m.first), "forward", lambda self, x: self.fused_conv(x)),
        "first (class).forward"),
    "class attribute": (lambda m: setattr(type(m.first), "offset", 1.0), "first (class).offset"),
    "stride of a block": (_set("first.fused_conv", stride=(2, 2)), "first.fused_conv.stride[0]"),
    "padding of a block": (_set("first.fused_conv", padding=(2, 2)), "first.fused_conv.padding[0]"),
    "border of a block": (
        _set("second.fused_conv", padding_mode="reflect"), "second.fused_conv.padding_mode"),
    "hook on a block's layer": (
        lambda m: m.first.fused_conv.register_forward_hook(hook),
        "first.fused_conv._forward_hooks"),
    "forward of a block's layer": (
        _set("first.fused_conv", forward=lambda x: x), "first.fused_conv.forward"),
    "class of a block's layer": (_do("second.fused_conv", _other_class), "second.fused_conv"),
}  # fmt: skip


def rich():
    torch.manual_seed(0)
    model = drawn(Rich)
    with torch.no_grad():
        model.odd.kept[0] = 3
    return model


@pytest.fixture(scope="module")
def pair():
    model = rich()
    return model, acfuse.fuse(model).model


def program_of(proofs):
    return next(check for check in proofs.checks if check.name == "program")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_changed_outside_of_the_blocks_is_named(fault):
    model = rich()
    fused = acfuse.fuse(model).model
    plant, where = FAULTS[fault]
    plant(fused)
    proofs = acfuse.verify(model, fused)
    check = program_of(proofs)
    assert not proofs.passed
    assert not check.passed
    assert check.detail.startswith(where), check.detail
    assert ": found " in check.detail
    assert ", expected " in check.detail
    assert "\n" not in check.detail


WITH_A_SHAPE = ["stride", "momentum", "p of dropout", "mode of a layer", "enum", "slot", "weight",
                "random numbers", "buffer in no checkpoint", "tied weights are two", "NaN",
                "forward hook", "class of the same name", "order of layers", "patched forward",
                "hook on a block's layer", "stride of a block", "mode of all"]  # fmt: skip


@pytest.mark.parametrize("fault", WITH_A_SHAPE)
def test_it_is_named_as_well_where_outputs_are_compared(fault):
    model = rich()
    fused = acfuse.fuse(model).model
    plant, where = FAULTS[fault]
    plant(fused)
    proofs = acfuse.verify(model, fused, SHAPE)
    assert not proofs.passed
    assert program_of(proofs).detail.startswith(where)


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _reloaded(model):
    twin = copy.deepcopy(model)
    twin.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    return twin


HARMLESS = {
    "itself": lambda m: m,
    "a copy": copy.deepcopy,
    "a copy of a copy": lambda m: copy.deepcopy(copy.deepcopy(m)),
    "pickled": lambda m: pickle.loads(pickle.dumps(m)),
    "saved": _saved,
    "tensors loaded": _reloaded,
    "moved nowhere": lambda m: copy.deepcopy(m).to("cpu"),
    "there and back": lambda m: copy.deepcopy(m).double().float(),
    "frozen": lambda m: copy.deepcopy(m).requires_grad_(False),
    "channels last": lambda m: copy.deepcopy(m).to(memory_format=torch.channels_last),
    "in eval mode again": lambda m: copy.deepcopy(m).eval(),
    "with gradients that are zero": lambda m: _with_gradients(copy.deepcopy(m)),
}


def _with_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def picklable(model):
    """The same, without what nobody can pickle."""
    del model.odd.generator, model.odd.rows, model.odd.method
    return model


@pytest.mark.parametrize("shapes", [(), (SHAPE,)])
@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_nothing_passes(change, shapes):
    model = picklable(rich())
    fused = HARMLESS[change](acfuse.fuse(model).model)
    proofs = acfuse.verify(model, fused, *shapes)
    assert proofs.passed, proofs.fault
    assert program_of(proofs).compared > 100
    assert not program_of(proofs).note


def test_a_network_into_which_fused_tensors_were_loaded_passes():
    model = rich()
    loaded = acfuse.load_fused(rich(), acfuse.fuse(model).checkpoint)
    loaded.odd.loose, loaded.odd.plain = model.odd.loose.clone(), model.odd.plain.clone()
    proofs = acfuse.verify(model, loaded, SHAPE)
    assert proofs.passed, proofs.fault


def test_both_models_stay_as_they_are(pair):
    model, fused = (copy.deepcopy(m) for m in pair)
    model.between[2].train()
    before = [copy.deepcopy(m) for m in (model, fused)]
    acfuse.verify(model, fused, SHAPE)
    for one, other in zip(before, (model, fused), strict=True):
        assert compare_programs(one, other).apart is None


def test_what_nobody_can_look_into_is_said_to_be_that():
    one, other = nn.Module(), nn.Module()
    one.lock, other.lock = threading.Lock(), threading.Lock()
    one.rows, other.rows = (x for x in [1]), (x for x in [1])
    done = compare_programs(one, other)
    assert done.apart is None
    assert done.unknown == ["lock", "rows"]


def test_onnx_program_in_circles_and_very_deep_ones_are_compared():
    one, other = nn.Module(), nn.Module()
    for module in (one, other):
        module.chain = []
        module.own = [module]
        inner = module.chain
        for _ in range(5000):
            inner.append([])
            inner = inner[0]
    assert compare_programs(one, other).apart is None
    inner.append(1)
    assert "[0][0]" in str(compare_programs(one, other).apart)


def test_a_bound_method_is_that_of_the_module_which_it_belongs_to():
    def twins():
        module = nn.Sequential(nn.ReLU(), nn.ReLU())
        module[0].forward = types.MethodType(nn.ReLU.forward, module[1])
        return module

    one, other = twins(), twins()
    assert compare_programs(one, other).apart is None
    other[0].forward = types.MethodType(nn.ReLU.forward, other[0])
    assert compare_programs(one, other).apart.where.startswith("0.forward")


# Marks of a call.


class Remembering(nn.Module):
    """Keeps the size of its last image."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Block(3, 8), Block(8, 8)
        self.size, self.gain = None, 1.0

    def forward(self, x):
        self.size = tuple(x.shape)
        return F.relu(self.second(F.relu(self.first(x)))) * self.gain


def test_what_a_call_leaves_behind_is_compared_after_one():
    model = drawn(Remembering)
    fused = acfuse.fuse(model).model
    fused(torch.randn(1, 3, 20, 20))
    proofs = acfuse.verify(model, fused, SHAPE)
    assert proofs.passed, proofs.fault
    assert "size" in program_of(proofs).note
    without = acfuse.verify(model, fused)
    assert program_of(without).detail.startswith("size: found")
    fused.gain = 1.1
    assert not program_of(acfuse.verify(model, fused, SHAPE)).passed


# Models that acfuse did not write.


class Deployed(nn.Module):
    """What the authors of such a network write for it."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x):
        return self.head(F.relu(self.two(F.relu(self.one(x)))))


def _deployed(model):
    fused, twin = acfuse.fuse(model).model, Deployed().eval()
    twin.one.load_state_dict(fused.first.fused_conv.state_dict())
    twin.two.load_state_dict(fused.second.fused_conv.state_dict())
    twin.head.load_state_dict(model.head.state_dict())
    return twin


def _body():
    from tests.proof.verdicts import Body

    return drawn(Body)


def _traced(model):
    return torch.jit.trace(acfuse.fuse(model).model, torch.randn(SHAPE))


FOREIGN = {
    "the authors' form": _deployed,
    "traced": _traced,
    "exported": lambda m: torch.export.export(
        acfuse.fuse(m).model, (torch.randn(SHAPE),), dynamic_shapes={"x": {
            0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4),
            3: torch.export.Dim("w", min=4)}}).module(),
}  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("kind", FOREIGN)
def test_of_a_model_of_another_structure_the_outputs_are_compared_and_that_is_said(kind):
    model = _body()
    foreign = FOREIGN[kind](model)
    proofs = acfuse.verify(model, foreign, SHAPE)
    assert proofs.passed, proofs.fault
    assert any("only its outputs were compared" in note for note in proofs.notes)
    assert program_of(proofs).compared == 0
    without = acfuse.verify(model, foreign)
    assert not without.passed
    assert "give the shape of an input" in without.fault


def test_a_fault_in_such_a_model_shows_in_its_outputs():
    model = _body()
    foreign = _deployed(model)
    foreign.two.padding_mode = "circular"
    proofs = acfuse.verify(model, foreign, SHAPE)
    assert {check.name for check in proofs.checks if not check.passed} >= {"weights", "rounding"}


@pytest.mark.parametrize("shapes", [(), (SHAPE,)])
def test_a_forward_of_an_instance_is_seen_although_no_copy_has_it(shapes):
    model = drawn(Sigmoid)
    fused = acfuse.fuse(model).model
    fused.first.forward = lambda x: torch.zeros(2, 8, 15, 18)
    proofs = acfuse.verify(model, fused, *shapes)
    assert not proofs.passed
    assert "forward" in proofs.fault
