"""Networks in one line, and the assertions that a fusion is exact or a refusal is right."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from acfuse.find import find_in_module
from acfuse.findings import Findings
from acfuse.patterns import PATTERNS, Pattern
from acfuse.rewrite import fused_copy
from sample_models import awake
from tests.bounds import assert_within, rounding
from tests.proof.proving import certified

SHAPES = ((1, 4, 13, 16), (3, 4, 12, 9), (2, 4, 7, 10))


class Net(nn.Module):
    """A module whose forward is a function of itself and its input: `Net(lambda m, x: ...)`."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class NormAct(nn.BatchNorm2d):
    """A norm that brings its activation: many libraries have one."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return self.act(self.drop(x))


def conv(kernel: Any = 3, padding: Any = None, channels: Sequence[int] = (4, 4), **rest: Any):
    """A convolution of 4 channels whose output has the size of its input, unless told otherwise."""
    if padding is None:
        sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(n // 2 for n in sizes)
    return nn.Conv2d(*channels, kernel, padding=padding, **rest)


def norm(channels: int = 4) -> nn.BatchNorm2d:
    """A BatchNorm of 4 channels."""
    return nn.BatchNorm2d(channels)


def images(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random images, the same in every call. Their mean is not zero."""
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(*s, generator=generator, dtype=torch.float64) + 0.3 for s in shapes]
    return [image.to(dtype) for image in draw]


class _Convolutions(TorchDispatchMode):
    """Counts the convolutions that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def run_convolutions(model: nn.Module, image: Tensor) -> int:
    """How many convolutions one forward computes."""
    with _Convolutions() as counted:
        model(image.clone())
    return counted.count


class _WithInput(nn.Module):
    """What a model gives, and its input, which it may have overwritten."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        return self.model(x), x


@torch.no_grad()
def assert_same(
    original: nn.Module,
    fused: nn.Module,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Both give the same but for rounding, for images of these shapes, and overwrite them alike."""
    for image in images(shapes, dtype):
        bound = rounding(_WithInput(original), image, dtype=dtype)
        expected, given = (_WithInput(model)(image.clone()) for model in (original, fused))
        assert _pytree.tree_structure(given) == _pytree.tree_structure(expected)
        for a, b in zip(_leaves(given), _leaves(expected), strict=True):
            assert a.dtype == b.dtype
            assert a.is_floating_point() or torch.equal(a, b)
        assert_within(given, expected, bound)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that fusing it must not change: tensors, their identity, modes."""
    tensors = {k: (id(v), v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    flags = {n: (id(m), m.training) for n, m in model.named_modules(remove_duplicate=False)}
    grads = {n: p.requires_grad for n, p in model.named_parameters()}
    return {"tensors": tensors, "flags": flags, "grads": grads}


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """A model is bit for bit, and object for object, what it was."""
    now = state_of(model)
    assert now["flags"] == before["flags"]
    assert now["grads"] == before["grads"]
    assert list(now["tensors"]) == list(before["tensors"])
    for key, (identity, tensor) in before["tensors"].items():
        assert now["tensors"][key][0] == identity, f"{key} is another tensor"
        assert same_bits(now["tensors"][key][1], tensor), f"{key} was changed"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and every number; NaN is equal to itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(torch.equal(a, b) or torch.equal(a.isnan() | (a == b), torch.ones_like(a).bool()))


def find(model: nn.Module, patterns: Sequence[Pattern] = PATTERNS) -> Findings:
    """What is found in a model, which is not changed by it."""
    before = state_of(model)
    findings = find_in_module(model, patterns)
    assert_unchanged(model, before)
    return findings


def fused_and_checked(
    model: nn.Module,
    *,
    blocks: int = 1,
    convolutions: int | None = None,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    patterns: Sequence[Pattern] = PATTERNS,
    single: bool = True,
) -> nn.Module:
    """A float64 copy, fused: so many blocks, each certified, and so many convolutions left to run.

    The original and the fused copy give the same. Where the number of convolutions is not given,
    there is one for each block. With `single`, the same in float32 is certified as well.
    """
    model = awake(copy.deepcopy(model).double(), 0)
    findings = find(model, patterns)
    assert len(findings.blocks) == blocks, findings
    before = state_of(model)
    fused = fused_copy(model, findings.found)
    assert_unchanged(model, before)
    assert_same(model, fused, shapes)
    for block in findings.found:
        assert certified(fused, block).fault == ""
    left = run_convolutions(fused, images(shapes)[0])
    assert left == (blocks if convolutions is None else convolutions)
    if single:
        assert_rounded_once(model, patterns)
    return fused


def assert_rounded_once(model: nn.Module, patterns: Sequence[Pattern] = PATTERNS) -> None:
    """Each fused weight of the same model in float32 is the exact one, rounded once."""
    single = awake(copy.deepcopy(model).float(), 0)
    findings = find(single, patterns)
    fused = fused_copy(single, findings.found)
    for block in findings.found:
        assert certified(fused, block).fault == ""


def refused(
    model: nn.Module,
    *codes: Any,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    patterns: Sequence[Pattern] = PATTERNS,
) -> list[str]:
    """The reasons why nothing of a model is fused. All `codes` are among them; nothing changes."""
    model = awake(copy.deepcopy(model).double(), 0)
    findings = find(model, patterns)
    assert findings.found == (), [f.layers for f in findings.found]
    found = [r.code for r in findings.refused]
    missing = [code for code in codes if code not in found]
    assert not missing, f"{missing} not among {findings.refused}"
    assert_same_bits(model, fused_copy(model, findings.found), shapes)
    return [r.why for r in findings.refused]


@torch.no_grad()
def assert_same_bits(
    original: nn.Module, copied: nn.Module, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> None:
    """Both give the same, to the last bit, in the dtype of the model. Random forwards: reseeded."""
    dtype = next(p.dtype for p in original.parameters())
    for image in images(shapes, dtype):
        torch.manual_seed(3)
        expected = original(image.clone())
        torch.manual_seed(3)
        given = copied(image.clone())
        for a, b in zip(_leaves(given), _leaves(expected), strict=True):
            assert same_bits(a, b)


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
