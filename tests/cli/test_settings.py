"""Where settings come from: a flag, then ACFUSE_*, then the configuration, then the default."""

import tomllib
from pathlib import Path

import pytest
import torch

from tests.cli.command import refused, run, worked
from tests.cli.nets import Net, TwoInputs
from tests.cli.project import CHECKPOINT, MODEL, make_project, snapshot, state, trained

DRY = ("convert", "model.pth", "--dry-run", "--no-onnx", "--format", "json")


def settings(*arguments, env=None):
    """Model, shape and seed of a conversion, as it reports them."""
    result = worked(run(*DRY, *arguments, env=env))
    inputs = result.json["inputs"]
    return result.json["model"], inputs["shapes"][0][1], inputs["seed"]


TOML = 'model = "nets.py:Net"\ninput-shape = "1,3,9,7"\nseed = 4\n'


@pytest.fixture(params=["acfuse.toml", "pyproject.toml"])
def configured(request, project):
    """A project with a configuration, in each of its two places."""
    table = "[project]\nname = 'x'\n\n[tool.acfuse]\n" if request.param == "pyproject.toml" else ""
    (project / request.param).write_text(table + TOML)
    return project


def test_the_configuration_of_the_folder_is_used(configured):
    assert settings() == ("nets.py:Net", [1, 3, 9, 7], 4)


def test_a_variable_beats_the_configuration(configured):
    assert settings(env={"ACFUSE_SEED": "5"})[2] == 5
    shape = settings(env={"ACFUSE_INPUT_SHAPE": "1,3,6,5"})[1]
    assert shape == [1, 3, 6, 5]


def test_a_flag_beats_the_variable(configured):
    assert settings("--seed", "6", env={"ACFUSE_SEED": "5"})[2] == 6
    shape = settings("--input-shape", "1,3,5,5", env={"ACFUSE_INPUT_SHAPE": "1,3,6,5"})[1]
    assert shape == [1, 3, 5, 5]


def test_the_default_comes_last(project):
    assert settings(*MODEL)[2] == 0


def test_underscores_do_as_well_as_hyphens_and_a_list_as_well_as_one(project):
    Path("acfuse.toml").write_text('model = "nets.py:Net"\ninput_shape = ["1x3x9x7"]\n')
    assert settings() == ("nets.py:Net", [1, 3, 9, 7], 0)


def test_a_shape_may_be_a_list_of_numbers(project):
    Path("acfuse.toml").write_text('model = "nets.py:Net"\ninput-shape = [1, 3, 9, 7]\n')
    assert settings() == ("nets.py:Net", [1, 3, 9, 7], 0)


def test_arguments_of_the_model_may_be_a_table(project):
    make_project(project, state(Net(outputs=5)))
    Path("acfuse.toml").write_text(TOML + "[model-args]\noutputs = 5\n")
    assert settings()[0] == "nets.py:Net"


def test_acfuse_toml_stands_before_pyproject_toml(project):
    Path("acfuse.toml").write_text(TOML)
    Path("pyproject.toml").write_text("[tool.acfuse]\nseed = 9\n")
    assert settings()[2] == 4


def test_a_pyproject_toml_of_others_is_left_alone(project):
    Path("pyproject.toml").write_text("tool = 3\n")
    assert settings(*MODEL)[2] == 0
    Path("pyproject.toml").write_text("[tool.other]\nfrobnicate = 1\n")
    assert settings(*MODEL)[2] == 0


def test_a_file_beside_the_checkpoint_is_no_configuration(project, monkeypatch):
    Path("acfuse.toml").write_text("frobnicate = 1\n")
    monkeypatch.chdir(project.parent)
    result = worked(run("inspect", "project/model.pth"))
    assert "2 blocks can be fused" in result.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frobnicate = 1\n", ["frobnicate"]),
        ("model = \n", ["acfuse.toml", "line 1"]),
        ("atol = [1]\n", ["--atol", "[1]", "expected a text"]),
        ("atol = {heat = 'x'}\n", ["--atol", "expected a text"]),
        ("limit = [[1]]\n", ["--limit", "[1]", "expected a text"]),
        ("samples = [1]\n", ["samples = [1]", "a text or number"]),
        ("output = [1]\n", ["output = [1]", "expected a text"]),
        ("patterns = 3\n", ["patterns = 3", "expected a text"]),
        ("report = {a = 1}\n", ["report = {'a': 1}", "expected a text"]),
        ("seed = 2020-01-01\n", ["seed = ", "a text or number"]),
        ("\x00", ["acfuse.toml"]),
        ('samples = "many"\n', ["--samples", "many"]),
        ('dynamic = "width"\n', ["--dynamic", "width"]),
        ('[tool.acfuse]\nmodel = "x"\n', ["tool"]),
    ],
)
def test_a_wrong_configuration_is_named(project, text, words):
    Path("acfuse.toml").write_text(text)
    result = run("convert", "model.pth")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_help_is_shown_whatever_the_configuration(project):
    Path("acfuse.toml").write_text("frobnicate = 1\n")
    assert worked(run("--help")).stdout


