"""Questions that a forward asks, and that no graph shows: each keeps its block from being fused."""

import copy
import itertools
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

import acfuse
from acfuse.graph.another_mode import another_mode, told_otherwise
from acfuse.graph.calls import is_same
from acfuse.graph.own_code import globals_in
from sample_models import awake
from tests.bounds import assert_within, rounding


class Asks(nn.Module):
    """Two arms, doubled where what is asked holds."""

    def __init__(self, ask):
        super().__init__()
        self.ask = ask
        self.wide, self.point = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x):
        y = self.norm(self.wide(x)) + self.point(x)
        return y * 2 if self.ask(x) else y


QUESTIONS = {
    "dtype": lambda x: x.dtype is torch.float64,
    "not dtype": lambda x: x.dtype is not torch.float32,
    "one of dtypes": lambda x: x.dtype in (torch.float64, torch.bfloat16),
    "key": lambda x: {torch.float64: True}.get(x.dtype, False),
    "requires_grad": lambda x: x.requires_grad is True,
    "is_leaf": lambda x: x.is_leaf is False,
    "is_cuda": lambda x: x.is_cuda is True,
    "is_quantized": lambda x: x.is_quantized is True,
    "contiguous": lambda x: x.is_contiguous() is False,
    "channels last": lambda x: x.is_contiguous(memory_format=torch.channels_last) is True,
    "floating": lambda x: torch.is_floating_point(x) is False,
    "autocast": lambda x: torch.is_autocast_enabled(),
    "autocast on": lambda x: torch.is_autocast_enabled("cpu"),
    "inference": lambda x: torch.is_inference_mode_enabled(),
    "gradients": lambda x: not torch.is_grad_enabled(),
    "tracing": lambda x: torch.jit.is_tracing(),
    "compiling": lambda x: torch.compiler.is_compiling(),
    "exporting": lambda x: torch.compiler.is_exporting(),
    "onnx": lambda x: torch.onnx.is_in_onnx_export(),
    "default dtype": lambda x: torch.get_default_dtype() is torch.float64,
    "default": lambda x: torch.ones(1).dtype == torch.float64,
    "threads": lambda x: torch.get_num_threads() == 987,
    "deterministic": lambda x: torch.are_deterministic_algorithms_enabled(),
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=list(QUESTIONS))
def test_a_question_that_leaves_no_trace_is_refused(ask):
    model = awake(Asks(ask), 0)
    if ask is QUESTIONS["threads"]:
        threads = torch.get_num_threads()
        model.ask = lambda x: torch.get_num_threads() != threads
    findings = acfuse.fuse(model)
    assert findings.found == ()
    assert any(not refused.where for refused in findings.refused)


def test_a_model_that_asks_nothing_is_fused():
    assert len(acfuse.fuse(awake(Asks(lambda x: False), 0)).found) == 1


def test_a_size_that_is_not_used_is_no_question():
    def ask(x):
        _batch, _, _height, _width = x.shape
        x.size(), x.dim(), x.numel()
        return False

    assert len(acfuse.fuse(awake(Asks(ask), 0)).found) == 1


def test_a_type_that_is_asked_for_is_told():
    assert len(acfuse.fuse(awake(Asks(lambda x: not isinstance(x.dtype, torch.dtype)), 0)).found)


def test_reading_in_another_mode_leaves_all_as_it_was():
    def modes():
        asked = (torch.get_default_dtype(), torch.is_inference_mode_enabled(),
                 torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"),
                 torch.jit.is_tracing(), torch.compiler.is_compiling(), torch.get_num_threads(),
                 torch.are_deterministic_algorithms_enabled())  # fmt: skip
        return (*asked, torch._C._is_tracing, torch.get_num_threads)

    def failing(context):
        with context():
            inside = modes()
            assert all(a != b for a, b in zip(inside[4:], before[4:], strict=True))
            raise ZeroDivisionError

    before = modes()
    for context in (another_mode, told_otherwise):
        with pytest.raises(ZeroDivisionError):
            failing(context)
        assert modes() == before


def _half(x):
    return x * torch.tensor(0.5) + torch.linspace(0.0, 1.0, 6).reshape(6, 1, 1)


class MakesTensors(Asks):
    """Tensors that a forward makes are numbered by torch.fx, each time it is read."""

    def forward(self, x):
        return _half(self.wide(x) + self.point(x)) * torch.ones(6, 1, 1, dtype=torch.float32)


