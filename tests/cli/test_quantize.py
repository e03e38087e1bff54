"""acfuse quantize: a file in 8 bits with its manifest, or nothing at all and the reason why."""

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator
from onnx import helper

from acfuse.commands.quantize import db
from acfuse.pipeline.schema import int8_schema
from tests.cli.command import refused, run, worked
from tests.cli.project import snapshot
from tests.int8.small import LABELS, images, model_of, network

SCHEMA = Path(__file__).parents[2] / "docs/schema/int8.schema.json"
DATA = ("--data", "images.npz")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A float ONNX file, and images for it."""
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "net.onnx")
    np.savez("images.npz", x=images())
    return tmp_path


def test_a_file_and_its_manifest_are_written(folder):
    result = worked(run("quantize", "net.onnx", *DATA))
    assert "net.onnx: " in result.stdout
    assert "24 images of images.npz" in result.stdout
    assert "as written" in result.stdout
    assert "executed here" in result.stdout
    told = json.loads(Path("net.int8.json").read_text())
    Draft202012Validator(int8_schema()).validate(told)
    for name, entry in (("net.onnx", told["source"]), ("net.int8.onnx", told["output"]),
                        ("images.npz", told["data"])):  # fmt: skip
        assert entry["file"] == name
        assert entry["sha256"] == hashlib.sha256(Path(name).read_bytes()).hexdigest()
    assert told["output"]["bytes"] == Path("net.int8.onnx").stat().st_size
    assert told["passed"]
    assert (told["data"]["images"], told["data"]["random"]) == (24, False)
    assert isinstance(told["processor"]["saturates"], bool)
    onnx.checker.check_model("net.int8.onnx")
    assert sorted(p.name for p in folder.iterdir()) == [
        "images.npz", "net.int8.json", "net.int8.onnx", "net.onnx",
    ]  # fmt: skip


def test_the_schema_is_the_published_one():
    assert json.loads(SCHEMA.read_text()) == int8_schema()


def test_json_is_the_manifest_and_what_was_written(folder):
    result = worked(run("quantize", "net.onnx", *DATA, "--format", "json", "--min-sqnr", "1"))
    written = json.loads(Path("net.int8.json").read_text())
    assert result.json == {**written, "written": ["net.int8.onnx", "net.int8.json"]}
    Draft202012Validator(int8_schema()).validate(result.json)
    assert result.json["gates"] == {"min_sqnr": 1.0, "min_agreement": None}


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (("--min-sqnr", "99"), ("dB", "wanted 99")),
        (("--min-agreement", "100", "--keep", "head", "--calibrate", "distribution"), ("%",)),
    ],
)
def test_a_gate_that_is_missed_writes_nothing(folder, gate, words):
    onnx.save(network(planted=2**10), "net.onnx")
    before = snapshot(folder)
    result = run("quantize", "net.onnx", *DATA, "--per-tensor", *gate)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: not good enough: output out ")
    assert line.endswith("Nothing was written.")
    for word in words:
        assert word in line
    assert snapshot(folder) == before
    told = run("quantize", "net.onnx", *DATA, "--per-tensor", *gate, "--format", "json")
    assert told.exit_code == 1
    assert (told.json["passed"], told.json["written"], told.json["output"]) == (False, [], None)
    assert told.json["missed"]
    Draft202012Validator(int8_schema()).validate(told.json)
    assert snapshot(folder) == before


def test_a_gate_that_is_reached_is_said(folder):
    result = worked(run("quantize", "net.onnx", *DATA, "--min-sqnr", "5", "--min-agreement", "1"))
    assert "passed  --min-sqnr 5: no output has less dB" in result.stdout
    assert "passed  --min-agreement 1: no output has less %" in result.stdout


def test_advice_that_is_printed_gives_what_it_says(folder):
    onnx.save(network(planted=2**8), "net.onnx")
    result = worked(run("quantize", "net.onnx", *DATA, "--reduce-range"))
    line = next(x for x in result.stdout.splitlines() if x.startswith("helps   --keep"))
    options, _, figures = line.removeprefix("helps   ").rpartition(": ")
    before, after = (float(part.split()[0]) for part in figures.split(" -> "))
    np.savez("images.npz", x=images()[:16])  # those that it was tried on
    told = worked(run("quantize", "net.onnx", *DATA, "--reduce-range", *shlex.split(options),
                      "--format", "json", "-f")).json  # fmt: skip
    (output,) = told["outputs"]
    gained = min(output["written_db"], output["executed_db"])
    assert gained > before + 1
    assert gained > (before + after) / 2  # the ranges are those of other images now


@pytest.mark.parametrize("batch", ["n", 1, 5])
def test_to_equalize_before_is_advice_that_the_same_data_does_for(folder, batch):
    onnx.save(network(planted=2**8, batch=batch), "net.onnx")
    flags = (*DATA, "--per-tensor", "--reduce-range", "-f")
    before = worked(run("quantize", "net.onnx", *flags, "--format", "json")).json
    assert "equalize" in [advice["what"] for advice in before["advice"]]
    worked(run("equalize", "net.onnx", "--inputs", "images.npz"))
    after = worked(run("quantize", "net.equalized.onnx", *flags, "--format", "json")).json
    assert after["outputs"][0]["written_db"] > before["outputs"][0]["written_db"] + 1


def test_random_inputs_are_said_to_be_random(folder):
    result = worked(run("quantize", "net.onnx", "--random", "--seed", "3"))
    note = "the ranges of values come from random inputs"
    assert note in result.stdout
    assert "16 images made up" in result.stdout
    told = json.loads(Path("net.int8.json").read_text())
    assert told["data"] == {"file": None, "sha256": None, "images": 16, "random": True}
    assert any(note in text and "not to be shipped" in text for text in told["notes"])


def test_sizes_that_are_free_are_asked_for(folder):
    model = network()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "size"
    onnx.save(model, "net.onnx")
    refused(run("quantize", "net.onnx", "--random"), 2, "give --input x:")
    worked(run("quantize", "net.onnx", "--random", "--input", "x:2,3,8,8", "-q"))


def test_inputs_are_real_or_made_up(folder):
    refused(run("quantize", "net.onnx"), 2, "--data is missing", "--data FILE.npz", "--random")
    refused(run("quantize", "net.onnx", *DATA, "--random"), 2, "real or made up, not both")
    refused(run("quantize", "net.onnx", *DATA, "--input", "1,3,8,8"), 2, "--input is given as well")


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (("none.onnx", *DATA), 2, ["none.onnx does not exist"]),
        (("images.npz", *DATA), 2, ["images.npz is no ONNX file"]),
        (("net.onnx", "--data", "none"), 2, ["--data: none does not exist"]),
        (("net.onnx", "--data", "net.onnx"), 3, ["--data: net.onnx cannot be read"]),
        (("net.onnx", *DATA, "--keep", "frist"), 2, ["no layer frist", "nearest are first"]),
        (("net.onnx", *DATA, "--min-sqnr", "nan"), 2, ["--min-sqnr: nan is no number"]),
        (("net.onnx", *DATA, "-o", "no/such/net.onnx"), 6, ["no/such is not a directory"]),
        (("net.onnx", *DATA, "-o", "net.onnx"), 6, ["net.onnx is the input itself"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, line, code, words):
    before = snapshot(folder)
    refused(run("quantize", *line), code, *words)
    assert snapshot(folder) == before


def test_what_is_in_8_bits_is_not_quantized_again(folder):
    worked(run("quantize", "net.onnx", *DATA, "-q"))
    refused(run("quantize", "net.int8.onnx", *DATA), 3, "net.int8.onnx: the model is quantized")


def test_what_exists_is_replaced_with_force_alone(folder):
    Path("net.int8.json").write_text("mine")
    refused(run("quantize", "net.onnx", *DATA), 6, "net.int8.json exists; give --force")
    assert Path("net.int8.json").read_text() == "mine"
    assert not Path("net.int8.onnx").exists()
    worked(run("quantize", "net.onnx", *DATA, "-f", "-q"))
    assert json.loads(Path("net.int8.json").read_text())["passed"]


@pytest.mark.parametrize(
    ("data", "output"),
    [
        ("images.npz", "images.npz"),
        ("data.json", "data.onnx"),  # whose manifest has that name
        ("folder", "folder/a.npy"),
        ("images.npz", "net.bin"),  # the weights of the model
    ],
)
def test_nothing_that_is_read_is_written_over(folder, data, output):
    onnx.save(network(), "net.onnx", save_as_external_data=True, location="net.bin",
              size_threshold=0)  # fmt: skip
    Path("data.json").write_bytes(Path("images.npz").read_bytes())
    Path("folder").mkdir()
    np.save("folder/a.npy", images())
    before = snapshot(folder)
    line = ("quantize", "net.onnx", "--data", data, "-o", output, "-f")
    refused(run(*line), 6, "is the input itself; give another --output")
    assert snapshot(folder) == before


def test_it_is_written_where_it_is_asked_for(folder):
    Path("out").mkdir()
    worked(run("quantize", "net.onnx", *DATA, "-o", "out", "-q"))
    worked(run("quantize", "net.onnx", *DATA, "-o", "other.onnx", "-q"))
    made = [*Path("out").iterdir(), Path("other.onnx"), Path("other.json")]
    assert sorted(p.name for p in made if p.is_file()) == [
        "net.int8.json", "net.int8.onnx", "other.json", "other.onnx",
    ]  # fmt: skip


def test_a_gate_on_classes_wants_an_output_that_gives_some(folder):
    onnx.save(network(outputs={"r3": LABELS["out"]}), "net.onnx")
    line = ("quantize", "net.onnx", *DATA, "--min-agreement", "50")
    refused(run(*line), 2, "no output gives classes")


def test_names_of_a_file_are_only_text(folder):
    model = network()
    model.graph.node[2].name = "::error::\x1b[31m second\n##[x]"
    onnx.save(model, "net.onnx")
    for form in ("text", "github"):
        result = worked(run("quantize", "net.onnx", *DATA, "--per-tensor", "-f", "--format", form))
        assert "\x1b" not in result.stdout
        assert not any(line.startswith("::error") for line in result.stdout.splitlines())


def test_what_loses_nothing_is_infinite_and_still_json(folder):
    """An output that is zero everywhere: there is no signal, and no noise."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "zero"], ["out"]),
    ]
    stored = {"w": np.ones((1, 3, 1, 1), np.float32), "zero": np.zeros(1, np.float32)}
    onnx.save(model_of(nodes, stored, inputs={"x": ["n", 3, 8, 8]}), "net.onnx")
    told = worked(run("quantize", "net.onnx", *DATA, "--format", "json", "--min-sqnr", "99")).json
    assert told["outputs"][0]["written_db"] == told["outputs"][0]["executed_db"] == "inf"
    assert told["worst"] == told["advice"] == []
    Draft202012Validator(int8_schema()).validate(told)
    assert "out    inf dB" in worked(run("quantize", "net.onnx", *DATA, "-f")).stdout


