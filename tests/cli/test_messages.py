"""Messages say what was really found: the cause, the place, the number."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import acfuse
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.proof import Inputs, Proofs, Tolerance
from acfuse.proof.exported import compared
from acfuse.proof.original import Original
from acfuse.report import _costs
from tests.cli import nets
from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, make_project, state, trained
from tests.graph.fusing import Net, norm


def _project(tmp_path, monkeypatch, name):
    make_project(tmp_path, state(getattr(nets, name)()))
    monkeypatch.chdir(tmp_path)


def _convert(name, *options, shape="1,3,19,17"):
    given = ("--model", f"nets.py:{name}", "--input-shape", shape, "--no-onnx")
    return run("convert", "model.pth", *given, *options)


def test_folds_are_counted_beside_blocks(tmp_path, monkeypatch):
    _project(tmp_path, monkeypatch, "Lone")
    result = worked(_convert("Lone", "--fold-bn"))
    assert "fused   2 folds: convolutions 2 -> 2" in result.stdout
    assert "0 blocks" not in result.stdout


def test_blocks_and_folds_are_counted_apart(tmp_path, monkeypatch):
    _project(tmp_path, monkeypatch, "WithNorms")
    assert "fused   1 block and 2 folds:" in worked(_convert("WithNorms", "--fold-bn")).stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_device_that_is_not_here_is_no_question_of_the_shape(tmp_path, monkeypatch):
    _project(tmp_path, monkeypatch, "OnCuda")
    result = _convert("OnCuda", "--allow-empty")
    refused(result, 3, "device")
    assert "--input-shape" not in result.stderr


@pytest.mark.parametrize("in_package", [True, False])
def test_relative_imports_are_told_how_the_file_is_named(tmp_path, monkeypatch, in_package):
    _project(tmp_path, monkeypatch, "Net")
    package = tmp_path / "models"
    package.mkdir()
    if in_package:
        (package / "__init__.py").touch()
    (tmp_path / "nets.py").rename(package / "blocks.py")
    (package / "own.py").write_text("from .blocks import Net\n")
    result = run("convert", "model.pth", "--model", "models/own.py:Net", *CHECKPOINT[3:])
    refused(result, 3, "models.own:Net")
    given = ("--no-onnx", "--model", "models.own:Net", *CHECKPOINT[3:])
    assert worked(run("convert", "model.pth", *given))


def test_what_only_costs_more_is_one_line(tmp_path, monkeypatch):
    _project(tmp_path, monkeypatch, "Dear")
    given = ("--model", "nets.py:Dear", "--input-shape", "1,3,49,47")
    lines = [x for x in worked(run("inspect", "model.pth", *given)).stdout.splitlines()
             if x.startswith("refused")]  # fmt: skip
    assert len(lines) == 1
    assert "3 places because of the cost alone" in lines[0]


def test_the_worst_block_is_named():
    model = trained(nets.Net())
    fused = acfuse.fuse(model)
    (good, other) = acfuse.verify(model, fused.model, (1, 3, 9, 7)).certificates
    bad = replace(good, fault="off", error=1e-3)
    worse = replace(other, fault="off", error=2.0)
    proofs = Proofs((bad, worse))
    assert proofs.worst == 1
    assert proofs.fault.startswith(f"{other.where}: ")
    assert "worst of 2" in proofs.fault
    assert Proofs((good, bad)).worst == 1
    assert Proofs((good, other)).worst is None
    assert Proofs((replace(bad, error=float("nan")), worse)).worst == 0


def test_another_number_of_outputs_is_told_as_that():
    model = trained(nets.Net())

    def answer(given):
        with torch.no_grad():
            return [*[model(given["x"].float())] * 2]

    inputs = Inputs(((None, (1, 3, 9, 7)),))
    check = compared("onnx", "onnxruntime", [answer], Original(model, inputs), Tolerance(), "none")
    assert not check.passed
    assert "gives 2 outputs, not 1" in check.detail


def test_a_norm_alone_tells_how_many_axes_its_images_have():
    model = Net(lambda m, x: m.n(x) + m.p(x) * m.g, n=norm(), p=nn.AvgPool2d(3, 1, 1),
                g=nn.Parameter(torch.rand(4, 1, 1)))  # fmt: skip
    findings = find_in_module(model.eval(), PATTERNS)
    said = " ".join(r.why for r in findings.refused)
    assert "nothing tells" not in said
    assert "one per channel" not in said


def test_what_is_refused_twice_in_one_forward_is_one_line_with_its_places(tmp_path, monkeypatch):
    from acfuse.errors import Reason
    from acfuse.findings import Findings, Refused
    from acfuse.report import _refused

    same = [Refused("a", Reason.INPUTS, "why", None, value) for value in ("add", "add_1")]
    assert _refused(Findings((), tuple(same))) == [
        f"refused a at add, add_1: why [{Reason.INPUTS}]"
    ]
    other = Refused("b", Reason.INPUTS, "why", None, "add")
    assert len(_refused(Findings((), (*same, other)))) == 2


def test_what_blocks_of_one_row_cost_is_told_from_the_least_to_the_most():
    assert _costs([(528, 432), (10368, 9216), (2624, 2304)]) == "528 to 10,368 -> 432 to 9,216"
    assert _costs([(984, 576), (984, 576)]) == "984 -> 576"
    assert _costs([(0, 576), (0, 1152)]) == "576 to 1,152"  # of a file without its code


def test_a_tolerance_is_advised_where_outputs_are_compared(project):
    bare = worked(run("convert", "model.pth")).stdout
    assert "\nnext    acfuse verify   proves" in bare
    whole = worked(run("convert", "model.pth", "--force", *CHECKPOINT)).stdout
    assert "\nnext    acfuse verify --atol 1e-4   proves" in whole
