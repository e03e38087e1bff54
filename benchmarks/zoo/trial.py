"""One network, tried: `python -m benchmarks.zoo.trial TITLE FILE` writes what came of it as JSON.

Whether a fused network is equal is decided here a second time, with a comparison that is not
acfuse's: a float64 copy is fused and run beside the original in float64, where hardly anything
rounds; and what the float32 network stores must be that copy's numbers, rounded.
"""

import copy
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import acfuse
from benchmarks.zoo.models import MODELS, Model

Run = Callable[[nn.Module], list[Tensor]]
EXACT = 1e-8  # of the largest: float64 outputs, through every layer of a deep network
FACTOR = 100  # the same: so many times what one rounding of the original's float64 numbers costs
STORED = 2**-23  # of a tensor's largest: float32 numbers beside those in float64
FAULT = 1e-4
PROCESSOR_SECONDS = 300  # of one model; a busy machine takes longer


def trial(model: Model) -> dict[str, Any]:
    """What is found, what acfuse's verdict is, and what stands against it."""
    original = model.build()
    present, before = model.branched(original), convolutions(original)
    began = time.process_time()
    fused = acfuse.fuse(original, fold_bn=model.fold_bn)
    taken = time.process_time() - began
    replaced = [f"{b.where}.{name}".strip(".") for b in fused.findings.blocks for name in b.layers]
    replaced += [b.where for b in fused.findings.blocks]
    found = [p for p in present if any(f"{name}.".startswith(f"{p}.") for name in replaced)]
    row: dict[str, Any] = {
        "present": len(present),
        "found": len(found),
        "missed": [path for path in present if path not in found][:5],
        "blocks": len(fused.findings.blocks),
        "folds": len(fused.findings.found) - len(fused.findings.blocks),
        "refused": dict(Counter(r.code.value for r in fused.refused)),
        "reasons": sorted({f"{r.code.value}: {r.why}" for r in fused.refused})[:5],
        "before": before,
        "after": convolutions(fused.model),
        "own": own_count(model, original),
        "fuse_seconds": taken,
    }
    began = time.process_time()
    proofs = verdict(model, original, fused.model)
    row["verify_seconds"] = time.process_time() - began
    row["equal"] = proofs.passed
    row["fault"] = proofs.fault or ""
    row["checks"] = {c.name: [c.passed, c.error, c.compared] for c in proofs.checks}
    row["warnings"] = [c.warning for c in proofs.checks if c.warning]
    row["independent"] = independent(model, original, fused.model)
    row["planted"] = {
        name: not passes_with(plant, model, original, fused.model)
        for name, plant in faults(fused, fused.model).items()
    }
    row["seconds"] = time.process_time()
    return row


def convolutions(model: nn.Module) -> int:
    """How many convolutions a network has."""
    return sum(isinstance(m, _ConvNd) for m in model.modules())


def own_count(model: Model, original: nn.Module) -> int | None:
    """How many the package's own converter leaves. -1: it fails."""
    try:
        converted = model.converted(copy.deepcopy(original))
    except Exception as error:
        print(f"{model.title}: its own converter fails: {error!r}", file=sys.stderr)
        return -1
    return None if converted is None else convolutions(converted)


def verdict(model: Model, original: nn.Module, fused: nn.Module) -> Any:
    """What `acfuse.verify` proves."""
    return acfuse.verify(original, fused, *model.shapes, fold_bn=model.fold_bn)


def independent(model: Model, original: nn.Module, fused: nn.Module) -> dict[str, Any]:
    """Whether the networks are equal, by other means. See the head of this file."""
    exact = copy.deepcopy(original).double()
    twin = acfuse.fuse(exact, fold_bn=model.fold_bn).model
    images = images_of(model)
    truth = outputs(exact, images)
    error = apart(truth, outputs(twin, images))
    noise = apart(truth, outputs(jittered(exact), images))
    stored = rounding(twin.state_dict(), fused.state_dict())
    equal = error <= max(EXACT, FACTOR * noise) and stored <= STORED
    ships = apart(truth, outputs(copy.deepcopy(fused).double(), images))
    return {"equal": equal, "error": error, "noise": noise, "stored": stored, "ships": ships,
            "outputs": sum(t.numel() for t in truth)}  # fmt: skip


