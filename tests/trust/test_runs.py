"""Two runs at one output, and what a run that died has left."""

import os
import signal
import stat
from pathlib import Path

import pytest

from acfuse.errors import OutputError
from acfuse.system.atomic_write import reserved, write_all


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def outputs(folder: Path) -> list[Path]:
    return [folder / name for name in ("m.fused.pth", "m.fused.onnx", "m.fused.acfuse.json")]


def in_child(work) -> int:
    """Runs something in a process of its own; how that ended, as os.waitpid says it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except OutputError as error:
            os.write(2, str(error).encode())
            os._exit(6)
        except BaseException:
            os._exit(99)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_second_run_is_told_who_writes(tmp_path, capfd):
    def second() -> None:
        with reserved(outputs(tmp_path), [], force=True):
            pass

    with reserved(outputs(tmp_path), [], force=False):
        assert os.waitstatus_to_exitcode(in_child(second)) == 6
        assert f"process {os.getpid()}" in capfd.readouterr().err
    assert os.waitstatus_to_exitcode(in_child(second)) == 0
    assert names(tmp_path) == set()


def test_every_file_of_a_conversion_has_the_same_lock(tmp_path):
    for path in outputs(tmp_path):
        with (
            reserved(outputs(tmp_path), [], force=False),
            pytest.raises(OutputError, match="another run"),
            reserved([path], [], force=False),
        ):
            pass


def test_other_outputs_are_free(tmp_path):
    with (
        reserved(outputs(tmp_path), [], force=False),
        reserved([tmp_path / "other.pth", tmp_path / "other.acfuse.json"], [], force=False),
    ):
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == set()


@pytest.mark.parametrize("exists", [False, True])
def test_a_run_that_is_killed_leaves_nothing_for_the_next(tmp_path, exists):
    if exists:
        write_all(dict.fromkeys(outputs(tmp_path), b"old"))

    def die(file) -> None:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def first() -> None:
        with reserved(outputs(tmp_path), [], force=True):
            write_all({outputs(tmp_path)[0]: b"whole", outputs(tmp_path)[1]: die})

    assert os.WTERMSIG(in_child(first)) == signal.SIGKILL
    assert any(name.endswith(".partial") for name in names(tmp_path))
    kept = {path.name: path.read_bytes() for path in outputs(tmp_path) if path.exists()}
    assert kept == ({path.name: b"old" for path in outputs(tmp_path)} if exists else {})
    with reserved(outputs(tmp_path), [], force=True):
        write_all(dict.fromkeys(outputs(tmp_path), b"new"))
    assert names(tmp_path) == {path.name for path in outputs(tmp_path)}


def test_what_belongs_to_another_output_is_left_alone(tmp_path):
    (tmp_path / ".other.pth.0123456789abcdef.partial").touch()
    with reserved(outputs(tmp_path), [], force=True):
        pass
    assert names(tmp_path) == {".other.pth.0123456789abcdef.partial"}


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_something_else_at_the_place_of_the_lock(tmp_path, kind):
    lock, victim = tmp_path / ".m.fused.acfuse.lock", tmp_path / "victim"
    victim.write_text("precious")
    make = {"link": lambda: lock.symlink_to(victim), "fifo": lambda: os.mkfifo(lock),
            "directory": lock.mkdir}  # fmt: skip
    make[kind]()
    with pytest.raises(OutputError, match="lock"), reserved(outputs(tmp_path), [], force=True):
        pass
    assert victim.read_text() == "precious"


def test_a_disk_without_room_is_said_before_anything_is_read(tmp_path, monkeypatch):
    source = tmp_path / "m.pth"
    source.write_bytes(bytes(4000))
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    with (
        pytest.raises(OutputError, match=r"at least 1,000 bytes are needed, 999 are free"),
        reserved(outputs(tmp_path), [source], force=False),
    ):
        pass


class Usage:
    """A disk that is nearly full."""

    free = 999


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    path = tmp_path / "m.pth"
    path.touch()
    path.chmod(0o640)
    write_all({path: b"new"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
