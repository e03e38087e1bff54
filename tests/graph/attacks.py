"""Forwards that do something besides what a reader of graphs sees: each is fused right, or not.

Every network has two arms, `a` and `b`, whose sum is one convolution; what stands around them is
there to mislead.
"""

import enum
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from tests.graph.fusing import Net, conv, norm


def arms(m: nn.Module, x: Tensor) -> Tensor:
    """The sum that is one convolution."""
    return m.a(x) + m.b(x)


def net(run: Callable[..., Any], **parts: Any) -> nn.Module:
    """A network with the two arms and other parts."""
    return Net(run, a=conv(3), b=conv(1), **parts)


# ---------------------------------------------------------------- writes under another name


def late(write: Callable[[nn.Module, Tensor], object]) -> nn.Module:
    """Reads an image in one arm, lets it be written, and reads it in the other."""

    def run(m, x):
        u = torch.relu(x)
        first = m.a(u)
        write(m, u)
        return first + m.b(u)

    return net(run, gate=conv(1), norm=norm(), wild=Wild())


class Wild(nn.Module):
    """Nobody can read its forward, and it writes what it is given."""

    def forward(self, x):
        if float(x.sum()) > -1e9:
            x.add_(1.0)
        return x


def _split_write(m, u):
    u.split(2, 1)[0].mul_(2)


def _ipow(m, u):
    u **= 2


def _ifloordiv(m, u):
    u //= 0.5


def _imod(m, u):
    u %= 0.7


def _data(m, u):
    u.data = u * 2


def _data_write(m, u):
    u.data.mul_(2)


def _index(m, u):
    u[:, :, 1:] = 0.5


def _index_add(m, u):
    u[:, 1] += 1.0


def _nested(m, u):
    [u, (u, u)][1][0].add_(1)


def _through_a_list(m, u):
    for part in torch.unbind(u, 1):
        part.add_(1)


WRITES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "swapaxes": lambda m, u: u.swapaxes(2, 3).mul_(2),
    "movedim": lambda m, u: torch.movedim(u, 2, 3).mul_(2),
    "moveaxis": lambda m, u: u.moveaxis(1, 2).add_(1),
    "T": lambda m, u: u.mT.mul_(2),
    "diagonal": lambda m, u: u.diagonal(dim1=2, dim2=3).fill_(3),
    "as_strided": lambda m, u: u.as_strided(u.shape, u.stride()).mul_(2),
    "unfold": lambda m, u: u.unfold(2, 1, 1).mul_(2),
    "real": lambda m, u: torch.real(u).mul_(2),
    "positive": lambda m, u: (+u).mul_(2),
    "tensor_split": lambda m, u: u.tensor_split(2, 1)[1].mul_(2),
    "hsplit": lambda m, u: torch.hsplit(u, 2)[1].mul_(2),
    "split": _split_write,
    "chunk": lambda m, u: u.chunk(2, 1)[0].mul_(2),
    "unbind": _through_a_list,
    "einsum": lambda m, u: torch.einsum("bchw->bhwc", u).mul_(2),
    "broadcast": lambda m, u: torch.broadcast_tensors(u, u)[0].mul_(2),
    "atleast": lambda m, u: torch.atleast_3d(u).mul_(2),
    "type_as": lambda m, u: u.type_as(u).mul_(2),
    "ravel": lambda m, u: u.ravel().mul_(2),
    "view_as_real": lambda m, u: u.view(torch.int64 if u.dtype == torch.float64 else torch.int32),
    "out": lambda m, u: torch.mul(u, 2, out=u),
    "out_of_view": lambda m, u: torch.mul(u, 2, out=u.view_as(u)),
    "foreach": lambda m, u: torch._foreach_mul_([u], 2.0),
    "ipow": _ipow,
    "ifloordiv": _ifloordiv,
    "imod": _imod,
    "data": _data,
    "data_write": _data_write,
    "detach": lambda m, u: u.detach().mul_(2),
    "index": _index,
    "index_add": _index_add,
    "nested": _nested,
    "copy": lambda m, u: u.copy_(u.flip(2)),
    "set": lambda m, u: u.set_(u * 2),
    "swap": lambda m, u: u.swapaxes_(2, 3),
    "functional_inplace": lambda m, u: F.relu6(u, True),
    "functional_inplace_named": lambda m, u: F.hardtanh(u, 0.1, 0.9, inplace=True),
    "hardswish": lambda m, u: F.hardswish(u, True),
    "layer_inplace": lambda m, u: nn.Hardswish(inplace=True)(u),
    "dropout": lambda m, u: F.dropout(u, 0.5, False).mul_(2),
    "feature_dropout": lambda m, u: F.alpha_dropout(u, 0.5, False).mul_(2),
    "index_put": lambda m, u: u.index_put_((torch.tensor([0]),), torch.tensor(2.0, dtype=u.dtype)),
    "masked_fill": lambda m, u: u.masked_fill_(u > 0.5, 0.0),
    "clamp": lambda m, u: torch.clamp_(u, 0.1, 0.5),
    "apply": lambda m, u: torch.nn.init.constant_(u, 0.5),
    "child_that_writes": lambda m, u: m.wild(u),
    "interpolate": lambda m, u: F.interpolate(u, scale_factor=1).mul_(2),
    "pixel_shuffle": lambda m, u: F.pixel_shuffle(u, 1).mul_(2),
    "pad_nothing": lambda m, u: F.pad(u, (0, 0)).mul_(2),
    "squeeze_write": lambda m, u: u.squeeze(0).mul_(2),
}


