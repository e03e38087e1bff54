"""A small conversion to disturb: two checkpoints of one network, which give different outputs."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from tests.trust.forked import SAMPLES, Server

OUTPUTS = ("model.fused.pth", "model.fused.onnx", "model.fused.acfuse.json")
Files = dict[str, bytes]


def sample(folder: Path, *, seed: int = 0) -> Path:
    """The trained sample and its code in a folder; with another seed, other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*SAMPLES.glob("*.py"), SAMPLES / "acfuse.toml"):
        shutil.copy(file, folder)
    whole = torch.load(SAMPLES / "model.pth", weights_only=True)
    generator = torch.Generator().manual_seed(seed)

    def changed(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor * (1 + 0.1 * torch.rand(tensor.shape, generator=generator))

    if seed:
        (name,) = (key for key, value in whole.items() if isinstance(value, dict))
        whole[name] = {key: changed(tensor) for key, tensor in whole[name].items()}
    torch.save(whole, folder / "model.pth")
    return folder


def converted(forks: Server, folder: Path, *, seed: int, onnx: bool) -> Files:
    """The outputs of a sample, by name. They stay in the folder."""
    sample(folder, seed=seed)
    ended = forks.run("convert", "model.pth", "--force", *flags(onnx), folder=folder)
    assert ended.exit == 0, ended.stderr
    return {name: (folder / name).read_bytes() for name in names(onnx)}


def flags(onnx: bool) -> list[str]:
    return [] if onnx else ["--no-onnx"]


def names(onnx: bool) -> list[str]:
    return [name for name in OUTPUTS if onnx or not name.endswith(".onnx")]


def put(folder: Path, files: Files) -> None:
    """Writes files, and removes what else a run may have left."""
    for path in (*folder.glob(".*"), *folder.glob("model.fused.*")):
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def held(folder: Path) -> Files:
    """The outputs as they are now."""
    return {p.name: p.read_bytes() for p in folder.glob("model.fused.*") if p.is_file()}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*"))
