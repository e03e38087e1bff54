"""Samples fused and proved on a device that is not the CPU: `python -m tests.proof.elsewhere NAME`.

It prints what differs from the same on the CPU, as JSON by sample; `--plant` puts a fault in first.
It is run as a process of its own, because a device stays known to torch for as long as one lives.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import acfuse
from acfuse.algebra import LinearConv
from acfuse.algebra import linear_conv as algebra
from acfuse.patterns import PATTERNS
from acfuse.patterns.registry import assumed
from acfuse.pipeline.convert import convert, prove
from acfuse.pipeline.job import Job
from acfuse.pipeline.replay import verify_files
from acfuse.proof import Inputs, Tolerance
from acfuse.proof import evidence as proof_evidence
from acfuse.proof.certificate import rounded
from acfuse.proof.impulses import blank
from acfuse.proof.running import moved_by_rounding
from acfuse.proof.whole import randomize_batchnorm
from acfuse.sources.bare import BareSource
from acfuse.sources.base import FindOptions
from acfuse.sources.live import LiveFused
from acfuse.system import devices
from sample_models import Sample, samples
from tests.system import pretend

HERE = torch.device("cpu")


class Placed(nn.Module):
    """Channels side by side, which become rows of one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.last = nn.Sequential(nn.Conv2d(11, 4, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(torch.cat([self.a(x), self.b(x)], 1)) + x)


class Spread(nn.Module):
    """Transposed branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1)
        self.b = nn.ConvTranspose2d(3, 4, 2, stride=2)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x) + self.b(x))


class Rows(nn.Module):
    """Linear branches, with the norm of each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.a(x)) + self.b(x) + x)


class Shuffled(nn.Module):
    """A 1x1 convolution behind a pixel shuffle, which is done before it for each pixel alike."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(3, 20, 1)
        self.shuffle, self.last = nn.PixelShuffle(2), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.shuffle(self.a(x) + self.b(x))))


class Deciding(nn.Module):
    """A forward that decides by the size of its input: its norm is folded, and it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 == 0:
            x = nn.functional.pad(x, (0, 1))
        return torch.relu(self.norm(self.conv(x)))


def _seeded(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return randomize_batchnorm(kind().eval()).float()

    return build


IMAGES = ((2, 4, 9, 8), (2, 3, 5, 6), (3, 6), (2, 3, 5, 6), (2, 3, 9, 8))
OWN = {
    kind.__name__: Sample(_seeded(kind), (shape,), 1, None, bare=False)
    for kind, shape in zip((Placed, Spread, Rows, Shuffled, Deciding), IMAGES, strict=True)
}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All that a model holds, by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def differences(sample: Sample, device: torch.device) -> list[str]:
    """What is not as it is on the CPU, of a sample that is fused and proved on a device."""
    shape = sample.input_shapes[0]
    inputs = Inputs(((None, shape),))
    here, there = sample.build(), sample.build().to(device)
    folds = sample in OWN.values()
    own, fused = (acfuse.fuse(model, fold_bn=folds) for model in (here, there))
    told: list[str] = []
    if not own.found or [b.where for b in own.found] != [b.where for b in fused.found]:
        return [f"found {[b.where for b in fused.found]}: {[r.why for r in fused.refused]}"]
    expected, given = tensors_of(own.model), tensors_of(fused.model)
    told += [f"{n} is on {t.device}" for n, t in given.items() if t.device.type != device.type]
    told += [f"{n} is another" for n, t in given.items() if not torch.equal(t.cpu(), expected[n])]
    written = fused.network
    told += [f"{n} is written from {t.device}" for n, t in tensors_of(written).items()
             if t.device != HERE]  # fmt: skip
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (t.cpu() for t in (own.model(image), fused.model(image.to(device))))
    told += [] if torch.equal(one, two) else ["its output is another"]
    told += [] if torch.equal(one, written(image)) else ["what is written is another"]
    proofs = [prove(f, inputs, Tolerance(), exhaustive=True) for f in (own, fused)]
    told += [] if proofs[0] == proofs[1] else [f"proved otherwise: {proofs[1]}"]
    check = acfuse.verify(there, fused.model, shape, fold_bn=folds)
    told += [] if check.passed else [f"not verified: {check.fault}"]
    told += random_differences(own, fused, device)
    again = acfuse.load_fused(there, {n: t.cpu() for n, t in fused.model.state_dict().items()})
    told += [f"{n} is loaded to {t.device}" for n, t in tensors_of(again).items()
             if t.device.type != device.type]  # fmt: skip
    wrong = sample.build().to(device)
    wrong.load_state_dict(there.state_dict())
    worse = acfuse.fuse(wrong, fold_bn=folds)
    with torch.no_grad():
        worse.model.get_parameter(f"{worse.found[0].names[0]}.weight").mul_(1 + 2.0**-20)
    seen = not acfuse.verify(there, worse.model, shape, fold_bn=folds).passed
    told += [] if seen else ["a fault is not seen"]
    return [*told, *bare_differences(sample, device)] if sample.bare else told


def random_differences(own: LiveFused, fused: LiveFused, device: torch.device) -> list[str]:
    """What differs where numbers are moved by rounding at random, or are put into the model."""
    numbers = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64)
    one, two = (
        moved_by_rounding(x, torch.float32, torch.Generator().manual_seed(0)).cpu()
        for x in (numbers, numbers.to(device))
    )
    told = [] if torch.equal(one, two) else ["it is moved otherwise"]
    moved = fused.with_weights(fused.weights).model
    told += [f"{n} was put on {t.device}" for n, t in tensors_of(moved).items()
             if t.device != device]  # fmt: skip
    for before, after in zip(own.found, fused.found, strict=True):
        stored = [value for value in own.stored(before) if value is not None]
        if len(stored) == len(before.terms):
            images = blank([value.geometry for value in stored], [9] * len(stored[0].stride), 1)
            one, two = (rounded(b.reference())(*(x + 1 for x in images)) for b in (before, after))
            near = bool(((one - two).abs() <= 2.0**-40 * one.abs().max()).all())
            told += [] if near else [f"{before.where} is off"]
    return told


