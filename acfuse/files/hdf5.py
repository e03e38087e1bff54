"""HDF5, as the code of ACNet's authors writes it: every tensor a dataset by its name.

Source: github.com/DingXiaoH/ACNet, save_hdf5 and read_hdf5 of its utils. Read without what would
lead elsewhere: links, external data, and filters, which the library loads as plugins.
"""

import io
from collections.abc import Mapping
from typing import IO, Any

import numpy
import torch
from torch import Tensor

from acfuse.errors import InputError, UnsafeError, UsageError
from acfuse.files.opened_file import Opened
from acfuse.system.escape import one_line
from acfuse.system.limits import Limits


def read_hdf5(source: Opened, limits: Limits) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The attributes and the tensors of a file.

    Raises InputError, UnsafeError; UsageError where the extra is not installed.
    """
    h5py = _library(source.name)
    try:
        with h5py.File(source.place, "r") as file:
            limits.check("tensors", len(file), source.name)
            tensors = {name: _tensor(file, name, source.name) for name in file}
            for name in file.attrs:
                if h5py.check_ref_dtype(file.attrs.get_id(name).dtype) is not None:
                    raise InputError(f"{source.name}: its attribute {name!r} is a reference.")
            return dict(file.attrs), tensors
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{source.name} is a damaged HDF5 file: {one_line(error)}.") from error


def _library(name: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UsageError(
            f"{name} is an HDF5 file, and h5py is not installed. Install it with "
            "`pip install 'acfuse[hdf5]'`."
        ) from error
    return h5py


def _tensor(file: Any, name: str, source: str) -> Tensor:
    h5py = _library(source)
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise UnsafeError(f"{source}: {name} is a link to somewhere else.")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{source}: {name} is a group; expected one dataset for each tensor.")
    if found.external or found.is_virtual:
        raise UnsafeError(f"{source}: {name} has its numbers in another file.")
    if found.id.get_create_plist().get_nfilters():
        raise InputError(f"{source}: {name} is compressed. Save it without a filter.")
    if found.dtype.kind not in "fiub":
        raise InputError(f"{source}: {name} holds {found.dtype}; expected real numbers.")
    if found.id.get_storage_size() != found.nbytes:
        raise InputError(f"{source}: {name} is not stored in full.")
    array = numpy.asarray(found[()])
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))


def write_hdf5(
    file: IO[bytes], tensors: Mapping[str, Tensor], attributes: Mapping[str, Any]
) -> None:
    """Writes each tensor as a dataset of its name, as the authors' code reads it."""
    h5py = _library("the result")
    buffer = io.BytesIO()  # the library reads what it writes, which not every file allows
    with h5py.File(buffer, "w") as out:
        out.attrs.update(attributes)
        for name, tensor in tensors.items():
            out.create_dataset(name, data=tensor.detach().numpy())
    file.write(buffer.getbuffer())
