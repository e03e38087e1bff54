"""What a fused model is besides equal: its tree, its names, its modes, its files."""

import copy
import io
import pickle
from typing import ClassVar

import pytest
import torch
from torch import fx, nn

import acfuse
from acfuse.errors import AcfuseError, InputError
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy, fused_tensors
from sample_models import awake
from tests.bounds import assert_within, rounding
from tests.graph.fusing import Net, assert_same_bits, conv, find, fused_and_checked, norm, same_bits


class Block(nn.Module):
    """Two arms, an activation, and things that its forward does not use."""

    def __init__(self):
        super().__init__()
        self.before = conv(1)
        self.wide, self.wide_norm = conv(3, bias=False), norm()
        self.small, self.small_norm = conv(1, bias=False), norm()
        self.after = conv(1)
        self.head_for_training = conv(1)
        self.register_buffer("steps", torch.tensor(17))
        self.note = {"made": "by hand"}

    def forward(self, x):
        x = torch.relu(self.before(x))
        y = self.wide_norm(self.wide(x)) + self.small_norm(self.small(x))
        return self.after(torch.relu(y))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3), norm(), nn.ReLU())
        self.stages = nn.ModuleList([Block(), Block()])
        self.classes = ["cat", "dog"]

    def features(self, x):
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x):
        return self.features(self.stem(x))


def _network():
    return awake(Network(), 0)


def _fuse(model, **settings):
    return fused_copy(model, find_in_module(model, PATTERNS).found, **settings)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def test_only_the_modules_that_change_are_rewritten():
    model = _network()
    fused = _fuse(model)
    assert type(fused) is Network
    assert fused.classes == ["cat", "dog"]
    assert type(fused.stem) is nn.Sequential
    assert [type(m) for m in fused.stem] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    image = torch.randn(1, 4, 9, 7)
    assert torch.equal(fused(image), fused.features(fused.stem(image)))


def test_what_a_rewritten_module_does_not_use_stays():
    model = _network()
    fused = _fuse(model)
    for before, after in zip(model.stages, fused.stages, strict=True):
        assert after.note == {"made": "by hand"}
        assert after.note is not before.note
        assert same_bits(after.steps, before.steps)
        assert same_bits(after.head_for_training.weight, before.head_for_training.weight)
        assert not hasattr(after, "wide")
        assert not hasattr(after, "small_norm")


def test_new_layers_stand_where_the_first_that_they_replace_stood():
    fused = _fuse(_network())
    names = ["before", "fused_conv", "after", "head_for_training"]
    assert list(fused.stages[0]._modules) == names
    block = [k for k in fused.state_dict() if k.startswith("stages.1.")]
    layers = list(dict.fromkeys(k.split(".")[2] for k in block))
    assert [n for n in layers if n != "steps"] == names


def test_a_name_that_is_taken_is_not_taken_again():
    net = Net(
        lambda m, x: m.fused_conv(torch.relu(m.a(x) + m.b(x))) + m.fused_conv_2,
        a=conv(3),
        b=conv(1),
        fused_conv=conv(1),
        fused_conv_2=torch.zeros(1, 4, 1, 1),
    )
    fused = fused_and_checked(net, convolutions=2)
    assert set(fused.state_dict()) == {
        "fused_conv.weight",
        "fused_conv.bias",
        "fused_conv_2",
        "fused_conv_3.weight",
        "fused_conv_3.bias",
    }


def test_a_fused_model_is_in_eval_mode_and_trains_what_the_original_trained():
    model = _network()
    model.stages[0].requires_grad_(False)
    fused = _fuse(model)
    assert not any(m.training for m in fused.modules())
    frozen, trained = fused.stages[0], fused.stages[1]
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in trained.parameters())


def test_a_fused_model_is_trained_by_an_ordinary_step():
    fused = _fuse(_network())
    layer = fused.stages[0].fused_conv
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.1)
    result = fused(torch.randn(2, 4, 9, 8, dtype=layer.weight.dtype))
    parts = result if isinstance(result, (tuple, list)) else [result]
    sum(part.square().mean() for part in parts).backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before[0])
    assert not torch.equal(layer.bias, before[1])