def test_weights_in_a_file_beside_are_read_and_put_into_the_result(folder):
    onnx.save(network(), "net.onnx", save_as_external_data=True, location="net.bin",
              size_threshold=0)  # fmt: skip
    worked(run("quantize", "net.onnx", *DATA, "-q", "--no-reduce-range"))
    first = Path("net.int8.onnx").read_bytes()
    Path("net.bin").unlink()
    onnx.checker.check_model("net.int8.onnx")
    onnx.save(network(), "net.onnx")
    worked(run("quantize", "net.onnx", *DATA, "-q", "-f", "--no-reduce-range"))
    assert onnx.load_from_string(first) == onnx.load("net.int8.onnx")


def test_halves_and_old_opsets_are_quantized(folder):
    onnx.save(network(opset=11), "net.onnx")
    assert "is of opset 13" in worked(run("quantize", "net.onnx", *DATA)).stdout
    onnx.save(network(dtype=np.float16), "net.onnx")
    np.save("halves.npy", images().astype(np.float16))
    result = worked(run("quantize", "net.onnx", "--data", "halves.npy", "-f", "--min-sqnr", "20"))
    assert "is of opset 19" in result.stdout


def test_no_figure_is_minus_zero():
    assert [*map(db, (-0.04, 0.0, 12.34, -3.21, float("inf"), float("-inf")))] == [
        "0.0 dB", "0.0 dB", "12.3 dB", "-3.2 dB", "inf dB", "-inf dB",
    ]  # fmt: skip


