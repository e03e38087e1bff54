"""Writing files: whole or not at all, in order, with the usual mode, and never through a link."""

import errno
import io
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from acfuse.errors import BusyError, OutputError
from acfuse.system import atomic_write, signals
from acfuse.system.atomic_write import check_outputs, reserved, write_all

NAMES = ("one", "two", "three")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def contents(folder):
    return {folder / name: f"the new {name}".encode() for name in NAMES}


def old_files(folder):
    for name in NAMES:
        (folder / name).write_bytes(f"the old {name}".encode())
    return tree(folder)


def tree(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def failing(call, code=errno.ENOSPC, real=lambda *_: None):
    """A function that fails at its n-th call."""
    calls = []

    def function(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **settings)

    return function


def test_all_files_are_written(folder, contents):
    write_all(contents)
    assert tree(folder) == {path.name: data for path, data in contents.items()}


def test_files_that_were_there_are_replaced(folder, contents):
    old_files(folder)
    write_all(contents)
    assert tree(folder) == {path.name: data for path, data in contents.items()}


def test_files_may_be_empty_large_and_in_several_folders(folder):
    (folder / "more").mkdir()
    contents = {folder / "empty": b"", folder / "more" / "large": os.urandom(2**20)}
    write_all(contents)
    assert all(path.read_bytes() == data for path, data in contents.items())


def test_nothing_is_an_easy_thing_to_write():
    write_all({})


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize(("module", "function"), [(os, "fsync"), (io, "FileIO")])
@pytest.mark.parametrize("old", [True, False])
def test_a_failing_write_leaves_what_was_there(
    folder, contents, monkeypatch, module, function, call, old
):
    before = old_files(folder) if old else {}
    monkeypatch.setattr(module, function, failing(call, real=getattr(module, function)))
    with pytest.raises(OutputError, match="Nothing was written"):
        write_all(contents)
    assert tree(folder) == before


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_place_that_cannot_be_made_leaves_what_was_there(folder, contents, monkeypatch, call):
    before = old_files(folder)
    monkeypatch.setattr(os, "open", failing(call, errno.EACCES, os.open))
    with pytest.raises(OutputError, match="cannot be written to"):
        write_all(contents)
    assert tree(folder) == before


def test_the_first_rename_failing_leaves_what_was_there(folder, contents, monkeypatch):
    before = old_files(folder)
    monkeypatch.setattr(os, "replace", failing(1, errno.EACCES, os.replace))
    monkeypatch.setattr(os, "rename", failing(1, errno.EACCES, os.rename))
    with pytest.raises(OutputError):
        write_all(contents)
    assert tree(folder) == before


def test_a_later_rename_failing_leaves_what_was_there(folder, contents):
    before = old_files(folder)
    (folder / "two").unlink()
    (folder / "two").mkdir()
    with pytest.raises(OutputError):
        write_all(contents)
    for name in ("one", "three"):
        assert (folder / name).read_bytes() == before[name]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interruption_leaves_what_was_there(folder, contents, monkeypatch, interruption, call):
    calls = []

    def interrupt(_):
        calls.append(1)
        if len(calls) == call:
            raise interruption

    before = old_files(folder)
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(interruption):
        write_all(contents)
    assert tree(folder) == before


def test_files_appear_in_the_order_given_and_only_when_all_are_written(
    folder, contents, monkeypatch
):
    appeared, replace = [], os.replace

    def watch(source, target, **settings):
        names = {p.name for p in folder.iterdir()}
        assert len([n for n in names if n.endswith(".partial")]) == len(NAMES) - len(appeared)
        replace(source, target, **settings)
        appeared.append(Path(target).name)

    monkeypatch.setattr(os, "replace", watch)
    write_all(contents)
    assert appeared == list(NAMES)


def test_every_byte_is_on_the_disk_before_the_first_rename(folder, contents, monkeypatch):
    steps, sync, replace = [], os.fsync, os.replace

    def synced(number):
        steps.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        sync(number)

    def renamed(source, target, **settings):
        steps.append("rename")
        replace(source, target, **settings)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_all(contents)
    assert steps == ["file"] * 3 + ["rename"] * 3 + ["folder"]


def test_a_folder_that_cannot_be_synced_is_no_failure(folder, contents, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(4, errno.EINVAL, os.fsync))
    write_all(contents)
    assert set(tree(folder)) == set(NAMES)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_a_file_system_without_hard_links_is_good_enough(folder, contents, monkeypatch, code):
    old_files(folder)
    monkeypatch.setattr(os, "link", lambda *_, **__: failing(1, code)())
    write_all(contents)
    assert tree(folder) == {path.name: data for path, data in contents.items()}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(folder, contents, mask, mode):
    before = os.umask(mask)
    try:
        write_all(contents)
        assert os.umask(mask) == mask  # and the umask is as it was
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in contents} == {mode}


