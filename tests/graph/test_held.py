"""What else a model holds: what deepcopy refuses, compiled children, layers of several dtypes."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import acfuse
from acfuse.errors import InputError, Reason
from tests.graph.fusing import Net, conv, norm
from tests.graph.nets import Block, add, two, weight

SHAPE = (2, 4, 7, 10)


class Holder:
    """An object of a user's, with whatever attributes."""


def _fused(model: nn.Module, *, blocks: int = 1, fold_bn: bool = False) -> nn.Module:
    """A model fused in float32: so many blocks, and proved to give what the original gives."""
    model.eval()
    fused = acfuse.fuse(model, fold_bn=fold_bn)
    assert len(fused.found) == blocks, fused.findings
    proofs = acfuse.verify(model, fused.model, SHAPE, fold_bn=fold_bn)
    assert proofs.passed, proofs.fault
    return fused.model


def _holding(value, **parts):
    model = two(**parts)
    model.held = value
    return model


def _object(**attributes):
    holder = Holder()
    vars(holder).update(attributes)
    return holder


LOCKED = {
    "lock": threading.Lock,
    "rlock": threading.RLock,
    "condition": threading.Condition,
    "event": threading.Event,
    "thread": threading.Thread,
    "module": lambda: threading,
    "deep": lambda: {"locks": [(threading.Lock(),)], "inner": _object(lock=threading.Lock())},
}


@pytest.mark.parametrize("make", LOCKED.values(), ids=list(LOCKED))
def test_what_deepcopy_refuses_is_no_obstacle(make):
    _fused(_holding(make()))


def test_an_open_file_is_no_obstacle_and_stays_open():
    with open(__file__) as file:
        _fused(_holding([file]))
        assert file.readline().startswith('"""')


def _locked(m, x):
    with m.held:
        return m.a(x) + m.b(x)


def test_a_lock_is_shared_and_free_again():
    model = two(_locked)
    model.held = threading.Lock()
    fused = _fused(model)
    assert fused.held is model.held
    assert not fused.held.locked()
    fused(torch.randn(SHAPE))


def _notified(m, x):
    m.held.acquire()
    m.held.notify()
    m.held.release()
    return m.a(x) + m.b(x)


def test_what_is_made_of_locks_still_works():
    model = two(_notified)
    model.held = threading.Condition()
    _fused(model)(torch.randn(SHAPE))


def _kernel_at(get):
    return lambda m, x: F.conv2d(x, get(m.held), padding=1) + m.b(x)


DERIVED = {
    "in_a_list": (lambda k: [k], lambda h: h[0]),
    "in_a_dict_of_tuples": (lambda k: {"k": (k,)}, lambda h: h["k"][0]),
    "in_an_object": (lambda k: _object(k=k), lambda h: h.k),
    "plain": (lambda k: k, lambda h: h),
}


@pytest.mark.parametrize(("put", "get"), DERIVED.values(), ids=list(DERIVED))
def test_a_tensor_computed_in_init_counts_as_the_forward_sees_it(put, get):
    model = Net(_kernel_at(get), b=conv(1), w=weight(4, 4, 3, 3))
    model.held = put(model.w * 2)
    _fused(model)
    assert torch.equal(get(model.held), model.w * 2)


def test_a_result_that_a_forward_left_behind_is_no_obstacle():
    model = two()
    model.last = model.a(torch.randn(SHAPE))
    model.losses = [model.last.mean()]
    _fused(model)


def test_what_cannot_be_copied_is_named():
    model = Net(lambda m, x: m.inner(x), inner=_holding(i for i in range(3)))
    with pytest.raises(InputError, match=r"inner\.held cannot be \(.*generator"):
        acfuse.fuse(model.eval())


# Children that torch.jit compiled stay as they are; what is around them is fused.


class Compiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = conv(3)

    def forward(self, x):
        return torch.relu(self.c(x))


COMPILED = {
    "scripted": lambda: torch.jit.script(Compiled()),
    "traced": lambda: torch.jit.trace(Compiled().eval(), torch.randn(SHAPE)),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(Compiled().eval())),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch, for compiled code