def bare_differences(sample: Sample, device: torch.device) -> list[str]:
    """The same of its tensors alone: whether these stay on the CPU, or are on the device too."""
    tensors = sample.build().state_dict()
    patterns = assumed(PATTERNS, sample.assume)
    options = FindOptions(patterns, bn_eps=sample.bn_eps)
    sources = [BareSource(tensors, device=place) for place in (None, device)]
    own, fused = (source.fuse(source.find(options)) for source in sources)
    if [b.where for b in own.found] != [b.where for b in fused.found]:
        return [f"found {fused.found}"]
    whole = acfuse.fuse_tensors(
        {n: t.to(device) for n, t in tensors.items()}, bn_eps=sample.bn_eps, patterns=patterns
    )
    made = [term.multiply() for b in fused.found for term in b.terms if term.multiply is not None]
    told = ["it is multiplied elsewhere" for value in made if value.kernel.device != device]
    told += [f"{n} is on {t.device}" for n, t in fused.tensors.items() if t.device != HERE]
    told += [f"{n} is on {t.device}" for n, t in whole.tensors.items() if t.device != device]
    for name, expected in own.tensors.items():
        given = (fused.tensors[name], whole.tensors[name].cpu())
        told += [f"{name} is another" for t in given if not torch.equal(t, expected)]
    proofs = [prove(f, None, Tolerance(), exhaustive=True) for f in (own, fused, whole)]
    return told + [f"proved otherwise: {p}" for p in proofs[1:] if p != proofs[0] or not p.passed]


def converted(folder: Path, device: str) -> dict[str, bytes]:
    """The files that a conversion writes with a network on a device, but for its manifest."""
    job = Job(
        folder / "model.pth",
        model=f"{folder / 'nets.py'}:Net",
        output=folder / device,
        inputs=Inputs(((None, (1, 3, 17, 20)),)),
        device=device,
    )
    job.output.mkdir(exist_ok=True)  # type: ignore[union-attr]
    done = convert(job)
    assert done.proofs.passed
    assert verify_files(job, job.paths.checkpoint).proofs.passed
    return {path.name: path.read_bytes() for path in done.written if path.suffix != ".json"}


def _identity_on_the_cpu() -> None:
    """As if the map that changes nothing were made without asking where."""
    right = algebra.identity

    def identity(channels: int, axes: int = 2, device: Any = None) -> LinearConv:
        return right(channels, axes)

    for module in [m for n, m in sys.modules.items() if n.startswith("acfuse.")]:
        if getattr(module, "identity", None) is right:
            module.identity = identity  # type: ignore[attr-defined]


def _images_on_the_cpu() -> None:
    """As if the images of a trial were left where they were drawn."""
    for module in (devices, proof_evidence):
        module.device_of = lambda _: HERE  # type: ignore[attr-defined]


def _results_stay() -> None:
    """As if what the layers of a block give were compared where it is."""
    Tensor.cpu = lambda self: self  # type: ignore[method-assign]


PLANTS = {
    "identity": _identity_on_the_cpu,
    "images": _images_on_the_cpu,
    "results": _results_stay,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--plant", choices=PLANTS)
    parser.add_argument("--convert", type=Path)
    asked = parser.parse_args()
    pretend.set_up()
    if asked.plant:
        PLANTS[asked.plant]()
    known, found = {**samples(), **OWN}, {}
    for name in asked.names:
        try:
            found[name] = differences(known[name], torch.device(pretend.NAME, 0))
        except Exception as error:
            found[name] = [f"{type(error).__name__}: {error}"]
    if asked.convert:
        here, there = (converted(asked.convert, name) for name in ("cpu", pretend.NAME))
        found["files"] = sorted(here)
        found["different"] = sorted(n for n in here if here[n] != there.get(n))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
