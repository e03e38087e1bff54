"""A program of torch.export (.pt2), read without torch.export.load: that may unpickle and evaluate.

Its graph and the description of its tensors are JSON, its tensors plain bytes. Nothing else of the
archive is looked at: no pickled constant, no sample input, no guard (which is Python code).
Source: torch/export/pt2_archive and torch/_export/serde/schema.py, version 8.
"""

import math
import zipfile
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.errors import InputError, UnsafeError
from acfuse.files.opened_file import Opened
from acfuse.files.pt2_graph import graph_of, scalar_type
from acfuse.files.zip_check import check_zip, unzipped
from acfuse.system.escape import one_line
from acfuse.system.limits import Limits, parsed_json

SCHEMA = 8
EXPORT_AGAIN = "Export the model again with this version of torch"


def read_exported(source: Opened, limits: Limits) -> tuple[nn.Module, tuple[str, ...]]:
    """The program as a module whose forward is its graph, in functions of torch.

    With what a user should know of the file.

    Raises UnsafeError for one that holds pickled objects, InputError for what cannot be read.
    """
    notes = check_zip(source, limits)
    try:
        with unzipped(source) as archive:
            return _Archive(archive, source.name, limits).module(), notes
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError,
            RecursionError, OSError) as error:  # fmt: skip
        why = one_line(error)
        raise InputError(f"{source.name} is no program that acfuse can read: {why}.") from error


class _Archive:
    """The records of a .pt2 file, by name without the folder that all are in."""

    def __init__(self, archive: zipfile.ZipFile, name: str, limits: Limits) -> None:
        self.archive, self.name, self.limits = archive, name, limits
        self.records = {i.filename.partition("/")[2]: i for i in archive.infolist()}

    def module(self) -> nn.Module:
        models = [n for n in self.records if n.startswith("models/") and n.endswith(".json")]
        if len(models) != 1:
            raise InputError(f"{self.name} holds {len(models)} programs; expected one.")
        program = self._json(models[0])
        version = program["schema_version"]["major"]
        if version != SCHEMA:
            raise InputError(f"{self.name} has schema {version}, not {SCHEMA}. {EXPORT_AGAIN}.")
        label = models[0].removeprefix("models/").removesuffix(".json")
        tensors: dict[str, Tensor] = {}
        for folder in ("weights", "constants"):
            tensors |= self._tensors(f"data/{folder}/", f"model_{folder}_config.json", label)
        return graph_of(program["graph_module"], tensors, self.name)

    def _json(self, record: str) -> Any:
        return parsed_json(self._bytes(record), self.name, self.limits)

    def _bytes(self, record: str) -> bytes:
        info = self.records[record]
        if info.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{self.name}: {record} is compressed. {EXPORT_AGAIN}.")
        return self.archive.read(info)

    def _tensors(self, folder: str, config: str, label: str) -> dict[str, Tensor]:
        described = self._json(folder + config.replace("model_", f"{label}_", 1))["config"]
        read: dict[str, bytearray] = {}
        tensors = {}
        for key, payload in described.items():
            if payload["use_pickle"] or payload["tensor_meta"] is None:
                raise UnsafeError(
                    f"{self.name}: {key} is a pickled object, and reading it would run what it "
                    "says. Export the model without it."
                )
            record = folder + payload["path_name"]
            if record not in read:
                read[record] = bytearray(self._bytes(record))
            tensors[key] = _tensor(read[record], payload["tensor_meta"])
        return tensors


def _tensor(data: bytearray, described: Any) -> Tensor:
    """A tensor of its bytes. Raises RuntimeError or ValueError where they do not suffice."""
    dtype = scalar_type(described["dtype"])
    size, stride = ([n["as_int"] for n in described[k]] for k in ("sizes", "strides"))
    offset = described["storage_offset"]["as_int"]
    if math.prod(size) * dtype.itemsize > len(data):
        raise ValueError(f"a tensor of {size} has {len(data)} bytes")
    if not data:
        return torch.empty(size, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).as_strided(size, stride, offset)
