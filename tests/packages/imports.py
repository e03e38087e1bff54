"""Imports packages for their networks, and leaves everything else as it was."""

import importlib
import importlib.abc
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.library import Library

UNUSED = (
    "anyascii",
    "cv2",
    "h5py",
    "langdetect",
    "matplotlib",
    "pyclipper",
    "pypdfium2",
    "rapidfuzz",
    "shapely",
    "validators",
)
"""What the packages read images and texts with. No network needs it, and most of it is large."""


class MissingPackage(Exception):
    """Something of tests/packages/requirements.txt is not installed."""


class _StandIn(ModuleType):
    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives what is not installed, and not used either, as an empty module."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        unused = name.partition(".")[0] in UNUSED
        return ModuleSpec(name, self, is_package=True) if unused else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def undisturbed() -> Iterator[None]:
    """Takes back what importing a package, or calling it, does to the rest of the process."""
    finder, printing, save = _StandIns(), torch._tensor_str.PRINT_OPTS, torch.save
    shown = {k: getattr(printing, k) for k in ("precision", "threshold", "edgeitems", "linewidth")}
    with (
        tempfile.TemporaryDirectory() as settings,
        mock.patch.dict(os.environ, HF_HUB_OFFLINE="1", YOLO_OFFLINE="1", YOLO_CONFIG_DIR=settings),
        np.printoptions(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        sys.meta_path.append(finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)
            for name in [n for n, m in sys.modules.items() if isinstance(m, _StandIn)]:
                del sys.modules[name]
            torch.set_printoptions(**shown, sci_mode=printing.sci_mode)
            torch.save = save


def imported(name: str) -> Any:
    """A module of a package. Raises MissingPackage if the package is not installed."""
    with undisturbed():
        try:
            _import_torchvision()
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise MissingPackage(f"{error.name} is not installed") from error


_operators: list[Library] = []  # what is declared lives as long as its library


def _import_torchvision() -> None:
    """Imports torchvision, even where its operators are compiled for another build of torch.

    Its Python part describes each operator, and fails where there is none. None is run here.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        place = importlib.util.find_spec("torchvision")
        assert place is not None
        assert place.origin is not None
        described = (Path(place.origin).parent / "_meta_registrations.py").read_text()
        names = re.findall(r'register_(?:meta\("|fake\("torchvision::)(\w+)"', described)
        library = Library("torchvision", "DEF")
        for operator in sorted({"nms", *names}):
            library.define(f"{operator}(Tensor image) -> Tensor")
        _operators.append(library)
        for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        importlib.import_module("torchvision")
