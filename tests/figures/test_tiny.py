"""Each benchmark measures in a setting of seconds what it measures in one that takes minutes."""

import importlib
import math

import pytest
import torch

from benchmarks import __main__ as runner
from benchmarks import plain
from benchmarks.figures import NAME
from tests.bounds import assert_within, rounding

TINY = {
    "startup": {"rounds": 1},
    "convert": {"width": 1, "size": 32, "rounds": 1},
    "without_onnx": {"models": ("repvgg_a0",), "rounds": 1, "shape": 32},
    "certificates": {"channels": (4, 8), "rounds": 1},
    "bare": {"channels": (4,), "blocks": 2, "megabytes": (4, 8), "rounds": 1},
    "plain": {"rows": plain.ROWS[1:2], "width": 2, "size": 32, "rounds": 1},
    "find": {"stacks": (1, 2), "layers": (2, 3), "rounds": 1},
    "memory": {"size": 1_000_000, "channels": 32, "file_types": ()},
    "batch": {"checkpoints": 2, "rounds": 1},
}


def test_every_benchmark_has_a_tiny_setting():
    assert [*TINY, "peers"] == list(runner.NAMES)


@pytest.mark.parametrize("name", TINY)
def test_it_measures(name):
    module = importlib.import_module(f"benchmarks.{name}")
    assert f"python -m benchmarks.{name}" in module.__doc__
    figures = list(module.figures(**TINY[name]))
    assert figures
    for figure in figures:
        if figure.verdict == "skipped":
            assert "not installed" in figure.note
            continue
        assert all(map(math.isfinite, figure.values))
        assert all(numbers for numbers in figure.raw.values())
        assert len(figure.name) <= NAME
        bounds = (figure.target.low, figure.target.high)
        assert not all(map(math.isinf, bounds)), "a figure has a target"


def test_what_is_timed_beside_each_other_is_the_same_network():
    nets = plain.networks(2)
    image = torch.randn(1, 3, 37, 32)
    with torch.no_grad():
        original, fused, by_hand = (net(image) for net in nets.values())
    bound = rounding(nets["unfused"], image, dtype=torch.float32)
    assert_within(fused, original, bound)
    assert_within(by_hand, original, bound)
    assert not any("bn" in key for key in nets["by hand"].state_dict())


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["benchmarks", *arguments, "--output", str(tmp_path / "x")])
        return runner.main()

    return run


def test_a_benchmark_that_fails_is_a_row_and_an_exit_code(quiet, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("it ended (7): why")

    monkeypatch.setattr(runner, "python", fails)
    assert quiet("startup") == 1
    assert "failed\n  it ended (7): why" in capsys.readouterr().out


def test_a_figure_that_falls_short_is_no_failure(quiet, monkeypatch, capsys):
    short = runner.Figure("x", runner.Target(high=1), (2.0,))
    monkeypatch.setattr(runner, "measured", lambda *_: [short])
    assert quiet("startup") == 0
    assert "SHORT" in capsys.readouterr().out


def test_a_name_that_no_benchmark_has_is_refused(quiet, capsys):
    with pytest.raises(SystemExit) as ended:
        quiet("speed")
    assert ended.value.code == 2
    assert "no benchmark is called speed" in capsys.readouterr().err


def test_what_is_measured_again_takes_the_place_of_what_was(monkeypatch):
    old = {"figures": [{"benchmark": "batch", "name": "a"}, {"benchmark": "find", "name": "b"}]}
    new = {"about": {"load": 1}, "figures": [{"benchmark": "batch", "name": "c"}]}
    made = runner.merged({**old, "peers": {"tools": {}}}, new)
    assert [f["name"] for f in made["figures"]] == ["b", "c"]
    assert made["figures"][1]["about"] == {"load": 1}
    assert made["peers"] == {"tools": {}}
