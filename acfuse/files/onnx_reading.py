"""An ONNX file, with the tensors that it keeps in files beside itself."""

from pathlib import Path

import onnx

from acfuse.errors import AcfuseError, InputError, UnsafeError
from acfuse.files.onnx_cost import all_graphs, check_bytes, check_functions
from acfuse.files.opened_file import FileState, opened
from acfuse.files.records import DEFAULTS, ReadOptions
from acfuse.system.escape import one_line
from acfuse.system.limits import Limits

LARGEST_PROTOBUF = 2**31 - 1  # bytes


def read_onnx(
    path: Path, options: ReadOptions = DEFAULTS
) -> tuple[onnx.ModelProto, dict[Path, FileState]]:
    """An ONNX file with its tensors, and each file that was read, as it was.

    Raises InputError for a file that cannot be used.
    """
    try:
        with opened(path, options.limits, options.sha256) as file, file.open() as raw:
            data = raw.read(LARGEST_PROTOBUF + 1)  # of more, the library says that it is none
        check_bytes(data, path.name, options.limits)
        model = onnx.load_model_from_string(data)
        check_functions(model, path.name, options.limits)
        files = {path: file.state, **_load_external(model, path, options.limits)}
    except AcfuseError:
        raise
    except Exception as error:
        why = one_line(error, 200)
        raise InputError(f"{path.name} is no ONNX file that can be read: {why}.") from error
    if not model.graph.node:
        raise InputError(f"{path.name} holds no graph: it is empty, or no ONNX file.")
    return model, files


def _load_external(model: onnx.ModelProto, path: Path, limits: Limits) -> dict[Path, FileState]:
    """Reads the tensors that are kept in files beside the ONNX file; those, as they were.

    Raises UnsafeError for tensors that are not in a plain file of its own folder.
    """
    kept: dict[Path, list[tuple[onnx.TensorProto, int, int]]] = {}
    stored = (t for graph in all_graphs(model.graph) for t in graph.initializer)
    for tensor in stored:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        name = said.get("location", "")
        file = path.parent / name
        if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise UnsafeError(f"{path.name} names {name!r}, which is no file of its own folder.")
        if file.is_symlink() or not file.is_file() or file.stat().st_nlink != 1:
            raise UnsafeError(
                f"{path.name} keeps {tensor.name} in {name!r}, which is missing, or a link."
            )
        offset, length = (int(said.get(key) or 0) for key in ("offset", "length"))
        if "length" not in said:
            length = file.stat().st_size - offset
        if offset < 0 or length < 0 or offset + length > file.stat().st_size:
            raise InputError(f"{path.name}: {name!r} is too short for {tensor.name}.")
        kept.setdefault(file, []).append((tensor, offset, length))
    files: dict[Path, FileState] = {}
    for place, tensors in kept.items():
        if sum(length for _, _, length in tensors) > place.stat().st_size:
            raise UnsafeError(
                f"{path.name} reads parts of {place.name!r} more than once: it would take more "
                "memory than the file has bytes. Export it again."
            )
        with opened(place, limits) as beside, beside.open() as raw:
            files[place] = beside.state
            for tensor, offset, length in tensors:
                raw.seek(offset)
                tensor.raw_data = raw.read(length)
                del tensor.external_data[:]
                tensor.data_location = onnx.TensorProto.DEFAULT
    return files
