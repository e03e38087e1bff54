"""Every exit code is reached by what the documentation says it means."""

import importlib

import pytest
import torch

from acfuse.errors import Exit
from tests.cli.command import refused, run, worked
from tests.cli.nets import Net, Plain
from tests.cli.project import CHECKPOINT, MODEL, change, pickle_whole, snapshot, state, trained


def test_the_codes_are_never_renumbered():
    assert {code.name: code.value for code in Exit} == {
        "DONE": 0,
        "NOT_EQUAL": 1,
        "USAGE": 2,
        "BAD_INPUT": 3,
        "UNSAFE": 4,
        "NOTHING": 5,
        "BAD_OUTPUT": 6,
        "BUG": 7,
        "LOST": 8,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }


def test_0_when_all_is_well(fused):
    for command in (["verify"], ["inspect", "model.pth"], ["patterns"]):
        worked(run(*command))


def test_1_when_fused_and_original_differ(fused):
    change(fused / "model.fused.pth", lambda t: t["head.bias"].add_(1))
    result = run("verify")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: not equal: ")


def test_1_when_a_conversion_cannot_be_proved_and_then_nothing_is_written(project):
    before = snapshot(project)
    result = run("convert", "model.pth", *CHECKPOINT, "--atol", "0", "--rtol", "0")
    assert result.exit_code == 1
    assert "nothing was written" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: not equal: rounding")
    assert snapshot(project) == before


def test_1_leaves_the_files_of_an_earlier_conversion_alone(fused):
    before = snapshot(fused)
    result = run("convert", "model.pth", *CHECKPOINT, "--force", "--atol", "0", "--rtol", "0")
    assert result.exit_code == 1
    assert snapshot(fused) == before


def test_2_when_the_command_is_wrong(project):
    assert run("convert").exit_code == 2
    refused(run("verify"), 2, "no manifest", "acfuse convert")
    refused(run("export-onnx"), 2, "no manifest")


def test_2_when_there_are_several_manifests(fused):
    worked(run("convert", "model.pth", "--no-onnx", "--output", "other.pth"))
    names = ("model.fused.acfuse.json", "other.acfuse.json")
    refused(run("verify"), 2, *names)
    refused(run("export-onnx"), 2, *names)


def test_3_when_the_input_cannot_be_used(project):
    refused(run("convert", "nothing.pth"), 3, "nothing.pth does not exist")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 99}', "3"])
def test_3_when_the_manifest_cannot_be_used(fused, text):
    (fused / "model.fused.acfuse.json").write_text(text)
    refused(run("verify"), 3, "model.fused.acfuse.json")


def test_3_when_the_manifest_lacks_something(fused):
    (fused / "model.fused.acfuse.json").write_text('{"schema_version": 1}')
    refused(run("verify"), 3, "model.fused.acfuse.json")


@pytest.mark.parametrize("name", ["model.pth", "model.fused.pth"])
def test_3_when_a_file_of_the_manifest_is_gone(fused, name):
    (fused / name).unlink()
    refused(run("verify"), 3, f"{name} is missing")


def test_1_when_a_file_is_another_one_although_the_numbers_agree(fused):
    tensors = torch.load(fused / "model.fused.pth", weights_only=True)
    torch.save(dict(reversed(tensors.items())), fused / "model.fused.pth")
    refused(run("verify"), 1, "model.fused.pth is not the file that was converted or written")


def test_4_when_reading_would_run_code(project):
    pickle_whole(project, lambda nets: nets.Net())
    refused(run("convert", "model.pth"), 4, "--allow-class nets:Net")
    refused(run("inspect", "model.pth"), 4, "--allow-class nets:Net")


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_5_when_there_is_nothing_to_fuse(project, command):
    torch.save(trained(Plain()).state_dict(), "model.pth")
    before = snapshot(project)
    assert run(command, "model.pth").exit_code == 5
    assert run(command, "model.pth", "--model", "nets.py:Plain").exit_code in (2, 5)
    assert snapshot(project) == before


def test_5_when_the_file_is_fused_already(fused):
    refused(run("convert", "model.fused.pth"), 5, "nothing to fuse")


def test_5_says_why_the_first_candidate_was_refused(project):
    model = Net(statistics=False)
    model.second = torch.nn.Conv2d(4, 6, 1)
    tensors = {k: v for k, v in trained(model).state_dict().items() if "second" not in k}
    torch.save(tensors, "model.pth")
    refused(run("convert", "model.pth"), 5, "first: ", "running statistics", "acfuse inspect")


def test_0_instead_of_5_when_it_was_allowed(project):
    torch.save(trained(Plain()).state_dict(), "model.pth")
    shape = ("--model", "nets.py:Plain", "--input-shape", "1,3,9,7")
    worked(run("convert", "model.pth", "--no-onnx", "--allow-empty", *shape))
    before = torch.load("model.pth", weights_only=True)
    after = torch.load("model.fused.pth", weights_only=True)
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_6_when_the_output_cannot_be_written(fused):
    refused(run("convert", "model.pth"), 6, "model.fused.pth exists", "--force")


def test_7_when_it_is_our_own_mistake(project, monkeypatch):
    def broken(*_):
        raise RuntimeError("impossible")

    monkeypatch.setattr(importlib.import_module("acfuse.pipeline.convert"), "find", broken)
    before = snapshot(project)
    result = run("convert", "model.pth")
    assert (result.exit_code, result.stdout) == (7, "")
    assert "RuntimeError: impossible" in result.stderr
    assert "bug of acfuse" in result.stderr.splitlines()[-1]
    assert snapshot(project) == before


def test_the_exit_code_of_a_mistake_does_not_depend_on_the_format(project):
    for format_ in ("text", "json"):
        assert run("convert", "nothing.pth", "--format", format_).exit_code == 3
        assert run("convert", "model.pth", *MODEL[:2], "--format", format_).exit_code == 2


def test_state_is_not_shared_between_runs_in_one_process(project):
    assert list(state()) == list(state())
    assert run("convert", "nothing.pth").exit_code == 3
    worked(run("inspect", "model.pth"))


LONG = 5000 * "n"


@pytest.mark.parametrize(
    "line",
    ["convert {}", "inspect {}", "diff {} model.pth", "diff model.pth {}", "explain {} x",
     "init {}", "verify {} model.pth", "verify net.onnx --from {}", "report {} -o x.html",
     "bench {} model.pth", "convert model.pth -o {}", "convert model.pth --report {}.md",
     "inspect model.pth --patterns {}",
     "inspect model.pth --cost {}", "inspect model.pth --model {}.py:Net",
     "inspect model.pth --output-file {}", "inspect model.pth --log-file {}",
     "convert model.pth --inputs {}"],
)  # fmt: skip
def test_a_name_that_is_too_long_for_a_file_is_no_bug(project, line):
    result = run(*line.format(LONG).split())
    assert result.exit_code in (2, 3, 6)
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr
