"""`acfuse bench`: what it times, what it says of the times, and what it refuses."""

from pathlib import Path

import onnx
import pytest

from acfuse.errors import Exit
from acfuse.files.cost_table import read_cost_table
from acfuse.pipeline import bench, cost_profile
from tests.cli.command import refused, run, worked
from tests.cli.project import MODEL
from tests.pipeline.timing import measured
from tests.proof.onnx_nets import NETS

QUICK = ("--rounds", "6", "--seconds", "0.001")
PAIR = ("model.pth", "model.fused.pth", *MODEL)
FASTER = (2.0, 2.1, 1.9, 2.2, 2.0, 1.8)
NOISE = (0.9, 1.2, 0.95, 1.3, 1.1, 0.98)


@pytest.fixture
def onnx_files(fused):
    """Two ONNX files of one network, in the working directory, with a free batch."""
    for name in ("one.onnx", "other.onnx"):
        onnx.save(NETS["script"](), name)
    return "one.onnx", "other.onnx"


@pytest.fixture
def times(monkeypatch):
    """Says how many times as long the original takes, round by round, on each backend."""

    def plant(**ratios):
        def planted(backend, rounds, **_):
            if backend not in ratios:
                raise bench.Skipped("it is not here")
            return measured(ratios[backend], backend)

        monkeypatch.setattr(bench, "measure", planted)

    return plant


def test_the_last_conversion_is_timed(fused):
    told = worked(run("bench", *QUICK, "--format", "json")).json
    assert (told["original"], told["fused"]) == ("model.pth", "model.fused.pth")
    assert told["proves_equality"] is False
    assert told["machine"]["threads"] >= 1
    (eager,) = told["backends"]
    assert eager["backend"] == "eager"
    for turns in (eager["original"], eager["fused"]):
        assert len(turns) == 6
        assert all(turn["wall"] > 0 and turn["cpu"] >= 0 for turn in turns)
    ratio = eager["ratio"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert (eager["speedup"] is None) == (ratio["low"] <= 1.01 and ratio["high"] >= 1 / 1.01)


def test_two_files_are_timed_as_they_are_asked_to_be(fused):
    how = ("--backend", "channels_last", "--batch", "2", "--threads", "1")
    told = worked(run("bench", *PAIR, *QUICK, *how, "--format", "json")).json
    assert [b["backend"] for b in told["backends"]] == ["channels_last"]
    assert (told["batch"], told["machine"]["threads"]) == (2, 1)


def test_two_onnx_files_run_in_onnxruntime(onnx_files):
    told = worked(run("bench", *onnx_files, *QUICK, "--batch", "2", "--format", "json")).json
    assert [b["backend"] for b in told["backends"]] == ["onnxruntime"]
    pair = ("bench", *onnx_files, *QUICK)
    refused(run(*pair, "--backend", "eager"), Exit.USAGE, "runs in onnxruntime alone")
    refused(run(*pair, "--provider", "NoSuch"), Exit.USAGE, "CPUExecutionProvider")


def test_torch_compile_without_a_compiler_is_skipped_in_a_line(fused):
    nowhere = {"PATH": "", "CXX": ""}
    result = run("bench", *PAIR, *QUICK, "--backend", "compile", env=nowhere)
    refused(result, Exit.BAD_INPUT, "nothing was timed: compile", "needs a C++ compiler")


def test_what_a_network_prints_is_no_answer(fused):
    with Path("nets.py").open("a") as file:
        file.write("\nprint('loaded', flush=True)\nimport os\nos.write(1, b'{}')\n")
    told = worked(run("bench", *PAIR, *QUICK, "--format", "json")).json
    assert [b["backend"] for b in told["backends"]] == ["eager"]


def test_a_checkpoint_is_timed_beside_an_onnx_file(onnx_files):
    pair = ("model.pth", onnx_files[1], *MODEL[:2], "--input-shape", "1,3,15,18")
    told = worked(run("bench", *pair, *QUICK, "--format", "json")).json
    assert [b["backend"] for b in told["backends"]] == ["onnxruntime"]


def test_a_speed_up_is_told_with_its_interval_and_proves_nothing(fused, times):
    times(eager=FASTER)
    shown = worked(run("bench", *PAIR)).stdout
    assert "2.00 times as fast (96.9% interval 1.80 to 2.20)" in shown
    assert "█" * 30 in shown
    assert "acfuse verify" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_speed_up_within_the_noise_is_told_as_none(fused, times):
    times(eager=NOISE)
    shown = worked(run("bench", *PAIR)).stdout
    assert "no difference beyond the noise" in shown
    assert "times as" not in shown
    told = worked(run("bench", *PAIR, "--format", "json")).json
    assert told["backends"][0]["speedup"] is None


def test_what_is_slower_is_told_to_be(fused, times):
    times(eager=[1 / ratio for ratio in FASTER])
    assert "slower: it takes 2.00 times as long" in worked(run("bench", *PAIR)).stdout


@pytest.mark.parametrize(("least", "code"), [("1.8", Exit.DONE), ("1.81", Exit.NOT_EQUAL)])
def test_the_lower_end_of_the_interval_has_to_reach_what_is_asked_for(fused, times, least, code):
    times(eager=FASTER)
    result = run("bench", *PAIR, "--min-speedup", least)
    assert result.exit_code == code
    assert ("may be 1.80, expected at least 1.81" in result.stderr) == (code != Exit.DONE)


def test_what_is_not_here_is_skipped_in_a_line_and_the_rest_is_timed(fused, times):
    times(eager=FASTER)
    both = ("bench", *PAIR, "--backend", "compile", "--backend", "eager")
    assert "compile: skipped: it is not here" in worked(run(*both)).stdout
    assert worked(run(*both, "--format", "json")).json["skipped"] == [
        {"backend": "compile", "why": "it is not here"}
    ]
    refused(run(*both[:-2]), Exit.BAD_INPUT, "nothing was timed", "compile: it is not here")


def test_names_are_data(fused, times):
    times(eager=FASTER)
    shown = worked(run("bench", "model\x1b[31m.pth", "\u202emodel.fused.pth", *MODEL))
    assert "\x1b" not in shown.stdout.replace("\x1b[34m", "").replace("\x1b[0m", "")
    assert "\u202e" not in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("none.pth", "model.fused.pth", *MODEL), Exit.BAD_INPUT, "none.pth"),
        (("model.pth", "none.pth", *MODEL), Exit.BAD_INPUT, "none.pth"),
        (("model.pth", "model.fused.pth"), Exit.USAGE, "--model"),
        (("model.pth", "model.fused.pth", *MODEL[:2]), Exit.USAGE, "--input-shape"),
        ((*PAIR, "--device", "cuda", "--backend", "onnxruntime"), Exit.USAGE, "--provider"),
        ((*PAIR, "--provider", "Other"), Exit.USAGE, "--provider has no effect on eager"),
        ((*PAIR, "--size", "14"), Exit.USAGE, "--size has no effect without --profile"),
        ((*PAIR, "-o", "x.json"), Exit.USAGE, "--output has no effect without --profile"),
        (("--profile", "model.pth"), Exit.USAGE, "ORIGINAL has no effect with --profile"),
        (("--profile", "--batch", "2"), Exit.USAGE, "--batch has no effect with --profile"),
        (("--profile", "--backend", "compile"), Exit.USAGE, "not compile"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_line(fused, arguments, code, words):
    refused(run("bench", *arguments), code, words)


def test_a_profile_is_a_table_that_convert_takes(project, monkeypatch):
    monkeypatch.setattr(cost_profile, "KERNELS", ((1, 1), (3, 3)))
    monkeypatch.setattr(cost_profile, "CHANNELS", (4,))
    monkeypatch.setattr(cost_profile, "SECONDS", 0.0)
    settings = ("--size", "5", "--backend", "eager")
    told = worked(run("bench", "--profile", *settings, "-o", "here.json", "--format", "json"))
    table = read_cost_table(Path("here.json"))
    assert told.json == {"written": ["here.json"], "costs": len(table.rows)}
    assert set(table.settings) == {("eager", 5)}
    worked(run("convert", "model.pth", "--no-onnx", *MODEL, "--cost", "here.json"))
    refused(run("bench", "--profile", *settings, "-o", "here.json"), Exit.BAD_OUTPUT, "here.json")