@pytest.mark.parametrize("name", ["format", "force", "no-onnx", "allow-empty", "opset", "atol"])
def test_settings_are_called_as_their_flags_are(project, name):
    value = {"format": '"json"', "opset": "19", "atol": "1e-3"}.get(name, "true")
    Path("acfuse.toml").write_text(f"{name} = {value}\n")
    assert tomllib.loads(Path("acfuse.toml").read_text())
    worked(run("inspect", "model.pth"))


def test_the_format_may_come_from_a_variable(project):
    result = worked(run("inspect", "model.pth", env={"ACFUSE_FORMAT": "json"}))
    assert result.json["found"]


def test_flags_may_come_from_variables(fused):
    env = {"ACFUSE_FORCE": "1", "ACFUSE_NO_ONNX": "true", "ACFUSE_MODEL": "nets.py:Net"}
    worked(run("convert", "model.pth", *MODEL[2:], env=env))
    refused(run("convert", "model.pth", *MODEL, env={"ACFUSE_FORCE": "0"}), 6)


def test_a_conversion_is_proved_as_it_was_made_whatever_the_configuration(fused):
    Path("acfuse.toml").write_text('model = "nets.py:Plain"\ninput-shape = "1,3,4,4"\n')
    result = worked(run("verify", "--format", "json"))
    assert result.json["model"] == "nets.py:Net"
    assert result.json["inputs"]["shapes"] == [[None, [1, 3, 9, 7]]]


def test_a_proof_can_be_repeated_with_another_seed(fused):
    result = worked(run("verify", "--seed", "7", "--samples", "2", "--format", "json"))
    assert (result.json["inputs"]["seed"], result.json["inputs"]["samples"]) == (7, 2)


# ------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    "text", ["1,3,9,7", "1x3x9x7", "[1,3,9,7]", "(1, 3, 9, 7)", "x:1,3,9,7", "x:[1x3x9x7]"]
)
def test_a_shape_may_be_written_in_every_usual_way(project, text):
    assert settings("--model", "nets.py:Net", "--input-shape", text)[1] == [1, 3, 9, 7]


@pytest.mark.parametrize("text", ["", "1,,3", "1,3,0,7", "1,-3,9,7", "1.5,3", "a,b", "x:", "1;3"])
def test_what_is_no_shape_is_refused(project, text):
    result = run(*DRY, "--model", "nets.py:Net", "--input-shape", text)
    assert result.exit_code == 2
    assert "--input-shape" in result.stderr


@pytest.mark.parametrize(
    "shapes",
    [
        ["image:1,3,9,7", "depth:1,2,9,7"],
        ["depth:1,2,9,7", "image:1,3,9,7"],
        ["1,3,9,7", "1,2,9,7"],
        ["depth:1,2,9,7", "1,3,9,7"],
    ],
)
def test_shapes_of_several_inputs_go_by_name_or_by_order(project, shapes):
    torch.save(trained(TwoInputs()).state_dict(), "model.pth")
    flags = [part for shape in shapes for part in ("--input-shape", shape)]
    result = worked(run(*DRY, "--model", "nets.py:TwoInputs", *flags))
    assert len(result.json["found"]) == 2


def test_a_shape_without_the_code_is_not_needed(project):
    before = snapshot(project)
    worked(run("convert", "model.pth", "--dry-run"))
    assert snapshot(project) == before


def test_the_shape_is_asked_for_where_it_is_needed(project):
    refused(run("convert", "model.pth", "--model", "nets.py:Net"), 2, "--input-shape is missing")


def test_the_shape_of_a_conversion_is_kept_for_its_proof(fused):
    assert CHECKPOINT[-1] == "1,3,9,7"
    result = worked(run("verify", "--format", "json"))
    assert result.json["inputs"]["shapes"] == [[None, [1, 3, 9, 7]]]
    result = worked(run("verify", "--input-shape", "2,3,6,6", "--format", "json"))
    assert result.json["inputs"]["shapes"] == [[None, [2, 3, 6, 6]]]
