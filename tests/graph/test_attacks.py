"""Nothing that a forward does besides adding its arms is lost: it is kept, or nothing is fused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import acfuse
from sample_models import awake
from tests.bounds import gamma
from tests.graph import attacks
from tests.graph.attacks import ARGUMENTS, CALLS, MODELS, Argued, Asked

SHAPES = ((1, 4, 6, 9), (2, 4, 7, 5), (1, 4, 37, 40))


def observed(model: nn.Module, image: Tensor) -> dict[str, Any]:
    """What one call shows: what it gives, writes and keeps, and whether it has gradients."""
    CALLS.clear()
    image = image.clone()
    given: Any
    torch.manual_seed(0)
    try:
        given = model(image)
    except RuntimeError as error:
        return {"raises": type(error).__name__}
    leaves = [leaf for leaf in _pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
    kept = {
        name: _pytree.tree_leaves(value)
        for name in ("calls", "cache", "last", "count", "steps", "mean")
        if (value := getattr(model, name, None)) is not None
    }
    return {
        "structure": _pytree.tree_structure(given),
        "gradients": [leaf.requires_grad for leaf in leaves],
        "dtypes": [leaf.dtype for leaf in leaves],
        "values": leaves,
        "input": image,
        "kept": kept,
        "calls": len(CALLS),
    }


def assert_same_to_see(original: nn.Module, fused: nn.Module, dtype: torch.dtype) -> None:
    """One call after the other shows the same of both, with gradients and without."""
    original, fused = copy.deepcopy(original), copy.deepcopy(fused)
    weights = [p.detach().double() for p in original.parameters()]
    generator = torch.Generator().manual_seed(1)
    for shape in SHAPES:
        image = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        with torch.set_grad_enabled(shape[0] == 1):
            before, after = observed(original, image), observed(fused, image)
        assert before.keys() == after.keys()
        if "raises" in before:
            continue
        # No sum of the arms is larger than this, and none has as many terms.
        largest = (1 + float(image.abs().max())) * sum(float(p.abs().sum()) for p in weights)
        bound = gamma(1024, dtype) * largest
        for key in ("structure", "gradients", "dtypes", "calls"):
            assert before[key] == after[key], key
        assert before["kept"].keys() == after["kept"].keys()
        for one, other in zip(_numbers(before), _numbers(after), strict=True):
            if isinstance(one, Tensor):
                assert one.shape == other.shape
                assert float((one.detach().double() - other.detach().double()).abs().max()) <= bound
            else:
                assert one == other


def _numbers(seen: dict[str, Any]) -> list[Any]:
    return [*seen["values"], seen["input"], *(v for vs in seen["kept"].values() for v in vs)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_what_a_forward_does_is_kept_or_nothing_is_fused(name, dtype):
    model = awake(MODELS[name]().to(dtype), 0)
    before = copy.deepcopy(model)
    result = acfuse.fuse(model)
    assert_same_to_see(before, result.model, dtype)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("kind", [Argued, Asked])
def test_an_argument_that_is_no_tensor_is_obeyed_or_refused(kind, name):
    first, other, double = ARGUMENTS[name]
    model = awake(kind(first, double).double(), 0)
    result = acfuse.fuse(model)
    image = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    original, fused = (model, result.model) if kind is Argued else (model.block, result.model.block)
    for value in (first, other):
        try:
            given = fused(image, value)
        except AssertionError:
            assert value is other
            continue
        torch.testing.assert_close(given, original(image, value), rtol=1e-12, atol=1e-12)


def test_parts_that_are_left_in_training_mode_stay_there():
    model = awake(nn.Sequential(attacks.Part(), nn.Dropout(0.5)).double(), 0)
    model[1].train()
    fused = acfuse.fuse(model).model
    assert [m.training for m in fused] == [False, True]


def test_an_image_without_a_batch_gives_what_it_gave():
    for name in ("slices", "tiles_large_images"):
        model = awake(MODELS[name]().double(), 0)
        fused = acfuse.fuse(model).model
        image = torch.randn(4, 9, 8, dtype=torch.float64)
        try:
            expected = model(image)
        except RuntimeError:
            continue
        torch.testing.assert_close(fused(image), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3])
def test_batch_norms_of_rows_are_folded_right_or_not_at_all(count):
    norms = nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(count)))
    for extra in ([], [nn.Conv1d(4, 4, 1)], [nn.Conv2d(4, 4, 1)]):
        model = awake(nn.Sequential(norms, *extra[:0]).double(), 0)
        if extra:
            model.other = awake(extra[0].double(), 1)
            model.forward = lambda x, norms=norms: norms(x)
        fused = acfuse.fuse(model, fold_bn=True).model
        for shape in ((5, 4), (3, 4, 6)):
            image = torch.randn(shape, dtype=torch.float64)
            torch.testing.assert_close(fused(image), model(image), rtol=1e-12, atol=1e-12)