def _mixed_kernel(m, x):
    w = m.weight * 1.0
    first = F.conv2d(x, w, padding=1)
    w.mul_(2)
    return first + F.conv2d(x, w, padding=1) + m.b(x)


def _data_kernel(m, x):
    w = m.weight.detach().clone()
    first = F.conv2d(x, w, padding=1)
    w.view(-1).mul_(2)
    return first + F.conv2d(x, w, padding=1) + m.b(x)


# ---------------------------------------------------------------- questions about the value


def asks(question: Callable[[nn.Module, Tensor], bool]) -> nn.Module:
    """Doubles its sum where a question about its input is answered with yes."""

    def run(m, x):
        y = arms(m, x)
        return y * 2 if question(m, x) else y

    return net(run, sub=Net(lambda m, x: None), gate=conv(1))


def _matches(m, x):
    match x:
        case Tensor():
            return True
    return False


@functools.singledispatch
def _kind(x: object) -> str:
    return "other"


@_kind.register
def _(x: Tensor) -> str:
    return "tensor"


QUESTIONS: dict[str, Callable[[nn.Module, Tensor], bool]] = {
    "type": lambda m, x: type(x) is Tensor,
    "type_name": lambda m, x: type(x).__name__ == "Tensor",
    "class": lambda m, x: x.__class__ is Tensor,
    "match": _matches,
    "dispatch": lambda m, x: _kind(x) == "tensor",
    "device": lambda m, x: str(x.device) == "cpu",
    "device_type": lambda m, x: x.device.type == "cpu",
    "text": lambda m, x: f"{x.dtype}".startswith("torch"),
    "format": lambda m, x: "{}".format(x.ndim) == "4",  # noqa: UP032
    "repr": lambda m, x: repr(x.shape).startswith("torch.Size"),
    "none": lambda m, x: m.sub(x) is None,
    "hasattr": lambda m, x: hasattr(x, "acfuse_no_such_thing"),
    "callable": lambda m, x: not callable(x),
    "bool_of_list": lambda m, x: x in [x],
    "identity": lambda m, x: x.data_ptr() == x.data_ptr(),
    "contiguous": lambda m, x: x.is_contiguous(),
    "gradient": lambda m, x: not torch.is_grad_enabled(),
    "try": lambda m, x: _tries(x),
    "numpy": lambda m, x: _tries_numpy(x),
    "isinstance_tuple": lambda m, x: isinstance(x, (list, Tensor)),
    "issubclass": lambda m, x: issubclass(type(x), Tensor),
    "is_tensor": lambda m, x: torch.is_tensor(x),
    "is_floating": lambda m, x: torch.is_floating_point(x),
    "dir": lambda m, x: "acos_" in dir(x),
    "id_in_dict": lambda m, x: id(x) in {id(x): 1},
    "shape_tuple": lambda m, x: tuple(x.shape)[1] == 4,
    "training": lambda m, x: not m.training,
    "children": lambda m, x: len(list(m.children())) > 3,
    "parameters": lambda m, x: sum(1 for _ in m.parameters()) > 5,
    "has_arm": lambda m, x: hasattr(m, "a"),
}