@pytest.mark.parametrize("make", COMPILED.values(), ids=list(COMPILED))
@pytest.mark.parametrize("by_name", [False, True])
def test_around_a_compiled_child_is_fused(make, by_name):
    def run(m, x):
        y = m.a(x) + m.b(x)
        return m.child(x=y) if by_name else m.child(y)

    _fused(two(run, child=make()))


# A module that only passes its input on, by the numbers that it has.


class Affine(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.scale * x + self.bias


PASSING = {
    "behind_an_arm": lambda m, x: m.f(m.a(x)) + m.b(x),
    "before_an_arm": lambda m, x: m.a(m.f(x)) + m.b(x),
    "before_both": lambda m, x: (lambda y: m.a(y) + m.b(y))(m.f(x)),
    "as_an_arm": lambda m, x: m.a(x) + m.f(x) + m.b(x),
    "twice": lambda m, x: m.f(m.f(m.a(x))) + m.b(x),
}


@pytest.mark.parametrize("run", PASSING.values(), ids=list(PASSING))
def test_a_module_that_only_passes_on_is_no_border(run):
    _fused(two(run, f=Affine()))


# Dtypes.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_convolution_keeps_its_dtype_beside_norms_of_another(dtype):
    model = two(lambda m, x: m.n(m.a(x)) + m.b(x), n=norm()).eval().to(dtype)
    model.n.float()
    fused = acfuse.fuse(model)
    assert len(fused.found) == 1
    assert fused.model.fused_conv.weight.dtype == dtype
    image = torch.randn(SHAPE, dtype=dtype)
    assert fused.model(image).dtype == model(image).dtype == dtype


def test_a_constant_that_is_divided_by_zero_is_refused_alone():
    def run(m, x):
        broken = F.conv2d(x, m.w / m.zero, padding=1) + m.b(x)
        return broken, m.inner(x)

    parts = {"w": weight(4, 4, 3, 3), "zero": nn.Parameter(torch.zeros(1)), "inner": Block()}
    fused = acfuse.fuse(Net(run, b=conv(1), **parts).eval())
    assert [block.where for block in fused.found] == ["inner"]
    assert Reason.OVERFLOW in {refused.code for refused in fused.findings.refused}


KEYWORDS = {
    "cat": lambda m, x: m.c(torch.cat(dim=1, tensors=[m.a(x), m.b(x)])),
    "sub": lambda m, x: torch.sub(alpha=2, other=m.a(x), input=m.b(x)),
    "rsub": lambda m, x: torch.rsub(other=m.a(x), input=m.b(x)),
    "module": lambda m, x: m.a(x) + m.f(x=m.b(x)),
    "of_a_factor": lambda m, x: torch.mul(other=m.a(x), input=m.g) + m.b(x),
}


@pytest.mark.parametrize("run", KEYWORDS.values(), ids=list(KEYWORDS))
def test_keywords_may_stand_in_any_order(run):
    _fused(two(run, c=conv(1, channels=(8, 4)), g=nn.Parameter(torch.ones(4, 1, 1)), f=Affine()))


def test_a_complex_tensor_beside_the_blocks_is_left_alone():
    model = two(add)
    model.frequencies = nn.Parameter(torch.randn(4, dtype=torch.complex64))
    _fused(model)


# Layers of a module that the forward around it uses one by one.

REACHED = {
    "both_arms": lambda m, x: m.inner.wide(x) + m.inner.small(x),
    "one_arm": lambda m, x: m.inner.wide(x) + m.b(x),
    "beside_its_own_forward": lambda m, x: m.inner.wide(x) + m.b(x) + torch.relu(m.inner(x)),
    "behind_an_activation": lambda m, x: torch.relu(m.inner.wide(x)) + m.b(x) + m.a(x),
}


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("run", REACHED.values(), ids=list(REACHED))
def test_layers_that_two_forwards_use_are_fused_in_one_or_refused(run, folds):
    model = two(run, inner=Block()).eval()
    fused = acfuse.fuse(model, fold_bn=folds)
    image = torch.randn(SHAPE)
    torch.testing.assert_close(fused.model(image), model(image), atol=1e-5, rtol=1e-5)
    assert acfuse.verify(model, fused.model, SHAPE, fold_bn=folds).passed
    assert fused.found or Reason.SHARED in {refused.code for refused in fused.findings.refused}
