"""A user's folder: a small network's code and its checkpoint."""

import importlib
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.cli import nets

MODEL = ("--model", "nets.py:Net", "--input-shape", "1,3,9,7")
CHECKPOINT = ("--no-onnx", *MODEL)  # the checkpoint and the manifest alone: no export, no wait

Tensors = dict[str, Tensor]


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model in eval mode whose numbers are all drawn: fresh BatchNorms would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and ("bn." in name or name.endswith("bias")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.5, generator=generator)
    return model.eval()


def state(model: nn.Module | None = None) -> Tensors:
    """The state dict of a small network."""
    return trained(nets.Net() if model is None else model).state_dict()


def make_project(folder: Path, checkpoint: Any = None) -> Path:
    """`nets.py` and `model.pth` (a plain state dict where nothing else is given) in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(nets.__file__, folder / "nets.py")
    torch.save(state() if checkpoint is None else checkpoint, folder / "model.pth")
    return folder


def own_module(folder: Path) -> Any:
    """A project's nets.py, imported as its user would: `import nets`, forgotten right after."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("nets")
    finally:
        sys.path.remove(str(folder))


def pickle_whole(folder: Path, build: Callable[[Any], nn.Module], **settings: Any) -> nn.Module:
    """Saves a whole model of a project's own classes as model.pth, and forgets its code."""
    shutil.copy(nets.__file__, folder / "nets.py")
    try:
        model = trained(build(own_module(folder)))
        torch.save(model, folder / "model.pth", **settings)
    finally:
        sys.modules.pop("nets", None)
    return model


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder with its bytes; links with their target, folders with nothing."""
    files: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            files[name] = str(path.readlink())
        elif "__pycache__" not in name:
            files[name] = path.read_bytes() if path.is_file() else ""
    return files


def fused_tensors(folder: Path, name: str = "model.fused.pth") -> Any:
    """What a fused checkpoint holds, loaded the safe way."""
    return torch.load(folder / name, weights_only=True)


def change(path: Path, alter: Callable[[Tensors], object]) -> None:
    """Rewrites the state dict in a file: altered in place, or the dict that `alter` gives."""
    tensors = torch.load(path, weights_only=True)
    other = alter(tensors)
    torch.save(other if isinstance(other, Mapping) else tensors, path)
