"""Random small networks: lists of operations, each of which reads values that are there already.

Sizes are tracked, so that what is added fits; nothing else is arranged for or against a fusion.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = ((2, 4, 21, 16), (1, 4, 18, 25))
# Of arms that cancel altogether only rounding is left, and nothing that could be certified: numbers
# that have lost more than half of their digits. Weights here are near 1.
CANCELLED = torch.finfo(torch.float64).eps ** 0.5


@dataclass(frozen=True)
class Kind:
    """What is known of a value while a network is drawn: what may be added to what.

    It was `halved` so often, or doubled (-1), and cut off at its ends.
    """

    channels: int
    halved: int = 0
    cut: int = 0


@dataclass(frozen=True)
class Op:
    """One line of a network: which values it reads, with which layer, and how."""

    text: str
    reads: tuple[int, ...]
    run: Callable[..., Tensor]
    layer: nn.Module | nn.Parameter | None = None


class Program(nn.Module):
    """A network that runs its lines one after the other and returns some of their values."""

    def __init__(self, ops: list[Op], returned: list[int]) -> None:
        super().__init__()
        self.ops, self.returned = ops, returned
        for i, op in enumerate(ops):
            if op.layer is not None:
                setattr(self, f"part{i + 1}", op.layer)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for i, op in enumerate(self.ops):
            given = [values[j] for j in op.reads]
            own = [getattr(self, f"part{i + 1}")] if op.layer is not None else []
            values.append(op.run(*own, *given))
        return tuple(values[i] for i in self.returned)

    def extra_repr(self) -> str:
        lines = [f"v{i + 1} = {op.text} of {op.reads}" for i, op in enumerate(self.ops)]
        return "\n".join([*lines, f"return {self.returned}"])


def _call(layer, x):
    return layer(x)


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "add": lambda a, b: torch.add(a, b, alpha=2),
    "+=": lambda a, b: a.add_(b),
    "-=": lambda a, b: a.sub_(b, alpha=0.5),
    "*": lambda a, b: a * torch.sigmoid(b),
}
AUGMENTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "augmented +=": operator.iadd,
    "augmented -=": operator.isub,
}
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "relu_": lambda a: a.relu_(),
    "neg": lambda a: -a,
    "half": lambda a: a * 0.5,
    "half_": lambda a: a.mul_(0.5),
    "one more": lambda a: a + 1.0,
    "clone": lambda a: a.clone(),
    "same": lambda a: a.contiguous(),
    "pool": lambda a: F.avg_pool2d(a, 3, 1, 1),
    "uncounted pool": lambda a: F.avg_pool2d(a, 3, 1, 1, count_include_pad=False),
    "pad and crop": lambda a: F.pad(a, (1, 0, 0, 1))[:, :, :-1, 1:],
}
HALVES: dict[str, Callable[[Tensor], Tensor]] = {
    "first half": lambda a: torch.chunk(a, 2, 1)[0],
    "sum of halves": lambda a: operator.add(*(a.chunk(2, 1)[i] for i in (0, 1))),
    "second less first": lambda a: a.chunk(2, dim=1)[1] - a.chunk(2, dim=-3)[0],
}
SHARING = ("same", "dropout", "relu_", "half_")  # what is given is what was read
LINEAR_BINARY = ("+", "-", "add")


@st.composite
def _kernels(draw) -> tuple[tuple[int, int], int]:
    size = draw(st.sampled_from([(3, 3), (1, 1), (1, 1), (3, 1), (1, 3), (5, 5), (1, 5)]))
    dilation = draw(st.sampled_from([1, 1, 1, 2]))
    return size, dilation


@st.composite
def _convolutions(draw, kind: Kind) -> tuple[Op, Kind]:
    size, dilation = draw(_kernels())
    out = draw(st.sampled_from([kind.channels, kind.channels, 4, 6, 2]))
    fitting = [g for g in (1, 1, 2, kind.channels) if not (out % g or kind.channels % g)]
    groups = draw(st.sampled_from(fitting))
    bias = draw(st.booleans())
    change = draw(st.sampled_from(["same"] * 5 + ["halve", "cut", "double"]))
    mode = draw(st.sampled_from(["zeros"] * 6 + ["reflect", "circular", "replicate"]))
    rest = {"groups": groups, "bias": bias}
    if change == "halve" and not kind.halved:
        # A padded 3 x 3 and a 1 x 1 halve a size alike, odd or even.
        n = draw(st.sampled_from([1, 3]))
        layer: nn.Module = nn.Conv2d(kind.channels, out, n, 2, n // 2, **rest)
        return Op(f"{n} x {n} / 2", (), _call, layer), Kind(out, kind.halved + 1, kind.cut)
    if change == "double" and not (kind.halved or kind.cut):
        size, pads, more = draw(st.sampled_from([(2, 0, 0), (4, 1, 0), (3, 1, 1)]))
        layer = nn.ConvTranspose2d(kind.channels, out, size, 2, pads, more, **rest)
        return Op(f"transposed {size} * 2", (), _call, layer), Kind(out, -1, kind.cut)
    if change == "cut" and kind.cut < 2:
        layer = nn.Conv2d(kind.channels, out, 3, **rest)
        return Op("3 x 3 unpadded", (), _call, layer), Kind(out, kind.halved, kind.cut + 1)
    pads = tuple(dilation * (n - 1) // 2 for n in size)
    if draw(st.sampled_from([False] * 6 + [True])):
        layer = nn.ConvTranspose2d(
            kind.channels, out, size, 1, pads, dilation=dilation, groups=groups, bias=bias
        )
        return Op(f"transposed {size}", (), _call, layer), Kind(out, kind.halved, kind.cut)
    layer = nn.Conv2d(
        kind.channels, out, size, 1, pads, dilation, padding_mode=mode, **rest
    )  # fmt: skip
    text = f"{size} dilation {dilation} groups {groups} {mode} bias {bias}"
    return Op(text, (), _call, layer), Kind(out, kind.halved, kind.cut)


@st.composite
def _others(draw, kind: Kind, bold: bool) -> tuple[Op, Kind]:
    usual = ["norm", "norm", "factor", "shift", "cut", "drop", *HALVES, *UNARY]
    choice = draw(st.sampled_from([*SHARING, "drop"] if bold and draw(st.booleans()) else usual))
    if choice in HALVES:
        if kind.channels % 2 or kind.channels < 4:
            return Op("sigmoid", (), torch.sigmoid), kind
        return Op(choice, (), HALVES[choice]), Kind(kind.channels // 2, kind.halved, kind.cut)
    if choice == "norm":
        return Op("norm", (), _call, nn.BatchNorm2d(kind.channels)), kind
    if choice in ("drop", "dropout"):
        return Op("dropout", (), _call, nn.Dropout2d()), kind
    if choice in ("factor", "shift"):
        vector = nn.Parameter(torch.linspace(-0.7, 1.1, kind.channels)[:, None, None])
        run = (lambda g, a: g * a) if choice == "factor" else (lambda g, a: a + g)
        return Op(choice, (), run, vector), kind
    if choice == "cut":
        if kind.cut >= 2:
            return Op("sigmoid", (), torch.sigmoid), kind
        cropped = Kind(kind.channels, kind.halved, kind.cut + 1)
        return Op("crop", (), lambda a: a[:, :, 1:-1, 1:-1]), cropped
    return Op(choice, (), UNARY[choice]), kind


def _may_be_written(ops: list[Op], memory: list[int], place: int) -> bool:
    """Whether a value is nobody else's: not what came in, and read under no name so far."""
    names = {i for i, own in enumerate(memory) if own == memory[place]}
    return memory[place] != 0 and len(names) == 1 and not any(place in op.reads for op in ops)


