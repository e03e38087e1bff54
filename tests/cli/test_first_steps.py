"""What a user does before the first conversion: init, config show, doctor, completion."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import click
import pytest
import torch

from acfuse import __version__
from acfuse.cli import cli
from acfuse.commands import doctor, init
from acfuse.system import processor
from tests.cli.command import refused, run, worked
from tests.cli.project import MODEL, make_project, state

NETWORK = ("--model", "nets.py:Net", "--input-shape", "1,3,9,7")
SHELLS = ("bash", "zsh", "fish")


def shown(*arguments, env=None):
    rows = worked(run("config", "show", "--format", "json", *arguments, env=env)).json
    return {row["name"]: (row["value"], row["origin"]) for row in rows}


# ------------------------------------------------------------------------------ init


def test_what_init_writes_is_what_convert_needs(project):
    told = worked(run("init", "model.pth", *NETWORK)).stdout
    text = Path("acfuse.toml").read_text()
    assert tomllib.loads(text) == {"model": "nets.py:Net", "input-shape": "1,3,9,7"}
    assert told.startswith(text)
    assert "2 of acnet" in text
    conversion = worked(run("convert", "model.pth", "-n", "--no-onnx", "--format", "json")).json
    assert conversion["model"] == "nets.py:Net"


def test_without_answers_everything_is_left_open(project):
    worked(run("init", "model.pth"))
    text = Path("acfuse.toml").read_text()
    assert tomllib.loads(text) == {}
    assert "# model = " in text
    assert "# input-shape = " in text
    Path("acfuse.toml").unlink()
    worked(run("init", *NETWORK))
    assert tomllib.loads(Path("acfuse.toml").read_text())["model"] == "nets.py:Net"


def test_an_entry_is_chosen_with_key_and_never_silently(project):
    make_project(project, {"model": state(), "ema": state()})
    refused(run("init", "model.pth"), 2, "several sets of weights", "--key")
    assert not Path("acfuse.toml").exists()
    worked(run("init", "model.pth", "--key", "ema", *NETWORK))
    assert tomllib.loads(Path("acfuse.toml").read_text())["key"] == "ema"
    worked(run("convert", "model.pth", "-n", "--no-onnx"))


def test_a_file_that_exists_is_replaced_by_force_alone(project):
    Path("acfuse.toml").write_text("seed = 4\n")
    refused(run("init", "model.pth"), 6, "acfuse.toml exists", "--force")
    assert Path("acfuse.toml").read_text() == "seed = 4\n"
    worked(run("init", "model.pth", "--force"))
    assert tomllib.loads(Path("acfuse.toml").read_text()) == {}


def test_a_terminal_is_asked_and_a_pipe_is_not(project, monkeypatch):
    asked = []
    monkeypatch.setattr(init.click, "prompt", lambda text, **_: asked.append(text) or "nets.py:Net")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    run("init", "model.pth", "--input-shape", "1,3,9,7", terminal=True)
    assert len(asked) == 1
    assert tomllib.loads(Path("acfuse.toml").read_text())["model"] == "nets.py:Net"
    worked(run("init", "model.pth", "--force"))
    assert len(asked) == 1


def test_a_wrong_shape_is_refused_before_anything_is_written(project):
    assert run("init", "model.pth", "--input-shape", "1,0").exit_code == 2
    assert not Path("acfuse.toml").exists()


def test_what_stands_in_a_file_stays_text(project):
    hostile = 'x"\x1b[31m\x7f\n[tool]\u2028'
    torch.save({hostile: state()}, "odd.pth")
    worked(run("init", "odd.pth", "--model", hostile))
    text = Path("acfuse.toml").read_text()
    assert tomllib.loads(text) == {"model": hostile}
    assert "\x1b" not in text


def test_other_files_are_told_as_what_they_are(project):
    worked(run("convert", "model.pth", *MODEL, "-o", "net.pth"))
    assert "holds its network" in worked(run("init", "net.onnx")).stdout
    assert "deploy form of acnet" in worked(run("init", "net.pth", "--force")).stdout
    torch.save(torch.nn.Linear(2, 2).state_dict(), "plain.pth")
    assert "no named pattern" in worked(run("init", "plain.pth", "--force")).stdout
    refused(run("init", "missing.pth", "--force"), 3, "missing.pth")


# ------------------------------------------------------------------------------ config show


def test_each_setting_tells_where_it_came_from(project):
    assert shown()["seed"] == (None, "default")
    assert shown()["samples"] == (None, "default")
    Path("pyproject.toml").write_text("[tool.acfuse]\nseed = 9\n")
    assert shown()["seed"] == (9, "pyproject.toml")
    Path("acfuse.toml").write_text("seed = 4\ninput-shape = [1, 3, 9, 7]\nfold-bn = true\n")
    settings = shown(env={"ACFUSE_SAMPLES": "7"})
    assert settings["seed"] == (4, "acfuse.toml")
    assert settings["input-shape"] == ([1, 3, 9, 7], "acfuse.toml")
    assert settings["fold-bn"] == (True, "acfuse.toml")
    assert settings["samples"] == ("7", "ACFUSE_SAMPLES")
    assert shown(env={"ACFUSE_SEED": "5"})["seed"] == ("5", "ACFUSE_SEED")
    assert shown(env={"ACFUSE_SEED": ""})["seed"] == (4, "acfuse.toml")


def test_every_setting_that_a_file_may_have_is_shown(project):
    known = shown()
    for command in cli.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.envvar:
                assert max(parameter.opts, key=len).lstrip("-") in known
    text = worked(run("config", "show")).stdout
    assert all(any(line.startswith(name + " ") for line in text.splitlines()) for name in known)


def test_a_setting_that_no_command_has_is_named_here_too(project):
    Path("acfuse.toml").write_text("frobnicate = 1\n")
    result = run("config", "show")
    assert result.exit_code == 2
    assert "frobnicate" in result.stderr


# ------------------------------------------------------------------------------ doctor


def test_doctor_tells_what_is_here():
    told = worked(run("doctor", "--format", "json")).json
    assert told["machine"]["acfuse"] == __version__
    assert torch.__version__ in told["machine"]["torch"]
    assert "CPUExecutionProvider" in told["machine"]["onnxruntime"]
    versions = {row["name"]: row["version"] for row in told["packages"]}
    assert versions["torch"] == torch.__version__
    assert all(row["cure"] == "" for row in told["packages"] if row["version"])
    text = worked(run("doctor")).stdout
    assert all(name in text for name in versions)


def test_doctor_names_the_command_that_installs_what_is_missing(monkeypatch):
    there = metadata.version

    def version(name):
        if name in ("h5py", "onnxruntime"):
            raise metadata.PackageNotFoundError(name)
        return there(name)

    def import_module(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    told = worked(run("doctor", "--format", "json")).json
    cures = {row["name"]: row["cure"] for row in told["packages"]}
    assert cures["h5py"] == "pip install 'acfuse[hdf5]'"
    assert cures["onnxruntime"].startswith("pip install 'onnxruntime>=")
    assert told["machine"]["onnxruntime"] == "cannot be imported: no onnxruntime"
    assert "cannot be imported" in worked(run("doctor")).stdout


def test_what_a_processor_can_do_is_read_where_the_system_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.flags() == []
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu avx2 avx512f avx20\n")
    assert processor.flags() == ["avx2", "avx512f"]


# ------------------------------------------------------------------------------ completion


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_each_shell_calls_acfuse(shell):
    script = worked(run("completion", shell)).stdout
    assert f"_ACFUSE_COMPLETE={shell}_complete" in script
    assert "acfuse" in script


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("acfuse", "conv"), {"convert"}),
        (("acfuse", "convert", "--exh"), {"--exhaustive"}),
        (("acfuse", "convert", "--dynamic", "b"), {"batch"}),
        (("acfuse", "config", "s"), {"show"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bash_completes_with_it(words, expected, tmp_path):
    bash = shutil.which("bash")
    program = Path(sys.executable).parent / "acfuse"
    if bash is None or not program.exists():
        pytest.skip("neither bash nor an installed acfuse is at hand")
    script = tmp_path / "acfuse.bash"
    script.write_text(worked(run("completion", "bash")).stdout)
    typed = " ".join(f"'{word}'" for word in words)
    code = (
        f"source '{script}'; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
        '_acfuse_completion acfuse; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [bash, "--norc", "-c", code],
        env={**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == expected