def test_tensors_that_a_forward_makes_are_no_question():
    model = awake(MakesTensors(None), 0)
    fused = acfuse.fuse(model)
    assert len(fused.found) == 1
    image = torch.randn(2, 4, 7, 5)
    assert_within(fused.model(image), model(image), rounding(model, image, dtype=image.dtype))


class Partly(Asks):
    """It asks in ways of which its own names tell nothing."""

    def __init__(self, how):
        super().__init__(None)
        self.how, self.told = how, partial(torch.is_autocast_enabled, "cpu")
        self.many = [torch.is_inference_mode_enabled]

    def forward(self, x, ask=torch.is_grad_enabled):
        y = self.wide(x) + self.point(x)
        return y * 2 if self.how(self) else y

    def mix(self):
        return torch.is_autocast_enabled("cpu")


HIDDEN = {
    "attribute": lambda m: m.told(),
    "list": lambda m: m.many[0](),
    "by name": lambda m: getattr(m, "mix")(),  # noqa: B009
    "dict": lambda m: vars(m)["told"](),
}


@pytest.mark.parametrize("how", HIDDEN.values(), ids=list(HIDDEN))
def test_a_question_is_seen_however_it_is_asked(how):
    assert acfuse.fuse(awake(Partly(how), 0)).found == ()


class LooksAgain(Asks):
    def forward(self, x):
        y = self.wide(x) + self.point(x)
        return y if x.float() is x else y * 2


def test_what_is_refused_for_a_look_is_not_captured():
    assert acfuse.fuse(awake(LooksAgain(None), 0)).found == ()


class Copies(Asks):
    def forward(self, x):
        return self.wide(copy.deepcopy(x)) + self.point(x)


def test_a_forward_that_copies_its_input_is_no_crash():
    assert acfuse.fuse(awake(Copies(None), 0)).found == ()


@dataclass
class Held:
    one: int = 1


class Takes(nn.Module):
    """Two arms, and an argument whose type matters."""

    def __init__(self):
        super().__init__()
        self.wide, self.point = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)


def _takes(value):
    def forward(self, x, how=value):
        same = is_same(how, value) and str(how) == str(value)
        return (self.wide(x) + self.point(x)) * (2.0 if same else 3.0)

    return awake(type("TakesOne", (Takes,), {"forward": forward})(), 0)


ARGUMENTS = {
    "zero": (0, (False, 0.0, -0.0)),
    "no": (False, (0, 0.0, None)),
    "one": (1, (True, 1.0)),
    "float": (1.0, (1, True)),
    "text": ("a", ("b", b"a")),
    "tuple": ((1, 2), ((True, 2), [1, 2], (1.0, 2), (1, 2, 3))),
    "list": ([1, 2], ((1, 2), [1, 2.0])),
    "dict": ({"a": 0}, ({"a": False}, {}, {"a": 0, "b": 1})),
    "nested": ({"a": (1, [0])}, ({"a": (1, [False])}, {"a": (True, [0])})),
    "set": ({1}, ({True}, {1.0}, frozenset({1}))),
    "set of pairs": ({(1, 2)}, ({(True, 2)}, {(1, 2.0)})),
    "sign": ((0.0, 1), ((-0.0, 1),)),
    "dtype": (torch.float32, (torch.float64, "torch.float32")),
    "dataclass": (Held(), (Held(True), Held(2))),
    "none": (None, (0, False)),
}


@pytest.mark.parametrize(("value", "others"), ARGUMENTS.values(), ids=list(ARGUMENTS))
def test_an_argument_of_another_type_is_another_argument(value, others):
    model, image = _takes(value), torch.randn(2, 4, 7, 5)
    fused = acfuse.fuse(model)
    assert len(fused.found) == 1
    for args in ((), (value,), (copy.deepcopy(value),)):
        assert_within(
            fused.model(image, *args),
            model(image, *args),
            rounding(model, image, dtype=image.dtype),
        )
    for other in others:
        with pytest.raises(AssertionError, match="when this module was fused"):
            fused.model(image, other)


class CallsTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = _takes(0)

    def forward(self, x):
        return self.block(x, 0) + self.block(x, False)