@st.composite
def programs(draw, depth: int = 1, bold: bool = False) -> Program:
    """A network of four channels, and perhaps another within it.

    A bold one overwrites in place whatever it likes.
    """
    kinds, ops = [Kind(4)], []
    memory = [0]  # which values may share theirs, with that of the first of them
    count = draw(st.integers(3, 9))
    while len(ops) < count:
        # The latest values, and the input, are read most.
        place = draw(st.sampled_from([0, len(kinds) - 1, *range(len(kinds))]))
        kind = kinds[place]
        choice = draw(
            st.sampled_from(["conv"] * 4 + ["other"] * 2 + ["sum"] * 6 + ["module", "stack"])
        )
        if choice == "stack":
            beside = [
                i for i, k in enumerate(kinds) if (k.halved, k.cut) == (kind.halved, kind.cut)
            ]
            other = draw(st.sampled_from(beside[::-1]))
            total = kind.channels + kinds[other].channels
            if total <= 8:
                ops.append(Op("stack", (place, other), lambda a, b: torch.cat((a, b), 1)))
                kinds.append(Kind(total, kind.halved, kind.cut))
                memory.append(len(ops))
            continue
        if choice == "sum":
            pairs = [
                (i, j) for i, a in enumerate(kinds) for j, b in enumerate(kinds) if i < j and a == b
            ]
            if not pairs:
                continue
            i, j = draw(st.sampled_from(pairs[::-1]))
            writing = ["+=", "-=", *AUGMENTED] * 2 if bold else []
            name = draw(st.sampled_from([*LINEAR_BINARY * 3, *BINARY, *writing]))
            if name.endswith("=") and not (bold or _may_be_written(ops, memory, j)):
                continue
            ops.append(Op(name, (j, i), (BINARY | AUGMENTED)[name]))
            kinds.append(kinds[i])
            memory.append(memory[j] if name.endswith("=") else len(ops))
            continue
        if choice == "module" and depth and kind == Kind(4):
            inner = draw(programs(depth - 1, bold))
            same = [k for k in inner.returned if inner.kinds[k] == Kind(4)]
            if same:
                inner.returned = same[:1]
                ops.append(Op("module", (place,), lambda m, a: m(a)[0], inner))
                kinds.append(Kind(4))
                memory.append(memory[place])
                continue
        if choice == "other":
            op, after = draw(_others(kind, bold))
            if op.text.endswith("_") and not (bold or _may_be_written(ops, memory, place)):
                continue
        else:
            op, after = draw(_convolutions(kind))
        ops.append(Op(op.text, (place,), op.run, op.layer))
        kinds.append(after)
        memory.append(memory[place] if op.text in SHARING else len(ops))
    returned = [len(ops)]
    if draw(st.booleans()):
        returned.append(draw(st.integers(1, len(ops))))
    program = Program(ops, returned)
    program.kinds = kinds
    return program
