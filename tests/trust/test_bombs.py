"""Files that would cost far more than their size are refused before anything is built."""

import io
import pickle
import struct
import tempfile
import time
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from acfuse.errors import InputError, UnsafeError
from acfuse.files.read import read_tensors
from acfuse.system.limits import LIMITS
from tests.trust import bombs, fuzzing
from tests.trust.bombs import BOMBS
from tests.trust.forked import LIMIT, Server
from tests.trust.rows import Row

SECONDS = 60
QUICK = 2.0  # seconds of the processor in which a bomb has to be refused
ROOM = 600 * 2**20  # bytes of memory beyond the file, Python and torch included
# Files that are large in numbers and small in cost: read, and found to hold nothing to fuse.
FINE = {"one_storage_many_times", "many_records", "empty_but_large", "huge_sparse_initializer",
        "huge_pool", *(name for name in BOMBS if name.startswith("huge "))}  # fmt: skip


def measure(forks: Server, scale: float) -> Row:
    """Asks acfuse about every bomb."""
    faults: list[str] = []
    slowest = largest = 0.0
    longest = QUICK if scale == 1 else LIMIT  # beside other tests all work is slower
    chosen = list(BOMBS)[:: max(round(1 / scale), 1)]
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            args = BOMBS[name](Path(folder))
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            ended = forks.run(*args, folder=Path(folder))
        codes = (5,) if name in FINE else (2, 3, 4, 5)
        slowest = max(slowest, ended.seconds)
        largest = max(largest, ended.peak - size)
        wrong = (
            f"exit {ended.exit}" if ended.exit not in codes or not ended.is_clean
            else f"{ended.seconds:.1f} s" if ended.seconds >= longest
            else f"{ended.peak >> 20} MB" if ended.peak > size + ROOM
            else ""
        )  # fmt: skip
        if wrong:
            faults.append(f"{name}: {wrong}")
    return Row(
        "bombs (deflated records, stride-0, billion laughs, deep protobuf, huge initialisers, ...)",
        "refused in under 2 s, resident memory at most 600 MB over the file's size",
        f"{len(chosen)} kinds: at most {slowest:.1f} s once torch is imported, and "
        f"{largest / 2**20:,.0f} MB with it"
        + (f"; {len(faults)} fall short ({', '.join(faults[:5])})" if faults else ""),
        not faults,
    )


def test_bombs_cost_little(forks):
    row = measure(forks, 0.2)
    assert row.holds, row.measured


def parts(folder: Path) -> dict[str, bytes]:
    return bombs.records(folder)


