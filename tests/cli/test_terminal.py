"""What a person sees: what is alike in one row, what fits a terminal, and what to do next."""

import importlib.util
import re
from typing import Any

import pytest
import torch

from acfuse.system.escape import columns
from tests.cli.command import run, worked
from tests.cli.project import CHECKPOINT, make_project, state


def many(project, count: int, name: str = "stages.{}.") -> None:
    """A checkpoint of so many copies of the small network, below names of their own."""
    tensors = {}
    for i in range(count):
        tensors |= {name.format(i) + key: tensor for key, tensor in state().items()}
    make_project(project, tensors)


def done(*arguments: str, **settings: Any) -> str:
    """What a command prints that succeeds, whatever it says meanwhile."""
    result = run(*arguments, **settings)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def rows(text: str) -> list[str]:
    """The rows of the table, without its header."""
    table = text.split("\n\n")[1].splitlines()
    assert table[0].startswith("block ")
    return table[1:]


def test_blocks_that_differ_by_numbers_alone_are_one_row(project):
    many(project, 30)
    brief = worked(run("convert", "model.pth", "--no-onnx")).stdout
    assert [row[:20].rstrip() for row in rows(brief)] == [
        "30 x stages.*.first",
        "30 x stages.*.second",
    ]
    full = done("convert", "model.pth", "--no-onnx", "--force", "-v")
    assert len(rows(full)) == 60
    assert "stages.29.second" in full


def test_a_row_of_several_has_the_worst_figures_of_all(project):
    many(project, 3)
    brief, full = (
        done("convert", "model.pth", "--no-onnx", "--force", *more) for more in ((), ("-v",))
    )
    for kind in ("first", "second"):
        (one,) = (figures(row) for row in rows(brief) if f".{kind} " in row)
        each = [figures(row) for row in rows(full) if f".{kind} " in row]
        assert one[:2] == [max(row[i] for row in each) for i in (0, 1)]
        assert one[2:] == max((row[2:4] for row in each), key=lambda pair: pair[1])


def figures(row: str) -> list[float]:
    """What stands behind the numbers of convolutions: ULP, error, and what 8 bits lose."""
    return [float(cell) for cell in row.partition("3 -> 1")[2].split() if cell != "->"]


def test_a_long_table_is_cut_short_and_says_so(project):
    tensors = {}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        tensors |= {f"{letter}.{key}": tensor for key, tensor in state().items()}
    make_project(project, tensors)
    for command in (["convert", "model.pth", "--no-onnx", "-n"], ["inspect", "model.pth"]):
        brief = rows(done(*command))
        assert len(brief) == 20
        assert brief[-1].startswith("and 33 rows more: -v lists all")
        assert len(rows(done(*command, "-v"))) == 52


def test_lines_are_broken_between_words_on_a_terminal_and_nowhere_else(project):
    command = ["convert", "model.pth", "--force", *CHECKPOINT]
    narrow = done(*command, terminal=True, env={"COLUMNS": "60"})
    plain = re.sub(r"\x1b\[[\d;]*m", "", narrow)
    told = [line for line in plain.splitlines() if not line.startswith(("wrote", "block", " "))]
    assert max(map(len, told)) <= 60
    whole = worked(run(*command)).stdout
    assert max(map(len, whole.splitlines())) > 80
    assert plain.split() == whole.split()


def test_no_color_is_obeyed(project):
    command = ["convert", "model.pth", "--force", *CHECKPOINT]
    assert "\x1b[32mequal" in run(*command, terminal=True).stdout
    assert "\x1b[32m" not in run(*command, terminal=True, env={"NO_COLOR": "1"}).stdout


def test_a_tree_has_each_module_once(project):
    many(project, 2)
    lines = worked(run("inspect", "model.pth", "--tree")).stdout.splitlines()
    assert lines.count("stages") == 1
    assert lines[lines.index("stages") + 1 :][:3] == [
        "  0",
        next(line for line in lines if line.startswith("    first  (")),
        next(line for line in lines if line.startswith("    second  (")),
    ]


def test_wide_characters_take_two_places():
    lines = columns(("a", "b"), [("\u5c42", "x"), ("e\u0301t\u00e9", "x"), ("abcd", "x")])
    assert lines == ["a    b", "\u5c42   x", "e\u0301t\u00e9  x", "abcd x"]


def test_quiet_prints_nothing(project):
    result = worked(run("inspect", "model.pth", "-q"))
    assert (result.stdout, result.stderr) == ("", "")


def test_a_dry_run_says_that_nothing_was_written(project):
    assert (
        "nothing was written (--dry-run)" in run("convert", "model.pth", "-n", *CHECKPOINT).stdout
    )


def test_what_was_verified_was_not_to_be_written(fused):
    tensors = torch.load("model.fused.pth", weights_only=True)
    torch.save({key: 2 * tensor for key, tensor in tensors.items()}, "model.fused.pth")
    result = run("verify", "model.pth", "model.fused.pth")
    assert result.exit_code == 1
    assert "nothing was written" not in result.stdout


def test_an_error_of_usage_looks_as_any_other(project):
    assert "\nerror: No such option '--forc'" in run("convert", "model.pth", "--forc").stderr


class TestStrict:
    """With --strict a block that was refused is an exit code."""

    @pytest.fixture
    def partly(self, project):
        """One block that fuses, and one whose arms see different borders."""
        (project / "nets.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)\n"
            "        self.c = nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect')\n"
            "        self.d = nn.Conv2d(4, 4, 3, padding=1)\n"
            "    def forward(self, x):\n"
            "        x = (self.a(x) + self.b(x)).relu()\n"
            "        return self.c(x) + self.d(x)\n"
        )
        spec = importlib.util.spec_from_file_location("partly_nets", project / "nets.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        torch.save(module.Net().state_dict(), "model.pth")
        return ["convert", "model.pth", "--model", "nets.py:Net", "--input-shape", "1,3,9,8"]

    def test_it_is_refused(self, partly, project):
        assert "[ACF204]" in done(*partly, "--no-onnx")
        before = sorted(project.iterdir())
        strict = run(*partly, "--no-onnx", "--strict", "--force")
        assert strict.exit_code == 5
        assert "--strict is given" in strict.stderr
        assert sorted(project.iterdir()) == before

    def test_without_refusals_it_changes_nothing(self, project):
        worked(run("convert", "model.pth", "--strict", *CHECKPOINT))