def test_no_tensor_is_shared_with_the_original():
    model = _network()
    memory = {t.data_ptr() for t in model.state_dict().values()}
    assert not memory & {t.data_ptr() for t in _fuse(model).state_dict().values()}


def test_a_fused_model_can_be_copied_cast_and_trained_on():
    fused = _fuse(_network())
    image = torch.randn(1, 4, 9, 7)
    expected = fused(image)
    assert torch.equal(copy.deepcopy(fused)(image), expected)
    bound = rounding(fused, image, dtype=torch.float32)
    assert_within(expected, copy.deepcopy(fused).double()(image.double()), bound)
    assert copy.deepcopy(fused).half().stages[0].fused_conv.weight.dtype == torch.float16
    trained = copy.deepcopy(fused).train()
    assert trained.stages[0].training
    trained(image).sum().backward()
    assert trained.stages[0].after.weight.grad is not None


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, saved_and_loaded, pickled])
def test_a_fused_model_is_copied_and_loaded_without_reading_its_forward_again(again, monkeypatch):
    fused = _fuse(_network())
    monkeypatch.setattr(fx.Tracer, "trace", _must_not_be_called)
    other = again(fused)
    image = torch.randn(1, 4, 9, 7)
    assert torch.equal(other(image), fused(image))
    assert [type(m).__name__ for m in other.modules()] == [
        type(m).__name__ for m in fused.modules()
    ]
    assert list(other.state_dict()) == list(fused.state_dict())
    assert other.stages[0].note == fused.stages[0].note
    assert str(other.stages[0].acfuse_graph) == str(fused.stages[0].acfuse_graph)


def _must_not_be_called(*_):
    raise AssertionError("a forward is traced")


class Counted(Block):
    """A block that its network asks things of."""

    kinds: ClassVar[list[type]] = []

    def __init_subclass__(cls) -> None:
        Counted.kinds.append(cls)

    def __len__(self) -> int:
        return 3

    @property
    def pixels(self) -> int:
        return 7

    def described(self) -> str:
        return f"{type(self).__name__} of {self.note['made']}"


def test_a_rewritten_module_is_still_what_it_was():
    block = awake(Counted(), 0)
    fused = _fuse(block)
    assert isinstance(fused, Counted)
    assert type(fused).__name__ == "Counted"
    assert (len(fused), fused.pixels, fused.described()) == (3, 7, "Counted of by hand")
    assert Counted.kinds == []
    assert not hasattr(fused, "wide")
    assert isinstance(acfuse.fuse(nn.Sequential(block)).model[0], Counted)
    assert acfuse.fuse(fused).found == ()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_fused_model_is_exported_compiled_and_scripted_as_the_original_was():
    fused = _fuse(_network())
    image = torch.randn(1, 4, 9, 7)
    bound = rounding(fused, image)
    exported = torch.export.export(fused, (image,)).module()
    assert_within(exported(image), fused(image), bound)
    assert_within(torch.jit.script(fused)(image), fused(image), bound)
    assert_within(torch.jit.trace(fused, image)(image), fused(image), bound)
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    assert_within(compiled(image), fused(image), bound)


def test_a_fused_state_dict_loads_into_the_fused_structure_of_other_weights():
    fused = _fuse(_network())
    other = awake(Network(), 5)
    loaded = acfuse.load_fused(other, fused.state_dict())
    image = torch.randn(1, 4, 9, 7)
    assert torch.equal(loaded(image), fused(image))
    with pytest.raises(InputError, match=r"missing|lacks"):
        acfuse.load_fused(other, {k: v for k, v in fused.state_dict().items() if "stem" not in k})
    with pytest.raises(InputError, match=r"more"):
        acfuse.load_fused(other, {**fused.state_dict(), "more": torch.zeros(1)})


def test_a_block_that_is_the_whole_model():
    model = awake(Block(), 0)
    fused = _fuse(model)
    assert fused is not model
    assert "fused_conv.weight" in fused.state_dict()