@pytest.mark.parametrize("target", ["victim", "nothing"])
def test_a_link_at_the_target_is_replaced_and_not_followed(folder, tmp_path, target):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / "one").symlink_to(tmp_path / target)
    write_all({folder / "one": b"new"})
    assert not (folder / "one").is_symlink()
    assert (folder / "one").read_bytes() == b"new"
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_a_hard_link_at_the_target_is_replaced_and_not_written_through(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.link(victim, folder / "one")
    write_all({folder / "one": b"new"})
    assert victim.read_text() == "precious"


def test_a_full_disk_says_how_much_is_needed(folder, contents, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(1))
    needed = sum(map(len, contents.values()))
    with pytest.raises(OutputError, match=f"{needed} bytes are needed, [0-9,]+ are free"):
        write_all(contents)


# ------------------------------------------------------------------------------ beforehand


def test_nothing_is_wrong_with_new_files_in_a_folder(folder, contents):
    check_outputs(list(contents), [folder / "input"], force=False)


def test_files_that_exist_need_force(folder, contents):
    old_files(folder)
    with pytest.raises(OutputError, match="one exists; give --force"):
        check_outputs(list(contents), [], force=False)
    check_outputs(list(contents), [], force=True)


def test_a_link_to_nothing_is_no_file_yet(folder):
    (folder / "one").symlink_to(folder / "nothing")
    check_outputs([folder / "one"], [], force=False)


@pytest.mark.parametrize("force", [True, False])
def test_the_input_is_never_an_output(folder, force):
    (folder / "one").touch()
    (folder / "link").symlink_to("one")
    for path in (folder / "one", folder / "link", folder / ".." / "out" / "one"):
        with pytest.raises(OutputError, match="is the input itself"):
            check_outputs([path], [folder / "one"], force=force)


@pytest.mark.parametrize("force", [True, False])
def test_only_files_are_replaced(folder, force):
    (folder / "one").mkdir()
    os.mkfifo(folder / "two")
    (folder / "three").symlink_to(folder)
    for name in NAMES:
        with pytest.raises(OutputError, match="not a regular file"):
            check_outputs([folder / name], [], force=force)


def test_the_folder_must_exist_and_be_one(folder):
    (folder / "file").touch()
    for parent in ("nothing", "file"):
        with pytest.raises(OutputError, match="is not a directory"):
            check_outputs([folder / parent / "one"], [], force=True)


def test_an_error_of_a_write_is_told_although_torch_hides_it(folder):
    path = folder / "a.pth"
    path.write_bytes(b"before")

    def hides(file):
        try:
            file.write(b"x")
            file.flush()
            os.close(file.fileno())  # every later write fails
            file.write(bytes(2**20))
        except OSError:
            raise RuntimeError("unexpected pos") from None

    with pytest.raises(OutputError, match="Bad file descriptor"):
        write_all({path: hides})
    assert tree(folder) == {"a.pth": b"before"}


def test_what_is_written_is_the_same_on_every_system(folder, monkeypatch):
    """Where files have ends of lines that are changed, they are asked not to be."""
    given, opened = os.O_CLOEXEC, os.open
    asked = []
    monkeypatch.setattr(atomic_write, "BINARY", given)
    monkeypatch.setattr(os, "open", lambda *args: asked.append(args[1]) or opened(*args))
    write_all({folder / "a": b"one\ntwo\n"})
    assert [flags & given for flags in asked if flags & os.O_CREAT] == [given]


@pytest.fixture
def without_fcntl(monkeypatch):
    """As on Windows, but that the library takes this system's own locks."""
    monkeypatch.setattr(atomic_write, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.delattr(atomic_write, "fcntl")


HOLDER = """
import sys, types
from pathlib import Path
from acfuse.system import atomic_write
atomic_write.sys = types.SimpleNamespace(platform="win32")
del atomic_write.fcntl
with atomic_write.reserved([Path(sys.argv[1])], [], force=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(folder):
    """Another process that writes `net.pth`."""
    line = [sys.executable, "-c", HOLDER, str(folder / "net.pth")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("end", ["killed", "done"])
def test_without_fcntl_a_second_run_is_refused_until_the_first_ends(
    folder, without_fcntl, holder, end
):
    with (
        pytest.raises(BusyError, match=r"^another run is writing these files now \(.*net.*lock\)"),
        reserved([folder / "net.onnx"], [], force=True),
    ):
        pass
    with reserved([folder / "other.pth"], [], force=True):
        pass
    if end == "killed":
        holder.kill()
    else:
        holder.stdin.close()
    holder.wait()
    with reserved([folder / "net.onnx"], [], force=True):
        write_all({folder / "net.onnx": b"whole"})
    assert (folder / "net.onnx").read_bytes() == b"whole"


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_without_fcntl_only_a_file_is_taken_for_the_lock(folder, without_fcntl, kind):
    lock, victim = folder / ".net.acfuse.lock", folder / "victim"
    victim.write_text("precious")
    lock.mkdir() if kind == "directory" else lock.symlink_to(victim)
    with (
        pytest.raises(OutputError, match=r"net.*lock cannot be locked: .*; give another --output"),
        reserved([folder / "net.pth"], [], force=True),
    ):
        pass
    assert victim.read_text() == "precious"


def test_a_system_whose_pipes_cannot_be_waited_for_has_signals_of_its_own(monkeypatch):
    monkeypatch.setattr(signals, "sys", SimpleNamespace(platform="win32"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with signals.handle_signals():
            assert signal.getsignal(signal.SIGTERM) != before
            assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, before)
