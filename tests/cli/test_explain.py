"""`acfuse explain`: a code, or one block step by step."""

import pytest
import torch

from acfuse.codes import CODES, REASONS
from acfuse.errors import Reason
from tests.cli.command import refused, run, worked
from tests.cli.project import MODEL

NET = MODEL[:2]


def test_without_an_argument_every_code_is_listed():
    listed = worked(run("explain")).stdout
    for code in CODES:
        assert f"{code.name} " in listed
        assert code.title in listed
    assert all(len(line) <= 80 for line in listed.splitlines())
    rows = worked(run("explain", "--format", "json")).json
    assert [row["code"] for row in rows] == [code.name for code in CODES]


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_a_code_is_explained_under_each_of_its_names(code):
    told = worked(run("explain", code.name)).stdout
    assert told.startswith(f"{code.name}  {code.title}\n")
    for name in (code.name.lower(), code.code.name, *code.aliases):
        assert worked(run("explain", name)).stdout == told
    row = worked(run("explain", code.name, "--format", "json")).json
    assert (row["code"], row["example"]) == (code.name, code.example)
    flat = " ".join(told.split())
    assert " ".join(code.meaning.split()) in flat
    assert " ".join(code.cure.split()) in flat


@pytest.mark.parametrize(
    ("given", "near"), [("ACF299", "ACF2"), ("strdes", "ACF201"), ("exit-13", "exit-130")]
)
def test_of_an_unknown_code_those_near_are_named(given, near):
    refused(run("explain", given), 2, "there is no code", near)


def test_of_a_file_alone_the_block_is_asked_for(project):
    refused(run("explain", "model.pth"), 2, "acfuse inspect model.pth")


def test_a_block_is_walked_through(project):
    (block, *_) = worked(run("inspect", "model.pth", *NET, "--format", "json")).json["found"]
    told = worked(run("explain", "model.pth", block["where"], *NET)).stdout
    lines = told.splitlines()
    assert lines[0].startswith(block["where"])
    assert "###" in told
    assert any(line.startswith("result  ") for line in lines)
    assert any(line.startswith("proof   for all inputs: every weight within") for line in lines)
    walk = worked(run("explain", "model.pth", block["where"], *NET, "--format", "json")).json
    assert walk["certificate"]["fault"] == ""
    assert walk["convolutions"][0] == len(
        [row for arm in walk["arms"] for row in arm["layers"] if "convolution" in row["what"]]
    )


def test_a_block_of_bare_tensors_is_walked_through_as_well(project):
    walk = worked(run("explain", "model.pth", "first", "--format", "json"))
    assert walk.json["arms"]


def test_of_a_refused_block_the_reason_and_the_cure_are_told(project):
    code = next(code for code in REASONS if code.code == Reason.ACTIVATION)
    (project / "mixed.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Mixed(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)\n\n"
        "    def forward(self, x):\n"
        "        return torch.relu(self.a(x)) + self.b(x)\n"
    )
    conv = torch.nn.Conv2d(3, 3, 1).state_dict()
    torch.save({f"{n}.{k}": t for n in "ab" for k, t in conv.items()}, project / "mixed.pth")
    mixed = ("explain", "mixed.pth", "the model", "--model", "mixed.py:Mixed")
    told = worked(run(*mixed)).stdout
    assert "the model's own forward at add stays as it is" in told
    assert f"[{code.name}]" in told
    assert " ".join(code.cure.split()) in " ".join(told.split())
    (row,) = worked(run(*mixed, "--format", "json")).json["refused"]
    assert (row["code"], row["cure"]) == (code.name, code.cure)


def test_of_an_unknown_block_those_near_are_named(project):
    (block, *_) = worked(run("inspect", "model.pth", *NET, "--format", "json")).json["found"]
    wrong = run("explain", "model.pth", block["where"] + "x", *NET)
    refused(wrong, 2, "there is no block", block["where"])


def test_hostile_names_stay_text(project):
    result = run("explain", "model.pth", "\x1b[31m::error::", *NET)
    refused(result, 2, "there is no block")
    assert "\x1b" not in result.stderr
