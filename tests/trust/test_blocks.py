"""Blocks of every shape: each is fused and proved to be what it was, or refused with a code."""

import random
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.find import Reason, find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from sample_models import awake
from tests.bounds import differ, rounding
from tests.proof.proving import certified
from tests.trust.forked import Server
from tests.trust.rows import Row

SECONDS = 60
MODES = ("zeros", "reflect", "replicate", "circular")
SQUARE = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (7, 7))
FLAT = ((1, 3), (3, 1), (1, 5), (5, 1), (2, 3), (3, 4))
NORMS = ("plain", "no affine", "no statistics", "no momentum", "large eps", "synced", "instance",
         "training", "none")  # fmt: skip


class Block(nn.Module):
    """A sum of branches behind one another's input: what is drawn, and nothing arranged."""

    def __init__(self, branches: list[nn.Module], act: nn.Module) -> None:
        super().__init__()
        self.branches, self.act = nn.ModuleList(branches), act

    def forward(self, x: Tensor) -> Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return self.act(total)


def norm(kind: str, channels: int) -> nn.Module:
    made: dict[str, Any] = {
        "plain": lambda: nn.BatchNorm2d(channels),
        "no affine": lambda: nn.BatchNorm2d(channels, affine=False),
        "no statistics": lambda: nn.BatchNorm2d(channels, track_running_stats=False),
        "no momentum": lambda: nn.BatchNorm2d(channels, momentum=None),
        "large eps": lambda: nn.BatchNorm2d(channels, eps=0.5),
        "synced": lambda: nn.SyncBatchNorm(channels),
        "instance": lambda: nn.InstanceNorm2d(channels, affine=True),
        "training": lambda: nn.BatchNorm2d(channels),
        "none": nn.Identity,
    }
    layer: nn.Module = made[kind]()
    return layer


def block(seed: int) -> Block:
    """A block drawn at random. Its branches have one size, mostly one stride, and any geometry."""
    chance = random.Random(seed)
    channels = chance.choice((4, 6))
    out = chance.choice((channels, channels, 4, 6, 8))
    stride = chance.choice((1, 1, 2, (1, 2), (2, 1), 3))
    mode = chance.choice(MODES) if chance.random() < 0.3 else "zeros"
    branches: list[nn.Module] = []
    for _ in range(chance.choice((2, 3, 3, 4))):
        kernel = chance.choice(SQUARE if chance.random() < 0.6 else FLAT)
        dilation = chance.choice((1, 1, 1, 2))
        # Even kernels cannot keep a size by equal pads: where they would, torch pads by itself.
        even = any(n % 2 == 0 for n in kernel)
        pads: Any = tuple(dilation * (n - 1) // 2 for n in kernel)
        if stride == 1 and (even or chance.random() < 0.2):
            pads = "same"
        elif even:
            kernel, pads = (3, 3), (dilation, dilation)
        groups = chance.choice([g for g in (1, 1, 2, channels) if not (channels % g or out % g)])
        bias = chance.random() < 0.5
        border = chance.choice(MODES) if chance.random() < 0.07 else mode
        conv = nn.Conv2d(channels, out, kernel, stride, pads, dilation, groups, bias, border)
        kind = chance.choice(NORMS) if chance.random() < 0.15 else "plain"
        branches.append(nn.Sequential(conv, norm(kind, out)))
        if kind == "training":
            branches[-1].train()
    if stride == 1 and out == channels and chance.random() < 0.5:
        branches.append(nn.BatchNorm2d(channels) if chance.random() < 0.7 else nn.Identity())
    act: nn.Module = nn.ReLU() if chance.random() < 0.8 else nn.Identity()
    made = Block(branches, act).double()
    kept = [m for m in made.modules() if m.training and isinstance(m, nn.BatchNorm2d)]
    awake(made, seed)
    made.eval()
    if any(len(list(b.children())) and b.training for b in branches):
        for layer in kept:
            layer.train()
    return made


@torch.no_grad()
def fate(seed: int) -> str:
    """What becomes of a block: "fused", its codes, or what went WRONG."""
    model = block(seed)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    findings = find_in_module(model, PATTERNS)
    fused = fused_copy(model, findings.found)
    after = model.state_dict()
    if any(not torch.equal(before[k], after[k]) for k in before):
        return "WRONG: changed the model"
    shape = (2, next(c.in_channels for c in model.modules() if isinstance(c, nn.Conv2d)), 23, 18)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bound = rounding(model, image)
    if difference := differ(fused(image), model(image), bound):
        return f"WRONG: {difference}"
    left = sum(isinstance(m, nn.Conv2d) for m in fused.modules())
    if any(certified(fused, found).fault for found in findings.found):
        return "WRONG: not certified"
    if not findings.refused:
        return "fused" if left == 1 else "WRONG: neither fused nor refused"
    if not all(isinstance(refused.code, Reason) and refused.why for refused in findings.refused):
        return "WRONG: no code"
    # What is refused is still what it was, bit by bit.
    if not findings.found and not all(
        torch.equal(a, b) for a, b in zip(after.values(), fused.state_dict().values(), strict=True)
    ):
        return "WRONG: changed what it refused"
    return " ".join(sorted({refused.code.value for refused in findings.refused}))


def measure(forks: Server, scale: float) -> Row:
    """Fuses blocks drawn at random."""
    count = max(int(1200 * scale), 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch pads even kernels by a copy, and says so
        fates = Counter(fate(seed) for seed in range(count))
    wrong = {k: n for k, n in fates.items() if k.startswith("WRONG")}
    refused = count - fates["fused"] - sum(wrong.values())
    codes = {code for found in fates if found not in wrong and found != "fused"
             for code in found.split()}  # fmt: skip
    return Row(
        "generated blocks (kernel, stride, padding, dilation, groups, mode, BN kinds)",
        "at least 400, each certified or refused with a code",
        f"{count:,}: {fates['fused']:,} fused, certified and equal but for rounding, {refused:,} "
        f"with a part refused ({', '.join(sorted(codes))}), {sum(wrong.values())} wrong"
        + (f" {wrong}" if wrong else ""),
        not wrong and fates["fused"] > count / 5 and refused > count / 10,
    )


def test_blocks_are_fused_or_refused(forks):
    row = measure(forks, 0.05)
    assert row.holds, row.measured