def test_github_is_told_of_random_ranges(folder):
    result = worked(run("quantize", "net.onnx", "--random", "--format", "github"))
    assert "::warning title=acfuse::the ranges of values come from random inputs" in result.stdout


def test_the_summary_of_a_step_has_the_figures(folder):
    for gate, mark in ((), "8 bits"), (("--min-sqnr", "99"), "not good enough"):
        summary = folder / "summary.md"
        line = ("quantize", "net.onnx", *DATA, "-f", "-q", "--format", "github", *gate)
        result = run(*line, env={"GITHUB_STEP_SUMMARY": str(summary)})
        assert result.exit_code == bool(gate)
        text = summary.read_text(encoding="utf-8")
        assert mark in text
        assert "| out |" in text
        assert " dB, the same top-1 " in text
        summary.unlink()


def test_quiet_says_nothing_and_settings_may_stand_in_a_file(folder):
    Path("acfuse.toml").write_text('calibrate = "percentile"\nper-tensor = true\nkeep = ["head"]\n')
    assert worked(run("quantize", "net.onnx", *DATA, "-q")).stdout == ""
    settings = json.loads(Path("net.int8.json").read_text())["settings"]
    assert (settings["calibrate"], settings["per_channel"]) == ("percentile", False)
    assert settings["keep"] == ["head"]


def test_the_command_line_stands_in_place_of_what_is_configured(folder):
    Path("acfuse.toml").write_text('input-shape = "1,3,8,8"\nrandom = true\n')
    worked(run("quantize", "net.onnx", *DATA, "-q"))
    assert not json.loads(Path("net.int8.json").read_text())["data"]["random"]
    worked(run("quantize", "net.onnx", "-q", "-f"))
    assert json.loads(Path("net.int8.json").read_text())["data"]["random"]
    Path("acfuse.toml").write_text('data = "images.npz"\ninput-shape = "1,3,8,8"\n')
    worked(run("quantize", "net.onnx", "--random", "-q", "-f"))
    assert json.loads(Path("net.int8.json").read_text())["data"]["random"]