def test_calls_that_differ_by_a_type_are_two_calls():
    assert acfuse.fuse(awake(CallsTwice(), 0)).found == ()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_block_with_plain_arguments_is_scripted_as_it_was():
    class Flagged(Takes):
        def forward(self, x, a: bool = False, b: int = 3, c: float = 0.5, d: str = "d"):
            return self.wide(x) + self.point(x)

    fused = acfuse.fuse(awake(Flagged(), 0))
    assert len(fused.found) == 1
    image = torch.randn(1, 4, 5, 6)
    scripted = torch.jit.script(fused.model)
    assert_within(
        scripted(image), fused.model(image), rounding(fused.model, image, dtype=image.dtype)
    )
    with pytest.raises(torch.jit.Error, match="when this module was fused"):
        scripted(image, True)


class Scales(nn.Module):
    """A forward that reads attributes, with a method and a property of its own."""

    def __init__(self):
        super().__init__()
        self.wide, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.scale, self.limits, self.note, self._power = 2.0, (0, 6), "made by hand", 1

    def forward(self, x):
        return self.scaled(self.norm(self.wide(x)))

    def scaled(self, x):
        return torch.clamp(x * self.scale**self._power, *self.limits)

    @property
    def reach(self):
        return self.wide.kernel_size


def test_an_attribute_that_a_forward_was_read_with_cannot_change():
    fused = acfuse.fuse(awake(Scales(), 0), fold_bn=True)
    assert len(fused.found) == 1
    for name, value in (("scale", 3.0), ("scale", 2), ("limits", (False, 6)), ("_power", 2)):
        with pytest.raises(AttributeError, match=f"{name} was .* Set it before fusing"):
            setattr(fused.model, name, value)
    fused.model.scale, fused.model.limits = 2.0, (0, 6)
    fused.model.note, fused.model.another = "made by somebody", 1
    fused.model.wide = copy.deepcopy(fused.model.wide)
    assert fused.model.train().training
    assert not fused.model.eval().training
    twin = copy.deepcopy(fused.model)
    with pytest.raises(AttributeError):
        twin.scale = 3.0


class OfADevice(Scales):
    """Attributes that have the names of what the forward asks of its input."""

    def __init__(self):
        super().__init__()
        self.device, self.dtype, self.mode = torch.device("cpu"), torch.float32, "wide"
        self.table = torch.ones(3)

    def forward(self, x):
        return super().forward(x).to(x.dtype).to(x.device) * self.table.sum()

    def to(self, *args, **kwargs):
        self.device = args[0]
        return super().to(*args, **kwargs)


def test_an_attribute_that_a_forward_does_not_read_may_change():
    fused = acfuse.fuse(awake(OfADevice(), 0), fold_bn=True).model
    assert fused.to(torch.float64).device == torch.float64
    fused.mode, fused.table = "narrow", torch.zeros(3)


LAST = (0,)


class SetsAGlobal(Asks):
    def forward(self, x):
        global LAST
        LAST = (*LAST, 1)
        return self.wide(x) + self.point(x)


class OnlySets(Asks):
    def forward(self, x):
        global SEEN
        SEEN = self.ask(x)
        return self.wide(x) + self.point(x)


SEEN = 0


@pytest.mark.parametrize("net", [SetsAGlobal, OnlySets])
def test_a_global_that_a_forward_sets_is_state(net):
    counted = itertools.count()
    assert acfuse.fuse(awake(net(lambda x: next(counted)), 0)).found == ()


def test_a_name_that_is_an_attribute_and_a_global_is_no_state():
    assert len(acfuse.fuse(awake(Asks(lambda x: False), 0)).found) == 1
    assert globals_in(SetsAGlobal.forward.__code__) == ("LAST",)
    assert "SEEN" in globals_in(OnlySets.forward.__code__)
    assert "wide" not in globals_in(OnlySets.forward.__code__)


class Interrupted(Asks):
    """It catches what a sequence raises, and calls one of its layers by itself."""

    def __init__(self):
        super().__init__(None)
        self.stem = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), Refuses())

    def forward(self, x):
        try:
            x = self.stem(x)
        except ValueError:
            x = self.stem[0](x)
        return torch.sigmoid(x) if x.abs().max() > 2 else x


class Refuses(nn.Module):
    def forward(self, x):
        raise ValueError("no")


def test_a_sequence_ends_where_it_raises():
    model, image = awake(Interrupted(), 0), torch.randn(1, 4, 6, 5)
    fused = acfuse.fuse(model, fold_bn=True)
    bound = rounding(model, image, dtype=image.dtype)
    assert_within(fused.model(image), model(image), bound)
