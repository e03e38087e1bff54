"""Random networks of rows: whatever is fused of them gives what they gave, for every shape."""

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import acfuse
from acfuse.proof.certificate import certify
from sample_models import awake
from tests.bounds import assert_within, rounding

CHANNELS = 6
SHAPES = ((4, 6), (2, 3, 6), (2, 6, 6), (2, 2, 3, 6), (6,), (6, 6))
PLAIN = ("negative", "activation", "conv", "flat", "sized", "second", "between", "scale", "wide")
KINDS = (*PLAIN, *("linear",) * 4, "matmul", "add", "add", "cat", "split", "slice")


class RandomRows(nn.Module):
    """A few operators in a row, each of one of the last values; which ones, a seed says."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw, widths = random.Random(seed), [CHANNELS]
        self.program: list[tuple[str, str, int, object]] = []
        for _ in range(draw.randint(3, 9)):
            kind, place = draw.choice(KINDS), draw.randrange(max(len(widths) - 3, 0), len(widths))
            width, name = widths[place], f"m{len(widths)}"
            more: object = None
            made = [width]
            if kind in ("linear", "matmul"):
                made = [draw.choice((width, 6, 8))]
            elif kind == "add":
                more = draw.choice([i for i, n in enumerate(widths) if n == width])
            elif kind == "cat":
                more = draw.randrange(len(widths))
                made = [width + widths[more]]
            elif kind in ("split", "slice"):
                if width < 2:
                    continue
                first = draw.randint(1, width - 1)
                made = [first, width - first] if kind == "split" else [first]
                more = made if kind == "split" else first
            layer = self._layer(kind, width, made[0], bias=draw.random() < 0.7)
            if layer is not None:
                setattr(self, name, layer)
            self.program.append((kind, name, place, more))
            widths += made
        self.last = nn.Linear(widths[-1], 5)

    @staticmethod
    def _layer(kind: str, width: int, made: int, *, bias: bool) -> nn.Module | nn.Parameter | None:
        if kind in ("flat", "sized", "second", "between"):
            return nn.BatchNorm1d(width)
        match kind:
            case "linear":
                return nn.Linear(width, made, bias=bias)
            case "matmul":
                return nn.Parameter(torch.randn(width, made))
            case "scale":
                return nn.Parameter(torch.randn(width))
            case "wide":
                return nn.Parameter(torch.randn(1, 1, width))
            case "conv":
                return nn.Conv1d(width, width, 1)
        return None

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, name, place, more in self.program:
            y, layer = values[place], getattr(self, name, None)
            if kind in ("linear", "second"):
                values.append(layer(y))
            elif kind == "matmul":
                values.append(y @ layer)
            elif kind == "flat":
                values.append(layer(y.flatten(0, 1)).reshape_as(y))
            elif kind == "sized":
                values.append(layer(y.reshape(-1, y.shape[-1])).view(y.shape))
            elif kind == "between":
                values.append(layer(y.transpose(1, 2)).transpose(1, 2))
            elif kind == "conv":
                values.append(layer(y.transpose(-1, -2)).transpose(-1, -2))
            elif kind in ("scale", "wide"):
                values.append(y * layer)
            elif kind == "add":
                values.append(y + values[more])
            elif kind == "cat":
                values.append(torch.cat([y, values[more]], -1))
            elif kind == "split":
                values.extend(y.split(more, dim=-1))
            elif kind == "slice":
                values.append(y[..., :more])
            else:
                values.append(F.gelu(y) if kind == "activation" else -y)
        return F.relu(self.last(values[-1]))


def taken(model: nn.Module) -> list[Tensor]:
    """Rows of the shapes that a network takes."""
    rows = []
    for shape in SHAPES:
        x = torch.randn(shape, dtype=torch.float64)
        try:
            model(x)
        except (RuntimeError, ValueError, IndexError):
            continue
        rows.append(x)
    return rows


def refused(model: nn.Module, x: Tensor) -> str | None:
    """What a fused network asserts of rows that it does not take."""
    try:
        model(x)
    except AssertionError as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", range(40))
@torch.no_grad()
def test_random_rows_give_what_they_gave(seed):
    torch.manual_seed(seed)
    model = awake(RandomRows(seed).eval(), seed).double()
    rows = taken(model)
    for example in ((), *((x,) for x in rows[seed % 2 :: 2])):
        for folds in (False, True):
            fused = acfuse.fuse(model, *example, fold_bn=folds)
            assert all(certify(block, fused.stored(block)).passed for block in fused.found)
            for x in rows:
                refusal = refused(fused.model, x)
                if refusal is None:
                    assert_within(fused.model(x), model(x), rounding(model, x))
                else:  # it was read for another number of axes
                    assert "axes" in refusal
                    assert not example or x.shape != example[0].shape
