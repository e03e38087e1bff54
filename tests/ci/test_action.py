"""The steps of action.yml, run as a runner would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from acfuse.commands.action import arguments_of
from tests.cli.project import MODEL, make_project

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


class Done:
    """What a step did: its exit code, what it printed, its outputs and its summary."""

    def __init__(self, folder: Path, **given: str) -> None:
        (step,) = (s for s in ACTION["runs"]["steps"] if s.get("id") == "acfuse")
        inputs = {name: spec.get("default", "") for name, spec in ACTION["inputs"].items()}
        unknown = given.keys() - {name.replace("-", "_") for name in inputs}
        assert not unknown
        inputs |= {name.replace("_", "-"): value for name, value in given.items()}

        def filled(text: str) -> str:
            return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs[m[1]], text)

        output, summary = folder / ".output", folder / ".summary"
        for file in (output, summary):
            file.write_text("")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("ACFUSE_")},
            **{name: filled(value) for name, value in step["env"].items()},
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
        }
        run = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=folder / filled(step["working-directory"]),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = output.read_text().splitlines()
        self.code, self.printed, self.stderr = run.returncode, run.stdout, run.stderr
        self.outputs = dict(line.split("=", 1) for line in lines)
        self.summary = summary.read_text()


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_project(tmp_path / "project")


CODE = {"model": MODEL[1], "input_shape": MODEL[3], "options": "--no-onnx\n--force"}


def test_no_input_is_part_of_a_script():
    """An input in a script would be run by the shell."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
    (step,) = (s for s in ACTION["runs"]["steps"] if s.get("id") == "acfuse")
    given = " ".join([*step["env"].values(), step["working-directory"]])
    used = set(re.findall(r"inputs\.([\w-]+)", given))
    assert used == ACTION["inputs"].keys() - {"install", "torch-index"}


def test_it_converts_and_verifies(folder):
    made = Done(folder, command="convert", checkpoint="model.pth", **CODE)
    assert (made.code, made.stderr) == (0, "")
    assert made.outputs["verified"] == "true"
    assert made.outputs["fused-blocks"] == "2"
    assert 0 <= float(made.outputs["max-abs"]) < 1e-3
    assert made.outputs["manifest"] == "model.fused.acfuse.json"
    assert "**Equal&#58; " in made.summary
    assert "convolutions" in made.summary
    again = Done(folder)
    assert (again.code, again.outputs["verified"]) == (0, "true")
    assert set(again.outputs) == ACTION["outputs"].keys()


def test_a_wrong_weight_fails_with_an_annotation(folder):
    Done(folder, command="convert", checkpoint="model.pth", **CODE)
    tensors = torch.load(folder / "model.fused.pth", weights_only=True)
    next(t for k, t in tensors.items() if k.endswith("fused_conv.bias"))[0] += 0.5
    torch.save(tensors, folder / "model.fused.pth")
    done = Done(folder)
    assert done.code == 1
    assert done.outputs["verified"] == "false"
    assert done.printed.startswith("::error title=acfuse (exit 1)::")
    assert "**Not equal&#58; " in done.summary


class Evil:
    def __reduce__(self):
        return os.system, ("touch canary",)


def unsafe(path: Path) -> None:
    torch.save({"conv.weight": Evil()}, path)


def nothing(path: Path) -> None:
    torch.save({"conv.weight": torch.randn(2, 3, 3, 3)}, path)


WRONG = {3: lambda path: path.unlink(), 4: unsafe, 5: nothing}


@pytest.mark.parametrize("code", WRONG)
def test_each_failure_has_its_exit_code(code, folder):
    WRONG[code](folder / "model.pth")
    done = Done(folder, command="convert", checkpoint="model.pth")
    assert done.code == code
    assert done.outputs["verified"] == "false"
    assert done.printed.startswith(f"::error title=acfuse (exit {code})::")
    assert not (folder / "canary").exists()


HOSTILE = ["$(touch canary)", "`touch canary`", "; touch canary", "a'b\"c", "::error::x", "%0Ax"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_given_is_text(text, folder):
    done = Done(folder, command="convert", checkpoint=f"{text}.pth")
    assert done.code == 3
    assert not (folder / "canary").exists()
    assert len(done.printed.strip().splitlines()) == 1
    assert done.printed.count("::") == 2 + done.printed.count("::error::x.pth")


def test_a_command_is_one_of_two():
    for given in ({"COMMAND": "batch"}, {"OPTIONS": "rm -rf /"}, {"CHECKPOINT": "-n"}):
        with pytest.raises(ValueError, match=r"expected|hyphen"):
            arguments_of({f"ACTION_{name}": value for name, value in given.items()})


def test_a_wrong_input_is_an_annotation(folder):
    done = Done(folder, command="remove")
    assert done.code == 2
    assert done.printed.startswith("::error title=acfuse::command is 'remove'")
