"""The header of a safetensors file has one meaning, and no more tensors than the file has bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from acfuse.errors import InputError, UnsafeError
from acfuse.files.read import read_tensors
from acfuse.files.safetensors import LARGEST_HEADER


def entry(begin: int, end: int, shape: Any = (1,), dtype: Any = "F32", **more: Any) -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def written(folder: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "it.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_a_plain_file_is_read_in_the_order_of_its_header(tmp_path):
    header = {"b": entry(4, 8), "a": entry(0, 4), "none": entry(4, 4, [0, 3])}
    _, tensors = read_tensors(written(tmp_path, header, bytes(8)))
    assert list(tensors) == ["b", "a", "none"]
    assert tensors["none"].shape == (0, 3)


def pair(name: str, begin: int, end: int) -> str:
    return f"{json.dumps(name)}: {json.dumps(entry(begin, end))}"


def test_a_name_that_stands_twice(tmp_path):
    header = f"{{{pair('a', 0, 4)}, {pair('a', 0, 4)}}}".encode()
    path = written(tmp_path, header, bytes(4))
    assert list(load_file(path)) == ["a"]  # the library sees one of them
    with pytest.raises(UnsafeError, match="'a' stands twice"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12),
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6),
        ({"a": entry(4, 8)}, 8),
        ({"a": entry(0, 4)}, 5),
        ({"a": entry(0, 4)}, 3),
        ({"a": entry(0, 4, [2])}, 4),
        ({"a": entry(4, 0)}, 4),
        ({"a": entry(0, 4, [-1, -1])}, 4),
        ({"a": entry(0, 4, [1.0])}, 4),
        ({"a": entry(0, 4, [True])}, 4),
        ({"a": entry(0, 4, "1")}, 4),
        ({"a": entry(0, 0, [0, 2**63, 4])}, 0),
        ({"a": entry(0, 0, [2**32, 2**32, 0])}, 0),
        ({"a": entry(0, 4, [1] * 65)}, 4),
        ({"a": entry(0, 4, dtype="F33")}, 4),
        ({"a": entry(0, 8, dtype="C64")}, 8),
        ({"a": entry(0, 4, dtype=["F32"])}, 4),
        ({"a": entry(0, 4, extra=1)}, 4),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4),
        ({"a": 1}, 4),
        ({"__metadata__": {"a": 1}, "a": entry(0, 4)}, 4),
        ({"__metadata__": [], "a": entry(0, 4)}, 4),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 0),
        (b'{"a": NaN}', 0),
        (b'{"a": 1', 0),
        (b"{}}", 0),
        (b'{"\xff": 1}', 0),
        (b'{"a": ' + b"9" * 5000 + b"}", 0),
    ],
    ids=range(29),
)
def test_a_header_that_contradicts_itself(tmp_path, header, data):
    with pytest.raises(InputError, match=r"it\.safetensors"):
        read_tensors(written(tmp_path, header, bytes(data)))


def test_a_header_of_any_length(tmp_path):
    path = tmp_path / "it.safetensors"
    with path.open("wb") as file:
        file.write((LARGEST_HEADER + 1).to_bytes(8, "little") + b"{")
        file.truncate(LARGEST_HEADER + 100)
    with pytest.raises(UnsafeError, match="header of"):
        read_tensors(path)
