"""`--allow-package`: the classes of an installed package that do nothing when they are made."""

import datetime
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from acfuse.errors import UnsafeError, UsageError
from acfuse.files.package_classes import own_class
from acfuse.files.read import read_tensors
from acfuse.files.records import ReadOptions
from tests.graph.fusing import same_bits

CODE = """
import enum, os, subprocess, types
from os import system
from subprocess import Popen
import torch
from torch import fx, nn

class Arms(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.a(x) + self.b(x)

class Settings(types.SimpleNamespace):
    def __iter__(self):
        return iter(vars(self).items())

    def __getattr__(self, name):
        raise AttributeError(name)

class Plain:
    size = 3

class Filled(nn.Module):
    def __setstate__(self, state):
        os.mkdir(state["place"])

class FilledAbove(Filled):
    pass

class Made(nn.Module):
    def __new__(cls, *args):
        return super().__new__(cls)

class Attributes(nn.Module):
    def __setattr__(self, name, value):
        super().__setattr__(name, value)

class Ended(nn.Module):
    def __del__(self):
        pass

class Begun(Plain):
    def __init__(self):
        os.mkdir("begun")

class Answering:
    def __getattr__(self, name):
        return os.mkdir

class Slots:
    __slots__ = ("a",)

class Colour(enum.Enum):
    RED = 1

class Words(dict):
    pass

class Process(subprocess.Popen):
    pass

class Graph(fx.GraphModule):
    pass

class Function(torch.autograd.Function):
    pass

def network():
    return Arms()

Conv = nn.Conv2d
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package that is installed for one test; its module of networks."""
    installed = tmp_path / "site-packages"
    (installed / "stranger").mkdir(parents=True)
    (installed / "stranger" / "__init__.py").touch()
    (installed / "stranger" / "nets.py").write_text(CODE)
    (installed / "stranger" / "__main__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("stranger.nets")
    for name in [n for n in sys.modules if n.partition(".")[0] == "stranger"]:
        del sys.modules[name]


def test_a_training_run_of_a_package_is_read_as_its_message_says(package, tmp_path):
    model, file = package.Arms().half(), tmp_path / "run.pt"
    model.settings = package.Settings(box=7.5)
    date = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    beside = {"epoch": -1, "ema": None, "train_args": {"task": "detect"}, "date": date}
    torch.save({**beside, "model": model}, file)
    with pytest.raises(UnsafeError) as refused:
        read_tensors(file)
    flags = re.findall(r"--(allow-\w+) (\S+?)[;,.]? ", str(refused.value))
    assert flags == [("allow-package", "stranger")]
    container, tensors = read_tensors(file, ReadOptions(allow_classes=("stranger:*",)))
    assert container.kind == "module"
    assert container.path == ("model",)
    assert dict(container.whole["model"].settings) == {"box": 7.5}
    expected = model.state_dict()
    assert [*tensors] == [*expected]
    assert all(same_bits(tensors[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["Arms", "Settings", "Plain"])
def test_what_is_only_its_attributes_is_allowed(package, name):
    assert own_class("stranger.nets", f"stranger.nets.{name}") is getattr(package, name)


@pytest.mark.parametrize(
    "name",
    ["Filled", "FilledAbove", "Made", "Attributes", "Ended", "Begun", "Answering", "Slots",
     "Colour", "Words", "Process", "Graph", "Function",  # they may act when they are made
     "network", "system", "Popen", "os", "Conv", "nn", "none"],
)  # fmt: skip
def test_what_may_act_and_what_is_not_the_packages_own_is_refused(package, name, tmp_path):
    with pytest.raises(UnsafeError, match=rf"--allow-package stranger: stranger\.nets\.{name} "):
        own_class("stranger.nets", f"stranger.nets.{name}")
    assert not (tmp_path / "begun").exists()


def test_a_module_that_is_a_program_is_not_imported(package):
    with pytest.raises(UnsafeError, match="no module that a class comes from"):
        own_class("stranger.__main__", "stranger.__main__.Net")


def test_a_file_that_fills_a_class_in_its_own_way_makes_nothing(package, tmp_path):
    model = package.Filled()
    model.place = str(tmp_path / "made")
    torch.save({"model": model}, tmp_path / "run.pt")
    with pytest.raises(UnsafeError, match="may act when it is made"):
        read_tensors(tmp_path / "run.pt", ReadOptions(allow_classes=("stranger:*",)))
    assert not (tmp_path / "made").exists()


def test_a_package_allows_no_other(package, tmp_path):
    torch.save({"model": package.Arms()}, tmp_path / "run.pt")
    with pytest.raises(UnsafeError, match="add --allow-package stranger"):
        read_tensors(tmp_path / "run.pt", ReadOptions(allow_classes=("pytest:*",)))


@pytest.mark.parametrize("name", ["os", "builtins", "torch", "numpy", "acfuse", "a.b", "", "a b"])
def test_a_package_that_is_none_is_refused(package, tmp_path, name):
    torch.save({"model": package.Arms()}, tmp_path / "run.pt")
    with pytest.raises(UsageError, match="expected the name of an installed package"):
        read_tensors(tmp_path / "run.pt", ReadOptions(allow_classes=(f"{name}:*",)))