def _tries(x: Tensor) -> bool:
    try:
        return float(x.flatten()[0]) < 1e30
    except Exception:
        return False


def _tries_numpy(x: Tensor) -> bool:
    try:
        return x.detach().numpy().ndim == 4
    except Exception:
        return False


# ---------------------------------------------------------------- state


CALLS: list[Any] = []


class Remembers(nn.Module):
    """Keeps something of each call."""

    def __init__(self, keep: Callable[["Remembers", Tensor, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.keep = conv(3), conv(1), keep
        self.calls, self.cache, self.last, self.count = [], {}, None, 0
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        y = arms(self, x)
        self.keep(self, x, y)
        return torch.relu(y)


def _sets(name: str, value: Callable[[Any, Tensor, Tensor], object]) -> Callable[..., None]:
    return lambda m, x, y: setattr(m, name, value(m, x, y))


STATES: dict[str, Callable[[Any, Tensor, Tensor], object]] = {
    "attribute": _sets("last", lambda m, x, y: y),
    "attribute_of_input": _sets("last", lambda m, x, y: x),
    "list": lambda m, x, y: m.calls.append(y),
    "dict": lambda m, x, y: m.cache.update(y=y),
    "global": lambda m, x, y: CALLS.append(y),
    "counter": _sets("count", lambda m, x, y: m.count + 1),
    "shape": _sets("last", lambda m, x, y: x.shape),
    "plain_list": lambda m, x, y: m.calls.append(1),
    "buffer": lambda m, x, y: m.steps.add_(1),
    "buffer_of_value": lambda m, x, y: m.mean.copy_(y.mean((0, 2, 3))),
    "buffer_set": _sets("mean", lambda m, x, y: y.mean((0, 2, 3)).detach()),
    "other_module": lambda m, x, y: setattr(m.a, "seen", y),
    "closure": lambda m, x, y: m.keep.__dict__.update(seen=y),
}


# ---------------------------------------------------------------- modules with a twist


class Doubled(nn.Module):
    """Its call does more than its forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3), conv(1)

    def __call__(self, x):
        return 2 * super().__call__(x)

    def forward(self, x):
        return arms(self, x)


class Quiet(nn.Module):
    """Its forward runs without gradients, or in another precision."""

    def __init__(self, around: Callable[[], Any]) -> None:
        super().__init__()
        self.a, self.b, self.around = conv(3), conv(1), around

    def forward(self, x):
        with self.around():
            return arms(self, x)


class ScaledConv(nn.Conv2d):
    """A convolution with a forward step of its own."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight * 2, bias)


class CallConv(nn.Conv2d):
    """A convolution whose call does more."""

    def __call__(self, x):
        return super().__call__(x) * 3


class StandardConv(nn.Conv2d):
    """A convolution whose kernel is not what it stores."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        nn.init.uniform_(self.raw, -0.2, 0.2)

    @property
    def weight(self):
        return self.raw * 2

    @weight.setter
    def weight(self, value):
        self.register_parameter("raw", value)

    def __setattr__(self, name, value):
        super().__setattr__("raw" if name == "weight" else name, value)

    def register_parameter(self, name, value):
        super().register_parameter("raw" if name == "weight" else name, value)


def _patched(attribute: str, wrap: Callable[[Any], Any]) -> nn.Module:
    model = net(arms)
    setattr(model.a, attribute, wrap(getattr(model.a, attribute)))
    return model


def _circular(conv_layer: nn.Conv2d) -> nn.Conv2d:
    """Tiling, as image generators patch it in: the borders of one convolution are wrapped."""

    def wrapped(x, weight, bias):
        pad = conv_layer.padding[0]
        x = F.pad(x, (pad,) * 4, mode="circular")
        return F.conv2d(x, weight, bias, conv_layer.stride)

    conv_layer._conv_forward = wrapped
    return conv_layer


def _tiled() -> nn.Module:
    model = net(arms)
    _circular(model.a)
    return model


class Rank(nn.Module):
    """Asks what its part is."""

    def __init__(self, question: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.part, self.question = Part(), question

    def forward(self, x):
        y = self.part(x)
        return torch.relu(y * 2 if self.question(self.part) else y)


class Part(nn.Module):
    """Two arms that a network around them looks at."""

    groups = 3

    def __init__(self):
        super().__init__()
        self.a, self.b, self.width = conv(3), conv(1), 4

    def __len__(self):
        return 2

    def has_arms(self):
        return hasattr(self, "b")

    def forward(self, x):
        return arms(self, x)


PARTS: dict[str, Callable[[Any], bool]] = {
    "isinstance": lambda p: isinstance(p, Part),
    "len": lambda p: len(p) == 2,
    "name": lambda p: type(p).__name__ == "Part",
    "exact": lambda p: type(p) is Part,
    "method": lambda p: p.has_arms(),
    "attribute": lambda p: p.width == 4,
    "class_attribute": lambda p: p.groups == 3,
    "count": lambda p: sum(q.numel() for q in p.parameters()) > 150,
    "children": lambda p: len(list(p.children())) == 2,
    "arm": lambda p: hasattr(p, "b"),
    "state": lambda p: "a.weight" in p.state_dict(),
}


# ---------------------------------------------------------------- arguments


class Mode(enum.Enum):
    """A way to compute."""

    SUM = 1
    DOUBLE = 2


class Argued(nn.Module):
    """Computes by an argument that is no tensor."""

    def __init__(self, default: object, double: Callable[[Any], bool]) -> None:
        super().__init__()
        self.a, self.b = conv(3), conv(1)
        self.forward = self._with_default(default)
        self.doubles = double

    def _with_default(self, default: object) -> Callable[..., Tensor]:
        def forward(x, mode=default):
            y = arms(self, x)
            return torch.relu(y * 2 if self.doubles(mode) else y)

        return forward


class ArguedBlock(nn.Module):
    """The same, with its forward in its class."""

    def __init__(self, double: Callable[[Any], bool]) -> None:
        super().__init__()
        self.a, self.b, self.doubles = conv(3), conv(1), double

    def forward(self, x, mode=None):
        y = arms(self, x)
        return torch.relu(y * 2 if self.doubles(mode) else y)


class Asked(nn.Module):
    """Calls such a block with one value; its caller may call it with another."""

    def __init__(self, first: object, double: Callable[[Any], bool]) -> None:
        super().__init__()
        self.block, self.first = ArguedBlock(double), first

    def forward(self, x):
        return self.block(x, self.first)


ARGUMENTS: dict[str, tuple[object, object, Callable[[Any], bool]]] = {
    "tuple": ((1, 2), (2, 1), lambda v: v[0] == 2),
    "list": ([1, 2], [2, 1], lambda v: v[0] == 2),
    "dict": ({"k": 1}, {"k": 2}, lambda v: v["k"] == 2),
    "enum": (Mode.SUM, Mode.DOUBLE, lambda v: v is Mode.DOUBLE),
    "dtype": (torch.float32, torch.int64, lambda v: v == torch.int64),
    "bool": (False, True, bool),
    "none": (None, 1, lambda v: v is not None),
    "float": (1.0, 2.0, lambda v: v == 2.0),
    "string": ("a", "b", lambda v: v == "b"),
    "device": (torch.device("cpu"), torch.device("meta"), lambda v: v.type == "meta"),
    "slice": (slice(1), slice(2), lambda v: v.stop == 2),
    "set": (frozenset({1}), frozenset({2}), lambda v: 2 in v),
    "type": (int, float, lambda v: v is float),
    "nested": (({"k": [1]},), ({"k": [2]},), lambda v: v[0]["k"][0] == 2),
}


# ---------------------------------------------------------------- kernels


class Draws(nn.Module):
    """A parametrization that draws."""

    def forward(self, w):
        return w * torch.rand(())


class LooksAtDtype(nn.Module):
    """A parametrization that differs by its precision."""

    def forward(self, w):
        return w * (2 if w.dtype == torch.float32 else 3)


class Counts(nn.Module):
    """A parametrization that differs from call to call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, w):
        self.calls += 1
        return w * self.calls


def parametrized(kind: type[nn.Module]) -> nn.Module:
    """Two arms, the kernel of one computed."""
    model = net(arms)
    parametrize.register_parametrization(model.a, "weight", kind(), unsafe=True)
    return model


def _tiles(m, x):
    """Cuts what is larger than 32 pixels in two: a seam that small images do not show."""
    half = int(x.shape[2]) // 2
    if half > 16:
        return torch.cat([arms(m, x[:, :, :half]), arms(m, x[:, :, half:])], 2)
    return arms(m, x)


def _slices(m, x):
    return m.c(x[:, :4]) + m.d(x[:, :4])


def _crops_a_wrapped_image(m, x):
    return m.a(F.pad(x, (2, -1, 1, -2), mode="circular")) + m.a2(
        F.pad(x, (2, -1, 1, -2), mode="circular")
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"write_{name}": functools.partial(late, w) for name, w in WRITES.items()},
    "kernel_written": lambda: net(_mixed_kernel, weight=nn.Parameter(torch.randn(4, 4, 3, 3))),
    "kernel_copy_written": lambda: net(_data_kernel, weight=nn.Parameter(torch.randn(4, 4, 3, 3))),
    **{f"asks_{name}": functools.partial(asks, q) for name, q in QUESTIONS.items()},
    **{f"keeps_{name}": functools.partial(Remembers, keep) for name, keep in STATES.items()},
    **{f"part_{name}": functools.partial(Rank, question) for name, question in PARTS.items()},
    "call_overridden": Doubled,
    "call_overridden_inside": lambda: nn.Sequential(Doubled(), nn.ReLU()),
    "no_grad": lambda: Quiet(torch.no_grad),
    "no_grad_for_an_arm": lambda: net(lambda m, x: m.a(x) + torch.no_grad()(m.b)(x)),
    "inference": lambda: Quiet(torch.inference_mode),
    "autocast": lambda: Quiet(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "conv_forward_of_class": lambda: Net(
        arms, a=ScaledConv(4, 4, 3, padding=1), b=conv(1)
    ),
    "call_of_class": lambda: Net(arms, a=CallConv(4, 4, 3, padding=1), b=conv(1)),
    "weight_of_class": lambda: Net(arms, a=StandardConv(4, 4, 3, padding=1), b=conv(1)),
    "forward_patched": lambda: _patched("forward", lambda f: lambda x: 2 * f(x)),
    "conv_forward_patched": lambda: _patched(
        "_conv_forward", lambda f: lambda x, w, b: f(x, 2 * w, b)
    ),
    "tiled": _tiled,
    "parametrized_draws": lambda: parametrized(Draws),
    "parametrized_dtype": lambda: parametrized(LooksAtDtype),
    "parametrized_counts": lambda: parametrized(Counts),
    "tiles_large_images": lambda: net(_tiles),
    "slices": lambda: net(_slices, c=conv(3), d=conv(1)),
    "wrapped_crop": lambda: net(_crops_a_wrapped_image, a2=conv(1)),
}  # fmt: skip
