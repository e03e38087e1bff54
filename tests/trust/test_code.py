"""Names that a file gives to parts of a program never become code.

torch.fx keeps the forward of a module as code that it writes and compiles, with the names of
layers and of arguments in it as they are. In a `.pt2` program, and in a pickled module, the file
says them.
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acfuse.errors import AcfuseError, InputError, UnsafeError
from acfuse.files import load, pt2_graph, read
from acfuse.files.records import ReadOptions
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from tests.trust.payloads import CANARY

MKDIR = f'getattr(__import__("os"), "makedirs")("{CANARY}", exist_ok=True)'
IMAGE = torch.ones(1, 3, 8, 6)


class Arms(nn.Module):
    """A program with a tensor of its own, and a call with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.w = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.one(x), 0.0) * self.w


@pytest.fixture(scope="module")
def records() -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Arms().eval(), (IMAGE,)), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {i.filename: archive.read(i) for i in archive.infolist()}


Change = Callable[[dict[str, Any]], None]


def written(records: dict[str, bytes], folder: Path, change: Change, **names: str) -> Path:
    """The program with its graph changed, and with other names for some of its tensors."""
    path = folder / "it.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for record, data in records.items():
            if record.endswith(".json"):
                content = json.loads(data)
                if "/models/" in record:
                    change(content["graph_module"])
                data = json.dumps(content).encode()
                for old, new in names.items():
                    data = data.replace(json.dumps(old).encode(), json.dumps(new).encode())
            archive.writestr(record, data)
    return path


def loaded(path: Path) -> nn.Module:
    """The program; it has run once."""
    checkpoint = load(path)
    checkpoint.model(IMAGE)  # type: ignore[union-attr]
    return checkpoint.model  # type: ignore[union-attr]


def keep(graph: dict[str, Any]) -> None:
    """Changes nothing."""


def keyword(name: str) -> Change:
    def change(graph: dict[str, Any]) -> None:
        clamp = graph["graph"]["nodes"][1]
        clamp["inputs"][1] = {**clamp["inputs"][1], "name": name, "kind": 2}

    return change


def target(name: str, *arguments: dict[str, Any]) -> Change:
    def change(graph: dict[str, Any]) -> None:
        node = graph["graph"]["nodes"][1]
        node["target"] = name
        if arguments:
            node["inputs"] = [{"name": "a", "arg": a, "kind": 1} for a in arguments]

    return change


INJECTED = f"max={MKDIR} and None, min"
PATH = f'w"), {MKDIR} and getattr(self, "w'


def test_the_program_itself_is_read(records, tmp_path):
    model = loaded(written(records, tmp_path, keep))
    assert model(IMAGE).shape == (1, 4, 8, 6)
    assert loaded(written(records, tmp_path, keyword("min")))(IMAGE).shape == (1, 4, 8, 6)


@pytest.mark.parametrize(
    "name", [INJECTED, "min=0.0, max", "a b", "", "lambda", "min ", "a\n", 3, None]
)
def test_a_name_of_an_argument_that_would_be_code(records, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeError, match="is no name of an argument"):
        loaded(written(records, tmp_path, keyword(name)))
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("name", [PATH, 'a"', "a\\", "a\nb", "one\x00", 'one."'])
def test_a_name_of_a_tensor_that_would_be_code(records, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeError, match="is no name of a layer"):
        loaded(written(records, tmp_path, keep, w=name))
    assert not (tmp_path / CANARY).exists()


def test_the_names_would_be_code(records, tmp_path, monkeypatch):
    """Without the checks they are alive; otherwise the tests above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pt2_graph, "_is_word", lambda name: True)
    monkeypatch.setattr(pt2_graph, "check_names", lambda names, source: None)
    loaded(written(records, tmp_path, keyword(INJECTED)))
    assert (tmp_path / CANARY).is_dir()
    (tmp_path / CANARY).rmdir()
    with pytest.raises(InputError, match="no attribute 'w'"):  # the first half of the name
        loaded(written(records, tmp_path, keep, w=PATH))


@pytest.mark.parametrize(
    "name",
    ["torch.ops.aten.from_file.default", "torch.ops.aten.__class__.mro", "os.system",
     "builtins.eval",
     "torch.ops.aten.__getattribute__.__call__", "torch.ops.aten.clamp.__class__",
     "torch.ops.aten.set_.source_Tensor", "torch.ops.profiler._record_function_enter_new.default",
     "torch.ops.aten.clamp.default\nimport os", "torch.ops.aten.nothing.default"],
)  # fmt: skip
def test_a_call_of_what_is_no_operator(records, tmp_path, name):
    with pytest.raises(AcfuseError, match=r"it\.pt2"):
        loaded(written(records, tmp_path, target(name)))


def test_a_word_that_is_the_name_of_a_file(records, tmp_path):
    change = target("torch.ops.aten.clamp.default", {"as_string": "/etc/passwd"})
    with pytest.raises(UnsafeError, match="/etc/passwd"):
        loaded(written(records, tmp_path, change))


OWN = """
from torch import nn
class Net(nn.Module):
    def forward(self, x):
        total = 0
        for layer in self.children():
            total = total + layer(x)
        return total
"""
CHILD = f'a")(x), {MKDIR}, getattr(self, "a'


def pickled(folder: Path, name: str) -> Path:
    """A pickled module of a class of the user's, one of whose layers has this name."""
    (folder / "own_net.py").write_text(OWN)
    import own_net

    net = own_net.Net()
    for child in ("a", name):
        net._modules[child] = nn.Conv2d(3, 4, 3, padding=1)
    torch.save(net, folder / "it.pth")
    return folder / "it.pth"


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_net", raising=False)
    return tmp_path


HOW = ReadOptions(allow_classes=("own_net:Net",))


def test_a_pickled_module_with_usual_names_is_read(own):
    checkpoint = load(pickled(own, "b 2/c'"), options=HOW)
    assert len(find_in_module(checkpoint.model, PATTERNS).found) == 1


@pytest.mark.parametrize("name", [CHILD, 'a"', "\\", "a\\"])
def test_a_pickled_module_whose_names_would_be_code(own, name):
    with pytest.raises(UnsafeError, match="is no name of a layer"):
        load(pickled(own, name), options=HOW)
    assert not (own / CANARY).exists()


def test_a_shared_module_by_another_name(own):
    path = pickled(own, "b")
    net = torch.load(path, weights_only=False)
    net._modules[CHILD] = net._modules["b"]
    torch.save(net, path)
    with pytest.raises(UnsafeError, match="is no name of a layer"):
        load(path, options=HOW)


def test_those_names_would_be_code_as_well(own, monkeypatch):
    monkeypatch.setattr(read, "check_names", lambda names, source: None)
    checkpoint = load(pickled(own, CHILD), options=HOW)
    traced = torch.fx.symbolic_trace(checkpoint.model)
    with pytest.raises(TypeError):  # a tuple, made of what was called
        traced(IMAGE)
    assert (own / CANARY).is_dir()


def test_an_odd_input_is_refused(records, tmp_path):
    def change(graph: dict[str, Any]) -> None:
        for spec in graph["signature"]["input_specs"]:
            if "user_input" in spec:
                spec["user_input"]["arg"]["as_tensor"]["name"] = f"x={MKDIR}"

    with pytest.raises(InputError, match="no name of an input"):
        loaded(written(records, tmp_path, change))