def test_a_module_under_two_names_is_replaced_under_both():
    block = Block()
    net = Net(lambda m, x: m.one(m.others[0](x)), one=block, others=nn.ModuleList([block]))
    fused = fused_and_checked(net, convolutions=6)
    assert fused.one is fused.others[0]


def test_layers_under_two_names_are_gone_under_both():
    net = Net(lambda m, x: m.a(x) + m.b(x), a=conv(3), b=conv(1))
    net.arms = nn.ModuleList([net.a, net.b])
    fused = fused_and_checked(net)
    assert set(fused.state_dict()) == {"fused_conv.weight", "fused_conv.bias"}


def test_parameters_that_only_the_block_used_are_gone():
    net = Net(
        lambda m, x: m.a(x) * m.gain + m.b(x),
        a=nn.utils.parametrizations.weight_norm(conv(3)),
        b=conv(1),
        gain=nn.Parameter(torch.rand(4, 1, 1)),
    )
    fused = fused_and_checked(net, single=False)
    assert set(fused.state_dict()) == {"fused_conv.weight", "fused_conv.bias"}


def test_parameters_that_something_else_uses_stay():
    net = Net(
        lambda m, x: torch.relu(m.a(x) * m.gain + m.b(x)) * m.gain,
        a=conv(3),
        b=conv(1),
        gain=nn.Parameter(torch.rand(4, 1, 1)),
    )
    assert "gain" in fused_and_checked(net).state_dict()


def test_arguments_are_taken_as_before():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(3), conv(1)

        def forward(self, x, /, *, gain):
            return {"y": torch.relu(self.a(x) + self.b(x)) * gain, "x": [x, gain]}

    model = awake(Keywords().double(), 0)
    fused = _fuse(model)
    x, gain = torch.randn(2, 1, 4, 9, 7, dtype=torch.float64)
    given, expected = fused(x, gain=gain), model(x, gain=gain)
    bound = rounding(lambda x: model(x, gain=gain)["y"], x)
    assert_within(given["y"], expected["y"], bound)
    assert given["x"][0] is x
    assert given["x"][1] is gain


def test_fused_weights_can_be_kept_in_another_dtype():
    model = _network()
    exact = _fuse(copy.deepcopy(model).double())
    fused = _fuse(model, dtype=torch.float64)
    for mine, theirs in zip(fused.stages, exact.stages, strict=True):
        assert same_bits(mine.fused_conv.weight, theirs.fused_conv.weight)


def test_weights_that_do_not_fit_are_an_error_that_names_the_block():
    model = _network().half()
    model.stages[1].wide_norm.weight.data.fill_(6e4)
    model.stages[1].wide_norm.running_var.data.fill_(1e-6)
    with pytest.raises(InputError, match=r"stages\.1.* float16"):
        _fuse(model)


def test_nothing_found_is_a_copy():
    model = awake(nn.Sequential(conv(3), norm(), nn.ReLU()), 0)
    copied = _fuse(model)
    assert copied is not model
    assert list(copied.state_dict()) == list(model.state_dict())
    assert_same_bits(model.double(), copied.double())


def test_the_fused_tensors_are_in_order_and_the_others_are_the_original_s_own():
    model = _network()
    found = find(model).found
    tensors = model.state_dict()
    fused = fused_copy(model, found).state_dict()
    result = fused_tensors(tensors, fused, found)
    assert set(result) == set(fused)
    kept = [k for k in tensors if k in result]
    assert [k for k in result if k in tensors] == kept
    assert all(result[k] is tensors[k] for k in kept)
    keys = list(result)
    place = keys.index("stages.0.fused_conv.weight")
    assert keys[place - 1] == "stages.0.before.bias"
    assert keys[place + 1] == "stages.0.fused_conv.bias"
    assert keys[place + 2] == "stages.0.after.weight"


def test_a_fused_tensor_of_unknown_origin_is_not_written():
    model = _network()
    found = find(model).found
    fused = {**fused_copy(model, found).state_dict(), "stranger": torch.zeros(1)}
    with pytest.raises(AcfuseError, match="stranger"):
        fused_tensors(model.state_dict(), fused, found)