def images_of(model: Model) -> list[Tensor]:
    """Random images in float64."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(s, dtype=torch.float64, generator=generator) for s in model.shapes]


def outputs(model: nn.Module, images: Sequence[Tensor]) -> list[Tensor]:
    """Every tensor that a network gives back."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # for what forwards make themselves
    try:
        with torch.no_grad():
            return list(tensors(copy.deepcopy(model)(*images)))
    finally:
        torch.set_default_dtype(default)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a result, in order."""
    if isinstance(value, Tensor):
        yield value.to(torch.float64)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)
    elif is_dataclass(value):
        for part in fields(value):
            yield from tensors(getattr(value, part.name))


def apart(expected: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    """The largest difference of two results, each tensor measured by its own largest element."""
    if [t.shape for t in expected] != [t.shape for t in given]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, given, strict=True):
        if a.numel() and not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        difference = (a - b)[a.isfinite()].abs()
        if difference.numel() and bool(difference.any()):
            worst = max(worst, float(difference.max() / a[a.isfinite()].abs().max()))
    return worst


def jittered(model: nn.Module) -> nn.Module:
    """A copy, each number of which is off by one rounding of float64."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in (*moved.parameters(), *moved.buffers()):
            if tensor.is_floating_point():
                signs = torch.randint(0, 2, tensor.shape, generator=generator).double() * 2 - 1
                tensor.mul_(1 + signs * torch.finfo(torch.float64).eps)
    return moved


def rounding(exact: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> float:
    """How far stored numbers are from exact ones, of each tensor's largest."""
    if list(exact) != list(stored):
        return float("inf")
    pairs = [(exact[k].double(), stored[k].double()) for k in exact]
    return apart([a for a, _ in pairs], [b for _, b in pairs])


Plant = tuple[Tensor, int, float]  # a tensor, the place in it, and the new number


def faults(fused: Any, model: nn.Module) -> dict[str, Plant]:
    """A fused weight a little too large, and a change of what was not fused."""
    names = [name for block in fused.found for name in block.names]
    layers = dict(model.named_modules(remove_duplicate=False))
    there = [layers[name].weight for name in names if hasattr(layers.get(name), "weight")]
    own = {id(p) for name in names if name in layers for p in layers[name].parameters()}
    others = [p for p in model.parameters() if id(p) not in own and p.is_floating_point()]
    planted: dict[str, Plant] = {}
    if there:
        weight = there[len(there) // 2]
        place = int(weight.abs().argmax())
        planted["fused"] = (weight, place, float(weight.flatten()[place]) * (1 + FAULT))
    if others:
        other = others[len(others) // 2]
        place = other.numel() // 2
        planted["untouched"] = (other, place, float(other.flatten()[place]) + FAULT)
    return planted


def passes_with(plant: Plant, model: Model, original: nn.Module, fused: nn.Module) -> bool:
    """Whether acfuse passes a network with a fault in it, without an input and so any outputs."""
    with planted(*plant):
        return acfuse.verify(original, fused, fold_bn=model.fold_bn).passed


@contextmanager
def planted(tensor: Tensor, place: int, value: float) -> Iterator[None]:
    """One number of a tensor is another one. The memory that others may share stays as it is."""
    before = tensor.data
    changed = before.clone()
    changed.view(-1)[place] = value
    assert not torch.equal(before, changed)
    tensor.data = changed
    try:
        yield
    finally:
        tensor.data = before


def main(title: str, path: str) -> None:
    """Tries one model."""
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    torch.set_num_threads(1)
    model = next(m for m in MODELS if m.title == title)
    Path(path).write_text(json.dumps(trial(model)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
