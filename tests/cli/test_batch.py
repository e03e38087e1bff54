"""Many checkpoints in one run: a line for each, and nothing that one of them does stops another."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acfuse.commands import batch_task
from acfuse.commands.batch import _fits
from acfuse.pipeline.batch import memory_of, result_name, worst
from acfuse.system import free_memory
from tests.cli.command import refused, run
from tests.cli.project import CHECKPOINT, change, snapshot
from tests.waiting import HANG

KILLER = """
import os, signal
from nets import Net

class Killed(Net):
    def __init__(self):
        os.kill(os.getpid(), signal.SIGKILL)

class Leaves(Net):
    def __init__(self):
        os._exit(3)

class Waits(Net):
    def __init__(self):
        open("waits", "w").close()
        signal.pause()
"""
OTHERS = ("--model", "nets.py:Net", "--input-shape", "1,3,9,7", "--no-onnx")


@pytest.fixture
def folder(project):
    """A project of three checkpoints, and code that ends its process."""
    for name in ("a.pth", "b.pth", "c.pth"):
        shutil.copy("model.pth", name)
    Path("killer.py").write_text(KILLER)
    return project


def lines(text):
    found = [json.loads(line) for line in text.splitlines()]
    assert len({line["source"] for line in found}) == len(found)
    return {line["source"]: line for line in found}


def task(source, *arguments, output=None, resume=False, wait=False):
    """What `batch` tells the process of a checkpoint."""
    told = [*CHECKPOINT, *arguments]
    return {"source": source, "output": output, "arguments": told, "resume": resume, "wait": wait}


def test_whatever_ends_one_process_the_others_are_converted(folder):
    Path("bad.pth").write_text("no checkpoint")
    own = [
        {"source": "b.pth", "model": "killer.py:Killed"},
        {"source": "c.pth", "model": "killer.py:Leaves"},
        {"source": "model.pth", "model": "nets.py:factory", "input-shape": [1, 3, 5, 5]},
    ]
    Path("list").write_text("# some\n\nbad.pth\n" + "\n".join(map(json.dumps, own)) + "\n")
    result = run("batch", "a.pth", "--list", "list", "-j", "2", "-o", "out", *OTHERS)
    assert result.exit_code == 8
    told = lines(result.stdout)
    codes = {"a.pth": 0, "b.pth": 8, "c.pth": 8, "bad.pth": 3, "model.pth": 0}
    assert {name: line["exit"] for name, line in told.items()} == codes
    assert "signal 9" in told["b.pth"]["error"]
    assert "3" in told["c.pth"]["error"]
    assert told["a.pth"]["verified"] is True
    assert told["a.pth"]["blocks"] == 2
    assert told["a.pth"]["peak_bytes"] > 0
    for name in ("a", "model"):
        (output,) = told[f"{name}.pth"]["outputs"]
        assert output["bytes"] == Path("out", output["file"]).stat().st_size
    assert sorted(p.name for p in Path("out").glob("[!.]*")) == [
        "a.fused.acfuse.json", "a.fused.pth", "model.fused.acfuse.json", "model.fused.pth",
    ]  # fmt: skip
    shape = json.loads(Path("out/model.fused.acfuse.json").read_text())["inputs"]["shapes"]
    assert shape == [[None, [1, 3, 5, 5]]]
    assert result.stderr.splitlines()[-1] == "2 converted, 0 skipped, 3 failed"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes_and_leaves_nothing(folder, number, code):
    before = snapshot(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "acfuse", "batch", "a.pth", *OTHERS, "--model", "killer.py:Waits"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(batch_task.__file__).parents[2])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not Path("waits").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=HANG)
    assert (process.returncode, out) == (code, "")
    Path("waits").unlink()
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["nothing to convert"]),
        (("a.pth", "a.pth"), ["a.pth", "both write"]),
        (("a.pth", "sub/a.safetensors", "-o", "out"), ["sub/a.safetensors", "both write"]),
        (("a.pth", "a.pth.index.json"), ["a.pth.index.json", "both write"]),
        (("s3://x/a.pth", "gs://y/a.bin", "-o", "s3://z"), ["gs://y/a.bin", "both write"]),
    ],
)
def test_what_would_be_written_twice_is_refused_before_anything_starts(folder, arguments, words):
    before = snapshot(folder)
    refused(run("batch", *arguments), 2, *words)
    assert snapshot(folder) == before


def test_what_is_called_alike_in_two_folders_is_no_clash():
    names = ["a.pth", "b/a.pth", "b.pth", "s3://x/a.pth", "s3://y/a.pth"]
    assert len({result_name(name, None) for name in names}) == len(names)
    assert len({result_name(name, "out") for name in names}) == 2


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b'{"source": "a.pth", "modle": "x"}', 2, ["list:2", "modle"]),
        (b'{"source": "a.pth", "output": "x"}', 2, ["list:2", "output"]),
        (b'{"source": "a.pth", "samples": 0}', 2, ["list:2", "samples"]),
        (b'{"source": "a.pth", "input-shape": "1,x"}', 2, ["list:2", "input-shape"]),
        (b'{"source": "a.pth"', 3, ["list:2", "not JSON"]),
        (b'{"source": 3}', 3, ["list:2", "no checkpoint"]),
        (b"{}", 3, ["list:2", "no checkpoint"]),
        (b'{"a":' * 100_000, 3, ["list:2"]),
        (b"a\x1b[31m.pth", 3, ["list:2", "\\x1b"]),
        (b"\xff\xfe", 3, ["list", "cannot be read"]),
    ],
    ids=range(10),
)
def test_a_list_is_hostile_until_it_is_checked(folder, line, code, words):
    Path("list").write_bytes(b"b.pth\n" + line + b"\n")
    before = snapshot(folder)
    refused(run("batch", "--list", "list"), code, *words)
    assert snapshot(folder) == before


def test_a_list_that_is_not_there_is_named(folder):
    refused(run("batch", "--list", "nothing"), 3, "nothing", "cannot be read")


# --------------------------------------------------------------------------------- resume


def test_what_a_manifest_proves_is_skipped(folder):
    assert batch_task.run_task(task("a.pth"))["skipped"] is False
    before = snapshot(folder)
    again = batch_task.run_task(task("a.pth", resume=True))
    assert (again["exit"], again["skipped"], again["verified"]) == (0, True, True)
    assert snapshot(folder) == before
    without = batch_task.run_task(task("a.pth"))
    assert (without["exit"], "exists" in without["error"]) == (6, True)


def touched_source():
    change(Path("a.pth"), lambda tensors: tensors["head.bias"].add_(1))


def touched_output():
    Path("a.fused.pth").write_bytes(b"cut")


def missing_output():
    Path("a.fused.pth").unlink()


def other_version():
    path = Path("a.fused.acfuse.json")
    path.write_text(path.read_text().replace('"acfuse": "', '"acfuse": "0.0.'))


def other_code():
    with Path("nets.py").open("a") as file:
        file.write("# changed\n")


CHANGES = [touched_source, touched_output, missing_output, other_version, other_code]


@pytest.mark.parametrize("alter", CHANGES)
def test_what_has_changed_is_converted_again(folder, alter):
    batch_task.run_task(task("a.pth"))
    alter()
    again = batch_task.run_task(task("a.pth", resume=True))
    assert (again["exit"], again["skipped"]) == (0, False)
    assert batch_task.run_task(task("a.pth", resume=True))["skipped"] is True


@pytest.mark.parametrize(
    "other",
    [("--seed", "5"), ("--fold-bn",), ("--atol", "1"), ("--samples", "2"),
     ("--limit", "levels=60"), ("--model-args", '{"outputs": 2}')],
    ids=lambda other: other[0],
)  # fmt: skip
def test_what_was_asked_otherwise_is_converted_again(folder, other):
    batch_task.run_task(task("a.pth"))
    again = batch_task.run_task(task("a.pth", *other, resume=True))
    assert (again["exit"], again["skipped"]) == (0, False)


def test_a_file_that_no_manifest_names_is_never_replaced(folder):
    Path("a.fused.pth").write_bytes(b"of somebody")
    line = batch_task.run_task(task("a.pth", resume=True))
    assert (line["exit"], Path("a.fused.pth").read_bytes()) == (6, b"of somebody")
    Path("a.fused.acfuse.json").write_text("{}")
    assert batch_task.run_task(task("a.pth", resume=True))["exit"] == 6
    assert batch_task.run_task(task("a.pth", "--force", resume=True))["exit"] == 0


# ------------------------------------------------------------------------------ elsewhere


@pytest.fixture
def memory():
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_a_checkpoint_comes_from_a_url_and_goes_to_another(folder, memory):
    memory.pipe("/in/a.pth", Path("a.pth").read_bytes())
    before = snapshot(folder)
    there = task("memory://in/a.pth", output="memory://out")
    line = batch_task.run_task(there)
    assert (line["exit"], line["skipped"]) == (0, False)
    assert sorted(memory.ls("/out", detail=False)) == [
        "/out/a.fused.acfuse.json", "/out/a.fused.pth"]  # fmt: skip
    manifest = json.loads(memory.cat("/out/a.fused.acfuse.json"))
    assert manifest["source"]["file"] == "a.pth"
    assert "exists" in batch_task.run_task(there)["error"]
    assert batch_task.run_task({**there, "resume": True})["skipped"] is True
    memory.pipe("/out/a.fused.pth", b"cut")
    assert batch_task.run_task({**there, "resume": True})["skipped"] is False
    assert memory.cat("/out/a.fused.pth") != b"cut"
    assert snapshot(folder) == before


def test_a_url_may_stand_on_one_side_alone(folder, memory):
    Path("out").mkdir()
    memory.pipe("/in/a.pth", Path("a.pth").read_bytes())
    first = task("memory://in/a.pth", output="out")
    assert batch_task.run_task(first)["exit"] == 0
    assert batch_task.run_task({**first, "resume": True})["skipped"] is True
    assert batch_task.run_task(first)["exit"] == 6
    assert batch_task.run_task(task("b.pth", output="memory://out"))["exit"] == 0
    assert memory.exists("/out/b.fused.pth")
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.fused.acfuse.json", "a.fused.pth"]


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("memory://in/none.pth", 3, ["does not exist"]),
        ("file:///etc/passwd", 2, ["s3://"]),
        ("zip://a::memory://in/a.zip", 2, ["s3://"]),
        ("ssh://host/a.pth", 2, ["s3://"]),
    ],
)
def test_a_url_that_cannot_be_read_is_named(folder, memory, url, code, words):
    line = batch_task.run_task(task(url, output="memory://out"))
    assert line["exit"] == code
    for word in (url, *words):
        assert word in line["error"]
    assert not memory.exists("/out")


def test_a_file_elsewhere_is_not_read_beyond_the_limit(folder, memory):
    memory.pipe("/in/a.pth", Path("a.pth").read_bytes())
    line = batch_task.run_task(task("memory://in/a.pth", "--limit", "bytes=1000"))
    assert line["exit"] == 4


# ------------------------------------------------------------------------- codes and memory


@pytest.mark.parametrize(
    ("codes", "of_all"),
    [([], 0), ([0, 0], 0), ([0, 5], 5), ([2, 5], 2), ([3, 6, 4], 4), ([8, 7], 7), ([1, 7], 1),
     ([0, 99], 8)],
)  # fmt: skip
def test_a_batch_ends_with_the_worst(codes, of_all):
    assert worst(codes) == of_all


def test_what_does_not_fit_beside_others_waits(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4000000 kB\n")
    monkeypatch.setattr(free_memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "CONTAINER", tmp_path)
    most = free_memory.free_memory()
    assert most == 4_096_000_000
    small, large = memory_of(10**6), memory_of(5 * 10**8)
    assert _fits(small, [small], most)
    assert not _fits(large, [small], most)
    assert not _fits(small, [small] * 9, most)
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    assert free_memory.free_memory() == 100_000_000
    assert not _fits(small, [], most)
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory.free_memory() == most