def zipped(folder: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    return bombs.zipped(folder / "bad.pth", records, compression)


def pickled(folder: Path, operations: bytes) -> Path:
    return bombs.pickled(folder / "bad.pth", operations)


def refused(path: Path, kind: type[Exception], *words: str) -> None:
    """Asserts that a file is refused, with little work."""
    before = time.process_time()
    with pytest.raises(kind) as error:
        read_tensors(path)
    assert time.process_time() - before < LIMIT
    for word in words:
        assert word in str(error.value)


def test_the_records_as_they_are_can_be_read(tmp_path):
    _, tensors = read_tensors(zipped(tmp_path, parts(tmp_path)))
    assert tensors["a"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_deflated_record(tmp_path):
    records = {**parts(tmp_path), "good/data/0": bytes(2**26)}
    path = zipped(tmp_path, records, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    refused(path, UnsafeError, "is compressed")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil", "no plain path"),
        ("/etc/evil", "no plain path"),
        ("good/../../evil", "no plain path"),
        ("good\\evil", "no plain path"),
        ("good/DATA.pkl", "stands twice"),
    ],
)
def test_a_record_by_another_name(tmp_path, name, words):
    refused(zipped(tmp_path, {**parts(tmp_path), name: b"x"}), UnsafeError, words)


def test_a_record_twice(tmp_path):
    records = parts(tmp_path)
    path = zipped(tmp_path, records)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("good/data.pkl", records["good/data.pkl"])
    refused(path, UnsafeError, "stands twice")


def test_bytes_in_front_between_and_behind(tmp_path):
    path = zipped(tmp_path, parts(tmp_path))
    good = path.read_bytes()
    path.write_bytes(good + b"tail")
    refused(path, InputError, "does not end")
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"two bytes more"
    refused(path, InputError)
    path.write_bytes(b"PK\x03\x04" + good)
    refused(path, (InputError, UnsafeError))
    place = good.index(b"PK\x01\x02")  # between the last record and the directory
    end = bytearray(good[place:])
    end[-6:-2] = struct.pack("<L", place + 4)
    path.write_bytes(good[:place] + b"evil" + bytes(end))
    refused(path, UnsafeError, "no record names")


def test_two_headers_that_disagree(tmp_path):
    path = zipped(tmp_path, parts(tmp_path))
    data = bytearray(path.read_bytes())
    place = data.index(b"good/data/0")
    data[place : place + 11] = b"good/data/9"
    path.write_bytes(data)
    refused(path, (InputError, UnsafeError))


def test_an_encrypted_record(tmp_path):
    path = zipped(tmp_path, parts(tmp_path))
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(data)
    refused(path, UnsafeError, "is encrypted")


def test_a_storage_that_says_it_is_larger_than_its_record(tmp_path):
    records = parts(tmp_path)
    data = records["good/data.pkl"]
    assert data.count(b"K\x06") == 2  # its numbers in the storage, and in the tensor's shape
    changed = data.replace(b"K\x06", b"K\x08", 1)
    path = zipped(tmp_path, {**records, "good/data.pkl": changed})
    refused(path, InputError, "should have 32 bytes, and has 24")


def test_a_tensor_that_is_one_number_repeated(tmp_path):
    torch.save({"a": torch.zeros(1).expand(2**20, 2**20)}, tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", UnsafeError, "(1048576, 1048576)", "contiguous()")


def test_a_tensor_without_numbers(tmp_path):
    torch.save({"a": torch.empty(2**20, 2**20, device="meta")}, tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", InputError, "a is not a dense tensor")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_billion_laughs_of_lists(tmp_path, legacy):
    value = torch.zeros(1)
    for _ in range(60):
        value = [value, value]
    whole = {"state_dict": {"a": torch.zeros(2)}, "laughs": value}
    torch.save(whole, tmp_path / "fine.pth", _use_new_zipfile_serialization=not legacy)
    _, tensors = read_tensors(tmp_path / "fine.pth")  # shared parts are looked at once
    assert list(tensors) == ["a"]


def test_a_billion_laughs_of_dicts(tmp_path):
    whole = {"a": torch.zeros(2)}
    for _ in range(3):
        whole = {f"entry{n}": whole for n in range(1000)}
    torch.save(whole, tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", Exception)


def test_a_billion_laughs_of_tuples_as_a_key(tmp_path):
    laughs = b")" + b"q\x00h\x00\x86" * 60
    refused(pickled(tmp_path, b"}" + laughs + b"K\x01s"), UnsafeError, "without end")


def test_containers_too_deep(tmp_path):
    refused(pickled(tmp_path, b"]" * 1000 + b"a" * 999), UnsafeError, "levels")


def test_a_pickle_of_too_many_operations(tmp_path, monkeypatch):
    refused(pickled(tmp_path, b"N" * LIMITS.operations), UnsafeError, "operations")


@pytest.mark.parametrize(
    "operations",
    [
        b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
        b"X\x00\x00\x01\x00" + b"x" * 2**16 + b"q\x00"
        + (b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00utf-32\x86R") * 5000,
    ],
    ids=["bytearray", "encode"],
)  # fmt: skip
def test_calls_that_allocate(tmp_path, operations):
    refused(pickled(tmp_path, operations), UnsafeError, "large values")


def test_a_tensor_class_that_is_called(tmp_path):
    call = b"}X\x01\x00\x00\x00actorch\nTensor\nJ\x00\x00\x10\x00M\x00\x10\x86Rs"
    refused(pickled(tmp_path, call), UnsafeError, "more memory")


def test_a_legacy_file_that_claims_more_than_it_holds(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(OrderedDict(a=torch.ones(200)), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    read_tensors(path)
    claim = b"K\xc8"
    assert claim in data
    path.write_bytes(data.replace(claim, b"J\xff\xff\xff\x7f", 1))
    refused(path, InputError, "8,589,934,588")


def test_what_is_followed_is_what_torch_writes(tmp_path):
    """Whatever torch.save may write of plain values goes through."""
    whole = {
        "state_dict": OrderedDict(a=torch.ones(3), b=torch.nn.Parameter(torch.ones(2))),
        "epoch": 3, "lr": 0.1, "name": "x" * 300, "big": 2**70, "none": None,
        "flags": (True, False),
        "shape": torch.Size([1, 2]), "dtype": torch.float16, "device": torch.device("cpu"),
        "bytes": b"abc", "set": {1, 2}, "complex": 1j, "list": list(range(2000)),
    }  # fmt: skip
    for zipped_ in (True, False):
        torch.save(whole, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped_)
        _, tensors = read_tensors(tmp_path / "whole.pth")
        assert list(tensors) == ["a", "b"]


def test_a_pickle_alone_is_no_checkpoint(tmp_path):
    buffer = io.BytesIO()
    pickle.dump({"a": 1}, buffer, protocol=2)
    (tmp_path / "plain.pth").write_bytes(buffer.getvalue())
    refused(tmp_path / "plain.pth", InputError, "no file of torch.save")


def test_a_file_without_checksums_is_read_and_said_to_have_none(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(6.0)}, tmp_path / "bare.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    container, tensors = read_tensors(tmp_path / "bare.pth")
    assert tensors["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert any("no checksums" in note for note in container.notes)
    torch.save({"a": torch.arange(6.0)}, tmp_path / "usual.pth")
    assert not read_tensors(tmp_path / "usual.pth")[0].notes


def test_a_directory_of_any_size(tmp_path):
    path = zipped(tmp_path, parts(tmp_path))
    data = bytearray(path.read_bytes())
    data[-10:-6] = struct.pack("<L", 2**27)
    path.write_bytes(data)
    refused(path, UnsafeError, "directory of 134,217,728 bytes")
    data[-12:-10] = b"\xff\xff"
    path.write_bytes(data)
    refused(path, UnsafeError)


@pytest.mark.parametrize(
    ("place", "changed"), [(-20 - 22 + 8, 8), (-20 - 22 - 56 + 40, 8), (-10, 4), (-12, 2), (-6, 4)]
)
def test_two_ends_of_a_directory(tmp_path, place, changed):
    parts(tmp_path)  # torch writes both the long end and the short one
    path = tmp_path / "good.pth"
    data = bytearray(path.read_bytes())
    assert data[-42:-38] == b"PK\x06\x07"
    assert data[-98:-94] == b"PK\x06\x06"
    number = int.from_bytes(data[place : place + changed], "little")
    data[place : place + changed] = (number ^ 3).to_bytes(changed, "little")
    path.write_bytes(data)
    refused(path, UnsafeError, "two ends")


def test_a_sparse_tensor_that_points_outside_of_itself(tmp_path):
    """Torch believes its indices unless it is told not to, and reads whatever stands there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fine = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (2,))
        whole = {"state_dict": {"a": torch.ones(1)}, "other": fine}
        torch.save(whole, tmp_path / "fine.pth")
        _, tensors = read_tensors(tmp_path / "fine.pth")
        assert list(tensors) == ["a"]
        indices, values = torch.tensor([[0, 2**40]]), torch.ones(2)
        wrong = torch.sparse_coo_tensor(indices, values, (2,), check_invariants=False)
        torch.save({**whole, "other": wrong}, tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", InputError, "torch cannot read it")


@pytest.mark.parametrize("code", [b"\x8d", b"\x8e", b"\x96"], ids=["text", "bytes", "bytearray"])
@pytest.mark.parametrize("head", [b"\x80\x04", fuzzing.HEAD + b"\x80\x04"], ids=["plain", "legacy"])
def test_a_length_beyond_the_file(tmp_path, head, code):
    """Python makes room for what it is asked to read before it reads."""
    (tmp_path / "it.pth").write_bytes(head + code + (2**45).to_bytes(8, "little") + b"aaaa")
    refused(tmp_path / "it.pth", InputError, "damaged or cut off")
